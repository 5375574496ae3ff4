"""Times products, construction and measurements of large models, and takes their peak memory.

Run:  python benchmarks/large_models.py [--models resnet50 gpt2 many_rows wide_mlp] [--rounds 3]
          [--quick]

Each model is in two processes of its own, built and traced once in each: products are timed with
TensorFlow's own allocator, as users have it, and the memory is watched with the system's. Models
that are not asked for keep the figures that they had. `--quick` rehearses on small networks and
saves nothing.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from memory import MemoryWatch, held_while_measuring, plan, settle
from networks import Problem, gpt2, many_rows, mlp_of_size, resnet, resnet50, transformer
from processes import in_own_process, warm_up
from products import force, gradient_function
from timing import RESULTS, environment, interleaved, load, peak_memory, ratios, save, spread

from keras_hessian_callback import (
    Deflated,
    HessianOperator,
    Hutchinson,
    Lanczos,
)
from keras_hessian_callback.measurement import measure as measure_operator
from keras_hessian_callback.operators.traced import TracedProducts

_FILE = "large_models"
_EXAMPLES = 16
_ESTIMATORS = {
    "Deflated": Deflated(target_error=None),
    "Hutchinson": Hutchinson(num_probes=4),
    "Lanczos": Lanczos(num_probes=1, num_steps=4),
}
_FEW = {
    "Deflated": Deflated(max_matvecs=8),
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
        limit: `memory_limit` of the operator, in bytes; None: left to it.
        few: Whether few products are made, and Deflated is called once.
        sparse: Whether a gradient is sparse, so that products are compared with differences.
    """

    build: Callable[[], Problem]
    small: Callable[[], Problem]
    batch: int
    limit: int | None = None
    few: bool = False
    sparse: bool = False

    def problem(self, quick: bool) -> Problem:
        model, x, y = self.small() if quick else self.build()
        return model, x[:_EXAMPLES], y[:_EXAMPLES]

    def memory_limit(self, quick: bool) -> dict[str, int]:
        return {} if quick or self.limit is None else {"memory_limit": self.limit}


MODELS = {
    "resnet50": LargeModel(lambda: resnet50(112), resnet, batch=4),
    "gpt2": LargeModel(
        gpt2,
        lambda: transformer(500, 16, 32, 2, tied=True),
        batch=8,
        limit=17 * 2**30,
        few=True,
    ),
    "many_rows": LargeModel(many_rows, lambda: many_rows(10_000), batch=16, sparse=True),
    "wide_mlp": LargeModel(lambda: mlp_of_size(24_000_000), lambda: mlp_of_size(10_000), batch=16),
}


def time_products(name: str, quick: bool, rounds: int) -> dict[str, Any]:
    """Products of one operator of 16 examples in micro-batches, in gradients.

    A gradient is that of a micro-batch, times their number. Before, the operator is constructed,
    and the time that tracing takes of it is told.
    """
    large = MODELS[name]
    model, x, y = large.problem(quick)
    warm_up()
    tracing, trace = 0.0, TracedProducts.__init__

    def timed(*arguments: Any, **settings: Any) -> None:
        nonlocal tracing
        start = time.perf_counter()
        trace(*arguments, **settings)
        tracing += time.perf_counter() - start

    start = time.perf_counter()
    with mock.patch.object(TracedProducts, "__init__", timed):
        operator = HessianOperator(
            model, (x, y), batch_size=large.batch, **large.memory_limit(quick)
        )
    construction = time.perf_counter() - start
    gradient = gradient_function(model, x[: large.batch], y[: large.batch])
    vectors = tf.random.stateless_normal([operator.block_size, operator.shape[0]], [0, 0])
    times = interleaved(
        {
            "gradient": lambda: force(gradient()[-1]),
            "block": lambda: force(operator.row_products(vectors)),
            "single": lambda: force(operator.row_products(vectors[:1])),
        },
        rounds,
    )
    times["block"] = [value / operator.block_size for value in times["block"]]
    gradients = [len(operator.shares) * value for value in times.pop("gradient")]
    return {
        "construction_seconds": construction,
        "tracing_seconds": tracing,
        "gradient_seconds": spread(gradients),
        "product_seconds": {kind: spread(values) for kind, values in times.items()},
        "product_gradients": {kind: ratios(values, gradients) for kind, values in times.items()},
    }


def measure(name: str, quick: bool) -> dict[str, Any]:
    """One operator of 16 examples in micro-batches: its construction, memory, measurements."""
    large = MODELS[name]
    model, x, y = large.problem(quick)
    warm_up()
    before = settle()
    with MemoryWatch() as construction:
        operator = HessianOperator(
            model, (x, y), batch_size=large.batch, **large.memory_limit(quick)
        )
    vectors = tf.random.stateless_normal([operator.block_size, operator.shape[0]], [0, 0])
    held = settle() - vectors.shape[0] * operator.shape[0] * operator.dtype.itemsize / 1e6
    with MemoryWatch() as product:
        force(operator.row_products(vectors))
    del vectors
    figures = {
        "parameters": operator.shape[0],
        "inputs": list(x.shape),
        "micro_batches": len(operator.shares),
        "products": operator.products,
        "memory_mb": {"construction": construction.peak_mb - before}
        | {"product": product.peak_mb - held, "limit": (large.limit or 0) / 1e6 or None},
        "at_a_time": plan(operator),
        "measurements": {},
    }
    for key, estimator in (_FEW if large.few else _ESTIMATORS).items():
        state, warm = None, int(key == "Deflated" and not large.few)
        for step in range(1 + warm):  # a second one carries the basis
            settle()
            carried = 0 if state is None else int(state.vectors.shape[0])
            with MemoryWatch() as watch:
                report, state = measure_operator(operator, estimator, seed=(0, step), state=state)
        figures["measurements"][key] = {
            "method": report.method,
            "seconds": report.seconds,
            "num_matvecs": report.num_matvecs,
            "carried": report.carried,
            "estimates": {key: report[key].to_dict() for key in _QUANTITIES if key in report},
            "rank": 0 if state is None else int(state.vectors.shape[0]),
            "memory_mb": watch.peak_mb - held,
        }
        if isinstance(estimator, Deflated):
            predicted = held_while_measuring(operator, report, carried, state)
            figures["measurements"][key]["predicted_mb"] = predicted
        print(key, figures["measurements"][key], flush=True)
    return figures | {"process_peak_mb": peak_memory()}


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


def all_of(name: str, quick: bool, rounds: int) -> dict[str, Any]:
    """All figures of one model; of a process that died, that it did."""
    figures = _attempt(measure, name, quick)
    figures |= _attempt(time_products, name, quick, rounds, watched=False)
    if MODELS[name].sparse:
        figures["differences"] = _attempt(compare_with_differences, name, quick)
    return figures


def _attempt(
    function: Callable[..., dict[str, Any]], *arguments: Any, watched: bool = True
) -> dict[str, Any]:
    try:
        figures = in_own_process(function, *arguments, watched=watched)
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
