"""Watch the spectrum of the Hessian while a network learns to tell ten classes.

A bulk of eigenvalues around 0, and above it as many outliers as there are classes, less one: the
outputs are only compared with each other (Papyan 2018, arXiv:1811.07062). TensorBoard shows the
density over time in its Images, Histograms and Distributions tabs.

Run:  python examples/spectrum.py [directory of the logs]
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
import numpy as np
from scipy.sparse.linalg import aslinearoperator, eigsh
from sklearn.datasets import load_digits

from keras_hessian_callback import HessianNormCallback, HessianOperator, Lanczos, measure_curvature

BINS = np.r_[-np.inf, -1.0, -0.1, -0.01, 0.01, 0.1, 1.0, 10.0, np.inf]
EPOCHS = 12


def show(moment: str, report) -> None:
    """Prints how many eigenvalues lie between which numbers."""
    spectrum = report.spectrum
    shares, _ = np.histogram(spectrum.nodes, BINS, weights=spectrum.weights)
    counts = " ".join(f"{count:8.1f}" for count in shares * report.num_parameters)
    print(f"{moment:<9} {counts}")


def main(logs: str = "logs") -> None:
    log_dir = os.path.join(logs, time.strftime("%Y-%m-%d_%H.%M.%S"))
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    held_out = (x[:512], y[:512])
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)

    method = Lanczos(num_probes=8, num_steps=40)
    print(f"eigenvalues, of {model.count_params():,}, between these numbers:")
    print(f"{'':<9} " + " ".join(f"{edge:>8}" for edge in ["below", *BINS[1:-1].tolist()]))
    show("before", measure_curvature(model, held_out, method))
    curvature = HessianNormCallback(held_out, method, log_dir=log_dir)
    printing = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: show(f"epoch {epoch}", curvature.report)
    )
    operator = HessianOperator(model, held_out)

    def count_outliers(epoch: int, _: dict) -> None:
        largest = eigsh(aslinearoperator(operator), k=14, return_eigenvectors=False)[::-1]
        gaps = largest[:-1] / largest[1:]
        outliers = 2 + int(np.argmax(gaps[1:]))  # the first is apart from all others
        print(f"{'':<9} {outliers} outliers, then a gap of {gaps[outliers - 1]:.2f}")

    counting = keras.callbacks.LambdaCallback(on_epoch_end=count_outliers)
    callbacks = [curvature, printing, counting]
    model.fit(x[512:], y[512:], epochs=EPOCHS, verbose=0, callbacks=callbacks)
    beside_python = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    print(f"\nLook at the spectrum:  {beside_python} --logdir {logs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
