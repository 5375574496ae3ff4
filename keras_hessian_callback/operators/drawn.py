"""Micro-batches drawn from a pool by importance, and the checks that they stand for it."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch, concatenate
from keras_hessian_callback.linalg import Seed
from keras_hessian_callback.operators.output_curvature import output_curvature
from keras_hessian_callback.operators.portions import check_vector
from keras_hessian_callback.operators.traced import TracedProducts
from keras_hessian_callback.pool import Importance
from keras_hessian_callback.second_order import exact_derivatives

_LOOK = 4  # micro-batches of the pool at a time: a forward pass keeps no activations


class Draws:
    """Draws the micro-batches of an operator from a pool, at the weights of the moment.

    Args:
        traced: Products of the loss.
        data: The pool.
        batch_size: Examples per micro-batch; None: all that are drawn.

    Raises:
        ValueError: If draws would not be unbiased for the pool, with the reason.
    """

    def __init__(self, traced: TracedProducts, data: Importance, batch_size: int | None) -> None:
        if not traced.any_size:
            raise ValueError(
                "The model takes batches of one size only, so `importance` cannot look at its "
                "pool. Leave the batch size open (keras.Input(shape)), or pass the examples "
                "themselves as `data`."
            )
        self._traced, self._data = traced, data
        self._size = min(batch_size or data.num_examples, data.num_examples)
        self._look = self._trace()
        _check_weighted(traced, *_ends_of(data, self._size))

    def batches(self, seed: Seed) -> tuple[list[Batch], list[float]]:
        """The micro-batches of one draw, and the share of each in their mean."""
        pool, count = self._data.pool, self._data.num_examples
        looks = _parts(pool.num_examples, _LOOK * self._size)
        seen = [self._look_at(places) for places in looks]
        scores = np.concatenate([part[0] for part in seen])
        masses = np.stack([part[1] for part in seen]).sum(axis=0) / pool.num_examples
        places, factors = self._data.draw(self._data.probabilities(scores), seed)
        batches, shares = [], []
        for part in _parts(count, self._size):
            factor = factors[part]
            if np.abs(masses - 1.0).max() > 1e-9:  # a mask: not divided by their number
                factor = factor * self._correction(places[part], masses)
            batches.append(pool.examples(places[part], factor))
            shares.append(len(factor) / count)
        return batches, shares

    def _correction(self, places: np.ndarray, masses: np.ndarray) -> float:
        """What the loss of these examples was divided by, over what it should be divided by.

        Args:
            places: Of a micro-batch in the pool.
            masses: Of an average example of the pool, for each output.
        """
        valid = masses > 0.0
        if not valid.any():
            return 1.0
        ratios = self._look_at(places)[1][valid] / (len(places) * masses[valid])
        if np.ptp(ratios) > 1e-9:
            raise ValueError(
                "The outputs of the model are masked differently from each other, so the examples "
                "of `importance` cannot be weighted for all of them at once. Pass the examples "
                "themselves as `data`."
            )
        return float(ratios[0])

    def _look_at(self, places: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Scores and masses of examples of the pool."""
        batch = self._data.pool.examples(places)
        scores, masses = self._look(self._traced.objective.weights(), batch)
        return scores.numpy(), masses.numpy()

    def _trace(self) -> tf.types.experimental.PolymorphicFunction:
        objective = self._traced.objective
        weights, batch = objective.weights(), self._data.pool.examples(slice(0, self._size))

        def spec(leaf: tf.Tensor | None) -> tf.TensorSpec | None:
            return None if leaf is None else tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype)

        specs = [tf.TensorSpec(weight.shape, weight.dtype) for weight in weights]
        specs = [specs, tf.nest.map_structure(spec, batch)]
        function = tf.function(
            lambda weights, batch: output_curvature(objective, weights, batch), autograph=False
        )
        with exact_derivatives(objective.layers()), tf.summary.record_if(False):
            return function.get_concrete_function(*specs)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _ends_of(data: Importance, size: int) -> tuple[Batch, Batch]:
    """The first and the last examples of the pool, with weights that tell them apart."""
    number = data.pool.num_examples
    weights = np.linspace(0.5, 1.5, size)
    first = data.pool.examples(slice(0, size), weights)
    return first, data.pool.examples(slice(number - size, number), weights[::-1])


def _check_weighted(traced: TracedProducts, first: Batch, last: Batch) -> None:
    """Raises where the loss is not R + mean_i w_i l_i, R without examples and w their importance.

    A product must not depend on examples of weight 0, be linear in the weights, and the product
    with two batches together be the mean of those with each.
    """
    weights = traced.objective.weights()
    reason = _what_is_not_weighted(traced, weights, first, last)
    if reason is not None:
        # Where examples are fitted, next to nothing but rounding is left; with smaller weights not.
        smaller = [0.3 * weight for weight in weights]
        reason = _what_is_not_weighted(traced, smaller, first, last)
    if reason is not None:
        raise ValueError(
            f"Examples drawn by `importance` would not give the Hessian of the pool: {reason} "
            "Or pass the examples themselves as `data`."
        )


def _what_is_not_weighted(
    traced: TracedProducts, weights: Sequence[tf.Tensor], first: Batch, last: Batch
) -> str | None:
    vector = check_vector(weights)
    masses = []

    def product(batch: Batch) -> np.ndarray:
        _, mass, products = traced(weights, batch, vector)
        masses.append(float(tf.reduce_sum(mass)))
        return products.numpy()[0]

    def without(batch: Batch) -> Batch:
        return batch._replace(importance=tf.zeros_like(batch.importance))

    def squared(batch: Batch) -> Batch:
        return batch._replace(importance=tf.square(batch.importance))

    def both(batch: Batch) -> Batch:
        return batch._replace(importance=batch.importance + tf.square(batch.importance))

    one, other, together = product(first), product(last), product(concatenate(first, last))
    share = np.array(masses[:2]) / max(sum(masses[:2]), np.finfo(float).tiny)
    rest, rest_of_other = product(without(first)), product(without(last))
    linear = product(both(first)) - product(squared(first)) - one + rest
    scale = max(np.linalg.norm(part) for part in (one, other, together, rest))
    tolerance = traced.tolerance * scale
    if np.linalg.norm(rest - rest_of_other) > tolerance:
        return (
            "a part of the loss depends on the examples and is not multiplied by their weights, as "
            "an activity regularizer, an `add_loss` of the inputs, or a `compute_loss` that leaves "
            "out `sample_weight`. Do without it here."
        )
    if np.linalg.norm(linear) > tolerance:
        return (
            "the loss is not linear in the sample weights, as one that is divided by their sum. "
            "Use the reduction 'sum_over_batch_size'."
        )
    if np.linalg.norm(together - share[0] * one - share[1] * other) > tolerance:
        return (
            "the loss of two batches together is not the mean of theirs, as of one that sums up or "
            "compares examples. Use the reduction 'sum_over_batch_size'."
        )
    return None
