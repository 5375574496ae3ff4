"""Times the exact Hessian norm of a small network against `jax.hessian`, in one process.

Run:  python benchmarks/exact.py [--rounds 7]
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits
from timing import environment, interleaved, peak_memory, ratios, save, seconds, spread

from keras_hessian_callback import Exact, HessianOperator, measure_curvature


def network() -> keras.Model:
    """64-48-48-10 with tanh: 5,962 parameters."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(48, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def jax_hessian(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], jax.Array]:
    """The whole Hessian of the same loss at the same weights, compiled."""
    weights, unravel = ravel_pytree([jnp.asarray(weight) for weight in model.get_weights()])

    def loss(flat: jax.Array) -> jax.Array:
        W1, b1, W2, b2, W3, b3 = unravel(flat)
        hidden = jnp.tanh(jnp.tanh(x @ W1 + b1) @ W2 + b2)
        log_probabilities = jax.nn.log_softmax(hidden @ W3 + b3)
        return -jnp.mean(log_probabilities[jnp.arange(len(y)), y])

    hessian = jax.jit(jax.hessian(loss))
    return lambda: hessian(weights)


def measure(rounds: int) -> dict[str, Any]:
    x, y = load_digits(return_X_y=True)
    x, y = (x[:256] / 16.0).astype("float32"), y[:256].astype("int32")

    # Ours goes first: the peak memory of a process never falls.
    before = peak_memory()
    model = network()
    first = {"ours": seconds(lambda: measure_curvature(model, (x, y), method="autodiff"))}
    growth = peak_memory() - before
    operator = HessianOperator(model, (x, y))

    hessian = jax_hessian(model, x, y)
    first["jax"] = seconds(lambda: float(jnp.linalg.norm(hessian())))

    steady = interleaved(
        {
            "ours": lambda: Exact()(operator),
            "jax": lambda: float(jnp.linalg.norm(hessian())),
        },
        rounds,
    )
    ours = Exact()(operator)[0]["frobenius_norm"].value
    theirs = float(np.linalg.norm(np.asarray(hessian(), "float64")))
    return {
        "parameters": operator.shape[0],
        "examples": len(x),
        "first_seconds": first,
        "steady_seconds": {name: spread(values) for name, values in steady.items()},
        "ratio": ratios(steady["ours"], steady["jax"]),
        "norm": {"ours": ours, "jax": theirs},
        "relative_difference": abs(ours - theirs) / theirs,
        "memory_growth_mb": growth,
    }


def _print_table(figures: dict[str, Any]) -> None:
    print(f"{'':6s} {'first call':>11s} {'then':>9s}   min-max   norm")
    for name, first in figures["first_seconds"].items():
        steady, norm = figures["steady_seconds"][name], figures["norm"][name]
        print(
            f"{name:6s} {first:9.2f} s {steady['median']:7.3f} s   "
            f"{steady['min']:.3f}-{steady['max']:.3f}   {norm:.6f}"
        )
    ratio = figures["ratio"]
    print(f"ours / jax {ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})")
    print(f"relative difference of the norms {figures['relative_difference']:.1e}")
    print(f"growth of peak memory {figures['memory_growth_mb']:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    results = environment("jax", "scikit-learn") | {"rounds": arguments.rounds}
    save("exact", results | figures)
    _print_table(figures)


if __name__ == "__main__":
    main()
