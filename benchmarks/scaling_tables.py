"""The section of benchmarks/README.md on how the cost grows."""

import math
from collections.abc import Mapping
from typing import Any

from layout import conditions, span, table
from power_laws import PowerLaw, fit_line_and_square, slopes
from scaling_fits import FIGURES, Points, column, law_of, sizes

_EXPONENTS = (0.9, 1.1)
_BARS = ("parameters", "parameters_by_4", "examples")  # sweeps that must grow as x
_TITLES = {
    "parameters": "Parameters, blocks of 8: MLPs 64-w-w-10, 128 examples",
    "parameters_by_4": "Parameters, blocks of 4: the same",
    "examples": "Examples: three convolutions and two dense layers, images 16x16x1, n = 288,266",
    "vectors": "Vectors in a block: `mlp`, 256 examples",
    "length": "Length: a transformer of 2 blocks, width 64, 4 heads, vocabulary 256, 8 sequences",
}
# Why a curve bends, where that was measured: sentences for below a sweep's table.
_BENDS = {
    "parameters": """\
Up to 1e5 weights the time is that of starting operations, which the vectors of a block share: the
floor. From there on it is linear: 10 to 16 ns for each weight of a product. Memory is that of 24
vectors, 3 for each of the block, above a floor of 22 MB.""",
    "parameters_by_4": """\
The same, and no bend up to 1.2e8: 10 to 17 ns for each weight of a product, and 12 vectors. What is
predicted is for the operator's own block size, which is 4 at the last size alone.""",
    "examples": """\
Seconds bend between 128 and 256 examples and at the end, where those of the gradient do: so do
TensorFlow's convolutions. The construction computes on a few examples, more of them the more there
are, and takes no more memory up to 128 than without: one floor and one power do not describe that.
From 1,024 examples on its slopes are 0.86 and 0.93.""",
}


def scaling(results: Mapping[str, Any], picture: str | None) -> str:
    """Seconds and memory against sizes, the laws that they follow, and whether bars are met."""
    sweeps = {name: sweep["points"] for name, sweep in results["sweeps"].items()}
    parts = [_introduction(results)]
    if picture is not None:
        parts.append(f"![Seconds and memory against sizes, with the fits]({picture})\n")
    parts.append(_fits(sweeps))
    parts += [_sweep(name, sweeps[name]) for name in _TITLES if name in sweeps]
    replicas = {name: points for name, points in sweeps.items() if name.startswith("replicas")}
    if replicas:
        parts.append(_replicas(replicas))
    return "\n".join(parts)


def _introduction(results: Mapping[str, Any]) -> str:
    return f"""\
## How the cost grows

Each size in processes of its own. Seconds of a product are those of a block, shared by its vectors;
they are timed in turns with the gradient, with TensorFlow's own allocator. Memory is the peak of
another process, which gives back at once what is free, beyond what it held when model and data were
built and TensorFlow had started: of the construction of a `HessianOperator`, and of the first block
of products after it, the block itself and its products included. What allocators keep for later
comes on top. *In the system* is the share of a block's CPU time that the kernel spent for it, which
is mostly on pages of fresh memory.

{conditions(results)}
"""


def _fits(sweeps: Mapping[str, Points]) -> str:
    rows = []
    for name in _TITLES:
        for figure in FIGURES if name in sweeps else ():
            law = law_of(name, figure, sweeps[name])
            rows.append([f"`{name}`", figure, *_law(name, figure, law)])
    low, high = _EXPONENTS
    return f"""\
Fitted is floor + factor x^exponent, by least squares in the logarithms of all points of a sweep
together: the floor is what the points of small sizes tend to, and the standard error, in
brackets, has what is not known of it in it. Largest deviation is that of a point from the fit. Of
`vectors` the seconds are those of the whole block. What construction left is in the memory of a
product here, and not in what is predicted.

{table(["", "", "exponent", "floor", "largest deviation", f"bar: {low:g} to {high:g}"], rows)}
"""


def _law(name: str, figure: str, law: PowerLaw | None) -> list[str]:
    if law is None:
        return ["no growth to fit", "", "", ""]
    if law.exponent_error > 1.0:
        return ["too little growth to fit", "", "", ""]
    error = "unknown" if math.isnan(law.exponent_error) else f"{law.exponent_error:.2f}"
    floor = f"{law.floor * 1e3:.2g} ms" if figure == "seconds" else f"{law.floor:.0f} MB"
    low, high = _EXPONENTS
    bar = "met" if low <= law.exponent <= high else "**not met**"
    return [
        f"{law.exponent:.2f} ({error})",
        floor,
        f"{law.largest_deviation:.0%}",
        bar if name in _BARS else "",
    ]


def _sweep(name: str, points: Points) -> str:
    head = [
        "n" if name.startswith("parameters") else name,
        "seconds of a product",
        "slope",
        "in gradients",
        "one gradient",
        "cores busy",
        "of that in the system",
        "memory of the construction",
        "of a product",
        "slope",
        "predicted",
        "vectors, examples at a time",
    ]
    x = sizes(name, points)
    time_slopes = ["", *_slopes(x, [FIGURES["seconds"](point) for point in points])]
    memory_slopes = ["", *_slopes(x, column(name, "memory of a product", points))]
    rows = [
        [
            f"{size:,}",
            f"{FIGURES['seconds'](point) * 1e3:.3g} ms ({_ends(point)})",
            time_slope,
            span(point["product_gradients"]),
            f"{point['gradient_seconds']['median'] * 1e3:.3g} ms",
            f"{point['cores_busy']:.1f}",
            f"{point['share_of_system']:.0%}",
            f"{point['memory_mb']['construction']:.0f} MB",
            f"{point['memory_mb']['product']:.0f} MB",
            memory_slope,
            megabytes(point["at_a_time"]["predicted_mb"]),
            _at_a_time(point),
        ]
        for size, point, time_slope, memory_slope in zip(
            x, points, time_slopes, memory_slopes, strict=True
        )
    ]
    notes = [_where_the_square_enters(points)] if name == "length" and len(points) > 2 else []
    if name in _BENDS:
        notes.append(_BENDS[name])
    return "\n\n".join([f"### {_TITLES[name]}", table(head, rows), *notes]) + "\n"


def _slopes(x: list[float], y: list[float]) -> list[str]:
    """The exponent since the size before."""
    if min(y) <= 0:
        return [""] * (len(y) - 1)
    return [f"{slope:.2f}" for slope in slopes(x, y)]


def _ends(point: Mapping[str, Any]) -> str:
    ends = (point["block_seconds"][end] / point["vectors"] * 1e3 for end in ("min", "max"))
    return "-".join(f"{end:.3g}" for end in ends)


def _at_a_time(point: Mapping[str, Any]) -> str:
    vectors, examples = point["at_a_time"]["vectors"], point["at_a_time"]["examples"]
    return f"{point['vectors'] if vectors is None else vectors}, {examples:,}"


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} MB"


def _where_the_square_enters(points: Points) -> str:
    found = {
        figure: fit_line_and_square(sizes("length", points), column("length", figure, points))
        for figure in ("seconds", "memory of a product")
    }
    longest = max(point["size"] for point in points)
    crossings = " and ".join(
        f"of {figure} from {law.crossing:,.0f} tokens on"
        if law.crossing < math.inf
        else f"of {figure} at no length up to {longest}"
        for figure, law in found.items()
    )
    return (
        "With floor + line L + square L^2 fitted instead, the square is more than the line: "
        f"{crossings}. By operation count it is from 6 x 64 + 256 / 4 = 448 tokens on: a token "
        "takes 12 x 64^2 multiplications in a block's matrices, 2 x 64 L in its attention (what "
        "the causal mask hides is computed too), and 64 x 256 in the output layer."
    )


def _replicas(sweeps: Mapping[str, Points]) -> str:
    names = {"replicas": "all cores", "replicas_thread_each": "one"}
    rows = []
    for name, points in sweeps.items():
        alone = points[0]["block_seconds"]["median"]
        for point in points:
            block = point["block_seconds"]
            rows.append(
                [
                    names[name],
                    f"{point['size']}",
                    f"{span(block, 3)} s",
                    f"{block['median'] / alone:.2f}",
                    f"{point['cores_busy']:.1f}",
                    f"{point['memory_mb']['product']:.0f} MB",
                ]
            )
    head = [
        "threads of an operation",
        "replicas",
        "block of 8",
        "in that of one",
        "cores busy",
        "memory of a product",
    ]
    return f"""\
### Replicas: the convolutional network under `MirroredStrategy`, 512 examples

The replicas are logical devices of one processor and share its cores, so the most that a second one
can do is to fill the cores that one replica leaves idle: on 2 cores the same work takes as long as
before, less what was idle, plus what parting and adding up cost. That replicas on devices of their
own halve the time is not to be seen here.

{table(head, rows)}
"""
