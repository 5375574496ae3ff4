"""Vectors of all weights: packing, blocks of them as rows, and random probes by seeds."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Seed = int | tuple[int, int]
Block: TypeAlias = np.ndarray | tf.Tensor

PROBES = ("rademacher", "normal")
BLOCK_SIZE = 8  # vectors: more save little, where these share a gradient
_BITS = 32  # of a random word
_UNIFORMS = -1  # where the words of probes have their number
# Columns of a block that are cast to float64 at a time: so many that they stay in a core's cache,
# and fewer than NumPy starts threads for, which wait for each other on a busy machine.
_HOST_LENGTH, _HOST_PRODUCTS, _DEVICE_LENGTH = 2**13, 2**17, 2**18
_LENGTH = 2**22  # columns that are joined at a time


def pack(tensors: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    """One vector (n,) of all entries, variable after variable."""
    return tf.concat([tf.cast(tf.reshape(t, [-1]), dtype) for t in tensors], axis=0)


def unpack(vector: tf.Tensor, like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The inverse of `pack`: tensors with the shapes and dtypes of `like`."""
    sizes = [math.prod(t.shape) for t in like]
    parts = tf.split(vector, sizes)
    return [
        tf.cast(tf.reshape(part, t.shape), t.dtype) for part, t in zip(parts, like, strict=True)
    ]


def map_rows(
    function: Callable[[list[tf.Tensor]], Sequence[tf.Tensor]],
    block: tf.Tensor,
    like: Sequence[tf.Tensor],
) -> tf.Tensor:
    """`function` of every row of a block, in a graph, two rows at a time.

    Args:
        function: Takes a row as tensors with the shapes of `like`, gives others of these shapes.
        block: (k, n); k may be 0.
        like: One tensor per variable.

    Returns:
        The packed results (k, n), in the dtype of `block`.
    """
    sizes = [math.prod(t.shape) for t in like]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()

    def of_row(index: tf.Tensor) -> tf.Tensor:
        # Cut from the block itself: a copy of each part, and none of the row.
        row = [
            tf.reshape(tf.slice(block, [index, start], [1, size]), t.shape)
            for start, size, t in zip(starts, sizes, like, strict=True)
        ]
        return pack(function(row), block.dtype)

    return tf.map_fn(
        of_row,
        tf.range(tf.shape(block)[0]),
        parallel_iterations=2,
        fn_output_signature=tf.TensorSpec([sum(sizes)], block.dtype),
    )


def probes(
    distribution: str, *, size: int, first: int = 0, count: int, seed: Seed, dtype: np.dtype
) -> tf.Tensor:
    """Random vectors v with E[v v'] = I: probe number i is a function of (seed, i) alone.

    Args:
        distribution: `"rademacher"` (entries -1 and +1) or `"normal"`.
        size: Length n of a probe.
        first: Number of the first one, from 0.
        count: How many.
        seed: An int, or a pair (seed, step).
        dtype: Floating dtype of the probes.

    Returns:
        Tensor (count, n): a probe a row.
    """
    numbers = range(first, first + count)
    if distribution == "normal":
        rows = [
            tf.random.stateless_normal([size], _key(seed, number), dtype=dtype, alg="philox")
            for number in numbers
        ]
        return tf.stack(rows) if rows else tf.zeros([0, size], dtype)
    blocks = [tf.zeros([0, size], dtype)]
    for word in range(first // _BITS, -(-numbers.stop // _BITS)):  # of which each probe is a bit
        words = tf.random.stateless_uniform(
            [size], _key(seed, word), minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
        places = [number - word * _BITS for number in numbers if number // _BITS == word]
        bits = np.left_shift(np.uint32(1), np.array(places, "uint32")).view("int32")
        ones = tf.bitwise.bitwise_and(words, bits[:, None]) != 0
        blocks.append(tf.where(ones, tf.ones([], dtype), -tf.ones([], dtype)))
    return blocks[-1] if len(blocks) == 2 else tf.concat(blocks, axis=0)


def uniforms(count: int, seed: Seed) -> np.ndarray:
    """Independent numbers in [0, 1), (count,) in float64, as a function of the seed alone."""
    key = _key(seed, _UNIFORMS)
    return tf.random.stateless_uniform([count], key, dtype=tf.float64, alg="philox").numpy()


def _key(seed: Seed, number: int) -> tf.Tensor:
    """A key of stateless random numbers for each seed and number."""
    pair = seed if isinstance(seed, tuple) else (seed, 0)
    words = tf.constant([word & 0x7FFFFFFFFFFFFFFF for word in pair], tf.int64)
    return tf.random.experimental.stateless_fold_in(words, number, alg="philox")


def machine_epsilon(dtypes: Iterable[tf.DType]) -> float:
    """The largest spacing of the numbers after 1 among these floating dtypes."""
    known = {tf.float64: 2.0**-52, tf.float32: 2.0**-23, tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7}
    return max(known[dtype] for dtype in dtypes)


def check_seed(seed: Seed) -> None:
    """Raises TypeError unless `seed` is an int or a pair of ints."""
    words = seed if isinstance(seed, tuple) and len(seed) == 2 else (seed,)
    if any(isinstance(word, bool) or not isinstance(word, int | np.integer) for word in words):
        raise TypeError(f"`seed` must be an integer or a pair (seed, step); got {seed!r}.")


def square_sums(block: Block) -> np.ndarray:
    """||row||^2 of a block (k, n), summed in float64: (k,)."""
    return row_dots(block, block)


def row_dots(left: Block, right: Block) -> np.ndarray:
    """left_i . right_i of the rows of two blocks (k, n), summed in float64: (k,)."""
    return _summed("ki,ki->k", left, right)


def gram(left: Block, right: Block) -> np.ndarray:
    """The float64 matrix left right' of two blocks (k, n) and (l, n): (k, l)."""
    return _summed("ki,li->kl", left, right)


def gram_of(blocks: Sequence[Block]) -> np.ndarray:
    """The float64 Gram matrix of the rows of all blocks (k_i, n), in order."""
    rows = [[gram(a, b) for b in blocks[: i + 1]] for i, a in enumerate(blocks)]
    return np.block(
        [
            [rows[i][j] if j <= i else rows[j][i].T for j in range(len(blocks))]
            for i in range(len(blocks))
        ]
    )


def _at_hand(block: Block) -> Block:
    """The block as an array, without a copy; one on a GPU as it is."""
    if isinstance(block, np.ndarray) or "GPU" in block.device:
        return block
    return np.asarray(memoryview(block))


def _summed(equation: str, left: Block, right: Block) -> np.ndarray:
    """An einsum along the rows in float64, part by part: never a copy of a whole block."""
    same = left is right
    left, right = _at_hand(left), _at_hand(right)
    on_host, is_gram = isinstance(left, np.ndarray), equation == "ki,li->kl"
    length = _DEVICE_LENGTH
    if on_host:
        products = left.shape[0] * (right.shape[0] if is_gram else 1)  # of a column
        length = min(_HOST_LENGTH, _HOST_PRODUCTS // max(1, products)) + 1
    total: Any = np.zeros([left.shape[0], right.shape[0]] if is_gram else left.shape[:1])
    if not total.size:
        return total
    for first in range(0, left.shape[1], length):
        a, b = left[:, first : first + length], right[:, first : first + length]
        if on_host:
            a = a.astype("float64")
            b = a if same else b.astype("float64")
            total = total + (a @ b.T if is_gram else np.einsum(equation, a, b))
        else:
            total = total + tf.einsum(equation, tf.cast(a, tf.float64), tf.cast(b, tf.float64))
    return np.asarray(total)


def combine(block: tf.Tensor, coefficients: np.ndarray) -> tf.Tensor:
    """The combinations of rows, in the dtype of the block (k, n): (l, n) from (k, l)."""
    return tf.matmul(tf.constant(coefficients, block.dtype), block, transpose_a=True)


def combine_all(blocks: Sequence[tf.Tensor], coefficients: np.ndarray) -> tf.Tensor:
    """As `combine`, of the rows of all blocks (k_i, n) in order; part by part, as in `_summed`."""
    size = int(blocks[0].shape[1])
    parts = [
        combine(tf.concat([block[:, i : i + _LENGTH] for block in blocks], axis=0), coefficients)
        for i in range(0, size, _LENGTH)
    ]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


def add_scaled(total: tf.Tensor | None, scale: float, block: tf.Tensor) -> tf.Tensor:
    """The sum total + scale block, without passes that change nothing; None: no total yet."""
    part = block if scale == 1.0 else block * tf.constant(scale, block.dtype)
    return part if total is None else total + part


def leading_basis(
    blocks: list[tf.Tensor], rank: int, scales: Sequence[float] | None = None
) -> tuple[tf.Tensor, np.ndarray]:
    """The leading right singular vectors of a matrix, orthonormal to rounding.

    By two passes over the Gram matrix (k, k), summed in float64 (Yamamoto et al. 2015, on
    Cholesky QR twice): no Householder factorisation of the long rows. The first pass takes
    the eigenvectors, to have the directions in order and to leave out those within rounding.

    Args:
        blocks: (k_i, n), finite: the rows of the matrix, k of them in all. The list is emptied, so
            that what nobody else holds makes way.
        rank: Number of vectors wanted; fewer come where the rows span no more.
        scales: What the rows of each block count times; None: 1.

    Returns:
        (r, n) with orthonormal rows, and the squares of all k singular values, descending.
    """
    dtype = blocks[0].dtype
    widths = [block.shape[0] for block in blocks]
    scale = np.repeat(np.ones(len(blocks)) if scales is None else scales, widths)
    squares, vectors = np.linalg.eigh(scale[:, None] * gram_of(blocks) * scale)
    squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
    # Of the block's entries, and of the Gram matrix.
    rounding = max(1e4 * np.finfo(dtype.as_numpy_dtype).eps ** 2, 16.0 * np.finfo(float).eps)
    kept = squares[:rank] > max(rounding * squares.max(initial=0.0), np.finfo(float).tiny)
    leading = np.flatnonzero(kept)
    basis = combine_all(blocks, scale[:, None] * vectors[:, leading] / np.sqrt(squares[leading]))
    blocks.clear()
    for _ in range(2 if len(leading) else 0):
        factor = np.linalg.cholesky(gram(basis, basis))
        basis = combine(basis, np.linalg.inv(factor).T)
    return basis, squares
