"""Measure a run that is over, from the checkpoints that it left, and draw it in TensorBoard.

A `.keras` file holds the weights, the compiled loss and the optimizer with its state: all that a
measurement takes. Here each starts cold, while the callback carries a basis from epoch to epoch:
60 products each make up for it.

Run:  python examples/offline.py [directory of the logs]
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
from sklearn.datasets import load_digits

from keras_hessian_callback import Deflated, SummaryWriter, measure_curvature

EPOCHS = 5
METHOD = Deflated(max_matvecs=60)


def train(callback: keras.callbacks.Callback) -> None:
    """A run of five epochs."""
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Rescaling(1.0 / 16.0),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(x[512:], y[512:], epochs=EPOCHS, verbose=0, callbacks=[callback])


def main(logs: str = "logs") -> None:
    log_dir = os.path.join(logs, time.strftime("%Y-%m-%d_%H.%M.%S"))
    checkpoints = Path(log_dir, "checkpoints")
    checkpoints.mkdir(parents=True)
    train(keras.callbacks.ModelCheckpoint(str(checkpoints / "{epoch:03d}.keras")))

    # Long after, in another program:
    x, y = load_digits(return_X_y=True)
    held_out = (x[:512], y[:512])
    writer = SummaryWriter(log_dir)
    print("epoch     loss   ||H||_F      95 % interval   products")
    for path in sorted(checkpoints.glob("*.keras")):
        model = keras.models.load_model(path)
        epoch = int(path.stem) - 1  # Keras names files from 1 and counts epochs from 0
        # (seed, epoch) draws the probes that the callback would have drawn.
        report = measure_curvature(model, held_out, METHOD, seed=(0, epoch))
        writer.write(report, step=epoch)
        loss = model.evaluate(*held_out, verbose=0)
        norm = report["frobenius_norm"]
        print(
            f"{epoch:5d} {loss:8.4f} {norm.value:9.3f}   "
            f"[{norm.lower:7.3f}, {norm.upper:7.3f}] {report.num_matvecs:10d}"
        )
    writer.close()
    beside_python = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    print(f"\nLook at the curve:  {beside_python} --logdir {logs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
