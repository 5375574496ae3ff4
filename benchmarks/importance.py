"""Measures what `importance` gains over uniform draws on a network along its training.

Run:  python benchmarks/importance.py [--draws 40]
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from sklearn.datasets import load_digits
from timing import environment, save, seconds

from keras_hessian_callback import HessianOperator, importance

EPOCHS = (0, 1, 3, 6, 15)
EXAMPLES = (64, 256)
FLOORS = {"importance": 0.1, "uniform": 1.0}
WIDTHS = (64, 16, 16, 10)
_FOLDS = 4


def network() -> keras.Model:
    """64-16-16-10 with ReLU: 1,482 parameters."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, activation="relu") for width in WIDTHS[1:-1]]
    model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def fold_hessians(
    weights: jax.Array, x: jax.Array, y: jax.Array, importance: jax.Array
) -> jax.Array:
    """The Hessian (n, n) of each fold: (folds, n, n) from examples (folds, examples, ...)."""

    def loss(flat: jax.Array, x: jax.Array, y: jax.Array, importance: jax.Array) -> jax.Array:
        start, hidden = 0, x
        for number, (rows, columns) in enumerate(itertools.pairwise(WIDTHS)):
            kernel = flat[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
            hidden = hidden @ kernel + flat[start : start + columns]
            start += columns
            hidden = jax.nn.relu(hidden) if number < len(WIDTHS) - 2 else hidden
        chosen = jnp.take_along_axis(jax.nn.log_softmax(hidden), y[:, None], axis=1)[:, 0]
        return -jnp.mean(importance * chosen)

    return jax.vmap(jax.hessian(loss), (None, 0, 0, 0))(weights, x, y, importance)


@jax.jit
def norms(
    weights: jax.Array, x: jax.Array, y: jax.Array, importance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`frobenius_norm` and `population_frobenius_norm` without probes: of whole Hessians."""
    folds = fold_hessians(weights, x, y, importance)
    square, count = jnp.sum(jnp.mean(folds, axis=0) ** 2), len(folds)
    pairs = count**2 * square - jnp.sum(folds**2)
    return jnp.sqrt(square), jnp.sqrt(jnp.maximum(pairs / max(count * (count - 1), 1), 0.0))


def drawn_norms(model: keras.Model, operator: HessianOperator) -> tuple[float, float]:
    """The same of the examples that an operator holds."""
    flat = np.concatenate([weight.ravel() for weight in model.get_weights()])
    batches = operator._batches
    parts = [
        np.stack([part.numpy() for part in leaf])
        for leaf in zip(*batches, strict=True)
        if leaf[0] is not None
    ]
    if len(parts) == 2:
        parts.append(np.ones_like(parts[1], "float32"))
    batch, population = norms(flat, *parts)
    return float(batch), float(population)


def errors(values: np.ndarray, truth: float) -> dict[str, float]:
    """Mean and root mean square of the relative errors, and the standard error of the latter."""
    relative = values / truth - 1.0
    squares = relative**2
    rms = float(np.sqrt(squares.mean()))
    spread = float(squares.std(ddof=1) / np.sqrt(len(squares)) / (2.0 * rms))
    return {"mean": float(relative.mean()), "rms": rms, "rms_error": spread}


def checkpoints(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Iterator[int]:
    """Trains up to each of the epochs, and gives its number."""
    before = 0
    for epoch in EPOCHS:
        model.fit(x, y, initial_epoch=before, epochs=epoch, batch_size=32, verbose=0)
        before = epoch
        yield epoch


def measure(draws: int) -> dict[str, Any]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16.0).astype("float32"), y[order].astype("int32")
    pool = x[797:], y[797:]
    model = network()
    whole = HessianOperator(model, pool)
    operators = {
        (name, count): HessianOperator(
            model, importance(pool, count, floor=floor), batch_size=count // _FOLDS
        )
        for name, floor in FLOORS.items()
        for count in EXAMPLES
    }
    rows = []
    for epoch in checkpoints(model, x[:797], y[:797]):
        truth = drawn_norms(model, whole)[0]
        accuracy = float(model.evaluate(*pool, verbose=0)[1])
        row: dict[str, Any] = {"epoch": epoch, "norm": truth, "accuracy": accuracy, "errors": {}}
        for (name, count), operator in operators.items():
            drawn = (operator.drawn((0, number)) for number in range(draws))
            values = np.array([drawn_norms(model, one) for one in drawn])
            row["errors"][f"{name} {count}"] = {
                "frobenius_norm": errors(values[:, 0], truth),
                "population_frobenius_norm": errors(values[:, 1], truth),
            }
        rows.append(row)
        _print(row)
    vectors = np.random.default_rng(0).choice([-1.0, 1.0], (whole.shape[0], 20))
    chosen = operators["importance", EXAMPLES[-1]]
    return {
        "network": "-".join(map(str, WIDTHS)),
        "parameters": whole.shape[0],
        "examples": list(EXAMPLES),
        "pool": len(pool[0]),
        "folds": _FOLDS,
        "draws": draws,
        "draw_seconds": seconds(lambda: chosen.drawn((0, 0)), 10),
        "products_seconds": seconds(lambda: chosen.matmat(vectors), 10),
        "rows": rows,
    }


def _print(row: dict[str, Any]) -> None:
    print(f"epoch {row['epoch']}: norm {row['norm']:.3f}, accuracy {row['accuracy']:.3f}")
    for name, found in row["errors"].items():
        texts = [
            f"{e['rms']:.3f} +- {e['rms_error']:.3f} (mean {e['mean']:+.3f})"
            for e in found.values()
        ]
        print(f"  {name:16s} batch {texts[0]}, population {texts[1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=40)
    arguments = parser.parse_args()
    figures = measure(arguments.draws)
    save("importance", environment("jax", "scikit-learn") | figures)


if __name__ == "__main__":
    main()
