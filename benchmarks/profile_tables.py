"""The section "Where the time of a block goes" of benchmarks/README.md."""

from collections.abc import Mapping
from typing import Any

from layout import conditions, span, table

_KINDS = ("matrix products", "convolutions", "entry by entry", "sums and broadcasts", "copies")


def profiles(results: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in results["networks"].items():
        for call, found in figures.items():
            shares = [f"{found['ms'].get(kind, 0.0):.1f}" for kind in _KINDS]
            operations = sum(found["operations"].values())
            wall = span(found["wall_ms"], 1)
            rows.append([f"{name}, {call}", wall, *shares, f"{operations:.0f}"])
    head = ["", "ms", *(f"{kind}, ms of threads" for kind in _KINDS), "operations"]
    return f"""\
## Where the time of a block goes

One gradient, and one product of a block of 8, by TensorFlow's profiler (`python
benchmarks/profiles.py`): milliseconds of wall time without it, and with it those of both threads by
kind of operation. An eighth of a block's operations stands for a product's.

{conditions(results)}

{table(head, rows)}

By operation count a product takes 2.1 times the matrix products or convolutions of a gradient,
which no exact product can spare. The rest is TensorFlow's own way to compute softmax, layer
normalisation, GELU and their derivatives: a pass over memory for each, where JAX fuses them and
PyTorch has kernels written by hand. So where a peer's block is faster than ours (PyHessian's of the
transformer, see *Against peers*), its gradient is faster still: on these networks ours takes less,
in gradients of its own framework, than those of the PyTorch libraries, and about as much as JAX's.
"""
