"""Vectors of all weights: packing, blocks, and random probes from stateless seeds."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Seed = int | tuple[int, int]
Block: TypeAlias = np.ndarray | tf.Tensor

PROBES = ("rademacher", "normal")
PROBES_PER_BLOCK = 8
_UNIFORMS = -1  # where blocks of probes have their number
# Rows of a block that are cast to float64 at a time: so many that they stay in a core's cache, and
# fewer than NumPy starts threads for, which wait for each other on a busy machine.
_HOST_ROWS, _HOST_PRODUCTS, _DEVICE_ROWS = 2**13, 2**17, 2**18


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


def map_columns(
    function: Callable[[list[tf.Tensor]], Sequence[tf.Tensor]],
    block: tf.Tensor,
    like: Sequence[tf.Tensor],
) -> tf.Tensor:
    """`function` of every column of a block, in a graph, two columns at a time.

    Args:
        function: Takes a column as tensors with the shapes of `like`, gives others of these shapes.
        block: (n, k); k may be 0.
        like: One tensor per variable.

    Returns:
        The packed results (n, k), in the dtype of `block`.
    """
    sizes = [math.prod(t.shape) for t in like]
    parts = tf.split(block, sizes)
    columns = [
        tf.reshape(tf.transpose(part), [-1, *t.shape]) for part, t in zip(parts, like, strict=True)
    ]
    results = tf.map_fn(
        lambda column: [tf.cast(result, block.dtype) for result in function(column)],
        columns,
        parallel_iterations=2,
        fn_output_signature=[tf.TensorSpec(t.shape, block.dtype) for t in like],
    )
    packed = [
        tf.transpose(tf.reshape(result, [-1, size]))
        for result, size in zip(results, sizes, strict=True)
    ]
    return tf.concat(packed, axis=0)


def probes(distribution: str, *, size: int, block: int, seed: Seed, dtype: np.dtype) -> tf.Tensor:
    """Random vectors v with E[v v'] = I, as a function of (seed, block) alone.

    Args:
        distribution: `"rademacher"` (entries -1 and +1) or `"normal"`.
        size: Length n of a probe.
        block: Number of the block, from 0: it holds the probes from `block * PROBES_PER_BLOCK`.
        seed: An int, or a pair (seed, step).
        dtype: Floating dtype of the probes.

    Returns:
        Tensor (n, PROBES_PER_BLOCK): a probe a column.
    """
    key = _key(seed, block)
    shape = [size, PROBES_PER_BLOCK]
    if distribution == "normal":
        return tf.random.stateless_normal(shape, key, dtype=dtype, alg="philox")
    bits = tf.random.stateless_uniform(
        shape, key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    one = tf.ones([], dtype)
    return tf.where(bits < 0, -one, one)


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


def column_square_sums(block: Block) -> np.ndarray:
    """||column||^2 of a block (n, k), summed in float64: (k,)."""
    return column_dots(block, block)


def column_dots(left: Block, right: Block) -> np.ndarray:
    """left_j' right_j of two blocks (n, k), summed in float64: (k,)."""
    return _summed("ik,ik->k", left, right)


def gram(left: Block, right: Block) -> np.ndarray:
    """The float64 matrix left' right of two blocks (n, k) and (n, l): (k, l)."""
    return _summed("ik,il->kl", left, right)


def _at_hand(block: Block) -> Block:
    """The block as an array, without a copy; one on a GPU as it is."""
    if isinstance(block, np.ndarray) or "GPU" in block.device:
        return block
    return np.asarray(memoryview(block))


def _summed(equation: str, left: Block, right: Block) -> np.ndarray:
    """An einsum over the rows in float64, part by part: never a copy of a whole block."""
    same = left is right
    left, right = _at_hand(left), _at_hand(right)
    on_host, is_gram = isinstance(left, np.ndarray), equation == "ik,il->kl"
    rows = _DEVICE_ROWS
    if on_host:
        products = left.shape[1] * (right.shape[1] if is_gram else 1)  # of a row
        rows = min(_HOST_ROWS, _HOST_PRODUCTS // max(1, products)) + 1
    total: Any = 0.0
    for first in range(0, max(1, left.shape[0]), rows):
        a, b = left[first : first + rows], right[first : first + rows]
        if on_host:
            a = a.astype("float64")
            b = a if same else b.astype("float64")
            total = total + (a.T @ b if is_gram else np.einsum(equation, a, b))
        else:
            total = total + tf.einsum(equation, tf.cast(a, tf.float64), tf.cast(b, tf.float64))
    return np.asarray(total)


def combine(block: tf.Tensor, coefficients: np.ndarray) -> tf.Tensor:
    """The combinations of columns, in the dtype of the block (n, k): (n, l) from (k, l)."""
    return tf.matmul(block, tf.constant(coefficients, block.dtype))


def add_scaled(total: tf.Tensor | None, scale: float, block: tf.Tensor) -> tf.Tensor:
    """The sum total + scale block, without passes that change nothing; None: no total yet."""
    part = block if scale == 1.0 else block * tf.constant(scale, block.dtype)
    return part if total is None else total + part


def leading_basis(block: tf.Tensor, rank: int) -> tuple[tf.Tensor, np.ndarray]:
    """The leading left singular vectors of a block, orthonormal to rounding.

    By two passes over the Gram matrix (k, k), summed in float64 (Yamamoto et al. 2015, on
    Cholesky QR twice): no Householder factorisation of the long block. The first pass takes
    the eigenvectors, to have the directions in order and to leave out those within rounding.

    Args:
        block: (n, k), finite.
        rank: Number of vectors wanted; fewer come where the block has no more.

    Returns:
        (n, r) with orthonormal columns, and the squares of all k singular values, descending.
    """
    squares, vectors = np.linalg.eigh(gram(block, block))
    squares, vectors = np.maximum(squares[::-1], 0.0), vectors[:, ::-1]
    # Of the block's entries, and of the Gram matrix.
    rounding = max(1e4 * np.finfo(block.dtype.as_numpy_dtype).eps ** 2, 16.0 * np.finfo(float).eps)
    kept = squares[:rank] > max(rounding * squares.max(initial=0.0), np.finfo(float).tiny)
    leading = np.flatnonzero(kept)
    basis = combine(block, vectors[:, leading] / np.sqrt(squares[leading]))
    for _ in range(2 if len(leading) else 0):
        factor = np.linalg.cholesky(gram(basis, basis))
        basis = combine(basis, np.linalg.inv(factor).T)
    return basis, squares
