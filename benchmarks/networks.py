"""The networks that the benchmarks measure, each with random data and a compiled loss."""

import functools
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

Problem = tuple[keras.Model, np.ndarray, np.ndarray]


def mlp(features: int = 784, width: int = 256, examples: int = 256) -> Problem:
    """784-256-256-10 with ReLU, 256 examples."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((features,))
    hidden = layers.Dense(width, activation="relu")(inputs)
    hidden = layers.Dense(width, activation="relu")(hidden)
    x = np.random.default_rng(0).normal(size=(examples, features)).astype("float32")
    return _compiled(inputs, layers.Dense(10)(hidden)), x, _classes(10, examples)


def mlp_of_size(parameters: int, features: int = 64, examples: int = 128) -> Problem:
    """The MLP on 64 features, as wide as brings it near so many parameters; 128 examples."""
    # width^2 + (features + 12) width + 10 parameters
    middle = (features + 12) / 2
    return mlp(features, round(math.sqrt(middle**2 + parameters - 10) - middle), examples)


def convolutional(examples: int = 256) -> Problem:
    """Three convolutions of 16, 32 and 64 channels and two dense layers: images 16x16x1."""
    keras.utils.set_random_seed(0)
    images = keras.Input((16, 16, 1))
    hidden = layers.Conv2D(16, 3, padding="same", activation="relu")(images)
    hidden = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(hidden)
    hidden = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(hidden)
    hidden = layers.Dense(256, activation="relu")(layers.Flatten()(hidden))
    x = np.random.default_rng(0).normal(size=(examples, 16, 16, 1)).astype("float32")
    return _compiled(images, layers.Dense(10)(hidden)), x, _classes(10, examples)


def transformer(
    vocabulary: int = 1000,
    length: int = 64,
    width: int = 128,
    blocks: int = 4,
    *,
    heads: int = 4,
    sequences: int = 16,
    tied: bool = False,
) -> Problem:
    """A causal language model of 4 pre-norm blocks, width 128: 16 sequences of 64 tokens.

    `tied`: the rows of the embedding are those of the output layer too, as in GPT-2.
    """
    keras.utils.set_random_seed(0)
    tokens = keras.Input((length,), dtype="int32")
    embedding = _TiedEmbedding(vocabulary, width) if tied else layers.Embedding(vocabulary, width)
    hidden = _AddPositions()(embedding(tokens))
    for _ in range(blocks):
        normed = layers.LayerNormalization()(hidden)
        attention = layers.MultiHeadAttention(num_heads=heads, key_dim=width // heads)
        hidden = hidden + attention(normed, normed, use_causal_mask=True)
        normed = layers.LayerNormalization()(hidden)
        wide = layers.Dense(4 * width, activation="gelu")(normed)
        hidden = hidden + layers.Dense(width)(wide)
    hidden = layers.LayerNormalization()(hidden)
    logits = embedding(hidden, reverse=True) if tied else layers.Dense(vocabulary)(hidden)
    text = _classes(vocabulary, sequences, length + 1)
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


def gpt2() -> Problem:
    """A decoder of the size of GPT-2 small, on a context of 64: 16 sequences."""
    return transformer(50_257, 64, 768, 12, heads=12, tied=True)


def resnet50(pixels: int = 224) -> Problem:
    """ResNet50 for 1000 classes: 16 images."""
    keras.utils.set_random_seed(0)
    shape = (pixels, pixels, 3)
    model = keras.applications.ResNet50(
        weights=None, input_shape=shape, classes=1000, classifier_activation=None
    )
    x = np.random.default_rng(0).normal(size=(16, *shape)).astype("float32")
    return _compiled(model.input, model.output), x, _classes(1000, 16)


def many_rows(rows: int = 1_000_000, width: int = 16, length: int = 32) -> Problem:
    """An embedding of a million rows, averaged, below two dense layers: 16 texts of 32 tokens.

    Few tokens are frequent, as in a language, so rows are looked up more than once.
    """
    keras.utils.set_random_seed(0)
    tokens = keras.Input((length,), dtype="int32")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(rows, width)(tokens))
    hidden = layers.Dense(64, activation="tanh")(hidden)
    x = np.random.default_rng(0).zipf(1.2, size=(16, length)) % rows
    return _compiled(tokens, layers.Dense(10)(hidden)), x.astype("int32"), _classes(10, 16)


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


class _TiedEmbedding(layers.Layer):
    """Rows for tokens and, in reverse, logits of tokens from vectors by the same rows."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.rows = self.add_weight(shape=(self.vocabulary, self.width), initializer="uniform")

    def call(self, inputs: tf.Tensor, reverse: bool = False) -> tf.Tensor:
        if reverse:
            return keras.ops.matmul(inputs, keras.ops.transpose(self.rows))
        return keras.ops.take(self.rows, inputs, axis=0)


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
