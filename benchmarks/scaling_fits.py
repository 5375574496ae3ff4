"""The laws that results/scaling.json follows; each sweep's sizes and figures as columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from power_laws import MIN_POINTS, PowerLaw, fit_power_law

Points = Sequence[Mapping[str, Any]]

FIGURES = {
    "seconds": lambda point: point["block_seconds"]["median"] / point["vectors"],
    "memory of a product": lambda point: point["memory_mb"]["product"],
    "memory of the construction": lambda point: point["memory_mb"]["construction"],
}


def sizes(sweep: str, points: Points) -> list[float]:
    """What the figures are fitted against: the parameters themselves, where they are varied."""
    key = "parameters" if sweep.startswith("parameters") else "size"
    return [point[key] for point in points]


def column(sweep: str, figure: str, points: Points) -> list[float]:
    """A figure at each size; of a sweep of vectors, seconds are those of the whole block."""
    values = [FIGURES[figure](point) for point in points]
    if (sweep, figure) == ("vectors", "seconds"):
        return [point["block_seconds"]["median"] for point in points]
    return values


def law_of(sweep: str, figure: str, points: Points) -> PowerLaw | None:
    """The law of a figure; None: too few points, or one at which nothing was seen to grow."""
    values = column(sweep, figure, points)
    if len(points) < MIN_POINTS or min(values) <= 0:
        return None
    return fit_power_law(sizes(sweep, points), values)
