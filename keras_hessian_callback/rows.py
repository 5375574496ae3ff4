"""Blocks of long vectors, a vector a row: sums, products in float64, combinations, bases.

What is in main memory is summed by NumPy, so many columns at a time that they stay in a core's
cache: one pass over long rows takes longer than what is done in it. The rows of small models are
combined by NumPy, too, which takes less time than TensorFlow's calls do; those of large ones by
TensorFlow, on all cores. What is on a GPU stays there.
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
_FEW = 2**20  # numbers: to combine more, TensorFlow takes less time
_LENGTH = 2**22  # columns that TensorFlow combines at a time, so that sums on the way stay small
_ALIGNMENT = 64  # bytes, which TensorFlow takes memory for granted to start at multiples of
_ORTHONORMAL = 0.1  # rows off by no more are orthonormal to rounding after a pass of Cholesky QR


def at_hand(block: Block) -> Block:
    """The block as an array, without a copy; one on a GPU as it is."""
    if isinstance(block, np.ndarray) or "GPU" in block.device:
        return block
    return np.asarray(memoryview(block))


def as_tensor(block: Block) -> tf.Tensor:
    """The block as a tensor, without a copy where it is what `combine` made."""
    if isinstance(block, tf.Tensor):
        return block
    if block.flags.writeable and block.flags.c_contiguous and not block.ctypes.data % _ALIGNMENT:
        return tf.experimental.dlpack.from_dlpack(block.__dlpack__())
    return tf.constant(block)


def join(blocks: Sequence[Block]) -> Block:
    """The rows of all blocks in order; without a copy of a single one."""
    if len(blocks) == 1:
        return blocks[0]
    blocks = [at_hand(block) for block in blocks]
    if not isinstance(blocks[0], np.ndarray):
        return tf.concat(blocks, 0)
    rows = sum(block.shape[0] for block in blocks)
    place = empty((rows, *blocks[0].shape[1:]), blocks[0].dtype)
    return np.concatenate(blocks, out=place)


def some(block: Block, first: int, last: int) -> Block:
    """Some rows of a block: all of them, and those of an array, without a copy."""
    return block if last - first >= block.shape[0] else block[first:last]


def square_sums(block: Block) -> np.ndarray:
    """||row||^2 of a block (k, n), summed in float64: (k,)."""
    return row_dots(block, block)


def gram(left: Block, right: Block) -> np.ndarray:
    """The float64 matrix left right' of two blocks (k, n) and (l, n): (k, l)."""
    return grams([left, right], right.shape[0], own=False)[0]


def gram_of(blocks: Sequence[Block]) -> np.ndarray:
    """The float64 Gram matrix of the rows of all blocks (k_i, n), in order."""
    return grams(blocks, sum(block.shape[0] for block in blocks))[0]


def grams(
    blocks: Sequence[Block],
    last: int,
    parts: Sequence[slice] = (slice(None),),
    *,
    own: bool = True,
) -> np.ndarray:
    """The float64 products of some columns of all rows with those of the last rows, part by part.

    Args:
        blocks: (k_i, n), whose k rows count in order.
        last: Number l of rows that the others are multiplied with.
        parts: Columns.
        own: Whether the last rows are multiplied with each other, too.

    Returns:
        (p, k, l), a matrix for each part; (p, k - l, l) without their own.
    """
    blocks = [at_hand(block) for block in blocks]
    rows = sum(block.shape[0] for block in blocks)
    kept = rows if own else rows - last
    totals = np.zeros([len(parts), kept, last])
    if not totals.size:
        return totals
    for total, part in zip(totals, parts, strict=True):
        for columns in pieces(blocks[0], part, rows=rows, products=kept * last):
            a = _doubles(blocks, columns)
            a, b = a[:kept], a[rows - last :]
            host = isinstance(a, np.ndarray)
            total += a @ b.T if host else tf.matmul(a, b, transpose_b=True).numpy()
    return totals


def row_dots(left: Block, right: Block) -> np.ndarray:
    """left_i . right_i of the rows of two blocks (k, n), summed in float64: (k,)."""
    same = left is right
    left, right = at_hand(left), at_hand(right)
    total = np.zeros(left.shape[0])
    if not total.size:
        return total
    for columns in pieces(left, rows=2 * left.shape[0]):
        a = _doubles([left], columns)
        b = a if same else _doubles([right], columns)
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


def _doubles(blocks: Sequence[Block], columns: slice) -> Block:
    """Some columns of the rows of all blocks in float64."""
    parts = [block[:, columns] for block in blocks]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, dtype="float64")
    return tf.cast(tf.concat(parts, axis=0), tf.float64)


def combine(blocks: Sequence[Block], coefficients: np.ndarray, onto: Block | None = None) -> Block:
    """The combinations of the rows of all blocks (k_i, n) in order, in their dtype.

    Args:
        blocks: k rows in all.
        coefficients: (k, l).
        onto: (l, n), what they are added to; None: nothing.

    Returns:
        (l, n).
    """
    views = [at_hand(block) for block in blocks]
    size = int(views[0].shape[1])
    if isinstance(views[0], np.ndarray) and coefficients.shape[1] * size <= _FEW:
        return _combine_few(views, coefficients, None if onto is None else at_hand(onto))
    if size <= _LENGTH:
        return _combine_many(blocks, coefficients, onto)
    parts = []
    for first in range(0, size, _LENGTH):
        columns = slice(first, first + _LENGTH)
        below = None if onto is None else at_hand(onto)[:, columns]
        parts.append(_combine_many([view[:, columns] for view in views], coefficients, below))
    return tf.concat(parts, axis=1)


def _combine_many(
    blocks: Sequence[Block], coefficients: np.ndarray, onto: Block | None
) -> tf.Tensor:
    total = None if onto is None else as_tensor(onto)
    bounds = np.cumsum([block.shape[0] for block in blocks])[:-1]
    for block, factors in zip(blocks, np.split(coefficients, bounds), strict=True):
        if len(factors):
            block = as_tensor(block)
            part = tf.matmul(tf.constant(factors, block.dtype), block, transpose_a=True)
            total = part if total is None else total + part
    return total


def _combine_few(
    blocks: Sequence[np.ndarray], coefficients: np.ndarray, onto: np.ndarray | None
) -> np.ndarray:
    (k, count), size, dtype = coefficients.shape, blocks[0].shape[1], blocks[0].dtype
    factors = np.ascontiguousarray(coefficients.T, dtype)
    result = empty((count, size), dtype)
    for columns in pieces(result, rows=max(1, k + count), products=max(1, k * count)):
        np.matmul(factors, join([block[:, columns] for block in blocks]), out=result[:, columns])
        if onto is not None:
            result[:, columns] += onto[:, columns]
    return result


class WeightedSum:
    """The sum of blocks (k, n), each times a number, as they come in.

    Of arrays it is made in a place of its own, piece by piece: results of TensorFlow's operations
    would each take fresh memory, which costs as long as the sum. A single block takes no pass.

    Memory: the blocks are not kept, but the first until another comes.
    """

    def __init__(self) -> None:
        self._first: tuple[float, Block] | None = None
        self._sum: Block | None = None

    def add(self, weight: float, block: Block) -> None:
        """Takes in a block times a number."""
        if self._first is None and self._sum is None:
            self._first = float(weight), block
            return
        terms = [self._first] if self._first else []
        terms.append((float(weight), block))
        self._first = None
        views = [(factor, at_hand(part)) for factor, part in terms]
        held = [part for _, part in views] + ([] if self._sum is None else [self._sum])
        if all(isinstance(part, np.ndarray) for part in held):
            self._add_in_place(views)
            return
        for factor, part in views:
            part = _scaled(as_tensor(part), factor)
            self._sum = part if self._sum is None else as_tensor(self._sum) + part

    def _add_in_place(self, terms: Sequence[tuple[float, np.ndarray]]) -> None:
        block = terms[0][1]
        fresh, total = self._sum is None, self._sum
        if total is None:
            total = self._sum = empty(block.shape, block.dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # as TensorFlow has it
            for columns in pieces(block, rows=2 * max(1, block.shape[0])):
                place = total[:, columns]
                if fresh:
                    place[:] = 0.0
                for factor, part in terms:
                    place += factor * part[:, columns]

    def total(self, scale: float = 1.0) -> tf.Tensor:
        """The sum times a number. It is given away: another begins."""
        if self._first is not None:
            (factor, block), self._first = self._first, None
            return _scaled(as_tensor(block), factor * scale)
        block, self._sum = self._sum, None
        if scale != 1.0 and isinstance(block, np.ndarray):
            with np.errstate(invalid="ignore", over="ignore"):
                block *= float(scale)
            scale = 1.0
        return _scaled(as_tensor(block), scale)


def _scaled(block: tf.Tensor, factor: float) -> tf.Tensor:
    return block if factor == 1.0 else block * tf.constant(factor, block.dtype)


def empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array that TensorFlow can take as its own memory."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, "uint8")
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


def leading_basis(
    blocks: list[Block],
    rank: int,
    *,
    mixing: np.ndarray | None = None,
    products: np.ndarray | None = None,
) -> tuple[Block, np.ndarray]:
    """The leading right singular vectors of a matrix, orthonormal to rounding.

    By passes over Gram matrices (k, k), summed in float64 (Yamamoto et al. 2015, on Cholesky QR
    twice): no Householder factorisation of the long rows. The first takes the eigenvectors, to
    have the directions in order and to leave out those within rounding; another makes up for
    what was lost to rounding there, and a third where that was much.

    Args:
        blocks: (k_i, n), finite: k rows in all. The list is emptied, so that what nobody else
            holds makes way.
        rank: Number of vectors wanted; fewer come where the rows span no more.
        mixing: (k, l): the l rows of the matrix as combinations of those of the blocks; None:
            these themselves.
        products: (k, k), the Gram matrix of the blocks' rows in float64; None: not at hand.

    Returns:
        (r, n) with orthonormal rows; and (l, l), what each row of the matrix adds to the square of
        each singular value, these descending: the sums over rows are the squares.
    """
    products = gram_of(blocks) if products is None else products
    mixing = np.eye(len(products)) if mixing is None else mixing
    squares, vectors = np.linalg.eigh(mixing.T @ products @ mixing)
    squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
    # Of the block's entries, and of the Gram matrix.
    epsilon = np.finfo(tf.as_dtype(blocks[0].dtype).as_numpy_dtype).eps
    rounding = max(1e4 * epsilon**2, 16.0 * np.finfo(float).eps)
    kept = squares[:rank] > max(rounding * squares.max(initial=0.0), np.finfo(float).tiny)
    leading = np.flatnonzero(kept)
    basis = combine(blocks, mixing @ vectors[:, leading] / np.sqrt(squares[leading]))
    blocks.clear()
    off = math.inf if len(leading) else 0.0  # from orthonormal
    while off > _ORTHONORMAL:
        products = gram_of([basis])
        off = float(np.abs(products - np.eye(len(leading))).max())
        basis = combine([basis], np.linalg.inv(np.linalg.cholesky(products)).T)
    return basis, squares * vectors**2
