"""See a learning rate become too high before the loss does, and act on it.

Gradient descent with a warm-up that never ends. First the largest eigenvalue of the Hessian passes
the step size's threshold, while the loss still falls: errors along it now grow with each step, and
some epochs later the loss explodes. In 20 runs (seeds 0 to 19)

* the largest eigenvalue passed 2 / step size 2 to 4 epochs (of 10 steps) before the loss doubled;
* the norm began to rise one epoch before that (11 runs) or in the same (9): late, but so clearly
  that Keras' own EarlyStopping on it brings weights from before. Loss 0.15 to 0.24 at the end;
* a learning rate cut to 0.8 of the threshold after each epoch, which the warm-up then raises by a
  fifth, let all runs go on: 0.09 to 0.11;
* with neither, 19 runs ended above 2.7. One came back, after a loss of 4.

Measured on the examples trained on: others may have a larger eigenvalue, which steps do not see.
With mini-batches the loss explodes at a smaller share of the threshold.

Run:  python examples/early_warning.py [directory of the logs]
"""

import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

from keras_hessian_callback import HessianNormCallback


class StayBelow(keras.callbacks.Callback):
    """Cuts the learning rate where the largest eigenvalue is above a share of its threshold."""

    def __init__(self, curvature: HessianNormCallback, share: float) -> None:
        super().__init__()
        self.curvature, self.share = curvature, share

    def on_epoch_end(self, epoch, logs=None):
        report, optimizer = self.curvature.report, self.model.optimizer
        share = report["largest_ritz_value"].value / report.stability_threshold
        if share > self.share:
            optimizer.learning_rate = float(optimizer.learning_rate) * self.share / share


def train(log_dir: str | None, remedy: str, seed: int = 0) -> tuple[dict, dict, float]:
    """The loss and the curvature by epoch, and the loss of the weights at the end."""
    keras.utils.set_random_seed(seed)
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    hidden = [keras.layers.Dense(48, activation="tanh") for _ in range(2)]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.2), loss, steps_per_execution=10)
    warm_up = keras.callbacks.LearningRateScheduler(lambda epoch, eta: eta * 1.2 if epoch else eta)
    curvature = HessianNormCallback((x, y), log_dir=log_dir)
    stop = keras.callbacks.EarlyStopping(
        "hessian_frobenius_norm",
        mode="min",
        patience=1,
        start_from_epoch=3,  # from a random start the norm may rise at first
        restore_best_weights=True,
    )
    remedies = {"none": [], "stop": [stop], "stay below": [StayBelow(curvature, 0.8)]}
    callbacks = [warm_up, curvature, *remedies[remedy]]  # remedies after what they look at
    whole = tf.data.Dataset.from_tensors((x, y)).cache().repeat()  # all examples in each step
    options = {"steps_per_epoch": 10, "shuffle": False, "verbose": 0}
    history = model.fit(whole, epochs=14, callbacks=callbacks, **options)
    end = model.evaluate(x, y, batch_size=len(x), verbose=0)
    return history.history, curvature.history, end


def main(logs: str = "logs") -> None:
    log_dir = os.path.join(logs, time.strftime("%Y-%m-%d_%H.%M.%S"))
    print(f"{'remedy':<12}epoch    rate    loss {'||H||_F':>10} {'largest / threshold':>31}")
    for remedy in ("none", "stop", "stay below"):
        history, curve, end = train(os.path.join(log_dir, remedy), remedy)
        for epoch, loss in enumerate(history["loss"]):
            bars = ""
            for name, unit in (
                ("frobenius_norm", 1.0),
                ("largest_ritz_value", curve["stability_threshold"][epoch]),
            ):
                ends = (curve[f"{name}{e}"][epoch] / unit for e in ("", "/lower", "/upper"))
                bars += "  {:6.2f} [{:6.2f}, {:6.2f}]".format(*ends)
            rate = history["learning_rate"][epoch]
            print(f"{remedy:<11} {epoch:5d} {rate:7.3f} {loss:7.3f}{bars}")
        print(f"{remedy:<11}   end         {end:7.3f}")
    beside_python = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    print(f"\nLook at the curves:  {beside_python} --logdir {logs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
