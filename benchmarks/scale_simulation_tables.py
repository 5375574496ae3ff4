"""The section of benchmarks/README.md on what replaces a carried basis."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from layout import conditions, table


def replacements(results: Mapping[str, Any]) -> str:
    """Errors and coverage of forms of the basis at equal products."""
    runs, seeds = results["rows"], results["seeds"]
    lines = []
    for name, figures in runs[-1]["methods"].items():
        found = [run["methods"][name] for run in runs]
        errors = [f"{100 * one['rms']:.2f} \u00b1 {100 * one['rms_error']:.2f}" for one in found]
        mean = max(found, key=lambda one: abs(one["mean"]) / one["mean_error"])
        coverage = float(np.mean([one["coverage"] for one in found]))
        lines.append(
            [
                name,
                f"{figures['bytes_a_weight']:.1f}",
                *errors,
                f"{100 * mean['mean']:+.2f} \u00b1 {100 * mean['mean_error']:.2f}",
                f"{100 * coverage:.1f}",
                f"{100 * figures['half_width']:.2f}",
            ]
        )
    titles = [
        f"{'-'.join(map(str, run['widths']))}, {run['network']}, epoch {run['epoch']}"
        for run in runs
    ]
    sizes = " and ".join(f"{n:,}" for n in dict.fromkeys(run["parameters"] for run in runs))
    doubt = 100 * (0.05 * 0.95 / (seeds * len(runs))) ** 0.5
    head = ["", "bytes a weight", *titles]
    head += ["mean error farthest from 0", "covered", "half width"]
    return f"""\
## What replaces a carried basis

For [docs/scale.md](../docs/scale.md): how the error of the norm changes where a basis of float32
vectors is not affordable. Two networks on 797 of scikit-learn's digits, n = {sizes},
their whole Hessians on 256 others, at three successive epochs: measured first by probes alone, then
twice with what the measurement before left, {results["products"]} products each. The figures are
those of the third. A simulation with fixed ranks, by the formulas and the intervals of `Deflated`
and `Hutchinson`. Relative errors in %: root mean square over {seeds} seeds with its standard error;
the mean error, of the {len(runs)} columns the one that is most standard errors away from 0 (of
{len(lines)} x {len(runs)} means a few are beyond 2 by chance). *Covered* tells how often the 95 %
interval covers, over all columns (by chance \u00b1 {doubt:.1f}); the median half width of the
interval and the bytes that are carried from a measurement to the next, over n, are of the last.

{conditions(results)}

{table(head, lines)}

* *float16 as it is at n = 1e11*: entries as small as those of a unit vector of so many.
* *used as it is*: not made orthonormal again, so that P is no projection.
* *by layer*: directions within one layer each, 0 elsewhere; those of all layers that are largest.
* *matrices of rank 1*: the part of each kernel (rows, columns) as one outer product.
* *a basis of 6 made anew*: from 6 probes' products of the same measurement; 6 products on it.
* *sketched*: of a product only 64 sums over n / 64 entries each with random signs are kept.
"""
