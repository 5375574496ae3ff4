"""Named tiny Keras problems, each a model with held-out data and at most 200 weights."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

Problem = tuple[keras.Model, tuple[Any, ...]]

NUM_EXAMPLES = 10


def least_squares() -> Problem:
    """Two linear outputs: the Hessian of each is 2 / N X'X, averaged over the outputs."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, use_bias=False)])
    model.compile("sgd", "mse")
    return model, (_normal(4), _normal(2))


def tanh_classifier() -> Problem:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, activation="tanh"), layers.Dense(3)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, (_normal(4), _classes(3))


def sample_weights() -> Problem:
    model, (x, y) = tanh_classifier()
    return model, (x, y, np.linspace(0.1, 3.0, NUM_EXAMPLES))


def mean_with_sample_weight() -> Problem:
    model, (x, y) = least_squares()
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"))
    return model, (x, y, np.linspace(0.1, 3.0, NUM_EXAMPLES))


def two_inputs_two_outputs() -> Problem:
    """Dictionaries in and out, loss weights, a sample weight for each output."""
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    hidden = layers.Dense(4, activation="tanh")(layers.Concatenate()([left, right]))
    outputs = {
        "size": layers.Dense(1, name="size")(hidden),
        "kind": layers.Dense(3, activation="softmax", name="kind")(hidden),
    }
    model = keras.Model({"left": left, "right": right}, outputs)
    model.compile(
        "adam",
        loss={"size": "mse", "kind": "sparse_categorical_crossentropy"},
        loss_weights={"size": 0.3, "kind": 2.0},
    )
    x = {"left": _normal(3), "right": _normal(2, seed=1)}
    y = {"size": _normal(1), "kind": _classes(3)}
    weight = {"size": np.linspace(0.5, 1.5, NUM_EXAMPLES), "kind": np.ones(NUM_EXAMPLES)}
    return model, (x, y, weight)


def two_outputs_in_a_tuple() -> Problem:
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, activation="tanh")(inputs)
    model = keras.Model(inputs, (layers.Dense(1)(hidden), layers.Dense(2)(hidden)))
    model.compile("adam", loss=["mse", keras.losses.Huber()], loss_weights=[1.0, 0.5])
    return model, (_normal(3), (_normal(1), _normal(2, seed=1)))


def masked_tokens() -> Problem:
    """A prediction per token; padding is masked, unevenly from example to example."""
    inputs = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(6, 4, mask_zero=True)(inputs)
    hidden = layers.SimpleRNN(4, return_sequences=True)(embedded)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lengths = 1 + np.arange(NUM_EXAMPLES) % 5
    tokens = np.where(np.arange(5) < lengths[:, None], 1 + np.arange(50).reshape(10, 5) % 5, 0)
    return model, (tokens.astype("int32"), np.arange(50).reshape(10, 5) % 3)


def ignored_class() -> Problem:
    """Targets of class -1 are left out of the mean."""
    model, (x, y) = tanh_classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    model.compile("adam", loss)
    return model, (x, np.where(np.arange(NUM_EXAMPLES) % 4 == 1, -1, y))


def regularized() -> Problem:
    """Weight decay and `add_loss`."""

    class Penalty(layers.Layer):
        def call(self, inputs):
            self.add_loss(0.1 * keras.ops.mean(inputs**4))
            return inputs

    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, "tanh", kernel_regularizer="l2"),
            Penalty(),
            layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    return model, (_normal(4), _normal(1))


def activity_regularized() -> Problem:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, "tanh", activity_regularizer="l2"), layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    return model, (_normal(4), _normal(1))


def overridden_compute_loss() -> Problem:
    """A loss of the model's own, which also updates a metric, as the Keras guide shows."""

    class Quartic(keras.Model):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.tracker = keras.metrics.Mean(name="quartic")

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            loss = keras.ops.mean((y_pred - y) ** 4)
            self.tracker.update_state(loss)
            return loss

    inputs = keras.Input((3,))
    hidden = layers.Dense(4, activation="tanh")(inputs)
    model = Quartic(inputs, layers.Dense(1)(hidden))
    model.compile("sgd")
    return model, (_normal(3), _normal(1))


def batch_normalization_and_dropout() -> Problem:
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    model.layers[1].moving_variance.assign(np.linspace(0.5, 2.0, 5))
    return model, (_normal(4), _normal(1))


def convolution() -> Problem:
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="softplus"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 6, 6, 1))
    return model, (x, _normal(2))


def attention() -> Problem:
    """Attention between layer normalisations, whose variance TensorFlow differentiates wrongly."""
    inputs = keras.Input((3, 4))
    hidden = layers.LayerNormalization()(inputs)
    hidden = inputs + layers.MultiHeadAttention(2, 2)(hidden, hidden)
    hidden = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(hidden))
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 3, 4))
    return model, (x, _normal(2))


def recurrent() -> Problem:
    model = keras.Sequential([keras.Input((4, 2)), layers.GRU(3), layers.Dense(1)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 4, 2))
    return model, (x, _normal(1))


def pooled_volumes(seed: int = 0) -> Problem:
    """Three-dimensional max-pooling."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 4, 1)),
            layers.Conv3D(2, 2, activation="tanh"),
            layers.MaxPooling3D(2),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    rng = np.random.default_rng(seed)
    return model, (rng.normal(size=(6, 4, 4, 4, 1)), rng.normal(size=(6, 2)))


def partly_frozen() -> Problem:
    model, data = tanh_classifier()
    model.layers[0].trainable = False
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, data


PROBLEMS: list[Callable[[], Problem]] = [
    least_squares,
    tanh_classifier,
    sample_weights,
    mean_with_sample_weight,
    two_inputs_two_outputs,
    two_outputs_in_a_tuple,
    masked_tokens,
    ignored_class,
    regularized,
    overridden_compute_loss,
    batch_normalization_and_dropout,
    convolution,
    attention,
    recurrent,
    partly_frozen,
]


def _normal(width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(NUM_EXAMPLES, width))


def _classes(num_classes: int) -> np.ndarray:
    return np.arange(NUM_EXAMPLES) % num_classes
