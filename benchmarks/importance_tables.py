"""The section of benchmarks/README.md on draws by importance."""

from collections.abc import Mapping
from typing import Any

from layout import conditions, table


def importance_errors(results: Mapping[str, Any]) -> str:
    """Errors of the norm of a pool, by draws by importance and by uniform ones."""
    rows = []
    for row in results["rows"]:
        for count in results["examples"]:
            line = [f"{row['epoch']} ({row['accuracy']:.2f})", str(count)]
            for name in ("frobenius_norm", "population_frobenius_norm"):
                ours, theirs = (
                    row["errors"][f"{kind} {count}"][name] for kind in ("importance", "uniform")
                )
                texts = [
                    f"{100 * error['rms']:.1f} \u00b1 {100 * error['rms_error']:.1f}"
                    for error in (ours, theirs)
                ]
                line += [*texts, f"{(theirs['rms'] / ours['rms']) ** 2:.1f}"]
            rows.append(line)
    head = ["epoch (accuracy)", "drawn"]
    for name in ("batch", "population"):
        head += [f"{name}, importance", f"{name}, uniform", "ratio of squares"]
    return f"""\
## Examples drawn by importance

An MLP {results["network"]} with ReLU, n = {results["parameters"]:,}, trained by Adam on 797
digits of scikit-learn; the pool are the {results["pool"]} others. Relative errors in %, root mean
square over {results["draws"]} draws with its standard error, of `frobenius_norm` ("batch") and
`population_frobenius_norm` ({results["folds"]} micro-batches), against the norm of the whole pool.
All from whole Hessians by JAX, so without the noise of probes. *Uniform* is `floor=1.0`, draws
with replacement; as many without replacement scatter less by sqrt((N - b) / (N - 1)): 3 % at 64,
14 % at 256. The ratio of squares is how many times as many uniform draws the same error takes,
where it comes from scatter.

{conditions(results)}

{table(head, rows)}

A draw of 256 (a pass over the pool included) took {results["draw_seconds"]:.2f} s, 20 products
on it {results["products_seconds"]:.2f} s.
"""
