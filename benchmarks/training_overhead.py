"""Times `fit` with and without the callback, by default and within shares of the time.

Run:  python benchmarks/training_overhead.py [--rounds 3] [--networks mlp conv] [--steps 50 200]
"""

import argparse
import gc
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from timing import environment, ratios, save, spread

from keras_hessian_callback import HessianNormCallback, within

_BATCH = 32
_HELD_OUT = 512
_SECONDS = 4.0  # of training, about, that a run has as many epochs for
_STEPS = (50, 200, 500, 2_000)
_SCHEDULES: dict[str, Any] = {
    "epoch": "epoch",
    "within 1 %": within(overhead=0.01),
    "within 5 %": within(overhead=0.05),
}


def _mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(48, activation="tanh"),
            layers.Dense(48, activation="tanh"),
            layers.Dense(10),
        ]
    )


def _conv() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


_NETWORKS: dict[str, Callable[[], keras.Model]] = {"mlp": _mlp, "conv": _conv}


def measure_network(name: str, steps: Sequence[int], rounds: int, length: float) -> dict[str, Any]:
    """All figures of one network, in a process of its own."""
    _fit(name, 50, 1, _SCHEDULES["epoch"])  # TensorFlow's own start
    step = _fit(name, 200, 2, None)["later_seconds"] / 200
    return {
        "parameters": _NETWORKS[name]().count_params(),
        "step_seconds": step,
        "epochs_of": {
            str(count): _schedules(name, count, max(1, round(length / (step * count))), rounds)
            for count in steps
        },
    }


def _schedules(name: str, steps: int, epochs: int, rounds: int) -> dict[str, Any]:
    """Fits of so many epochs, one after another in each round."""
    runs: dict[str, list[dict[str, Any]]] = {"none": []} | {key: [] for key in _SCHEDULES}
    for _ in range(rounds):
        for key, results in runs.items():
            results.append(_fit(name, steps, epochs, _SCHEDULES.get(key)))
    without = runs.pop("none")
    seconds = [run["seconds"] for run in without]
    return {
        "epochs": epochs,
        "seconds": spread(seconds),
        "schedules": {
            key: {
                "ratio": ratios([run["seconds"] for run in results], seconds),
                # The callback's own account, of what the ratio is the other witness for.
                "told_ratio": spread([_told(run) for run in results]),
                "ratio_without_setup": ratios(
                    [run["seconds"] - run["setup_seconds"] for run in results], seconds
                ),
                **{
                    figure: spread([run[figure] for run in results])
                    for figure in ("overhead", "setup_seconds", "measurements", "products", "error")
                },
            }
            for key, results in runs.items()
        },
    }


def _told(run: dict[str, Any]) -> float:
    """What the callback says that it made of the run's time without it."""
    spent = run["setup_seconds"] + run["measuring_seconds"]
    return run["seconds"] / (run["seconds"] - spent)


def _fit(name: str, steps: int, epochs: int, schedule: Any) -> dict[str, Any]:
    """Seconds of a `fit` of a fresh model, and what the callback tells of it."""
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16.0).astype("float32")
    chosen = np.random.default_rng(0).integers(_HELD_OUT, len(x), steps * _BATCH)
    model = _NETWORKS[name]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    clock = _Epochs()
    callbacks: list[keras.callbacks.Callback] = [clock]
    curvature = None
    if schedule is not None:
        curvature = HessianNormCallback((x[:_HELD_OUT], y[:_HELD_OUT]), schedule=schedule)
        callbacks.append(curvature)
    gc.collect()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "within.*could not be kept")  # the table says so
        start = time.perf_counter()
        model.fit(
            x[chosen],
            y[chosen],
            batch_size=_BATCH,
            epochs=epochs,
            verbose=0,
            callbacks=callbacks,
        )
        run: dict[str, Any] = {"seconds": time.perf_counter() - start}
    run["later_seconds"] = clock.times[-1] - clock.times[-2] if epochs > 1 else None
    if curvature is not None:
        run |= _figures(curvature)
    return run


def _figures(curvature: HessianNormCallback) -> dict[str, Any]:
    history = curvature.history
    errors = [
        (upper - lower) / (2.0 * value)
        for lower, value, upper in zip(
            *(history[f"frobenius_norm{end}"] for end in ("/lower", "", "/upper")), strict=True
        )
    ]
    return {
        "overhead": curvature.overhead,
        "setup_seconds": curvature.setup_seconds,
        "measuring_seconds": sum(history["seconds"]),
        "measurements": len(errors),
        "products": statistics.median(history["num_matvecs"]),
        "error": statistics.median(errors),
    }


class _Epochs(keras.callbacks.Callback):
    """When each epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.times.append(time.perf_counter())


def _print_table(networks: dict[str, Any]) -> None:
    for name, figures in networks.items():
        print(
            f"{name}, n = {figures['parameters']:,}, {figures['step_seconds'] * 1e3:.2f} ms a step"
        )
        for steps, run in figures["epochs_of"].items():
            print(f"  {run['epochs']} epochs of {steps}: {run['seconds']['median']:.1f} s without")
            for key, values in run["schedules"].items():
                middle = {figure: spreads["median"] for figure, spreads in values.items()}
                print(
                    f"    {key:10s} time {middle['ratio']:.3f} (told {middle['told_ratio']:.3f}), "
                    f"set-up {middle['setup_seconds']:.2f} s, share {middle['overhead']:.4f}, "
                    f"{middle['measurements']:g} measurements of {middle['products']:g} products, "
                    f"+-{middle['error']:.1%}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=_NETWORKS, default=list(_NETWORKS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(_STEPS))
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of training, a run")
    arguments = parser.parse_args()
    pool = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
    networks = {
        name: pool.apply(
            measure_network, (name, arguments.steps, arguments.rounds, arguments.seconds)
        )
        for name in arguments.networks
    }
    pool.close()
    pool.join()
    results = environment("scikit-learn") | {"rounds": arguments.rounds, "batch": _BATCH}
    results |= {"held_out": _HELD_OUT, "networks": networks}
    save("training_overhead", results)
    _print_table(networks)


if __name__ == "__main__":
    main()
