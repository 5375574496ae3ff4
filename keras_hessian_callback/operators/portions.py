"""Products on a batch in portions: on every replica, and as many as fit into memory."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch, concatenate, cut, size_of, spread_out
from keras_hessian_callback.errors import OUT_OF_MEMORY
from keras_hessian_callback.linalg import probes
from keras_hessian_callback.operators.parts import Mean, Parts, shares_of
from keras_hessian_callback.replicas import Workers

Weights = Sequence[tf.Tensor]
# Loss, masses and products (k, n), of weights, a batch and vectors (k, n).
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
        self.vectors: int | None = None

    def limit(self, examples: int | None, vectors: int | None) -> None:
        """Computes on so many examples and vectors at a time, from now on."""
        self.examples = examples
        self.vectors = vectors

    def __call__(self, weights: Weights, batch: Batch, vectors: tf.Tensor) -> Parts:
        """Loss, masses, and products (k, n) with vectors (k, n), at these weights.

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
        width = self.vectors
        if width is None or vectors.shape[0] <= width:
            return self._on_all_devices(weights, batch, vectors)
        starts = range(0, vectors.shape[0], width)
        done = [self._on_all_devices(weights, batch, vectors[i : i + width]) for i in starts]
        return done[0][0], done[0][1], tf.concat([part[2] for part in done], axis=0)

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
        ends = list(itertools.pairwise(bounds))
        if self._workers is not None:
            ends = ends[self._workers.index :: self._workers.count]
        mean = self._spread_out(weights, batch, ends, vectors)
        return mean.of_all(self._workers)

    def _spread_out(
        self, weights: Weights, batch: Batch, ends: Sequence[tuple[int, int]], vectors: tf.Tensor
    ) -> Mean:
        """The mean over portions of the batch, by all devices of this process."""

        def on_device(index: int) -> Mean:
            mean = Mean(len(ends))
            with tf.device(self._devices[index] if self._devices else None):
                for first, last in ends[index :: max(1, len(self._devices))]:
                    mean.add(self._compute(weights, cut(batch, first, last), vectors))
            return mean

        if not self._devices:
            return on_device(0)
        with ThreadPoolExecutor(len(self._devices)) as pool:
            means = list(pool.map(on_device, range(min(len(ends), len(self._devices)))))
        for other in means[1:]:
            means[0].join(other)
        return means[0]

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
        size, width = size_of(batch), int(vectors.shape[0])
        fewer = self.at_a_time(size) > 1 and self._can_be_parted(weights, batch)
        rows = min(self.vectors or width, width)
        goes_on = []
        if fewer:
            self.examples = -(-self.at_a_time(size) // 2)
            goes_on.append(f"{self.examples} examples")
        if rows > 1:  # of one vector nothing is learned about blocks
            self.vectors = -(-rows // 2)
            goes_on.append(f"{self.vectors} vectors")
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
            except tf.errors.OpError:  # a loss that takes more examples than a few, or so many
                found = False
                break
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


def is_mean(
    compute: Compute,
    weights: Weights,
    batches: Sequence[Batch],
    tolerance: float,
    parts: Iterable[Parts] | None = None,
) -> bool | None:
    """Whether a product on each two neighbours together is the weighted mean of theirs.

    None where they are not finite, which tells nothing.

    Args:
        compute: Products on a batch in one piece.
        weights: One tensor per trainable variable.
        batches: The batches.
        tolerance: Relative difference of two products that rounding explains.
        parts: What `compute` gives for each batch and `check_vector(weights)`, one after another;
            None: not at hand.

    Cost: A product on each batch and on each two neighbours.
    """
    vector = check_vector(weights)

    def holds(weights: Weights, parts: Iterable[Parts]) -> bool | None:
        for first, pair in enumerate(itertools.pairwise(parts)):
            one, other = pair
            together = compute(weights, concatenate(*batches[first : first + 2]), vector)[2]
            if shares_of(pair) is None:
                return False
            scale = max(float(tf.norm(block)) for block in (together, one[2], other[2]))
            mean = Mean(len(pair))
            for part in pair:
                mean.add(part)
            difference = float(tf.norm(together - mean.of_all(None)[2]))
            if not math.isfinite(difference):
                return None
            if difference > tolerance * scale:
                return False
        return True

    found = holds(weights, parts or (compute(weights, batch, vector) for batch in batches))
    if found is not False:
        return found
    # Where examples are fitted, next to nothing but rounding is left; with smaller weights not.
    smaller = [0.3 * weight for weight in weights]
    return holds(smaller, (compute(smaller, batch, vector) for batch in batches))


def check_vector(weights: Weights) -> tf.Tensor:
    """The vector (1, n) whose products are looked at."""
    size = sum(math.prod(weight.shape) for weight in weights)
    dtype = np.result_type(np.float32, *(weight.dtype.as_numpy_dtype for weight in weights))
    return probes("rademacher", size=size, count=1, seed=0, dtype=dtype)
