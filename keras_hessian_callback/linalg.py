"""Vectors of all weights: packing, blocks, and random probes from stateless seeds."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

Seed = int | tuple[int, int]

PROBES = ("rademacher", "normal")
PROBES_PER_BLOCK = 8


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


def map_rows(function: Callable[[tf.Tensor], tf.Tensor], vectors: tf.Tensor) -> tf.Tensor:
    """`function` of every row of (k, n), in a graph, two rows at a time; k may be 0."""
    signature = tf.TensorSpec(vectors.shape[1:], vectors.dtype)
    return tf.map_fn(function, vectors, parallel_iterations=2, fn_output_signature=signature)


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
    pair = seed if isinstance(seed, tuple) else (seed, 0)
    words = tf.constant([word & 0x7FFFFFFFFFFFFFFF for word in pair], tf.int64)
    key = tf.random.experimental.stateless_fold_in(words, block, alg="philox")
    shape = [size, PROBES_PER_BLOCK]
    if distribution == "normal":
        return tf.random.stateless_normal(shape, key, dtype=dtype, alg="philox")
    bits = tf.random.stateless_uniform(
        shape, key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    one = tf.ones([], dtype)
    return tf.where(bits < 0, -one, one)


def machine_epsilon(dtypes: Iterable[tf.DType]) -> float:
    """The largest spacing of the numbers after 1 among these floating dtypes."""
    known = {tf.float64: 2.0**-52, tf.float32: 2.0**-23, tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7}
    return max(known[dtype] for dtype in dtypes)


def check_seed(seed: Seed) -> None:
    """Raises TypeError unless `seed` is an int or a pair of ints."""
    words = seed if isinstance(seed, tuple) and len(seed) == 2 else (seed,)
    if any(isinstance(word, bool) or not isinstance(word, int | np.integer) for word in words):
        raise TypeError(f"`seed` must be an integer or a pair (seed, step); got {seed!r}.")


def column_square_sums(block: tf.Tensor) -> np.ndarray:
    """||column||^2 of a block (n, k), summed in float64: (k,)."""
    return tf.reduce_sum(tf.square(tf.cast(block, tf.float64)), axis=0).numpy()


def column_dots(left: tf.Tensor, right: tf.Tensor) -> np.ndarray:
    """left_j' right_j of two blocks (n, k), summed in float64: (k,)."""
    product = tf.cast(left, tf.float64) * tf.cast(right, tf.float64)
    return tf.reduce_sum(product, axis=0).numpy()
