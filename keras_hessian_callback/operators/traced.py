"""The one graph of an operator: blocks of products of a loss, traced once."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch, spread_out
from keras_hessian_callback.errors import OUT_OF_MEMORY
from keras_hessian_callback.execution import run
from keras_hessian_callback.linalg import machine_epsilon
from keras_hessian_callback.objective import Objective
from keras_hessian_callback.operators.autodiff import autodiff_products
from keras_hessian_callback.operators.finite_difference import finite_difference_products
from keras_hessian_callback.operators.portions import Portions
from keras_hessian_callback.replicas import devices_of, workers_of
from keras_hessian_callback.second_order import (
    SecondDerivativeError,
    check_first_derivatives,
    check_second_derivatives,
    custom_gradients,
    exact_derivatives,
    is_lower_precision,
    operations,
)

NUM_EXAMPLES = 4  # of the checks of derivatives
_PRODUCTS = {"autodiff": autodiff_products, "finite_difference": finite_difference_products}

# Operations that write state which a StatelessScope does not shield.
_WRITES = (
    "Assign",
    "ResourceApply",
    "ResourceScatter",
    "ResourceStridedSliceAssign",
    "LookupTableImport",
    "LookupTableInsert",
    "LookupTableRemove",
    "Rng",
    "StatefulRandom",
    "StatefulStandardNormal",
    "StatefulTruncatedNormal",
    "StatefulUniform",
)


class TracedProducts:
    """Loss, masses and products of any number of vectors, on batches of any size.

    Args:
        objective: The loss.
        example: A batch, whose number of examples is left open unless the model needs it.
        products: `"autodiff"` or `"finite_difference"`.

    Attributes:
        concrete: The graph, from `arguments` to loss, masses and products.
        gradient: (n,), a tensor in the graph of autodiff; None with finite differences. It is no
            result: products do not take it, so to run the graph leaves its last step out.

    Raises:
        SecondDerivativeError: If TensorFlow drops or lacks a second derivative.
        ValueError: If the loss cannot be computed, or writes variables of its own.
    """

    def __init__(self, objective: Objective, example: Batch, products: str) -> None:
        self.objective = objective
        self.products = products
        self._example = example
        weights = objective.weights()
        self.num_parameters = sum(math.prod(weight.shape) for weight in weights)
        self.dtype = np.result_type(np.float32, *(w.dtype.as_numpy_dtype for w in weights))
        try:
            self.concrete = self._trace(weights, any_size=True)
            self.any_size = True
        except (ValueError, TypeError, tf.errors.OpError) as error:
            if isinstance(error, SecondDerivativeError):
                raise
            self.concrete = self._trace(weights, any_size=False)
            self.any_size = False
        check_first_derivatives(self.concrete.graph)
        if products == "autodiff":
            check_second_derivatives(self.concrete.graph)
        if custom_gradients(self.concrete.graph):  # tf.recompute_grad is one
            self._check_gradient()
        self.portions = Portions(
            self.in_one_piece,
            tolerance=self.tolerance,
            devices=devices_of(objective.model),
            workers=workers_of(objective.model),
            divisible=self.any_size and not objective.training,
        )
        self._check_dependence()
        writes = [name for name, kind in self.operations() if kind.startswith(_WRITES)]
        if writes:
            raise ValueError(
                f"Computing the loss writes variables of its own ({', '.join(writes[:3])}), so "
                "measuring would change the run. Keep such state in keras variables "
                "(`add_weight`, keras.random.SeedGenerator), which the measurement shields, or "
                "leave it alone where `training` is False."
            )

    def _check_gradient(self) -> None:
        if any(is_lower_precision(variable.dtype) for variable in self.objective.variables):
            return
        few = spread_out(self._example, NUM_EXAMPLES) if self.any_size else self._example
        with exact_derivatives(self.objective.layers()):
            try:
                gradients = self.objective.gradients_both_ways(few)
            except OUT_OF_MEMORY:
                raise
            except (ValueError, tf.errors.OpError):  # as of a loss that takes more than a few
                gradients = self.objective.gradients_both_ways(self._example)
        self.objective.check_gradient(*gradients)

    def _check_dependence(self) -> None:
        """Raises where the loss reads trainable variables past the weights that it is given."""
        captured = {id(tensor) for tensor in self.concrete.captured_inputs}
        for variable in self.objective.variables:
            if id(variable.value.handle) in captured:
                raise ValueError(
                    f"The loss reads the variable {variable.path!r} itself, where it should get a "
                    "value in its place, as code that reads the underlying tf.Variable does: its "
                    "derivatives would be missed. Leave that out for the measurement."
                )

    @property
    def tolerance(self) -> float:
        """Relative difference of two products that their own errors explain."""
        epsilon = machine_epsilon(self.objective.dtypes())
        error = 1e3 * epsilon if self.products == "autodiff" else 10.0 * epsilon ** (1 / 3)
        return min(max(error, 1e-6), 0.3)

    def operations(self) -> list[tuple[str, str]]:
        """Name and type of every operation of the graph."""
        return operations(self.concrete.graph)

    def __call__(
        self, weights: Sequence[tf.Tensor], batch: Batch, vectors: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Loss, masses, and products (k, n) with vectors (k, n), at these weights.

        In portions, where memory runs out or there are several replicas.
        """
        return self.portions(weights, batch, vectors)

    def in_one_piece(
        self, weights: Sequence[tf.Tensor], batch: Batch, vectors: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The same on all examples and vectors at once, on one device."""
        return tuple(run(self.concrete, self.arguments(weights, batch, vectors)))

    def arguments(
        self, weights: Sequence[tf.Tensor], batch: Batch, vectors: tf.Tensor
    ) -> list[tf.Tensor]:
        """What the graph takes: the weights, the arrays of the batch, and the vectors."""
        return [*weights, *_leaves(batch), vectors]

    def _trace(self, weights: Sequence[tf.Tensor], *, any_size: bool) -> Any:
        first = len(weights)
        signature = [tf.TensorSpec(weight.shape, weight.dtype) for weight in weights]
        for leaf in _leaves(self._example):
            size = None if any_size else leaf.shape[0]
            signature.append(tf.TensorSpec([size, *leaf.shape[1:]], leaf.dtype))
        vectors = tf.TensorSpec([None, self.num_parameters], tf.as_dtype(self.dtype))

        def block(*arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
            batch = _with_leaves(self._example, arguments[first:-1])
            loss, masses, products, *rest = _PRODUCTS[self.products](
                self.objective, list(arguments[:first]), batch, arguments[-1]
            )
            self.gradient = rest[0] if rest else None
            return loss, masses, products

        function = tf.function(block, autograph=False, input_signature=[*signature, vectors])
        # The model's own summaries are not to be written once more.
        with exact_derivatives(self.objective.layers()), tf.summary.record_if(False):
            return function.get_concrete_function()


def _leaves(batch: Batch) -> list[tf.Tensor]:
    return [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]


def _with_leaves(example: Batch, leaves: Sequence[tf.Tensor]) -> Batch:
    """A batch of the structure of `example` with other arrays in it."""
    remaining = iter(leaves)
    flat = [None if leaf is None else next(remaining) for leaf in tf.nest.flatten(example)]
    return tf.nest.pack_sequence_as(example, flat)
