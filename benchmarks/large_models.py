"""Times products, construction and measurements of large models, and takes their peak memory.

Run:  python benchmarks/large_models.py [--models resnet50 gpt2 many_rows] [--rounds 3] [--quick]

Products and each estimator are in processes of their own. Models that are not asked for keep the
figures that they had. `--quick` rehearses on small networks and saves nothing.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from memory import MemoryWatch, plan, settle
from networks import Problem, gpt2, many_rows, resnet, resnet50, transformer
from processes import in_own_process, warm_up
from products import gradient_function
from timing import RESULTS, environment, interleaved, load, peak_memory, ratios, save, spread

from keras_hessian_callback import (
    Deflated,
    HessianOperator,
    Hutchinson,
    Lanczos,
    measure_curvature,
)

_FILE = "large_models"
_EXAMPLES = 16
_ESTIMATORS = {
    "Deflated": Deflated(max_matvecs=8),
    "Hutchinson": Hutchinson(num_probes=4),
    "Lanczos": Lanczos(num_probes=1, num_steps=4),
}
_FEW = _ESTIMATORS | {
    "Hutchinson": Hutchinson(num_probes=2),
    "Lanczos": Lanczos(num_probes=1, num_steps=2),
}
_QUANTITIES = ("frobenius_norm", "trace", "spectral_norm")
_STEP = 1e-5  # of differences in float64: truncation and rounding are both below 1e-8


@dataclass(frozen=True)
class LargeModel:
    """A model, and how it is measured.

    Attributes:
        build: The model with 16 examples.
        small: Another of its kind, for a rehearsal.
        batch: Examples of a micro-batch.
        block: Vectors of a block.
        limit: `memory_limit` of the operator, in bytes; None: left to it.
        few: Whether Hutchinson and Lanczos make two products only.
        sparse: Whether a gradient is sparse, so that products are compared with differences.
    """

    build: Callable[[], Problem]
    small: Callable[[], Problem]
    batch: int
    block: int = 8
    limit: int | None = None
    few: bool = False
    sparse: bool = False

    def problem(self, quick: bool) -> Problem:
        model, x, y = self.small() if quick else self.build()
        return model, x[:_EXAMPLES], y[:_EXAMPLES]

    def memory_limit(self, quick: bool) -> dict[str, int]:
        return {} if quick or self.limit is None else {"memory_limit": self.limit}


MODELS = {
    "resnet50": LargeModel(resnet50, resnet, batch=4),
    "gpt2": LargeModel(
        gpt2,
        lambda: transformer(500, 16, 32, 2, tied=True),
        batch=8,
        block=4,
        limit=14 * 2**30,
        few=True,
    ),
    "many_rows": LargeModel(many_rows, lambda: many_rows(10_000), batch=16, sparse=True),
}


def time_products(name: str, quick: bool, rounds: int) -> dict[str, Any]:
    """Seconds of a gradient, and of products with the Hessian, of one micro-batch."""
    large = MODELS[name]
    model, x, y = large.problem(quick)
    x, y = x[: large.batch], y[: large.batch]
    warm_up()
    before = settle()
    with MemoryWatch() as construction:
        start = time.perf_counter()
        operator = HessianOperator(model, (x, y), **large.memory_limit(quick))
        construction_seconds = time.perf_counter() - start
    settle()
    with MemoryWatch() as product:
        vectors = tf.random.stateless_normal([large.block, operator.shape[0]], [0, 0])
        _force(operator.row_products(vectors))
    peak = peak_memory()
    gradient = gradient_function(model, x, y)
    single = vectors[0]
    times = interleaved(
        {
            "gradient": lambda: _force(gradient()[-1]),
            "block": lambda: _force(operator.row_products(vectors)),
            "single": lambda: _force(operator.matvec(single)),
        },
        rounds,
    )
    times["block"] = [value / large.block for value in times["block"]]
    gradients = times.pop("gradient")
    return {
        "parameters": operator.shape[0],
        "inputs": list(x.shape),
        "vectors": large.block,
        "products": operator.products,
        "gradient_seconds": spread(gradients),
        "product_seconds": {kind: spread(values) for kind, values in times.items()},
        "product_gradients": {kind: ratios(values, gradients) for kind, values in times.items()},
        "construction_seconds": construction_seconds,
        "memory_mb": {"construction": construction.peak_mb - before}
        | {"product": product.peak_mb - before},
        "process_peak_mb": peak,
        "at_a_time": plan(operator),
    }


def measure(name: str, quick: bool, estimator: str) -> dict[str, Any]:
    """One measurement of 16 examples in micro-batches, tracing included."""
    large = MODELS[name]
    model, x, y = large.problem(quick)
    warm_up()
    before = settle()
    with MemoryWatch() as watch:
        start = time.perf_counter()
        report = measure_curvature(
            model,
            (x, y),
            (_FEW if large.few else _ESTIMATORS)[estimator],
            batch_size=large.batch,
            **large.memory_limit(quick),
        )
        seconds = time.perf_counter() - start
    return {
        "method": report.method,
        "seconds": seconds,
        "seconds_without_construction": report.seconds,
        "num_matvecs": report.num_matvecs,
        "examples_at_a_time": report.batch_size,
        "micro_batches": report.num_folds,
        "estimates": {key: report[key].to_dict() for key in _QUANTITIES if key in report},
        "memory_mb": watch.peak_mb - before,
        "process_peak_mb": peak_memory(),
    }


def compare_with_differences(name: str, quick: bool) -> dict[str, Any]:
    """A product against central differences of the user's gradient, in float64.

    The difference of each variable's rows is relative to these rows: those of the embedding do
    not hide behind the others.
    """
    keras.config.set_floatx("float64")
    model, x, y = MODELS[name].problem(quick)
    x, y = x[: MODELS[name].batch], y[: MODELS[name].batch]
    gradient = gradient_function(model, x, y)
    variables = model.trainable_variables
    weights = [variable.numpy() for variable in variables]
    generator = np.random.default_rng(0)
    directions = [generator.normal(size=weight.shape) for weight in weights]

    def gradient_at(step: float) -> list[np.ndarray]:
        for variable, weight, direction in zip(variables, weights, directions, strict=True):
            variable.assign(weight + step * direction)
        return [part.numpy() for part in gradient()]

    ahead, behind = gradient_at(_STEP), gradient_at(-_STEP)
    gradient_at(0.0)
    expected = [(one - other) / (2.0 * _STEP) for one, other in zip(ahead, behind, strict=True)]
    operator = HessianOperator(model, (x, y))
    packed = operator.matvec(np.concatenate([direction.ravel() for direction in directions]))
    ends = np.cumsum([weight.size for weight in weights])[:-1]
    found = [
        part.reshape(weight.shape)
        for part, weight in zip(np.split(packed, ends), weights, strict=True)
    ]
    table = max(range(len(weights)), key=lambda index: weights[index].size)
    unused = np.setdiff1d(np.arange(len(weights[table])), x)
    return {
        "gradient_is_sparse": _is_sparse(model, x, y, table),
        "dtype": str(operator.dtype),
        "largest_relative_difference": max(
            float(np.linalg.norm(one - other) / np.linalg.norm(other))
            for one, other in zip(found, expected, strict=True)
        ),
        "rows": len(weights[table]),
        "rows_unused": len(unused),
        "largest_of_unused_rows": float(np.abs(found[table][unused]).max()),
    }


def _is_sparse(model: keras.Model, x: np.ndarray, y: np.ndarray, index: int) -> bool:
    """Whether TensorFlow gives the gradient of a variable as rows and their numbers."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=False), training=False)
    gradient = tape.gradient(loss, model.trainable_variables[index].value)
    return isinstance(gradient, tf.IndexedSlices)


def _force(result: tf.Tensor) -> float:
    """Waits until the result is there; reads one entry, not to time a copy."""
    return float(tf.reshape(result, [-1])[0])


def all_of(name: str, quick: bool, rounds: int) -> dict[str, Any]:
    """All figures of one model; of a process that died, that it did."""
    figures: dict[str, Any] = {
        "products": _attempt(time_products, name, quick, rounds),
        "measurements": {key: _attempt(measure, name, quick, key) for key in _ESTIMATORS},
    }
    if MODELS[name].sparse:
        figures["differences"] = _attempt(compare_with_differences, name, quick)
    return figures


def _attempt(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    try:
        figures = in_own_process(function, *arguments)
    except BrokenProcessPool:
        figures = {"failed": "the process was killed, as where memory runs out"}
    print(function.__name__, *arguments, figures, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--quick", action="store_true", help="a rehearsal; nothing is saved")
    arguments = parser.parse_args()
    saved = not arguments.quick and (RESULTS / f"{_FILE}.json").exists()
    models = load(_FILE)["models"] if saved else {}
    for name in arguments.models:
        models[name] = all_of(name, arguments.quick, 1 if arguments.quick else arguments.rounds)
        if not arguments.quick:
            results = environment() | {"rounds": arguments.rounds, "examples": _EXAMPLES}
            save(_FILE, results | {"models": models})


if __name__ == "__main__":
    main()
