"""Makes benchmarks/README.md from the files in benchmarks/results.

Run:  python benchmarks/tables.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from importance_tables import importance_errors
from large_model_tables import large_models
from layout import bar as _bar
from layout import conditions as _conditions
from layout import span as _range
from layout import table as _table
from peer_tables import against_peers
from profile_tables import profiles
from scale_simulation_tables import replacements
from scaling_tables import scaling
from timing import RESULTS, load
from training_tables import training_overhead

_INTRODUCTION = """\
# Benchmarks

Made by `python benchmarks/tables.py` from the files in `results/`; do not edit by hand.

What a measurement costs, in things whose cost is known: a Hessian-vector product in gradients, the
first measurement in first training steps, the exact norm in calls of `jax.hessian`, `fit` with the
callback in `fit` without; and how that grows with the sizes of model and data. What is
compared runs in one process, in turns; each ratio is of times from the same round, and the tables
give the median of the rounds with the smallest and the largest in brackets. Seconds are those of
one machine, ratios carry over better.

A *gradient* is what a user would write: one `tf.function` with the compiled loss of the same
batch in inference mode, as the products have it, and `tape.gradient` with respect to
`model.trainable_variables`, sparse gradients made dense. The networks are in `networks.py`:

* `mlp`: 784-256-256-10 with ReLU, 256 examples;
* `transformer`: 4 causal pre-norm blocks, width 128, 4 heads, vocabulary 1000, 16 x 64 tokens;
* `resnet`: residual blocks of 32, 64 and 128 channels with BatchNormalization, 64 images 32x32x3.

To run them (about two hours, and 16 GiB of memory; leave the machine alone meanwhile):

    pip install -e ".[benchmarks]"
    python benchmarks/products.py
    python benchmarks/profiles.py
    python benchmarks/exact.py
    python benchmarks/real_models.py
    python benchmarks/training_overhead.py
    python benchmarks/importance.py
    python benchmarks/scaling.py
    python benchmarks/scaling_chart.py
    python benchmarks/large_models.py
    OPENBLAS_NUM_THREADS=1 python benchmarks/scale_simulation.py
    python benchmarks/tables.py
"""

_MAX_BLOCK_GRADIENTS = {"mlp": 1.2, "transformer": 1.4, "resnet": 2.2}
_MAX_FIRST_STEPS = 3.0
_MAX_JAX_HESSIANS = 1.2
_MAX_FIRST_SECONDS = 5.0
_MAX_GROWTH_MB = 1000.0


def _products(results: Mapping[str, Any]) -> str:
    rows, memory = [], []
    for name, figures in results["networks"].items():
        products = figures["product_gradients"]
        block, bar = products["block"], _MAX_BLOCK_GRADIENTS[name]
        rows.append(
            [
                f"{name}, n = {figures['parameters']:,}",
                f"{figures['gradient_seconds']['median'] * 1e3:.1f} ms",
                _range(block),
                _bar(block["median"], bar, f"{bar:g}"),
                _range(products["single"]),
                _range(products["finite_difference"]),
            ]
        )
        memory.append([name, *(f"{mb:.0f} MB" for mb in figures["memory_growth_mb"].values())])
    products_table = _table(
        [
            "",
            "one gradient",
            "product in a block of 8",
            "bar",
            "product alone",
            "by finite differences, block of 8",
        ],
        rows,
    )
    memory_table = _table(["", "first training step", "first measurement, beyond that"], memory)
    return f"""\
## Products, in gradients

{_conditions(results)}

{products_table}

By operation count a product takes 6 matrix multiplications where a gradient takes 3 (2 and 2 in a
first layer on the data), and an eighth of the gradient that the block shares: up to 2.1 gradients.
The MLP is under that because its first layer holds most of its work. In the transformer most of the
gradient's time are matrix multiplications (next section), so its bar is out of reach of anything
that multiplies exactly: in a run where it took 2.1, XLA took 1.85 for the same block,
`tf.vectorized_map` over the vectors 2.0, unrolled products 1.9.

Growth of the process's peak memory:

{memory_table}
"""


def _first_calls(results: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in results["networks"].items():
        times, steps = figures["first"]["seconds"], figures["first"]["train_steps"]
        measurement = steps["measurement"]
        rows.append(
            [
                name,
                *(f"{times[call]['median']:.2f} s" for call in times),
                _range(steps["operator"]),
                _range(measurement),
                _bar(measurement["median"], _MAX_FIRST_STEPS, f"{_MAX_FIRST_STEPS:g}"),
            ]
        )
    table = _table(
        [
            "",
            "first training step",
            "operator alone",
            "first measurement",
            "operator, in steps",
            "measurement, in steps",
            "bar",
        ],
        rows,
    )
    products = max(figures["first"]["products"] for figures in results["networks"].values())
    return f"""\
## The first measurement, in first training steps

`measure_curvature` with its default, {products} products, on a fresh model, tracing included; the
construction of a `HessianOperator` alone, which is the tracing and the checks; and
`train_on_batch` on a fresh model of the same kind, after TensorFlow was warmed up with another.
Each on {results["fresh_models"]} models in turns.

{table}
"""


def _exact(results: Mapping[str, Any]) -> str:
    first, steady = results["first_seconds"], results["steady_seconds"]
    ratio, growth = results["ratio"], results["memory_growth_mb"]
    jax_bar = f"{_MAX_JAX_HESSIANS:g} x jax.hessian"
    rows = [
        ["first call, tracing included", f"{first['ours']:.2f} s", f"{first['jax']:.2f} s"],
        ["then", f"{_range(steady['ours'])} s", f"{_range(steady['jax'])} s"],
        ["norm", f"{results['norm']['ours']:.6f}", f"{results['norm']['jax']:.6f}"],
    ]
    bars = [
        [
            "time, in `jax.hessian`",
            _range(ratio),
            _bar(ratio["median"], _MAX_JAX_HESSIANS, jax_bar),
        ],
        [
            "first call",
            f"{first['ours']:.2f} s",
            _bar(first["ours"], _MAX_FIRST_SECONDS, f"{_MAX_FIRST_SECONDS:g} s"),
        ],
        [
            "peak memory beyond imports and data",
            f"{growth:.0f} MB",
            _bar(growth, _MAX_GROWTH_MB, f"{_MAX_GROWTH_MB:.0f} MB"),
        ],
    ]
    return f"""\
## The exact norm, against `jax.hessian`

An MLP 64-48-48-10 with tanh, n = {results["parameters"]:,}, on {results["examples"]} digits of
scikit-learn: `method="autodiff"`, against the Frobenius norm of the compiled `jax.hessian` of the
same loss at the same weights, in float32 both. Ours ran first: the peak memory is its own.

{_conditions(results)}

{_table(["", "ours", "jax.hessian"], rows)}

The norms differ by {results["relative_difference"]:.0e}, relatively.

{_table(["", "", "bar"], bars)}
"""


def _real_models(results: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in results["models"].items():
        first, products = figures["first_seconds"], figures["product_gradients"]
        rows.append(
            [
                f"{name}, n = {figures['parameters']:,}",
                f"{figures['gradient_seconds']['median'] * 1e3:.1f} ms",
                _range(products["block"]),
                _range(products["single"]),
                f"{first['gradient']:.1f} s",
                f"{first['operator']:.1f} s",
            ]
        )
    head = [
        "",
        "one gradient",
        "product in a block of 8, in gradients",
        "product alone",
        "first gradient",
        "operator",
    ]
    return f"""\
## Published architectures

`keras.applications` with random weights, two images of the smallest size, and backbones of KerasHub
of two layers of width 8, as `tests/test_real_models.py` checks them; all by autodiff. The last two
columns are first calls: tracing the gradient, and constructing a `HessianOperator`, which traces
and checks. Models this small spend their time between operations, not in them. On two small images
the weights of a large network are most of the work: a block of 8 vectors is no cheaper there than
single ones. Measured in two runs: ConvNeXtTiny, DenseNet121, NASNetMobile, Xception and
InceptionV3 on 2026-11-23, when other work kept both cores busy and graphs were still rewritten
before their first run, so that their seconds are up to three times too long.

{_conditions(results)}

{_table(head, rows)}
"""


def main() -> None:
    products, exact = load("products"), load("exact")
    parts = [
        _INTRODUCTION,
        _products(products),
        profiles(load("profiles")),
        _first_calls(products),
        _exact(exact),
        _real_models(load("real_models")),
        importance_errors(load("importance")),
        replacements(load("scale_simulation")),
    ]
    if (RESULTS / "training_overhead.json").exists():
        parts.append(training_overhead(load("training_overhead")))
    if (RESULTS / "scaling.json").exists():
        picture = (RESULTS / "scaling.svg").exists()
        parts.append(scaling(load("scaling"), "results/scaling.svg" if picture else None))
    if (RESULTS / "large_models.json").exists():
        parts.append(large_models(load("large_models")))
    if (RESULTS / "against_peers.json").exists():
        parts.append(against_peers(load("against_peers")))
    (Path(__file__).parent / "README.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
