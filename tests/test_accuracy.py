"""One percent in twenty products: the error of `Deflated` on networks as they train.

Over 20 repetitions, which leave 16 % of chance to a root mean square error. The truth is the exact
norm, from a product with every unit vector.
"""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

from keras_hessian_callback import Deflated, Exact, HessianOperator

REPETITIONS = 20
EPOCHS = (3, 4, 5)  # the first of them cold


def dense_network():
    """64-32-10 with tanh: 2,410 weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(32, activation="tanh"),
            layers.Dense(10),
        ]
    )


def convolutional_network():
    """Two convolutions with ReLU and a dense layer: 1,898 weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def relative_errors(runs, truth):
    return np.array([float(estimates["frobenius_norm"]) for estimates in runs]) / truth - 1.0


def root_mean_square(values):
    return np.sqrt(np.mean(np.square(values)))


@pytest.mark.parametrize("network", [dense_network, convolutional_network])
def test_one_percent_warm_and_two_percent_cold_on_trained_digits(network):
    """Warm: 20 products at the end of each epoch, with the basis of the epoch before."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16.0).astype("float32").reshape(-1, 8, 8, 1), y.astype("int32")
    model = network()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    operator = HessianOperator(model, (x[:128], y[:128]))
    states = [None] * REPETITIONS
    trained = 0
    for epoch in EPOCHS:
        model.fit(x[128:], y[128:], batch_size=32, epochs=epoch - trained, verbose=0)
        trained = epoch
        warm = []
        for seed in range(REPETITIONS):
            estimator = Deflated(max_matvecs=20, target_error=None)
            found, states[seed] = estimator(operator, seed=(seed, epoch), state=states[seed])
            assert found.carried == (epoch > EPOCHS[0])
            assert found["frobenius_norm"].num_matvecs <= 20
            warm.append(found)
    cold = [
        Deflated(max_matvecs=40, target_error=None)(operator, seed=(seed, 0))[0]
        for seed in range(REPETITIONS)
    ]
    assert all(found["frobenius_norm"].num_matvecs <= 40 for found in cold)
    truth = float(Exact()(operator)[0]["frobenius_norm"])
    assert root_mean_square(relative_errors(warm, truth)) <= 0.01
    assert root_mean_square(relative_errors(cold, truth)) <= 0.02
