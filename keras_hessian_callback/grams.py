"""Gram matrices of long rows in float64, and orthonormal bases of what they span.

NumPy would convert and multiply on one core where pieces are small, and start threads where they
are large, which wait for each other on a busy machine. So a stack of small matrices is multiplied
in one call, and long rows are parted into stretches, each worked through by a thread of its own.
Where they lie depends on the sizes alone: so do the sums.
"""

import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.rows import Block, at_hand, combine, pieces

_STRETCH = 2**16  # columns that are worth handing to a thread
_MOST = 16  # threads
# Columns of a matrix, multiplications from which NumPy starts threads, numbers of a stack: so many
# that threads seldom wait for the interpreter, and few enough for a cache.
_WIDTH, _SERIAL, _NUMBERS = 128, 2**18, 2**18
_ORTHONORMAL = 0.1  # rows off by no more are orthonormal to rounding after a pass of Cholesky QR


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
    rows, size = sum(block.shape[0] for block in blocks), int(blocks[0].shape[1])
    kept = rows if own else rows - last
    totals = np.zeros([len(parts), kept, last])
    if not totals.size:
        return totals
    on_host = all(isinstance(block, np.ndarray) for block in blocks)
    length = _STRETCH if on_host else size
    tasks = [
        (index, slice(first, min(first + length, stop)))
        for index, part in enumerate(parts)
        for start, stop, _ in [part.indices(size)]
        for first in range(start, stop, length)
    ]

    def work(share: Sequence[tuple[int, slice]]) -> Any:
        with np.errstate(invalid="ignore", over="ignore"):  # a thread has its own
            if on_host:
                return _of_arrays(blocks, [part for _, part in share], kept, last)
            return [_of_tensors(blocks, part, kept, last) for _, part in share]

    threads = min(len(tasks), size // _STRETCH, _MOST) if on_host else 1
    threads = min(threads, _cores()) if threads > 1 else 1
    shares = [tasks[index::threads] for index in range(threads)]
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(work, shares))
    else:
        found = [work(tasks)]
    for number, (index, _) in enumerate(tasks):
        totals[index] += found[number % threads][number // threads]
    return totals


def _of_arrays(
    blocks: Sequence[np.ndarray], parts: Sequence[slice], kept: int, last: int
) -> np.ndarray:
    rows = sum(len(block) for block in blocks)
    whole = kept == last == rows
    # Of a matrix with its own transpose, one triangle in steps; NumPy's own way takes longer.
    bounds = [0, rows // 4, rows // 2, rows] if whole else [rows - last, rows]
    width = max(16, min(_WIDTH, _SERIAL // (kept * (bounds[-1] - bounds[-2]))))
    matrices = [-(-(part.stop - part.start) // width) for part in parts]
    depth = max(1, min(_NUMBERS // (rows * width), sum(matrices)))
    stack = np.empty((depth, rows, width))  # one for all: fresh memory costs more
    totals = np.zeros((len(parts), kept, last))
    filled: list[tuple[int, int, int]] = []  # the part, and the matrices that hold some of it

    def multiply() -> None:
        used = stack[: filled[-1][2]]
        for low, high in itertools.pairwise(bounds):
            above = high if whole else kept
            products = np.matmul(used[:, :above], used[:, low:high].swapaxes(1, 2))
            for index, start, end in filled:
                place = totals[index, :above, low - bounds[0] : high - bounds[0]]
                place += products[start:end].sum(axis=0)
        filled.clear()

    for index, part in enumerate(parts):
        for first in range(part.start, part.stop, depth * width):
            columns = slice(first, min(first + depth * width, part.stop))
            start = filled[-1][2] if filled else 0
            # Cut where its own length says, whatever comes before: sums are to be the same.
            if start and start + matrices[index] > depth:
                multiply()
                start = 0
            filled.append((index, start, start + _fill(stack[start:], blocks, columns)))
    if filled:
        multiply()
    return np.triu(totals) + np.triu(totals, 1).swapaxes(1, 2) if whole else totals


def _fill(stack: np.ndarray, blocks: Sequence[np.ndarray], columns: slice) -> int:
    """Puts some columns of all rows into a stack of matrices (d, k, w), zeros after them.

    Returns:
        How many of the matrices it takes.
    """
    width = stack.shape[2]
    count, rest = divmod(columns.stop - columns.start, width)
    row = 0
    for block in blocks:
        k, part = len(block), block[:, columns]
        if count:
            whole = part[:, : count * width].reshape(k, count, width)
            stack[:count, row : row + k] = whole.swapaxes(0, 1)
        if rest:
            stack[count, row : row + k, :rest] = part[:, count * width :]
        row += k
    if rest:
        stack[count, :, rest:] = 0.0
    return count + (rest > 0)


def _of_tensors(blocks: Sequence[tf.Tensor], part: slice, kept: int, last: int) -> np.ndarray:
    rows = sum(int(block.shape[0]) for block in blocks)
    total = np.zeros((kept, last))
    for columns in pieces(blocks[0], part, rows=rows):
        a = tf.cast(tf.concat([block[:, columns] for block in blocks], axis=0), tf.float64)
        total += tf.matmul(a[:kept], a[rows - last :], transpose_b=True).numpy()
    return total


def _cores() -> int:
    """Those that TensorFlow's operations may use."""
    affinity: Any = getattr(os, "sched_getaffinity", None)  # not on every system
    most = len(affinity(0)) if affinity else os.cpu_count() or 1
    return tf.config.threading.get_intra_op_parallelism_threads() or most


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
        if off > 4.0 * epsilon:
            basis = combine([basis], np.linalg.inv(np.linalg.cholesky(products)).T)
    return basis, squares * vectors**2
