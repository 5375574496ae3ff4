"""Products and seconds that a relative error takes, by repetition against a reference.

Errors are root mean squares over repetitions with different random numbers. The norm is the root
of what is estimated, ||H||_F^2, so its relative error is half of that of the square.

* The reference of norm and trace is exact, from all columns of the Hessian: those of `text` by JAX,
  whose blocks take a third of the time of ours there. Without JAX, and in a rehearsal, it is an
  estimate, whose relative errors are kept with it.
* Hutchinson's samples are independent: its error is measured at `PROBES` products, and that it
  falls with the root of their number is exact. Products for an error follow from that.
* Others are run with more and more products until the error is below 1 %, or a limit of products or
  seconds is reached;
  between two numbers the error is taken to be a straight line in logarithms.
* Ours (`Deflated`) likewise, with no such line: the fewest products that were run.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from peers.parent import Worker, WorkerError

PROBES = 8
ERRORS = (0.01, 0.02, 0.05)
GRID = (6, 12, 24, 48, 108)  # products of the peers' other estimators
OURS_WARM = (6, 8, 10, 12, 14, 16, 20)
OURS_COLD = (20, 40, 80)
_UNTRAINED_LIMIT = 12
# That a method may take at the next number of products, all repetitions together.
_MOST_SECONDS = {"norm": 30.0, "trace": 10.0, "top": 10.0}
_MORE = 3  # times as many repetitions of ours where it has to match Hutchinson

Samples = list[dict[str, float]]


def measure(
    workers: dict[str, Worker], epoch: int, repetitions: int, quick: bool
) -> dict[str, Any]:
    """All estimators of all libraries at the weights of one epoch."""
    reference = workers["ours"]("reference", epoch=epoch, exact=not quick)
    for worker in workers.values():
        worker("epoch", epoch=epoch)
    if not (quick or reference["exact"]) and "jax" in workers:
        exact = workers["jax"]("exact")
        reference["values"] |= exact
        reference["relative_errors"] |= dict.fromkeys(exact, 0.0)
        reference["exact"] = True
    truth = reference["values"]
    peers = _peers(workers, truth, repetitions, _limit(epoch, quick))
    ours = {}
    sizes = OURS_COLD[:2] if quick else OURS_COLD
    more = repetitions * (1 if epoch or quick else _MORE)
    ours["cold"] = _ours(workers["ours"], [epoch], sizes, truth, repetitions, more)
    if epoch:
        sizes = OURS_WARM[:2] if quick else OURS_WARM
        chain = list(range(1, epoch + 1))
        ours["warm"] = _ours(workers["ours"], chain, sizes, truth, repetitions, repetitions)
    return {"reference": reference, "ours": ours, "peers": peers}


def _limit(epoch: int, quick: bool) -> int:
    return GRID[-1] if epoch and not quick else _UNTRAINED_LIMIT


def _peers(
    workers: dict[str, Worker], truth: dict[str, float], repetitions: int, limit: int
) -> dict[str, dict[str, Any]]:
    """Per library and method; the libraries take turns within a repetition."""
    found: dict[str, dict[str, Any]] = {library: {} for library in workers}
    active = []
    for library, worker in workers.items():
        for method in worker("methods"):
            found[library][method] = {"points": []}
            active.append((library, method))
    for m in GRID:
        if m > limit:
            break
        samples = _take_turns(workers, active, m, repetitions, found)
        for library, method in list(active):
            figures = found[library][method]
            if "error" in figures:
                active.remove((library, method))
                continue
            quantity = method.split("/")[0]
            point = _point(samples[library, method], truth[quantity], quantity)
            figures["points"].append(point)
            expected = 2.0 * point["seconds"] * repetitions
            once = method.endswith(("/hutchinson", "/as documented"))
            long = m > GRID[0] and expected > _MOST_SECONDS[quantity]
            if once or long or point["error"] <= ERRORS[0]:
                active.remove((library, method))
    for methods in found.values():
        for method, figures in methods.items():
            figures["needed"] = {str(e): _needed(method, figures["points"], e) for e in ERRORS}
    return found


def _take_turns(
    workers: dict[str, Worker],
    active: Sequence[tuple[str, str]],
    m: int,
    repetitions: int,
    found: dict[str, dict[str, Any]],
) -> dict[tuple[str, str], Samples]:
    samples: dict[tuple[str, str], Samples] = {key: [] for key in active}
    for repetition in range(-1, repetitions):
        for library, method in active:
            if "error" in found[library][method]:
                continue
            if _too_slow(method, samples[library, method], repetitions):
                continue
            # Libraries with the same generator get numbers of their own, too.
            seed = 1000 * list(workers).index(library) + repetition + 1
            size = PROBES if method.endswith("/hutchinson") else m
            try:
                sample = workers[library]("estimate", method=method, m=size, seed=seed)
            except WorkerError as error:
                found[library][method]["error"] = str(error)
                continue
            if repetition >= 0:  # the first call compiles
                samples[library, method].append(sample)
    return samples


def _too_slow(method: str, samples: Samples, repetitions: int) -> bool:
    """Whether two repetitions have to do: XLA's convolutions in a loop can take a second each."""
    if method.endswith("/hutchinson") or len(samples) < 2:
        return False
    expected = samples[0]["seconds"] * repetitions
    return expected > 2.0 * _MOST_SECONDS[method.split("/")[0]]


def _ours(
    worker: Worker,
    epochs: list[int],
    sizes: Sequence[int],
    truth: dict[str, float],
    repetitions: int,
    more: int,
) -> dict[str, Any]:
    """`Deflated` with a fixed number of products, and as it comes; measured at each epoch."""
    options = {str(m): {"max_matvecs": m, "target_error": None} for m in sizes}
    options["default"] = {}
    runs: dict[str, list[Any]] = {option: [] for option in options}
    for repetition in range(-1, more):
        for option, settings in options.items():
            if repetition >= repetitions and option not in ("20", "40"):
                continue
            found = worker("deflated", settings=settings, seed=repetition + 1, epochs=epochs)
            if repetition >= 0:
                runs[option].append(found[-1])
    figures: dict[str, Any] = {}
    for quantity, value in truth.items():
        points = {
            option: _point(
                [run | {"value": run["values"][quantity]} for run in samples], value, quantity
            )
            for option, samples in runs.items()
            # With few products there may be no basis, so no largest eigenvalue: it is not reached.
            if all(math.isfinite(run["values"][quantity]) for run in samples)
        }
        needed = {
            str(e): next(
                (
                    point
                    for option, point in points.items()
                    if option != "default" and point["error"] <= e
                ),
                None,
            )
            for e in ERRORS
        }
        figures[quantity] = {"points": points, "needed": needed}
    return figures


def _point(samples: Samples, truth: float, quantity: str) -> dict[str, float]:
    half = 0.5 if quantity == "norm" else 1.0
    errors = [half * (sample["value"] - truth) / truth for sample in samples]
    squares = [error**2 for error in errors]
    mean_square = statistics.fmean(squares)
    spread = statistics.stdev(squares) / math.sqrt(len(squares))
    return {
        "products": statistics.fmean(sample["products"] for sample in samples),
        "error": math.sqrt(mean_square),
        "error_of_error": spread / (2.0 * math.sqrt(mean_square)) if mean_square else 0.0,
        "bias": statistics.fmean(errors),
        "seconds": statistics.median(sample["seconds"] for sample in samples),
        "repetitions": len(samples),
    }


def _needed(
    method: str, points: Sequence[dict[str, float]], error: float
) -> dict[str, float] | None:
    """Products and seconds for an error, and how they were found; None: not reached."""
    if not points:
        return None
    if method.endswith("/hutchinson"):
        share = (points[0]["error"] / error) ** 2
        return {
            "products": points[0]["products"] * share,
            "seconds": points[0]["seconds"] * share,
        }
    for i, point in enumerate(points):
        if point["error"] <= error:
            if not i:
                return {key: point[key] for key in ("products", "seconds")}
            before = points[i - 1]
            slope = math.log(before["error"] / error) / math.log(before["error"] / point["error"])
            return {
                key: before[key] * (point[key] / before[key]) ** slope
                for key in ("products", "seconds")
            }
    return None
