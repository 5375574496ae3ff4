"""Blocks of long vectors, a vector a row: sums in float64, and combinations.

Rows in main memory are multiplied and summed by NumPy, so many columns at a time that they stay in
a core's cache: one pass over long rows takes longer than what is done in it. New rows are made by
NumPy, too, in small models, where TensorFlow's calls take longer, and in those of more than 2^21
weights, where TensorFlow would take more memory; else by TensorFlow. What is on a GPU stays there.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

Block: TypeAlias = np.ndarray | tf.Tensor

# Columns at a time: so many that they stay in a core's cache, and fewer than NumPy starts threads
# for, which wait for each other on a busy machine.
_HOST_LENGTH, _HOST_NUMBERS, _HOST_PRODUCTS, _DEVICE_LENGTH = 2**13, 2**17, 2**18, 2**18
_FEW = 2**20  # numbers: to make more, TensorFlow takes less time
_WHOLE = 2**21  # columns of the longest rows that TensorFlow combines, all side by side
_LENGTH = 2**15  # columns of longer rows that NumPy combines at a time
ALIGNMENT = 64  # bytes, which TensorFlow takes memory for granted to start at multiples of


def are_few(*shape: int) -> bool:
    """Whether so many numbers are made by NumPy in less time than by TensorFlow.

    Where they are many it makes them on all cores, and with oneDNN in memory that it keeps: for
    what NumPy makes the system has to find fresh memory each time.
    """
    return math.prod(shape) <= _FEW


def at_hand(block: Block) -> Block:
    """The block as an array, without a copy; one on a GPU as it is."""
    if isinstance(block, np.ndarray) or "GPU" in block.device:
        return block
    return np.asarray(memoryview(block))


def as_tensor(block: Block) -> tf.Tensor:
    """The block as a tensor, without a copy where it is what `combine` made."""
    if isinstance(block, tf.Tensor):
        return block
    if block.flags.writeable and block.flags.c_contiguous and not block.ctypes.data % ALIGNMENT:
        return tf.experimental.dlpack.from_dlpack(block.__dlpack__())
    return tf.constant(block)


def join(blocks: Sequence[Block]) -> Block:
    """The rows of all blocks in order; without a copy of a single one."""
    if len(blocks) == 1:
        return blocks[0]
    rows = sum(block.shape[0] for block in blocks)
    views = [at_hand(block) for block in blocks]
    if not isinstance(views[0], np.ndarray) or not are_few(rows, *views[0].shape[1:]):
        return tf.concat([as_tensor(block) for block in blocks], 0)
    place = empty((rows, *views[0].shape[1:]), views[0].dtype)
    return np.concatenate(views, out=place)


def some(block: Block, first: int, last: int) -> Block:
    """Some rows of a block: all of them, and those of an array, without a copy."""
    return block if last - first >= block.shape[0] else block[first:last]


def square_sums(block: Block) -> np.ndarray:
    """||row||^2 of a block (k, n), summed in float64: (k,)."""
    return row_dots(block, block)


def row_dots(left: Block, right: Block) -> np.ndarray:
    """left_i . right_i of the rows of two blocks (k, n), summed in float64: (k,)."""
    same = left is right
    left, right = at_hand(left), at_hand(right)
    total = np.zeros(left.shape[0])
    if not total.size:
        return total
    for columns in pieces(left, rows=2 * left.shape[0]):
        a = _doubles(left, columns)
        b = a if same else _doubles(right, columns)
        host = isinstance(a, np.ndarray)
        total += np.einsum("ki,ki->k", a, b) if host else tf.reduce_sum(a * b, axis=1).numpy()
    return total


def pieces(
    block: Block, part: slice = slice(None), *, rows: int, products: int = 1
) -> Iterator[slice]:
    """The columns of a part, so many at a time as are best worked on.

    Args:
        block: One of those that are worked on, (k, n).
        part: Columns.
        rows: Numbers that the work on a column takes.
        products: Multiplications that it takes.
    """
    start, stop, _ = part.indices(block.shape[1])
    length = _DEVICE_LENGTH
    if isinstance(block, np.ndarray):
        length = max(1, min(_HOST_LENGTH, _HOST_NUMBERS // rows, _HOST_PRODUCTS // products))
    for first in range(start, stop, length):
        yield slice(first, min(first + length, stop))


def _doubles(block: Block, columns: slice) -> Block:
    """Some columns of a block in float64."""
    part = block[:, columns]
    return part.astype("float64") if isinstance(part, np.ndarray) else tf.cast(part, tf.float64)


def combine(blocks: Sequence[Block], coefficients: np.ndarray, onto: Block | None = None) -> Block:
    """The combinations of the rows of all blocks (k_i, n) in order, in their dtype.

    Args:
        blocks: k rows in all.
        coefficients: (k, l).
        onto: (l, n), what they are added to; None: nothing.

    Returns:
        (l, n).
    """
    blocks = [block for block in blocks if block.shape[0]] or blocks[:1]
    views = [at_hand(block) for block in blocks]
    size, count = int(views[0].shape[1]), coefficients.shape[1]
    on_host = isinstance(views[0], np.ndarray)
    if on_host and (are_few(count, size) or size > _WHOLE):
        return _combine_arrays(views, coefficients, None if onto is None else at_hand(onto))
    if on_host:  # side by side: block by block, and added up, takes twice as long
        return _combine_tensors(
            join(blocks), coefficients, None if onto is None else as_tensor(onto)
        )
    parts = [
        _combine_tensors(
            join([block[:, columns] for block in blocks]),
            coefficients,
            None if onto is None else onto[:, columns],
        )
        for columns in pieces(blocks[0], rows=1)
    ]
    return tf.concat(parts, axis=1)


def _combine_tensors(rows: Block, coefficients: np.ndarray, onto: tf.Tensor | None) -> tf.Tensor:
    rows = as_tensor(rows)
    found = tf.matmul(tf.constant(coefficients, rows.dtype), rows, transpose_a=True)
    return found if onto is None else onto + found


def _combine_arrays(
    blocks: Sequence[np.ndarray], coefficients: np.ndarray, onto: np.ndarray | None
) -> np.ndarray:
    """Piece by piece, so that long rows take no more than the result."""
    (k, count), size, dtype = coefficients.shape, blocks[0].shape[1], blocks[0].dtype
    factors = np.ascontiguousarray(coefficients.T, dtype)
    result = empty((count, size), dtype)
    if size > _WHOLE:
        stretches = [slice(i, min(i + _LENGTH, size)) for i in range(0, size, _LENGTH)]
    else:
        stretches = list(pieces(result, rows=max(1, k + count), products=max(1, k * count)))
    place = np.empty(k * min(size, stretches[0].stop), dtype)  # one for all
    for columns in stretches:
        rows = [block[:, columns] for block in blocks]
        if len(rows) > 1:
            width = rows[0].shape[1]
            rows = [np.concatenate(rows, out=place[: k * width].reshape(k, width))]
        np.matmul(factors, rows[0], out=result[:, columns])
        if onto is not None:
            result[:, columns] += onto[:, columns]
    return result


class WeightedSum:
    """The sum of blocks (k, n), each times a number, as they come in.

    Numbers that are all the same are multiplied with once, at the end.

    Memory: the sum so far, and while a block is added the next and, where numbers differ, the
    product. It is TensorFlow's: NumPy would take fresh memory from the system for each sum, which
    costs many times as long as adding.
    """

    def __init__(self) -> None:
        self._factor = 1.0
        self._sum: tf.Tensor | None = None

    def add(self, weight: float, block: Block) -> None:
        """Takes in a block times a number."""
        block, weight = as_tensor(block), float(weight)
        if self._sum is None:
            self._factor, self._sum = weight, block
        elif weight == self._factor:
            self._sum = self._sum + block
        else:
            self._sum, self._factor = _scaled(self._sum, self._factor), 1.0
            block = _scaled(block, weight)
            self._sum = self._sum + block

    def total(self, scale: float = 1.0) -> tf.Tensor:
        """The sum times a number. It is given away: another begins."""
        block, self._sum = self._sum, None
        return _scaled(block, self._factor * float(scale))


def _scaled(block: tf.Tensor, factor: float) -> tf.Tensor:
    return block if factor == 1.0 else block * tf.constant(factor, block.dtype)


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array that TensorFlow can take as its own memory."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, "uint8")
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)
