"""Watch training settle at the edge of stability.

Full-batch gradient descent sharpens a network until the largest eigenvalue of the Hessian is
2 / step size, and hovers there (Cohen et al. 2021, arXiv:2103.00065). So does Adam, with the
Hessian as it sees it and 38 / step size (Cohen et al. 2022, arXiv:2207.14484).

Run:  python examples/edge_of_stability.py [directory of the logs]
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_hessian_callback import HessianNormCallback, every

STEPS = 3500


def half_squared_error(y_true, y_pred):
    return 0.5 * keras.ops.sum(keras.ops.square(y_true - y_pred), axis=-1)


def train(optimizer: keras.optimizers.Optimizer, log_dir: str) -> HessianNormCallback:
    """Trains with all examples in every step, and measures on all of them."""
    keras.utils.set_random_seed(0)
    x, digits = load_digits(return_X_y=True)
    x = ((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)).astype("float32")
    y = np.eye(10, dtype="float32")[digits]
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(optimizer, half_squared_error, steps_per_execution=50)
    curvature = HessianNormCallback(
        (x, y),
        log_dir=log_dir,
        schedule=every(steps=100),
        preconditioned=isinstance(optimizer, keras.optimizers.Adam),
    )
    whole = tf.data.Dataset.from_tensors((x, y)).cache().repeat()
    model.fit(whole, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=[curvature])
    return curvature


def main(logs: str = "logs") -> None:
    log_dir = os.path.join(logs, time.strftime("%Y-%m-%d_%H.%M.%S"))
    runs = {
        "gradient descent, 0.2": keras.optimizers.SGD(0.2),
        "gradient descent, 0.3": keras.optimizers.SGD(0.3),
        "Adam, 0.003": keras.optimizers.Adam(3e-3),
    }
    print("run                     step   largest eigenvalue [bar]     threshold    share")
    for name, optimizer in runs.items():
        curve = train(optimizer, os.path.join(log_dir, name)).history
        for row in range(4, len(curve["step"]), 5):
            value, lower, upper = (
                curve[f"largest_ritz_value{end}"][row] for end in ("", "/lower", "/upper")
            )
            threshold = curve["stability_threshold"][row]
            print(
                f"{name:<22} {curve['step'][row]:5d} {value:10.3f} [{lower:9.3f}, {upper:9.3f}] "
                f"{threshold:10.3f} {value / threshold:8.2f}"
            )
    beside_python = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    print(f"\nLook at the curves:  {beside_python} --logdir {logs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
