"""A pool of held-out examples, of which each measurement draws those that carry curvature."""

import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_hessian_callback.data import Batch, HeldOutData
from keras_hessian_callback.linalg import Seed, uniforms


@dataclass(frozen=True)
class Importance:
    """A pool made by `importance`, with how many examples to draw from it and how."""

    pool: HeldOutData
    num_examples: int
    floor: float

    def micro_batches(self, batch_size: int | None) -> list[Batch]:
        """As many examples as are drawn, the first of the pool, with equal weights."""
        size = min(batch_size or self.num_examples, self.num_examples)
        starts = range(0, self.num_examples, size)
        parts = [slice(start, min(start + size, self.num_examples)) for start in starts]
        return [self.pool.examples(part, np.ones(part.stop - part.start)) for part in parts]

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """The probability of each example: in proportion to its score, over a floor.

        Args:
            scores: (pool,), not negative. Where some are not finite, these are drawn: the
                curvature is not finite then, which is not to be missed.

        Returns:
            (pool,), of sum 1 and at least floor / pool.
        """
        if not np.isfinite(scores).all():
            scores = ~np.isfinite(scores)
        total = float(scores.sum())
        if not total > 0.0:  # nothing to tell them apart
            return np.full(len(scores), 1.0 / len(scores))
        return self.floor / len(scores) + (1.0 - self.floor) * scores / total

    def draw(self, probabilities: np.ndarray, seed: Seed) -> tuple[np.ndarray, np.ndarray]:
        """Examples drawn independently, with replacement.

        Args:
            probabilities: (pool,).
            seed: Int, or a pair (seed, step): the draw is a function of it.

        Returns:
            The places in the pool (num_examples,), and the factor 1 / (pool x probability) that
            makes a mean over them unbiased for that over the pool.
        """
        ends = np.cumsum(probabilities)
        places = np.searchsorted(ends, uniforms(self.num_examples, seed) * ends[-1], side="right")
        places = np.minimum(places, len(ends) - 1)
        return places, 1.0 / (len(ends) * probabilities[places])


def importance(data: Any, num_examples: int = 256, *, floor: float = 0.1) -> Importance:
    """A pool of held-out examples, of which each measurement draws those that carry curvature.

    Pass it as the `data` of `HessianNormCallback`, `measure_curvature`,
    `hessian_frobenius_norm` or `HessianOperator`. At every measurement one pass over the pool
    gives each example i the probability

        p_i = floor / N + (1 - floor) s_i / sum_j s_j,

    s_i the trace of the second derivative of its loss by the model's output (the logits, where
    the model ends in softmax or sigmoid): 0 for a class that is predicted with certainty, and
    the same for all examples with a squared error. `num_examples` are drawn independently, and
    the loss of each is multiplied by 1 / (N p_i), on top of its sample weight. The mean Hessian
    over all draws is then that of the pool, exactly, regularizers included.

    Measured with a pool of 1,000 digits and a network of 1,482 weights (benchmarks/README.md):
    256 draws find the pool's norm within 2.6 % after 15 epochs, uniform draws within 7.8 %, so
    that 9 times as many would be needed; after 6 epochs within 2.7 and 4.1 %. In the first 3
    epochs, while no example is fitted, there is no gain, or a loss; with squared errors there is
    never any.

    What is drawn is no less a sample: the square of `frobenius_norm` is on average that of the
    pool plus the variance of the draw, E||H_S - H||_F^2, which the choice makes smaller but not
    zero. With `batch_size` set, the micro-batches are independent draws, and the square of
    `population_frobenius_norm` is unbiased for that of the *pool*. The 95 % intervals are those
    of the probes: they leave the draw out.

    Args:
        data: The pool: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset` of such batches,
            or a `keras.utils.PyDataset`. Read once, here, into memory.
        num_examples: Int of at least 1 and less than the pool has: how many are drawn; an
            example may come twice.
        floor: Float in (0, 1]: the share of the draws that is spread evenly, which keeps every
            weight below 1 / floor. 1.0: uniform draws.

    Returns:
        What stands for `data`. `report.num_examples` is the number drawn, `report.pool_size`
        that of the pool.

    Raises:
        TypeError, ValueError: If an argument is not accepted.

    Cost: At each measurement a forward pass of the pool, 4 micro-batches at a time (4 times
    `num_examples` where `batch_size` is None), with 16 second derivatives of the loss by the
    output alone: little beside 20 products on a large network, half of them on a tiny one. At
    the start a second trace of the model and 8 products on two micro-batches, which check that
    the loss is a mean over examples, each multiplied by its weight. Refused, since nothing there
    makes the draw unbiased: activity regularizers and other `add_loss` that depend on the
    inputs, the reduction "mean_with_sample_weight" and sums, `training=True`, `loss_fn`.

    Example:

        >>> import keras, numpy as np
        >>> from keras_hessian_callback import importance, measure_curvature
        >>> x = np.random.default_rng(0).normal(size=(1000, 8)).astype("float32")
        >>> y = (x.sum(axis=1) > 0).astype("int32")
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile("adam", loss)
        >>> report = measure_curvature(model, importance((x, y), num_examples=200))
        >>> report.num_examples, report.pool_size
        (200, 1000)

    References:
        Katharopoulos and Fleuret, "Not all samples are created equal" (2018), arXiv:1803.00942,
        who draw by the gradient at the output, for training.
    """
    pool = HeldOutData(data)
    if isinstance(num_examples, bool) or not isinstance(num_examples, numbers.Integral):
        raise TypeError(f"`num_examples` must be an integer; got num_examples={num_examples!r}.")
    if num_examples < 1:
        raise ValueError(f"`num_examples` must be at least 1; got num_examples={num_examples}.")
    if num_examples >= pool.num_examples:
        raise ValueError(
            f"`num_examples` must be less than the {pool.num_examples} examples of the pool; got "
            f"num_examples={num_examples}. Pass the pool itself as `data`: at that cost nothing "
            "need be drawn."
        )
    if isinstance(floor, bool) or not isinstance(floor, numbers.Real):
        raise TypeError(f"`floor` must be a float in (0, 1], such as 0.1; got floor={floor!r}.")
    if not 0.0 < floor <= 1.0:
        raise ValueError(
            "`floor` must lie in (0, 1], such as 0.1: the share of the draws that is spread evenly "
            f"(at 0 an example might never be drawn); got floor={floor}."
        )
    return Importance(pool, int(num_examples), float(floor))


def held_out(data: Any) -> HeldOutData | Importance:
    """The data in memory, read unless they are already."""
    return data if isinstance(data, HeldOutData | Importance) else HeldOutData(data)


def check_drawn(data: HeldOutData | Importance, *, training: bool, loss_fn: Any) -> None:
    """Raises where examples drawn by importance would not give the Hessian of the pool."""
    if not isinstance(data, Importance):
        return
    if training:
        raise ValueError(
            "training=True does not go with `importance`: batch normalisation by the statistics "
            "of drawn examples is not that of the pool. Use training=False, or pass the examples "
            "themselves as `data`."
        )
    if loss_fn is not None:
        raise ValueError(
            "`loss_fn` does not go with `importance`: the probabilities come from the loss's "
            "derivatives by the model's output, which a `loss_fn` does not show. Compile the model "
            "with this loss, or override its `compute_loss`; or pass the examples as `data`."
        )
