"""The section of benchmarks/README.md on large models."""

from collections.abc import Iterator, Mapping
from typing import Any

from layout import bar, conditions, span, table

_MAX_GRADIENTS = 2.5
_MODELS = {
    "resnet50": "ResNet50, 1000 classes",
    "gpt2": "a decoder of the size of GPT-2 small",
    "many_rows": "an embedding of a million rows",
    "wide_mlp": "an MLP of three layers",
}


def large_models(results: Mapping[str, Any]) -> str:
    """Products, construction, measurements and memory of each model."""
    models = results["models"]
    products = [row for name, figures in models.items() for row in _products(name, figures)]
    measurements = [row for name, figures in models.items() for row in _measurements(name, figures)]
    products_head = [
        "",
        "batch",
        "one gradient",
        "products",
        "seconds of one",
        "in gradients",
        "bar",
    ]
    memory_head = [
        "",
        "memory limit",
        "vectors, examples at a time",
        "construction",
        "tracing in it",
        "memory of it",
        "of a block of products",
        "predicted",
        "",
        "peak of the process",
    ]
    measurements_head = [
        "",
        "",
        "seconds",
        "products",
        "basis kept",
        "Frobenius norm",
        "trace",
        "spectral norm",
        "memory",
        "predicted",
        "",
    ]
    memory = [row for name, figures in models.items() for row in _memory(name, figures)]
    differences = [
        _differences(name, figures["differences"])
        for name, figures in models.items()
        if "differences" in figures
    ]
    return (
        "\n\n".join(
            [
                f"""\
## Large models

With random weights, in float32; ResNet50 on images of 112 x 112. Products are timed in a process
with TensorFlow's own allocator, as users have it, and so is construction. Memory and measurements
are those of another, which takes fresh memory from the system for everything, so that it can be
seen: a product of the embedding takes many times as long there. Memory of the construction is the
peak beyond what the process held when model and data were built and TensorFlow had started; that of
products and measurements the peak beyond what construction left: graphs, above all. The peak of the
process has all of these in it.

{conditions(results)}

{table(products_head, products)}

Construction of a `HessianOperator`, which plans, traces and checks, and the first block of
products. *Predicted* is the operator's `peak_bytes`: 3 k + 4 vectors for a block of k (4 k + 4
where there are several micro-batches, whose products are summed), and the activations of the
examples at a time as blocks of products on a few of them showed.

{table(memory_head, memory)}

One measurement of {results["examples"]} examples, by {_methods(models)}, with its 95 % interval
where there is one; of `Deflated` the second one, where there are two.
{_carried(models)} What is *predicted* for a measurement by `Deflated` is the operator's
`peak_bytes` and, in vectors, the basis that it began with, one for each product, and two, but for a
block where no basis is in use.

{table(measurements_head, measurements)}

{_beyond_limits(models)}""",
                *differences,
            ]
        )
        + "\n"
    )


def _carried(models: Mapping[str, Any]) -> str:
    """Which of them had a basis in use."""
    carried = [
        _MODELS[name]
        for name, figures in models.items()
        if figures.get("measurements", {}).get("Deflated", {}).get("carried")
    ]
    if not carried:
        return "With random weights the spectra are flat: no basis is in use in any of these."
    return (
        f"A basis that was carried is in use in those of {'; '.join(carried)}. (With random "
        "weights the spectra are flat, and it holds little.)"
    )


def _beyond_limits(models: Mapping[str, Any]) -> str:
    """What took more memory than the operator was to take."""
    found = []
    for name, figures in models.items():
        memory = figures.get("memory_mb", {})
        if not memory.get("limit"):
            continue
        took = {"construction": memory["construction"], "a block of products": memory["product"]}
        measurements = figures["measurements"].items()
        took |= {f"`{estimator}`": run["memory_mb"] for estimator, run in measurements}
        found += [
            f"{what} on {_MODELS[name]} took {megabytes:,.0f} MB, where the limit was "
            f"{memory['limit']:,.0f} MB"
            for what, megabytes in took.items()
            if megabytes > memory["limit"]
        ]
    if not found:
        return "Where a memory limit was set, nothing took more."
    return f"Beyond the memory limit of its operator: {'; '.join(found)}."


def _methods(models: Mapping[str, Any]) -> str:
    found = {
        measurement["method"]: None  # in the order of the runs
        for figures in models.values()
        for measurement in figures.get("measurements", {}).values()
    }
    return ", ".join(f"`{method}`" for method in found)


def _products(name: str, figures: Mapping[str, Any]) -> Iterator[list[str]]:
    if "failed" in figures:
        yield [_MODELS[name], figures["failed"], *[""] * 5]
        return
    shape = " x ".join(str(length) for length in figures["inputs"])
    vectors = figures["at_a_time"]["vectors"]
    for kind, text in {"block": f"in a block of {vectors}", "single": "alone"}.items():
        gradients = figures["product_gradients"][kind]
        yield [
            f"{_MODELS[name]}, n = {figures['parameters']:,}",
            shape,
            f"{span(figures['gradient_seconds'], 3)} s",
            text,
            f"{span(figures['product_seconds'][kind], 3)} s",
            span(gradients),
            bar(gradients["median"], _MAX_GRADIENTS, f"{_MAX_GRADIENTS:g}")
            if kind == "block"
            else "",
        ]


def _memory(name: str, figures: Mapping[str, Any]) -> Iterator[list[str]]:
    if "failed" in figures:
        return
    plan, memory = figures["at_a_time"], figures["memory_mb"]
    predicted, limit = plan["predicted_mb"], memory["limit"]
    yield [
        _MODELS[name],
        "half of what is free" if limit is None else f"{limit:,.0f} MB",
        f"{plan['vectors']}, {plan['examples']}",
        f"{figures['construction_seconds']:.1f} s",
        f"{figures['tracing_seconds']:.1f} s",
        f"{memory['construction']:,.0f} MB",
        f"{memory['product']:,.0f} MB",
        *_against(predicted, memory["product"]),
        f"{figures['process_peak_mb']:,.0f} MB",
    ]


def _measurements(name: str, figures: Mapping[str, Any]) -> Iterator[list[str]]:
    for estimator, found in figures.get("measurements", {}).items():
        estimates = found["estimates"]
        quantities = ("frobenius_norm", "trace", "spectral_norm")
        yield [
            _MODELS[name],
            f"`{estimator}`" + (", warm" if found["carried"] else ""),
            f"{found['seconds']:.1f}",
            f"{found['num_matvecs']}",
            f"{found['rank']}",
            *(_estimate(estimates.get(quantity)) for quantity in quantities),
            f"{found['memory_mb']:,.0f} MB",
            *_against(found.get("predicted_mb"), found["memory_mb"]),
        ]


def _against(predicted: float | None, measured: float) -> list[str]:
    """A prediction, and by how much it is off."""
    if predicted is None:
        return ["", ""]
    return [f"{predicted:,.0f} MB", f"{100.0 * (predicted / measured - 1.0):+.0f} %"]


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    """A value with its interval; None in it stands for what is not known."""
    if estimate is None or estimate["value"] is None:
        return ""
    ends = [estimate["lower"], estimate["upper"]]
    if ends == [None, None]:
        return f"{estimate['value']:.4g}"
    low, high = ("" if end is None else f"{end:.4g}" for end in ends)
    return f"{estimate['value']:.4g} ({low} to {high})"


def _differences(name: str, found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return f"Comparison of {_MODELS[name]} with differences: {found['failed']}."
    sparse = "is" if found["gradient_is_sparse"] else "is **not**"
    return (
        f"Sparse gradients: of {_MODELS[name]} the gradient {sparse} an `IndexedSlices`, some rows "
        f"of it more than once. A product, in {found['dtype']}, against central differences of the "
        "gradient: largest relative difference of a variable's rows "
        f"{found['largest_relative_difference']:.0e}; in the {found['rows_unused']:,} of "
        f"{found['rows']:,} rows that no example looks up the largest entry of the product is "
        f"{found['largest_of_unused_rows']:g}."
    )
