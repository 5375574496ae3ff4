"""Builds a network in Keras, trains it where that is asked for, and writes its problem file.

Run by `against_peers.py`:  python -m peers.prepare NETWORK FILE
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from exact import network as digits_network
from networks import NETWORKS, Problem, resnet, transformer
from sklearn.datasets import load_digits

from keras_hessian_callback import HessianOperator
from peers import problem

_HELD_OUT = 256
_TEXT = {"vocabulary": 4, "length": 24, "width": 48, "blocks": 2}
_DIGIT_IMAGES = {"image": (8, 8, 1), "widths": (16, 32), "momentum": 0.9}


def digits() -> Problem:
    """The tanh MLP of `exact.py` on 256 held-out digits."""
    x, y = _digits()
    return digits_network(), x[:_HELD_OUT], y[:_HELD_OUT]


def text() -> Problem:
    """The transformer, small, on 8 held-out sequences of a Markov chain."""
    tokens = _markov_chain(8, seed=1)
    return transformer(**_TEXT)[0], tokens[:, :-1], tokens[:, 1:]


def images() -> Problem:
    """The ResNet-like network, small, on 128 held-out digits as images."""
    x, y = _digits()
    return resnet(**_DIGIT_IMAGES)[0], x[:128].reshape(-1, 8, 8, 1), y[:128]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 16.0).astype("float32"), y[order].astype("int32")


def _markov_chain(sequences: int, seed: int) -> np.ndarray:
    """Text of 4 letters, each drawn according to the two before it."""
    letters, length = _TEXT["vocabulary"], _TEXT["length"] + 1
    chances = np.random.default_rng(0).dirichlet(np.full(letters, 0.3), (letters, letters))
    draws = np.random.default_rng(seed)
    tokens = draws.integers(letters, size=(sequences, length), dtype="int32")
    for i in range(2, length):
        cumulated = chances[tokens[:, i - 2], tokens[:, i - 1]].cumsum(axis=1)
        drawn = (draws.random((sequences, 1)) > cumulated).sum(axis=1)
        tokens[:, i] = np.minimum(drawn, letters - 1)
    return tokens


def _training_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "text":
        tokens = _markov_chain(1024, seed=2)
        return tokens[:, :-1], tokens[:, 1:]
    x, y = _digits()
    shape = (-1, 8, 8, 1) if name == "images" else (-1, 64)
    return x[_HELD_OUT:].reshape(shape), y[_HELD_OUT:]


# The networks that are trained, and for how many epochs.
TRAINED: dict[str, tuple[Callable[[], Problem], int]] = {
    "digits": (digits, 8),
    "text": (text, 4),
    "images": (images, 5),
}
BUILDERS: dict[str, Callable[[], Problem]] = NETWORKS | {
    name: build for name, (build, _) in TRAINED.items()
}
_KINDS = {"digits": "mlp", "text": "transformer", "images": "resnet"}


def prepare(name: str) -> problem.Problem:
    model, x, y = BUILDERS[name]()
    last = TRAINED[name][1] if name in TRAINED else 0
    operator = HessianOperator(model, (x, y))
    vector = [
        np.random.default_rng(i).normal(size=v.shape).astype("float32")
        for i, v in enumerate(model.trainable_variables)
    ]
    trainable, frozen, losses, products = {}, {}, {}, {}
    for epoch in range(last + 1):
        if epoch:
            training_x, training_y = _training_data(name)
            keras.utils.set_random_seed(epoch)
            model.fit(training_x, training_y, batch_size=32, epochs=1, verbose=0)
        trainable[epoch] = [v.numpy() for v in model.trainable_variables]
        frozen[epoch] = [v.numpy() for v in model.non_trainable_variables if v.dtype == "float32"]
        loss = model.compute_loss(x, y, model(tf.constant(x), training=False), training=False)
        losses[epoch] = float(loss)
        if epoch in (0, last):
            flat = np.concatenate([v.ravel() for v in vector])
            products[epoch] = split(operator.matvec(flat), vector)
    kind = _KINDS.get(name, name)
    return problem.Problem(
        name=name,
        kind=kind,
        activation="tanh" if name == "digits" else "relu",
        heads=4,
        x=np.asarray(x),
        y=np.asarray(y),
        trainable=trainable,
        frozen=frozen,
        losses=losses,
        vector=vector,
        products=products,
    )


def split(flat: np.ndarray, like: list[np.ndarray]) -> list[np.ndarray]:
    """The parts of a flat vector, shaped like `like`."""
    ends = np.cumsum([v.size for v in like])[:-1]
    return [part.reshape(v.shape) for part, v in zip(np.split(flat, ends), like, strict=True)]


@functools.cache
def limit_threads(threads: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def main() -> None:
    name, path = sys.argv[1:]
    limit_threads(2)
    prepare(name).save(Path(path))


if __name__ == "__main__":
    main()
