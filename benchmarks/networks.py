"""The networks that the benchmarks measure, each with random data and a compiled loss."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

Problem = tuple[keras.Model, np.ndarray, np.ndarray]


def mlp() -> Problem:
    """784-256-256-10 with ReLU, 256 examples."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((784,))
    hidden = layers.Dense(256, activation="relu")(inputs)
    hidden = layers.Dense(256, activation="relu")(hidden)
    x = np.random.default_rng(0).normal(size=(256, 784)).astype("float32")
    return _compiled(inputs, layers.Dense(10)(hidden)), x, _classes(10, 256)


def transformer(
    vocabulary: int = 1000, length: int = 64, width: int = 128, blocks: int = 4
) -> Problem:
    """A causal language model of 4 pre-norm blocks, width 128: 16 sequences of 64 tokens."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((length,), dtype="int32")
    hidden = _AddPositions()(layers.Embedding(vocabulary, width)(tokens))
    for _ in range(blocks):
        normed = layers.LayerNormalization()(hidden)
        attention = layers.MultiHeadAttention(num_heads=4, key_dim=width // 4)
        hidden = hidden + attention(normed, normed, use_causal_mask=True)
        normed = layers.LayerNormalization()(hidden)
        wide = layers.Dense(4 * width, activation="gelu")(normed)
        hidden = hidden + layers.Dense(width)(wide)
    logits = layers.Dense(vocabulary)(layers.LayerNormalization()(hidden))
    text = _classes(vocabulary, 16, length + 1)
    return _compiled(tokens, logits), text[:, :-1], text[:, 1:]


def resnet(
    image: tuple[int, int, int] = (32, 32, 3),
    widths: tuple[int, ...] = (32, 64, 128),
    momentum: float = 0.99,
) -> Problem:
    """Residual blocks of 32, 64 and 128 channels with BatchNormalization: 64 images, 32x32x3."""
    keras.utils.set_random_seed(0)
    images = keras.Input(image)
    convolution = functools.partial(_convolution, momentum=momentum)
    hidden = convolution(images, widths[0])
    for channels in widths:
        strides = 1 if channels == widths[0] else 2
        shortcut = hidden
        if strides != 1:
            shortcut = layers.Conv2D(channels, 1, strides=strides, use_bias=False)(hidden)
        hidden = layers.ReLU()(convolution(hidden, channels, strides))
        hidden = layers.ReLU()(convolution(hidden, channels) + shortcut)
    logits = layers.Dense(10)(layers.GlobalAveragePooling2D()(hidden))
    x = np.random.default_rng(0).normal(size=(64, *image)).astype("float32")
    return _compiled(images, logits), x, _classes(10, 64)


NETWORKS: dict[str, Callable[[], Problem]] = {
    "mlp": mlp,
    "transformer": transformer,
    "resnet": resnet,
}


class _AddPositions(layers.Layer):
    """Adds a learned vector to each position of a sequence."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.positions = self.add_weight(shape=shape[1:], initializer="uniform")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs + self.positions


def _convolution(
    inputs: keras.KerasTensor, channels: int, strides: int = 1, *, momentum: float
) -> keras.KerasTensor:
    convolution = layers.Conv2D(channels, 3, strides=strides, padding="same", use_bias=False)
    return layers.BatchNormalization(momentum=momentum)(convolution(inputs))


def _classes(num_classes: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(num_classes, size=shape, dtype="int32")


def _compiled(inputs: keras.KerasTensor, logits: keras.KerasTensor) -> keras.Model:
    model = keras.Model(inputs, logits)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
