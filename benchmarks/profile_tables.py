"""The sections on where the time of a measurement goes of benchmarks/README.md."""

from collections.abc import Mapping
from typing import Any

from layout import bar, conditions, span, table

_LARGE = 1_000_000  # weights, from which the rest is judged by its share
_MAX_SHARE, _MAX_MS = 0.05, 20.0
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
which no exact product can spare; by their time it is what the table says. The rest is TensorFlow's
own way to compute softmax, layer normalisation, GELU and their derivatives: a pass over memory for
each, where JAX fuses them and PyTorch has kernels written by hand. So where a peer's block is
faster than ours (PyHessian's of the transformer, see *Against peers*), its gradient is faster
still: on these networks ours takes less, in gradients of its own framework, than those of the
PyTorch libraries, and about as much as JAX's.

## A whole measurement

From the hook at the end of an epoch to the event file, by `HessianNormCallback` with its defaults,
one training step an epoch. *Beside the products* is all that is not the products' graph: probes,
sums in float64, the basis for the next measurement, and the files. Medians of 9 epochs, the
smallest and the largest in brackets.

{_measurements(results)}

From some ten thousand weights on what is beside the products grows with n: with a basis of 15
vectors and 5 probes Gram matrices in float64 take about 1,050 multiplications a weight, and
combinations of vectors 770. So models of 300,000 weights are no small ones here. Below that it is
the start of a thousand small operations, as fast as the machine is at the time: in three runs
digits had medians from 15 to 22 ms.
"""


def _measurements(results: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in results["measurements"].items():
        large = figures["n"] >= _LARGE
        rest, share = figures["rest_ms"], figures["share"]
        rows.append(
            [
                f"{name}, n = {figures['n']:,}",
                f"{figures['num_matvecs']}",
                f"{span(figures['hook_ms'], 1)} ms",
                f"{span(rest, 1)} ms",
                f"{100.0 * share['median']:.1f} %",
                bar(share["median"], _MAX_SHARE, "5 %")
                if large
                else bar(rest["median"], _MAX_MS, "20 ms"),
            ]
        )
    head = ["", "products", "hook", "beside the products", "of the hook", "bar"]
    return table(head, rows)
