"""What results/against_peers.json holds, and how good its references are."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHARE = 0.2  # of an error, that of the reference may be

Point = Mapping[str, float]


def networks_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of each network, each with the environment and the settings of its run.

    Older files have one environment, which is that of the networks without one of their own.
    """
    shared = {key: value for key, value in results.items() if key != "networks"}
    return {name: shared | figures for name, figures in results["networks"].items()}


def chosen(points: Mapping[str, Point]) -> list[Point]:
    """Our points with a fixed number of products, ascending."""
    return [point for option, point in points.items() if option != "default"]


def judged(then: Mapping[str, Any], quantity: str, error: float, points: Sequence[Point]) -> bool:
    """Whether the reference of an epoch tells if points reach a relative error.

    It has to be good enough for that error, or for the least that they have, where that is more.
    """
    least = min(point["error"] for point in points)
    return then["reference"]["relative_errors"][quantity] <= _SHARE * max(error, least)
