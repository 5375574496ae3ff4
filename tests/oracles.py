"""References that share no code with the package: closed forms and dense Hessians."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.problems import Problem

SPECTRA = {
    "flat": np.linspace(0.5, 1.5, 120),
    "decaying": 1.0 / np.arange(1.0, 121.0),
    "outliers": np.r_[10.0, -6.0, 5.0 * np.ones(8), 0.2 * np.ones(110)],
    "indefinite": np.r_[3.0 * np.ones(5), -4.0 * np.ones(5), np.linspace(-1.0, 1.0, 110)],
    "low rank": np.r_[np.arange(1.0, 13.0), np.zeros(108)],
}


def double_precision(make: Callable[[], Problem], like: keras.Model | None = None) -> Problem:
    """The problem in float64, with the weights of `like`."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model, data = make()
    if like is not None:
        model.set_weights(like.get_weights())
    return model, data


def dense_hessian(model: keras.Model, data: tuple[Any, ...], loss_fn=None) -> np.ndarray:
    """(n, n) Hessian of a float64 model's loss, by differences of its gradient.

    Fourth-order central differences with step 1e-3: about 1e-10 relative on smooth models.
    The weights are assigned and put back.
    """
    x, y, weight = (*data, None)[:3]
    x, y, weight = tf.nest.map_structure(
        lambda a: None if a is None else tf.constant(a), (x, y, weight)
    )
    variables = model.trainable_variables
    assert all(v.dtype == "float64" for v in variables)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            if loss_fn is not None:
                loss = loss_fn(model, x, y, weight)
            else:
                loss = model.compute_loss(x, y, model(x, training=False), weight)
        gradients = tape.gradient(loss, [v.value for v in variables])
        flat = [
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        return tf.concat([tf.reshape(g, [-1]) for g in flat], axis=0)

    rows = []
    step = 1e-3
    for variable in variables:
        original = variable.numpy()
        for index in np.ndindex(original.shape):
            row = 0.0
            for shift, factor in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
                moved = original.copy()
                moved[index] += shift * step
                variable.assign(moved)
                row = row + factor * gradient().numpy()
            rows.append(row / (12.0 * step))
        variable.assign(original)
    return np.stack(rows)


def symmetric_matrix(eigenvalues: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues in a random basis: never diagonal."""
    normal = np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2)
    basis = np.linalg.qr(normal)[0]
    matrix = (basis * eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2


def rademacher_variance(matrix: np.ndarray) -> float:
    """Var ||H v||^2 for Rademacher v: 2 (||H^2||_F^2 - sum_i (H^2)_ii^2)."""
    square = matrix @ matrix
    return float(2.0 * (np.sum(square**2) - np.sum(np.diag(square) ** 2)))
