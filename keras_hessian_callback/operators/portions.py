"""Products on a batch in portions: on every replica, and as many as fit into memory."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch, concatenate, cut, size_of, spread_out
from keras_hessian_callback.errors import OUT_OF_MEMORY
from keras_hessian_callback.linalg import add_scaled, probes
from keras_hessian_callback.replicas import Workers

Weights = Sequence[tf.Tensor]
Parts = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
# Loss, masses and products (n, k), of weights, a batch and vectors (n, k).
Compute = Callable[[Weights, Batch, tf.Tensor], Parts]

_FEW = 8  # examples that tell whether portions may be averaged


class Portions:
    """Products with the Hessian of a batch, as the mean of those of its portions.

    Where memory runs out, the portions of examples and of vectors are halved, once and for
    all, until they fit. A loss that is no mean over examples is never cut.

    Args:
        compute: Products on a batch in one piece.
        tolerance: Relative difference of two products that rounding explains.
        devices: Names of the devices that portions are spread over; none: where TensorFlow runs.
        workers: The processes that portions are shared with, each of which asks for the same
            products; None: this one alone.
        divisible: Whether `compute` takes batches of any size, and their examples one by one.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        tolerance: float,
        devices: Sequence[str],
        workers: Workers | None,
        divisible: bool,
    ) -> None:
        self._compute, self._tolerance = compute, tolerance
        self._devices, self._workers = devices, workers
        self._divisible: bool | None = None if divisible else False  # None: not yet looked at
        self.examples: int | None = None  # at a time, on a device; None: all
        self._vectors: int | None = None

    def __call__(self, weights: Weights, batch: Batch, vectors: tf.Tensor) -> Parts:
        """Loss, masses, and products (n, k) with vectors (n, k), at these weights.

        Raises:
            tf.errors.ResourceExhaustedError: If one vector and one example do not fit, or
                examples cannot be parted.
        """
        while True:
            try:
                return self._in_portions(weights, batch, vectors)
            except OUT_OF_MEMORY:
                if not self._halve(weights, batch, vectors):
                    raise

    def _in_portions(self, weights: Weights, batch: Batch, vectors: tf.Tensor) -> Parts:
        blocks = [vectors]
        if self._vectors is not None and vectors.shape[1] > self._vectors:
            starts = range(0, vectors.shape[1], self._vectors)
            blocks = [vectors[:, start : start + self._vectors] for start in starts]
        done = [self._on_all_devices(weights, batch, block) for block in blocks]
        products = done[0][2] if len(done) == 1 else tf.concat([part[2] for part in done], axis=1)
        return done[0][0], done[0][1], products

    def _on_all_devices(self, weights: Weights, batch: Batch, vectors: tf.Tensor) -> Parts:
        size = size_of(batch)
        count = -(-size // min(self.examples or size, size))
        count = max(count, min(size, self._places))
        if self._workers is not None and size < self._workers.count:
            count = 1
        if count > 1 and not self._can_be_parted(weights, batch):
            count = 1
        if count == 1:
            return self._compute(weights, batch, vectors)
        bounds = np.linspace(0, size, count + 1).round().astype(int).tolist()
        portions = [cut(batch, *ends) for ends in itertools.pairwise(bounds)]
        if self._workers is None:
            return _mean(self._spread_out(weights, portions, vectors))
        mine = portions[self._workers.index :: self._workers.count]
        return _mean(self._spread_out(weights, mine, vectors), self._workers)

    def _spread_out(
        self, weights: Weights, portions: Sequence[Batch], vectors: tf.Tensor
    ) -> list[Parts]:
        """The products with each portion, by all devices of this process."""
        if not self._devices:
            return [self._compute(weights, portion, vectors) for portion in portions]

        def on_device(index: int) -> list[Parts]:
            with tf.device(self._devices[index]):
                mine = portions[index :: len(self._devices)]
                return [self._compute(weights, portion, vectors) for portion in mine]

        with ThreadPoolExecutor(len(self._devices)) as pool:
            done = list(pool.map(on_device, range(min(len(portions), len(self._devices)))))
        return [part for parts in done for part in parts]

    def at_a_time(self, size: int) -> int:
        """How many of so many examples a device computes on at a time."""
        places = 1 if self._divisible is False else self._places
        return min(self.examples or size, -(-size // places))

    @property
    def _places(self) -> int:
        """Devices of all workers."""
        return max(1, len(self._devices)) * (self._workers.count if self._workers else 1)

    def _halve(self, weights: Weights, batch: Batch, vectors: tf.Tensor) -> bool:
        """Halves what is computed at a time; False: no less is possible.

        Workers would have to agree on it: with them nothing is halved.
        """
        if self._workers is not None:
            return False
        size, width = size_of(batch), vectors.shape[1]
        fewer = self.at_a_time(size) > 1 and self._can_be_parted(weights, batch)
        columns = min(self._vectors or width, width)
        goes_on = []
        if fewer:
            self.examples = -(-self.at_a_time(size) // 2)
            goes_on.append(f"{self.examples} examples")
        if columns > 1:  # of one vector nothing is learned about blocks
            self._vectors = -(-columns // 2)
            goes_on.append(f"{self._vectors} vectors")
        if goes_on:
            warnings.warn(
                f"Memory ran out on {size} examples and {width} vectors: the products go on with "
                f"{' and '.join(goes_on)} at a time. A smaller `batch_size` takes less from the "
                "start.",
                stacklevel=2,
            )
        return bool(goes_on)

    def _can_be_parted(self, weights: Weights, batch: Batch) -> bool:
        """Whether the Hessian of a batch is the mean of its portions', found on a few examples."""
        if self._divisible is not None:
            return self._divisible
        count = min(_FEW, max(2, size_of(batch) // 2))
        while True:
            try:
                found = self._is_mean_of_two(weights, spread_out(batch, count))
                break
            except OUT_OF_MEMORY:
                if count <= 2 or self._workers is not None:
                    raise
                count //= 2
        if found is None:  # to be looked at again, when the loss is finite
            return True
        if self._workers is not None:  # by rounding they may have found different things
            agreed = self._workers.sum(tf.constant(float(found)))
            found = float(agreed) == self._workers.count
        self._divisible = found
        return found

    def _is_mean_of_two(self, weights: Weights, batch: Batch) -> bool | None:
        size = size_of(batch)
        if size < 2:
            return False
        middle = max(1, size // 3)
        pair = [cut(batch, 0, middle), cut(batch, middle, size)]
        return is_mean(self._compute, weights, pair, self._tolerance)


def shares_of(parts: Sequence[Parts], total: np.ndarray | None = None) -> np.ndarray | None:
    """The share of each of some batches in a mean, by their masses; None: outputs differ.

    Args:
        parts: Of the batches.
        total: Masses of all that the mean is over; None: these batches.
    """
    masses = np.stack([part[1].numpy() for part in parts])
    total = masses.sum(axis=0) if total is None else total
    valid = total > 0  # Keras' loss is 0 where nothing is valid
    if not valid.any():
        return np.full(len(parts), 1.0 / len(parts))
    shares = masses[:, valid] / total[valid]
    return shares[:, 0] if np.abs(shares - shares[:, :1]).max() <= 1e-9 else None


def is_mean(
    compute: Compute,
    weights: Weights,
    batches: Sequence[Batch],
    tolerance: float,
    parts: Sequence[Parts] | None = None,
) -> bool | None:
    """Whether a product on each two neighbours together is the weighted mean of theirs.

    None where they are not finite, which tells nothing.

    Args:
        compute: Products on a batch in one piece.
        weights: One tensor per trainable variable.
        batches: The batches.
        tolerance: Relative difference of two products that rounding explains.
        parts: What `compute` gives for each batch and `check_vector(weights)`; None: not at hand.

    Cost: A product on each batch and on each two neighbours.
    """
    column = check_vector(weights)

    def holds(weights: Weights, parts: Sequence[Parts]) -> bool | None:
        for first in range(len(batches) - 1):
            one, other = pair = parts[first : first + 2]
            together = compute(weights, concatenate(*batches[first : first + 2]), column)[2]
            if shares_of(pair) is None:
                return False
            scale = max(float(tf.norm(block)) for block in (together, one[2], other[2]))
            difference = float(tf.norm(together - _mean(pair)[2]))
            if not math.isfinite(difference):
                return None
            if difference > tolerance * scale:
                return False
        return True

    found = holds(weights, parts or [compute(weights, batch, column) for batch in batches])
    if found is not False:
        return found
    # Where examples are fitted, next to nothing but rounding is left; with smaller weights not.
    smaller = [0.3 * weight for weight in weights]
    return holds(smaller, [compute(smaller, batch, column) for batch in batches])


def check_vector(weights: Weights) -> tf.Tensor:
    """The vector (n, 1) whose products are looked at."""
    size = sum(math.prod(weight.shape) for weight in weights)
    dtype = np.result_type(np.float32, *(weight.dtype.as_numpy_dtype for weight in weights))
    return probes("rademacher", size=size, block=0, seed=0, dtype=dtype)[:, :1]


def _mean(parts: Sequence[Parts], workers: Workers | None = None) -> Parts:
    """Of batches that may be averaged: loss, masses and products of all together.

    Args:
        parts: Of the batches.
        workers: Those that have the parts of other batches; None: these are all.
    """
    masses = tf.add_n([part[1] for part in parts])
    if workers is not None:
        masses = workers.sum(masses)
    shares = shares_of(parts, masses.numpy())
    differ = shares is None
    if shares is None:
        shares = np.zeros(len(parts))
    if workers is not None and not masses.numpy().any():
        shares = shares / workers.count
    loss: Any = None
    products: Any = None
    for share, part in zip(shares.tolist(), parts, strict=True):
        loss = add_scaled(loss, share, part[0])
        products = add_scaled(products, share, part[2])
    if workers is not None:  # at once: what crosses the network is n k numbers and two
        rest = tf.stack([tf.cast(loss, products.dtype), tf.cast(differ, products.dtype)])
        summed = workers.sum(tf.concat([tf.reshape(products, [-1]), rest], axis=0))
        products, loss = tf.reshape(summed[:-2], products.shape), summed[-2]
        differ = bool(summed[-1] > 0)  # of one of them: all are to hear of it
    if differ:
        raise ValueError(
            "The outputs of the model are masked or weighted differently from portion to portion "
            "of the examples, so the loss is no mean over them. Use fewer examples."
        )
    return loss, masses, products
