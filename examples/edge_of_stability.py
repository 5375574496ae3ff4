"""Watch training settle at the edge of stability.

Full-batch gradient descent sharpens a network until the largest eigenvalue of the Hessian meets
2 / step size, and stays there (Cohen et al. 2021, arXiv:2103.00065). So does Adam, with the
Hessian over what it divides by, and 38 / step size (Cohen et al. 2022, arXiv:2207.14484).

Run:  python examples/edge_of_stability.py [directory of the logs]
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
import numpy as np
from sklearn.datasets import load_digits

from keras_hessian_callback import Deflated, HessianNormCallback, every

STEPS = 4000
EVERY = 100
RUNS = {
    "gradient descent 0.2": keras.optimizers.SGD(0.2),
    "gradient descent 0.3": keras.optimizers.SGD(0.3),
    "Adam 0.003": keras.optimizers.Adam(3e-3),
}


def watch(optimizer: keras.optimizers.Optimizer, log_dir: str) -> dict[str, list[float]]:
    """Trains on all examples in every step; the measurements by their names."""
    keras.utils.set_random_seed(0)
    x, digits = load_digits(return_X_y=True)
    x = ((x[:EXAMPLES] - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)).astype("float32")
    y = np.eye(10, dtype="float32")[digits[:EXAMPLES]]
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(WIDTH, activation="tanh"),
            keras.layers.Dense(WIDTH, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(optimizer, half_squared_error, steps_per_execution=50)
