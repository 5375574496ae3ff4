"""Blocks of Hessian-vector products by reverse over reverse differentiation."""

from collections.abc import Sequence

import tensorflow as tf

from keras_hessian_callback.data import Batch
from keras_hessian_callback.linalg import map_rows, pack
from keras_hessian_callback.objective import Objective, dense
from keras_hessian_callback.second_order import SecondDerivativeError


def autodiff_products(
    objective: Objective, weights: Sequence[tf.Tensor], batch: Batch, vectors: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss, masses, H v for each v, exact up to rounding, and the gradient.

    The gradient is recorded once; its transposed derivative is applied to one vector after
    another, two at a time. To be traced inside a `tf.function`.

    Args:
        objective: The loss.
        weights: One tensor per trainable variable.
        batch: The examples.
        vectors: (k, n), a vector a row.

    Returns:
        The loss, its masses, the products (k, n), and the gradient (n,).
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(weights)
        loss, masses, gradient = objective.gradient(weights, batch)

    def product(vector: list[tf.Tensor]) -> list[tf.Tensor]:
        cotangents = [tf.cast(v, weight.dtype) for v, weight in zip(vector, weights, strict=True)]
        try:
            products = tape.gradient(gradient, weights, output_gradients=cotangents)
        except (LookupError, NotImplementedError, TypeError) as error:
            raise SecondDerivativeError(
                f"TensorFlow cannot differentiate the gradient of this model: {error}."
            ) from error
        return dense(products, weights)

    products = map_rows(product, vectors, weights)
    return loss, masses, products, pack(gradient, vectors.dtype)
