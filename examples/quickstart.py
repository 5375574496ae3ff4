"""Train a small network on scikit-learn's digits and watch its curvature.

Run:  python examples/quickstart.py [directory of the logs]
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
from sklearn.datasets import load_digits

from keras_hessian_callback import HessianNormCallback


def main(logs: str = "logs") -> None:
    log_dir = os.path.join(logs, time.strftime("%Y-%m-%d_%H.%M.%S"))
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    train, held_out = slice(512, None), slice(512)

    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])

    curvature = HessianNormCallback((x[held_out], y[held_out]), log_dir=log_dir)
    history = model.fit(
        x[train],
        y[train],
        epochs=15,
        verbose=0,
        callbacks=[curvature, keras.callbacks.TensorBoard(log_dir)],
    )

    print(f"{model.count_params():,} parameters, {curvature.report.num_examples} held-out examples")
    print("epoch     loss   ||H||_F      95 % interval   products   seconds")
    curve = curvature.history
    for row, epoch in enumerate(curve["epoch"]):
        norm, lower, upper = (
            curve[f"frobenius_norm{end}"][row] for end in ("", "/lower", "/upper")
        )
        print(
            f"{epoch:5d} {history.history['loss'][row]:8.4f} {norm:9.3f}   "
            f"[{lower:7.3f}, {upper:7.3f}] {curve['num_matvecs'][row]:10d} "
            f"{curve['seconds'][row]:9.2f}"
        )
    beside_python = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    print(f"\nLook at the curve:  {beside_python} --logdir {logs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
