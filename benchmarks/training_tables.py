"""The section of benchmarks/README.md on whole runs of `fit`."""

from collections.abc import Mapping
from typing import Any

from layout import conditions, span, table

_ASKED = {"within 1 %": 0.01, "within 5 %": 0.05}
_TOLERANCE = 0.2  # of the share that was asked for


def training_overhead(results: Mapping[str, Any]) -> str:
    """Wall time of `fit` with the callback and without, and what the callback tells of it."""
    rows = [
        _row(name, steps, run, schedule)
        for name, figures in results["networks"].items()
        for steps, run in figures["epochs_of"].items()
        for schedule in run["schedules"]
    ]
    networks = "; ".join(
        f"`{name}`, n = {figures['parameters']:,}, {figures['step_seconds'] * 1e3:.1f} ms a step"
        for name, figures in results["networks"].items()
    )
    head = [
        "",
        "epochs",
        "schedule",
        "time of `fit`, in `fit` without",
        "the same, as told",
        "without set-up",
        "set-up",
        "share, as told",
        "share kept within a fifth, all rounds",
        "measurements",
        "products of one",
        "half width of the interval",
    ]
    return f"""\
## Whole runs of `fit`

scikit-learn's digits, batches of {results["batch"]}, {results["held_out"]} held-out examples:
{networks}. Each run is a fresh model of the same weights, its tracing included; a round runs
without the callback and with each schedule, one after another. *As told* is the callback's own
account: its set-up and the seconds of its measurements, and its `overhead`, which leaves the set-up
out. A share is kept where that of every round is within a fifth of what was asked for; the smallest
and the largest, in what was asked for, are in brackets. Products and interval are the median ones
of a run; the interval's half width is in the norm. A run of these few seconds cannot pay for
measurements of 20 products out of 1 %: it makes fewer, or one of the fewest, which the first epoch
of a `fit` gets in any case.

{conditions(results)}

{table(head, rows)}
"""


def _row(name: str, steps: str, run: Mapping[str, Any], schedule: str) -> list[str]:
    figures = run["schedules"][schedule]
    share, asked = figures["overhead"], _ASKED.get(schedule)
    kept = ""
    if asked is not None:
        low, high = share["min"] / asked, share["max"] / asked
        within = max(1.0 - low, high - 1.0) <= _TOLERANCE
        kept = f"{'yes' if within else '**no**'} ({low:.2f}-{high:.2f})"
    return [
        name,
        f"{run['epochs']} of {steps} steps, {run['seconds']['median']:.1f} s",
        schedule,
        span(figures["ratio"], 3),
        f"{figures['told_ratio']['median']:.3f}",
        span(figures["ratio_without_setup"], 3),
        f"{figures['setup_seconds']['median']:.2f} s",
        span(share, 4),
        kept,
        f"{figures['measurements']['median']:g}",
        f"{figures['products']['median']:g}",
        f"{figures['error']['median']:.1%}",
    ]
