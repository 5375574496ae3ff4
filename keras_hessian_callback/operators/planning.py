"""How many examples and vectors are computed on at a time, so that the memory stays in a limit."""

import math
import warnings
from dataclasses import dataclass

import tensorflow as tf

from keras_hessian_callback.data import Batch, cut, size_of
from keras_hessian_callback.errors import OUT_OF_MEMORY
from keras_hessian_callback.linalg import BLOCK_SIZE, probes
from keras_hessian_callback.memory import Growth, free_bytes
from keras_hessian_callback.operators.traced import TracedProducts
from keras_hessian_callback.replicas import Workers, devices_of, workers_of

# Vectors that are held while a block of k is multiplied: _PER_VECTOR k + _BESIDE, with the block
# itself. Measured by benchmarks/large_models.py.
_PER_VECTOR, _BESIDE = 3, 4
_CHECK = 21  # vectors of float32 that the check of derivatives in float64 holds at most
_FOR_VECTORS, _FOR_EXAMPLES = 0.45, 0.3  # of the limit, for a block at most, for examples at least
# Where starting operations takes most of the time: vectors, numbers of a block, part of the limit.
_WIDEST, _SMALL, _LITTLE = 32, 2**20, 0.02
_WANTED = 100  # vectors that estimators do well with
_FIRST, _TIMES = 2, 8  # examples that are looked at; then so many times as many
_SEEN = 2**26  # bytes from which a growth of memory tells something
_TELLS = 0.25  # part of the memory that examples must have in it for their number to tell
_UNKNOWN = 2**31  # bytes for an estimator's vectors, where nothing is known


@dataclass
class Plan:
    """What fits; of an operator and all that are drawn from it the same.

    Attributes:
        vectors: That are multiplied at a time at most; None: not known.
        block_size: That are best multiplied at a time.
        examples: That are computed on at a time; None: all.
        bytes: That products take then, beside the model and the data; NaN where not known.
        room: Vectors that an estimator may hold beside.
        checked: Whether the check of derivatives in float64 fits, too.
    """

    vectors: int | None
    block_size: int
    examples: int | None
    bytes: float
    room: float
    checked: bool = True

    def lower(self) -> bool:
        """Halves `room`, or what estimators do well with, and the block; False: neither can be."""
        can = self.room >= 1.0 or self.block_size > 1
        self.room = float(min(self.room, 2 * _WANTED) // 2)
        self.block_size = -(-self.block_size // 2)
        return can


def plan(traced: TracedProducts, batch: Batch, limit: int | None, *, several: bool = False) -> Plan:
    """The plan for products on a batch: what fits, on each worker that takes part.

    Args:
        traced: Products.
        batch: The largest micro-batch.
        limit: Bytes; None: half of what is free, as training takes memory too.
        several: Whether there are other micro-batches, whose products are summed.

    Cost: Blocks of products on 2, 4, 8, ... examples, until the memory has grown with them twice in
    a row or would go beyond the limit; on all of the batch where vectors take most of it.
    """
    own = _own_plan(traced, batch, limit, several)
    workers = workers_of(traced.objective.model)
    return own if workers is None else _agreed(own, size_of(batch), workers)


def _own_plan(traced: TracedProducts, batch: Batch, limit: int | None, several: bool) -> Plan:
    """What fits here, by the memory that products on a few examples take."""
    free, vector = free_bytes(), _vector(traced)
    wide = min(_WIDEST, _SMALL // traced.num_parameters)
    if limit is None:
        if free is None:
            return Plan(None, max(BLOCK_SIZE, wide), None, math.nan, _UNKNOWN // vector)
        limit = free // 2
    checked = _CHECK * vector <= max(limit, 0.8 * (free or 0))
    fits, few = (
        max(1, int((share * limit / vector - _BESIDE) / _PER_VECTOR))
        for share in (_FOR_VECTORS, _LITTLE)
    )
    block_size = min(max(BLOCK_SIZE, min(wide, few)), fits)
    held = vectors_held(block_size) * vector
    allowed = max(_FOR_EXAMPLES * limit, limit - held - _WANTED * vector)
    unseen = Plan(fits, block_size, None, math.nan, max(0, (limit - held) // vector), checked)
    if not traced.any_size or free is None:  # no portions, or nothing to see
        return unseen
    try:
        each, beside = _bytes_of_examples(traced, batch, block_size, limit)
    except (*OUT_OF_MEMORY, tf.errors.OpError):
        # What is too much for so few will be halved; others take more examples than a few.
        return unseen
    each *= max(1, len(devices_of(traced.objective.model)))  # which compute at the same time
    size = size_of(batch)
    summed = block_size * vector  # which portions would take, to add their products up
    examples = size if each * size <= allowed + summed else max(1, int(allowed / each))
    sums = several + (examples < size)  # of micro-batches, of portions
    taken = vectors_held(block_size, sums) * vector + max(0.0, beside + each * examples)
    if examples < size and block_size == 1 and taken > limit:
        warnings.warn(
            f"A product with one vector takes about {taken / 2**20:,.0f} MiB, on {examples} of "
            f"{size} examples at a time, and should take {limit / 2**20:,.1f} MiB at most: it is "
            "made all the same, and slowly. Raise `memory_limit` (bytes: 2**30 is 1 GiB).",
            stacklevel=2,
        )
    room = max(0.0, (limit - taken) // vector)
    unlimited = 2 * each * size <= allowed  # two micro-batches together are looked at, too
    return Plan(fits, block_size, None if unlimited else examples, taken, room, checked)


def _agreed(plan: Plan, size: int, workers: Workers) -> Plan:
    """The least that any of the workers has planned: they all do the same."""
    unlimited = 2.0**53
    vectors, block_size, examples, room, checked = workers.least(
        [plan.vectors or unlimited, plan.block_size, plan.examples or size, plan.room, plan.checked]
    )
    return Plan(
        int(vectors) if vectors < unlimited else None,
        int(block_size),
        int(examples) if examples < size else None,
        plan.bytes,
        room,
        bool(checked),
    )


def vectors_held(block_size: int, sums: int = 0) -> int:
    """Vectors of n floats that are held while a block of so many is multiplied, at the peak.

    `sums`: of products so far. To add to one takes no more, but k - 4 where parts differ in size
    and somebody holds the products that are added.
    """
    return (_PER_VECTOR + sums) * block_size + _BESIDE


def _vector(traced: TracedProducts) -> int:
    return traced.num_parameters * traced.dtype.itemsize


def _bytes_of_examples(
    traced: TracedProducts, batch: Batch, width: int, limit: int
) -> tuple[float, float]:
    """What the activations of an example take, and what there is beside them and the vectors.

    By a block of `width` products, on twice as many examples until they show. Where the first is
    little, rather too much; the second, such as a second copy of weights that are used twice, is
    seen where vectors take most of the memory.
    """
    vectors = vectors_held(width) * _vector(traced)
    size = size_of(batch)
    count = min(_FIRST, size)
    grown = _growth(traced, batch, count, width)
    while grown < _SEEN and count < size // 4:
        count = min(size // 4, _TIMES * count)
        grown = _growth(traced, batch, count, width)
    each, beside = max(0.0, grown - vectors) / count, 0.0
    if grown < _SEEN:
        return each, beside
    # The peak may come from the vectors, and tell nothing of examples: more, until it grows. Twice
    # in a row: how operations overlap is chance, and what it adds would be multiplied.
    highest, in_a_row = grown, 0
    while count < size and in_a_row < 2 and 2.0 * grown - vectors <= limit:
        fewer, count = count, size if size < 3 * count else 2 * count
        grown = _growth(traced, batch, count, width)
        each = max(0.0, grown - highest) / (count - fewer)
        in_a_row = in_a_row + 1 if each * count >= _TELLS * grown else 0
        highest = max(highest, grown)
        beside = highest - each * count - vectors  # below 0 where peaks fall at different times
    return each, beside


def _growth(traced: TracedProducts, batch: Batch, count: int, width: int) -> float:
    """Bytes that a block of so many products takes with so many examples."""
    weights = traced.objective.weights()
    growth = Growth()
    with growth.watched():
        vectors = probes(
            "rademacher", size=traced.num_parameters, count=width, seed=0, dtype=traced.dtype
        )
        traced.in_one_piece(weights, cut(batch, 0, count), vectors)
    return float(growth.bytes or 0)
