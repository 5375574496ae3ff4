"""Bars of Ritz values in single precision, with eigenvalues found in double precision."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_hessian_callback import Deflated, HessianOperator
from tests.oracles import dense_hessian, double_precision
from tests.problems import tanh_classifier


def saddle():
    """Two linear layers with weights 0: as many eigenvalues 0.5 as -0.5, and no others.

    A vector in equal parts of both has the Ritz value 0, with a residual of 0.5: no bar could be
    shorter.
    """
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 4)))[0] * 4.0
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    dense = [keras.layers.Dense(k, use_bias=False, kernel_initializer="zeros") for k in (16, 4)]
    model = keras.Sequential([keras.Input((4,)), *dense])
    model.compile("sgd", "mse")
    return model, (x.astype("float32"), (x @ turned).astype("float32"))


def trained_digits():
    """64-6-10 with tanh after 4 epochs: eigenvalues of both signs, most of them close to 0."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16.0).astype("float32"), y.astype("int32")
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(10)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if keras.config.floatx() == "float32":
        model.fit(x[256:], y[256:], epochs=4, verbose=0)
    return model, (x[:256], y[:256])


def all_hold(ritz_values, eigenvalues, shortened=1.0):
    """Whether an eigenvalue lies within each bar."""
    distances = np.array([np.abs(eigenvalues - ritz.value).min() for ritz in ritz_values])
    bars = np.array([min(r.upper - r.value, r.value - r.lower) for r in ritz_values])
    return bool((distances <= shortened * bars).all())


@pytest.mark.parametrize("make", [saddle, tanh_classifier, trained_digits])
def test_an_eigenvalue_lies_within_each_bar(make):
    """Of 200: with few products and with many, cold, and as the basis comes to rest.

    No slack is needed for the rounding of products: it is part of the residuals that bars are made
    of. The values themselves may be past the ends of the spectrum by it, which is below 1e-5.
    """
    model, data = make()
    operator = HessianOperator(model, data)
    assert operator.dtype == np.float32
    ritz_values = []
    for max_matvecs in (10, 40):
        estimator = Deflated(max_matvecs=max_matvecs, target_error=None)
        for seed in range(10):
            state = None
            for step in range(5):
                found, state = estimator(operator, seed=(seed, step), state=state)
                ritz_values += [found["largest_ritz_value"], found["smallest_ritz_value"]]
    eigenvalues = np.linalg.eigvalsh(dense_hessian(*double_precision(make, like=model)))
    assert all_hold(ritz_values, eigenvalues)
    slack = 1e-5 * np.abs(eigenvalues).max()
    assert max(ritz.value for ritz in ritz_values) <= eigenvalues[-1] + slack
    assert min(ritz.value for ritz in ritz_values) >= eigenvalues[0] - slack
    if make is saddle:
        np.testing.assert_allclose(np.abs(eigenvalues), 0.5, rtol=1e-6)
        assert not all_hold(ritz_values, eigenvalues, shortened=0.9)
