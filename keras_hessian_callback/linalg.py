"""Vectors of all weights: packing, mapping blocks of them, and random probes by seeds."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from keras_hessian_callback.rows import (
    ALIGNMENT,
    Block,
    are_few,
    as_tensor,
    at_hand,
    empty,
    join,
    pieces,
)

Seed = int | tuple[int, int]

PROBES = ("rademacher", "normal")
BLOCK_SIZE = 8  # vectors: more save little, where these share a gradient, but for small models
_BITS = 32  # of a random word
_SIGN, _ONE = -(2**31), 0x3F800000  # the sign of a float32 and the number 1, as words
_PHILOX = 1  # TensorFlow's number for this algorithm
_UNIFORMS = -1  # where the words of probes have their number


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

    shared = all(size * block.dtype.size % ALIGNMENT == 0 for size in sizes)

    def of_row(index: tf.Tensor) -> tf.Tensor:
        if shared:  # a row and its parts lie in the memory of the block
            parts = tf.split(block[index], sizes)
        else:  # cut from the block itself: a copy of each part, and none of the row
            cuts = zip(starts, sizes, strict=True)
            parts = [tf.slice(block, [index, start], [1, size]) for start, size in cuts]
        row = [tf.reshape(part, t.shape) for part, t in zip(parts, like, strict=True)]
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
        blocks.append(_signs(_words(size, seed, word), np.array(bits, "int32")))
    return tf.cast(as_tensor(join(blocks)), dtype)


def uniforms(count: int, seed: Seed) -> np.ndarray:
    """Independent numbers in [0, 1), (count,) in float64, as a function of the seed alone."""
    key = _key(seed, _UNIFORMS)
    return tf.random.stateless_uniform([count], key, dtype=tf.float64, alg="philox").numpy()


def words_of(seed: Seed) -> tuple[int, int]:
    """The two words of 63 bits that random numbers are a function of."""
    first, second = seed if isinstance(seed, tuple) else (seed, 0)
    return int(first) & 0x7FFFFFFFFFFFFFFF, int(second) & 0x7FFFFFFFFFFFFFFF


def _key(seed: Seed, number: int) -> tf.Tensor:
    """A key of stateless random numbers for each seed and number."""
    pair = tf.constant(words_of(seed), tf.int64)
    return tf.random.experimental.stateless_fold_in(pair, number, alg="philox")


def _words(size: int, seed: Seed, number: int) -> tf.Tensor:
    """Random words (n,) as a function of seed and number, where TensorFlow has its vectors."""
    entropy = np.array([*words_of(seed), number], "uint64").view("uint32")  # of one length
    key, *counter = np.random.SeedSequence(entropy).generate_state(3, "uint64")
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=tf.constant([size]),
        key=tf.constant([key], tf.uint64),
        counter=tf.constant(counter, tf.uint64),
        alg=_PHILOX,
        dtype=tf.int32,
    )


def _signs(words: tf.Tensor, bits: np.ndarray) -> Block:
    """Signs (k, n) in float32, of k bits of n words: each in the place of its sign, of a 1."""
    if are_few(len(bits), *words.shape):
        words = at_hand(words)
    if not isinstance(words, np.ndarray):
        bit = np.left_shift(np.int32(1), bits[:, None])
        return tf.where(tf.equal(tf.bitwise.bitwise_and(words, bit), 0), 1.0, -1.0)
    shifts = _BITS - 1 - bits[:, None]
    signs = empty((len(bits), len(words)), words.dtype)
    for columns in pieces(signs, rows=len(bits) + 1):
        place = signs[:, columns]
        np.left_shift(words[columns], shifts, out=place)
        place &= np.int32(_SIGN)
        place |= np.int32(_ONE)
    return signs.view("float32")


def machine_epsilon(dtypes: Iterable[tf.DType]) -> float:
    """The largest spacing of the numbers after 1 among these floating dtypes."""
    known = {tf.float64: 2.0**-52, tf.float32: 2.0**-23, tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7}
    return max(known[dtype] for dtype in dtypes)


def check_seed(seed: Seed) -> None:
    """Raises TypeError unless `seed` is an int or a pair of ints."""
    words = seed if isinstance(seed, tuple) and len(seed) == 2 else (seed,)
    if any(isinstance(word, bool) or not isinstance(word, int | np.integer) for word in words):
        raise TypeError(f"`seed` must be an integer or a pair (seed, step); got {seed!r}.")
