"""What the benchmarks share: clocks, spreads, the machine, and files of results."""

import datetime
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Clocks = tuple[float, float, float] | None

_SECONDS_PER_ROUND = 0.2  # at least, for each thing that is timed


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """Wall time of a call, averaged over `repeats`."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of a call of each function in each round; a round runs them one after another.

    What slows the machine for a while then slows all of them, and cancels in the ratios of a
    round. Each function is called once beforehand.
    """
    repeats = {}
    for name, function in functions.items():
        function()
        repeats[name] = max(1, round(_SECONDS_PER_ROUND / seconds(function)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function, repeats[name]))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """The spread of the ratios of each round."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def peak_memory() -> float:
    """The most memory that this process ever held, in MB."""
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 1e6


def environment(*packages: str, since: Clocks = None) -> dict[str, Any]:
    """Versions, machine and date, to be called when all is timed and every child has ended.

    The load is that since these `clocks()`, or since this module was imported.
    """
    names = ("tensorflow", "keras", "numpy", *packages, "keras_hessian_callback")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "cores_of_others": _cores_of_others(since),
        },
        "date": datetime.date.today().isoformat(),
    }


def save(name: str, results: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _cores_of_others(since: Clocks) -> float | None:
    """Cores that other processes kept busy; None: not Linux."""
    start, now = since or _START, clocks()
    if start is None or now is None:
        return None
    (wall, everyone, ours), (wall_0, everyone_0, ours_0) = now, start
    return ((everyone - everyone_0) - (ours - ours_0)) / (wall - wall_0)


def clocks() -> Clocks:
    """Seconds: of the wall, and of CPU time of all processes and of this one with its children."""
    if not Path("/proc/stat").exists():
        return None
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, interrupts, soft_interrupts, steal, *_ = map(int, fields)
    ticks = user + nice + system + interrupts + soft_interrupts + steal
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])


_START = clocks()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
