"""What replaces a carried basis that is too large, and what that does to the estimate's error.

Exact Hessians of small networks along their training; every method spends as many products, with
the same probes where they have any in common. Not `Deflated` itself, which chooses its rank: the
ranks are fixed, the three terms are the same, and the intervals are the package's.

Run:  OPENBLAS_NUM_THREADS=1 python benchmarks/scale_simulation.py [--seeds 200]

(Two minutes; on matrices as small as these, threads only wait for each other.)
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from carried_forms import Layers, by_layer, leading, low_rank, orthonormal, rounded, whole_numbers
from sklearn.datasets import load_digits
from timing import environment, save

from keras_hessian_callback import Estimate, HessianOperator
from keras_hessian_callback.intervals import root_mean_estimate, split_norm_estimate
from keras_hessian_callback.spreads import quadratic_spread

PRODUCTS = 20
_CHUNK = 25  # seeds at a time
_LARGE = 1e11  # weights of the model whose unscaled float16 numbers are imitated
# Widths, activation, and the epochs of three measurements: a cold one and two that carry.
NETWORKS: dict[str, tuple[tuple[int, ...], str, tuple[tuple[int, ...], ...]]] = {
    "relu": ((64, 16, 16, 10), "relu", ((1, 2, 3), (6, 7, 8), (14, 15, 16))),
    "tanh": ((64, 24, 24, 10), "tanh", ((14, 15, 16),)),
}

Keep = Callable[[np.ndarray, int, Layers], tuple[np.ndarray, float]]


@dataclass(frozen=True)
class Method:
    """A way to spend the products of a measurement.

    Attributes:
        rank: Directions that are carried from the measurement before, a product each.
        keep: What becomes of the next directions meanwhile: rows (s, j, n), the rank and the
            layers give rows (s, rank, n), and the bytes that are held for a weight.
        orthonormalised: Whether they are made orthonormal before they are used.
        anew: Products that a basis is made of in each measurement, and those on it.
        sketch: Numbers that a product is added up to, by random signs; 0: it is whole.
    """

    rank: int = 0
    keep: Keep = leading
    orthonormalised: bool = True
    anew: int = 0
    sketch: int = 0


METHODS = {
    "rank 16": Method(16),
    "rank 8": Method(8),
    "rank 4": Method(4),
    "rank 8, float16 times sqrt(n)": Method(8, rounded(np.float16)),
    "rank 8, float16 as it is at n = 1e11": Method(8, rounded(np.float16, _LARGE)),
    "rank 8, bfloat16": Method(8, rounded(tf.bfloat16.as_numpy_dtype)),
    "rank 8, 8 bits and a scale a vector": Method(8, whole_numbers(8)),
    "rank 8, 4 bits and a scale a vector": Method(8, whole_numbers(4)),
    "rank 8, 4 bits, used as it is": Method(8, whole_numbers(4), orthonormalised=False),
    "by layer, 8 in all": Method(8, by_layer),
    "by layer, 16 in all": Method(16, by_layer),
    "rank 8, matrices of rank 1": Method(8, low_rank(1)),
    "nothing carried, a basis of 6 made anew": Method(anew=6),
    "nothing carried: probes alone": Method(),
    "probes alone, products sketched to 64 numbers": Method(sketch=64),
}


@dataclass(frozen=True)
class Terms:
    """A measurement by each of s seeds.

    Attributes:
        exact: (s,) the first two terms of ||H||_F^2.
        rows: (s, k + m, n) what the next basis is made of.
        residuals: (s, m, n) PHPv.
    """

    exact: np.ndarray
    rows: np.ndarray
    residuals: np.ndarray


def measured(H: np.ndarray, Q: np.ndarray, signs: np.ndarray, products: np.ndarray) -> Terms:
    """The terms with bases Q (s, k, n) and probes (s, m, n), whose products with H are at hand.

    HPv = Hv - HQ Q'v takes no product with Pv.
    """
    HQ = times(H, Q)
    inner, outer = HQ @ turned(Q), HQ @ turned(HQ)
    of_tail = products - turned(Q @ turned(signs)) @ HQ
    residuals = of_tail - turned(Q @ turned(of_tail)) @ Q
    exact = 2.0 * np.trace(outer, axis1=1, axis2=2) - np.sum(inner**2, axis=(1, 2))
    scaled = residuals / math.sqrt(signs.shape[1])
    return Terms(exact, np.concatenate([HQ, scaled], axis=1), residuals)


def turned(block: np.ndarray) -> np.ndarray:
    return block.swapaxes(-1, -2)


def times(H: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Products (s, k, n) of a float32 H with rows, given in float64."""
    return (rows.astype("float32").reshape(-1, len(H)) @ H).reshape(rows.shape).astype("float64")


def estimates(terms: Terms) -> list[Estimate]:
    """The norm with its interval, as `Deflated` finds it from such terms."""
    found = []
    m = terms.residuals.shape[1]
    for exact, residuals in zip(terms.exact, terms.residuals, strict=True):
        gram, squares = residuals @ residuals.T, residuals**2
        of_pairs = np.sum(squares.sum(axis=0) ** 2) - np.sum(squares**2)
        tails = np.diag(gram).copy()
        spread = quadratic_spread(tails, gram, diagonal=2.0 * of_pairs / (m * (m - 1)))
        found.append(split_norm_estimate(exact, tails, spread, num_matvecs=PRODUCTS))
    return found


def without_basis(products: np.ndarray) -> list[Estimate]:
    """The norm as `Hutchinson` finds it."""
    squares = np.sum(products**2, axis=2)
    return [root_mean_estimate(samples, num_matvecs=PRODUCTS) for samples in squares]


def sketched(products: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sums (s, m, size) of every size-th entry with signs of its own: E ||Sx||^2 = ||x||^2."""
    s, m, n = products.shape
    padded = np.zeros((s, m, -(-n // size) * size))
    padded[:, :, :n] = products * _signs(rng, s, m, n)
    return padded.reshape(s, m, -1, size).sum(axis=2)


def _signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, shape).astype("float64") * 2.0 - 1.0


def last_estimates(
    hessians: list[np.ndarray], layers: Layers, seeds: int, seed: int
) -> tuple[dict[str, list[Estimate]], dict[str, float]]:
    """The last of three measurements by each method, and the bytes that it carried a weight."""
    rng = np.random.default_rng(seed)
    n = len(hessians[0])
    probes = [_signs(rng, seeds, PRODUCTS, n) for _ in hessians]
    products = [times(H, signs) for H, signs in zip(hessians, probes, strict=True)]
    found, held = {}, {}
    for name, method in METHODS.items():
        held[name] = 0.0
        if method.sketch:
            found[name] = without_basis(sketched(products[-1], method.sketch, rng))
        elif method.anew:
            Q = orthonormal(leading(products[-1][:, : method.anew], method.anew, layers)[0])
            rest = slice(method.anew, PRODUCTS - method.anew)
            last = measured(hessians[-1], Q, probes[-1][:, rest], products[-1][:, rest])
            found[name] = estimates(last)
        elif not method.rank:
            found[name] = without_basis(products[-1])
        else:
            rows = products[0] / math.sqrt(PRODUCTS)
            rest = slice(0, PRODUCTS - method.rank)
            for H, signs, known in zip(hessians[1:], probes[1:], products[1:], strict=True):
                Q, held[name] = method.keep(rows, method.rank, layers)
                Q = orthonormal(Q) if method.orthonormalised else Q
                terms = measured(H, Q, signs[:, rest], known[:, rest])
                rows = terms.rows
            found[name] = estimates(terms)
    return found, held


def summary(found: list[Estimate], truth: float) -> dict[str, float]:
    """Root mean square and mean of relative errors with their standard errors; coverage."""
    relative = np.array([estimate.value for estimate in found]) / truth - 1.0
    count = len(relative)
    rms = float(np.sqrt(np.mean(relative**2)))
    covered = [estimate.lower <= truth <= estimate.upper for estimate in found]
    widths = [(estimate.upper - estimate.lower) / (2.0 * truth) for estimate in found]
    return {
        "rms": rms,
        "rms_error": float(np.std(relative**2, ddof=1) / math.sqrt(count) / (2.0 * rms)),
        "mean": float(np.mean(relative)),
        "mean_error": float(np.std(relative, ddof=1) / math.sqrt(count)),
        "coverage": float(np.mean(covered)),
        "half_width": float(np.median(widths)),
    }


def network(widths: tuple[int, ...], activation: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, activation=activation) for width in widths[1:-1]]
    model = keras.Sequential([keras.Input((widths[0],)), *hidden, keras.layers.Dense(widths[-1])])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def hessians_along(
    model: keras.Model, epochs: list[int], train: Any, held_out: Any
) -> Iterator[tuple[np.ndarray, float]]:
    """The whole Hessian and the accuracy on the held-out examples after each of the epochs."""
    operator = HessianOperator(model, held_out)
    unit_vectors = np.eye(operator.shape[0], dtype="float32")
    before = 0
    for epoch in epochs:
        model.fit(*train, initial_epoch=before, epochs=epoch, batch_size=32, verbose=0)
        before = epoch
        parts = [operator.matmat(part) for part in np.array_split(unit_vectors, 20, axis=1)]
        H = np.concatenate(parts, axis=1)
        yield (H + H.T) / 2.0, float(model.evaluate(*held_out, verbose=0)[1])


def measure(seeds: int) -> dict[str, Any]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16.0).astype("float32"), y[order].astype("int32")
    rows: list[dict[str, Any]] = []
    for name, (widths, activation, windows) in NETWORKS.items():
        model = network(widths, activation)
        epochs = [epoch for window in windows for epoch in window]
        along = hessians_along(model, epochs, (x[:797], y[:797]), (x[797:1053], y[797:1053]))
        layers = tuple(tuple(variable.shape) for variable in model.trainable_variables)
        for window in windows:
            hessians, accuracies = zip(*(next(along) for _ in window), strict=True)
            rows.append(
                {"network": name, "widths": list(widths), "epoch": window[-1]}
                | {"parameters": len(hessians[0]), "accuracy": accuracies[-1]}
                | _row(list(hessians), layers, seeds)
            )
            _print(rows[-1])
    return {"seeds": seeds, "products": PRODUCTS, "rows": rows}


def _row(hessians: list[np.ndarray], layers: Layers, seeds: int) -> dict[str, Any]:
    truth = float(np.linalg.norm(hessians[-1].astype("float64")))
    found: dict[str, list[Estimate]] = {name: [] for name in METHODS}
    bytes_held: dict[str, list[float]] = {name: [] for name in METHODS}
    for first in range(0, seeds, _CHUNK):
        count = min(_CHUNK, seeds - first)
        some, held = last_estimates(hessians, layers, count, first)
        for name in METHODS:
            found[name] += some[name]
            bytes_held[name].append(held[name])
    methods = {
        name: {"bytes_a_weight": float(np.mean(bytes_held[name]))}
        | {"rank": method.rank}
        | summary(found[name], truth)
        for name, method in METHODS.items()
    }
    return {"norm": truth, "methods": methods}


def _print(row: Mapping[str, Any]) -> None:
    print(f"{row['network']}, epoch {row['epoch']}: accuracy {row['accuracy']:.3f}", flush=True)
    for name, figures in row["methods"].items():
        print(
            f"  {name:46s} {figures['bytes_a_weight']:6.2f} bytes, "
            f"rms {figures['rms']:.5f} +- {figures['rms_error']:.5f}, "
            f"mean {figures['mean']:+.5f} +- {figures['mean_error']:.5f}, "
            f"covers {figures['coverage']:.3f}, half width {figures['half_width']:.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    arguments = parser.parse_args()
    figures = measure(arguments.seeds)
    save("scale_simulation", environment("scikit-learn") | figures)


if __name__ == "__main__":
    main()
