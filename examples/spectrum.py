"""Watch the spectrum of the Hessian while a network learns to tell ten classes.

Most eigenvalues are near 0, and as many stand out above the others as there are classes, less
one: 9, as the outputs are only compared with each other (Papyan 2018, arXiv:1811.07062). Outliers
end at the largest gap, that is the largest ratio of neighbours, among the first 14 eigenvalues.
From the third epoch to the fifth it is after the ninth (so with seeds 0 to 4). Before, it may be
elsewhere; later, as the digits are fitted, outliers sink into the others and it moves.

The counts are those of `Lanczos`, from random probes: above 1, where SciPy's `eigsh` found all
eigenvalues to compare with, they were at most 3 too high or too low.

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

EDGES = np.array([-1.0, -0.1, 0.1, 1.0])
BINS = np.concatenate([[-np.inf], EDGES, [np.inf]])
EPOCHS = 5


def show(moment: str, report, operator: HessianOperator) -> None:
    """Prints how many eigenvalues lie between the edges, and how many stand out."""
    spectrum = report.spectrum
    shares, _ = np.histogram(spectrum.nodes, BINS, weights=spectrum.weights)
    counts = " ".join(f"{count:7.0f}" for count in shares * report.num_parameters)
    largest = eigsh(aslinearoperator(operator), k=14, which="LA", return_eigenvectors=False)
    largest = np.sort(largest)[::-1]
    ratios = largest[:-1] / largest[1:]
    outliers = int(np.argmax(ratios)) + 1
    print(f"{moment:<9}{counts} {outliers:10d} {ratios[outliers - 1]:7.2f}")


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
    operator = HessianOperator(model, held_out)
    curvature = HessianNormCallback(held_out, method, log_dir=log_dir)
    printing = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: show(f"epoch {epoch}", curvature.report, operator)
    )
    print(f"about how many of {model.count_params():,} eigenvalues lie below, between and above:")
    print(f"{'':<12} {' '.join(f'{edge:7g}' for edge in EDGES)}       outliers     gap")
    show("before", measure_curvature(model, held_out, method), operator)
    model.fit(x[512:], y[512:], epochs=EPOCHS, verbose=0, callbacks=[curvature, printing])
    beside_python = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    print(f"\nLook at the spectrum:  {beside_python} --logdir {logs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
