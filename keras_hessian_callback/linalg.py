"""Vectors of all weights: packing, blocks of them as rows, and random probes by seeds."""

import functools
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
_HOST_LENGTH, _HOST_DOUBLES, _HOST_PRODUCTS, _DEVICE_LENGTH = 2**13, 2**17, 2**18, 2**18
_LENGTH = 2**22  # columns that are joined at a time
_ORTHONORMAL = 0.1  # rows off by no more are orthonormal to rounding after a pass of Cholesky QR


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
    if not count:
        return tf.zeros([0, size], dtype)
    blocks = []
    for word in range(first // _BITS, -(-numbers.stop // _BITS)):  # of which each probe is a bit
        bits = [number - word * _BITS for number in numbers if number // _BITS == word]
        bits = np.left_shift(np.uint32(1), np.array(bits, "uint32")).view("int32")
        places = tf.constant(word), tf.constant(size, tf.int64), tf.constant(bits)
        blocks.append(_signs(np.dtype(dtype))(_pair(seed), *places))
    return blocks[0] if len(blocks) == 1 else tf.concat(blocks, axis=0)


def uniforms(count: int, seed: Seed) -> np.ndarray:
    """Independent numbers in [0, 1), (count,) in float64, as a function of the seed alone."""
    key = _key(seed, _UNIFORMS)
    return tf.random.stateless_uniform([count], key, dtype=tf.float64, alg="philox").numpy()


def words_of(seed: Seed) -> tuple[int, int]:
    """The two words of 63 bits that random numbers are a function of."""
    first, second = seed if isinstance(seed, tuple) else (seed, 0)
    return int(first) & 0x7FFFFFFFFFFFFFFF, int(second) & 0x7FFFFFFFFFFFFFFF


def _pair(seed: Seed) -> tf.Tensor:
    return tf.constant(words_of(seed), tf.int64)


def _key(seed: Seed, number: int) -> tf.Tensor:
    """A key of stateless random numbers for each seed and number."""
    return tf.random.experimental.stateless_fold_in(_pair(seed), number, alg="philox")


@functools.cache
def _signs(dtype: np.dtype) -> Any:
    """A graph, as tiny models notice: signs (k, n), k bits of n words by seed, number and place."""
    signature = [
        tf.TensorSpec([2], tf.int64),
        tf.TensorSpec([], tf.int32),
        tf.TensorSpec([], tf.int64),
        tf.TensorSpec([None], tf.int32),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def signs(pair: tf.Tensor, number: tf.Tensor, size: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
        key = tf.random.experimental.stateless_fold_in(pair, number, alg="philox")
        words = tf.random.stateless_uniform(
            [size], key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
        ones = tf.bitwise.bitwise_and(words, bits[:, None]) != 0
        return tf.where(ones, tf.ones([], dtype), -tf.ones([], dtype))

    return signs.get_concrete_function()


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
    blocks = [_at_hand(block) for block in blocks]
    rows = sum(block.shape[0] for block in blocks)
    kept = rows if own else rows - last
    totals = np.zeros([len(parts), kept, last])
    if not totals.size:
        return totals
    length = _length(blocks[0], rows=rows, products=kept * last)
    for total, part in zip(totals, parts, strict=True):
        start, stop, _ = part.indices(blocks[0].shape[1])
        for first in range(start, stop, length):
            a = _doubles(blocks, slice(first, min(first + length, stop)))
            a, b = a[:kept], a[rows - last :]
            total += a @ b.T if isinstance(a, np.ndarray) else tf.matmul(a, b, transpose_b=True)
    return totals


def row_dots(left: Block, right: Block) -> np.ndarray:
    """left_i . right_i of the rows of two blocks (k, n), summed in float64: (k,)."""
    same = left is right
    left, right = _at_hand(left), _at_hand(right)
    total = np.zeros(left.shape[0])
    if not total.size:
        return total
    length = _length(left, rows=2 * left.shape[0], products=left.shape[0])
    for first in range(0, left.shape[1], length):
        columns = slice(first, first + length)
        a = _doubles([left], columns)
        b = a if same else _doubles([right], columns)
        total += (
            np.einsum("ki,ki->k", a, b)
            if isinstance(a, np.ndarray)
            else tf.reduce_sum(a * b, axis=1)
        )
    return total


def _at_hand(block: Block) -> Block:
    """The block as an array, without a copy; one on a GPU as it is."""
    if isinstance(block, np.ndarray) or "GPU" in block.device:
        return block
    return np.asarray(memoryview(block))


def _length(block: Block, *, rows: int, products: int) -> int:
    """Columns that are cast to float64 at a time: never a copy of a whole block."""
    if not isinstance(block, np.ndarray):
        return _DEVICE_LENGTH
    return max(1, min(_HOST_LENGTH, _HOST_DOUBLES // rows, _HOST_PRODUCTS // products))


def _doubles(blocks: Sequence[Block], columns: slice) -> Block:
    """Some columns of the rows of all blocks in float64."""
    parts = [block[:, columns] for block in blocks]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, dtype="float64")
    return tf.cast(tf.concat(parts, axis=0), tf.float64)


def combine(block: tf.Tensor, coefficients: np.ndarray) -> tf.Tensor:
    """The combinations of rows, in the dtype of the block (k, n): (l, n) from (k, l)."""
    return tf.matmul(tf.constant(coefficients, block.dtype), block, transpose_a=True)


def combine_all(blocks: Sequence[tf.Tensor], coefficients: np.ndarray) -> tf.Tensor:
    """As `combine`, of the rows of all blocks (k_i, n) in order; part by part."""
    size = int(blocks[0].shape[1])
    if size <= _LENGTH:
        return combine(tf.concat(blocks, axis=0), coefficients)
    parts = [
        combine(tf.concat([block[:, i : i + _LENGTH] for block in blocks], axis=0), coefficients)
        for i in range(0, size, _LENGTH)
    ]
    return tf.concat(parts, axis=1)


def add_scaled(total: tf.Tensor | None, scale: float, block: tf.Tensor) -> tf.Tensor:
    """The sum total + scale block, without passes that change nothing; None: no total yet."""
    part = block if scale == 1.0 else block * tf.constant(scale, block.dtype)
    return part if total is None else total + part


def leading_basis(
    blocks: list[tf.Tensor],
    rank: int,
    *,
    scales: Sequence[float] | None = None,
    products: np.ndarray | None = None,
) -> tuple[tf.Tensor, np.ndarray]:
    """The leading right singular vectors of a matrix, orthonormal to rounding.

    By passes over Gram matrices (k, k), summed in float64 (Yamamoto et al. 2015, on Cholesky QR
    twice): no Householder factorisation of the long rows. The first takes the eigenvectors, to
    have the directions in order and to leave out those within rounding; another makes up for
    what was lost to rounding there, and a third where that was much.

    Args:
        blocks: (k_i, n), finite: the rows of the matrix, k of them in all. The list is emptied, so
            that what nobody else holds makes way.
        rank: Number of vectors wanted; fewer come where the rows span no more.
        scales: What the rows of each block count times; None: 1.
        products: (k, k), the Gram matrix of the rows of all blocks in float64; None: not at hand.

    Returns:
        (r, n) with orthonormal rows; and (k, k), what each row of the matrix adds to the square of
        each singular value, these descending: the sums over rows are the squares.
    """
    dtype = blocks[0].dtype
    widths = [block.shape[0] for block in blocks]
    scale = np.repeat(np.ones(len(blocks)) if scales is None else scales, widths)
    products = gram_of(blocks) if products is None else products
    squares, vectors = np.linalg.eigh(scale[:, None] * products * scale)
    squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
    # Of the block's entries, and of the Gram matrix.
    rounding = max(1e4 * np.finfo(dtype.as_numpy_dtype).eps ** 2, 16.0 * np.finfo(float).eps)
    kept = squares[:rank] > max(rounding * squares.max(initial=0.0), np.finfo(float).tiny)
    leading = np.flatnonzero(kept)
    basis = combine_all(blocks, scale[:, None] * vectors[:, leading] / np.sqrt(squares[leading]))
    blocks.clear()
    off = math.inf if len(leading) else 0.0  # from orthonormal
    while off > _ORTHONORMAL:
        products = gram_of([basis])
        off = float(np.abs(products - np.eye(len(leading))).max())
        basis = combine(basis, np.linalg.inv(np.linalg.cholesky(products)).T)
    return basis, squares * vectors**2
