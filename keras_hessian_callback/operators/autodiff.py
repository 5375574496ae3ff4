"""Blocks of Hessian-vector products by reverse over reverse differentiation."""

import tensorflow as tf

from keras_hessian_callback.data import Batch
from keras_hessian_callback.linalg import map_rows, pack, unpack
from keras_hessian_callback.objective import Objective, dense


def autodiff_products(
    objective: Objective, batch: Batch, vectors: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss, masses, and H v for each v: exact up to rounding.

    The gradient is recorded once; its transposed derivative is applied to one vector after
    another, two at a time. To be traced inside a `tf.function`.

    Args:
        objective: The loss.
        batch: The examples.
        vectors: (k, n), a vector a row.

    Returns:
        The loss, its masses, and the products (k, n).
    """
    weights = objective.weights()
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(weights)
        loss, masses, gradient = objective.gradient(weights, batch)

    def product(vector: tf.Tensor) -> tf.Tensor:
        cotangents = unpack(vector, weights)
        try:
            products = tape.gradient(gradient, weights, output_gradients=cotangents)
        except (LookupError, NotImplementedError, TypeError) as error:
            raise ValueError(
                f"TensorFlow cannot differentiate the gradient of this model: {error}. Use "
                "products='finite_difference'."
            ) from error
        return pack(dense(products, weights), vectors.dtype)

    return loss, masses, map_rows(product, vectors)
