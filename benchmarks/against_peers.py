"""Compares products, norms, traces and largest eigenvalues with other libraries.

Run:  python benchmarks/against_peers.py [--quick] [--networks digits ...] [--again]

Each library works in a process of its own, one at a time and in turns with the others. What is
finished of a network is kept, also where a later one fails; `--again` measures it anew.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer_results import networks_of
from peers import accuracy
from peers.parent import Worker, WorkerError
from peers.worker import MODULES
from timing import RESULTS, clocks, environment, load, ratios, save, spread

TIMED = ("mlp", "transformer", "resnet")
# The network, and the epochs at which estimates are compared: untrained, trained.
TRAINED = {"digits": (0, 5, 8), "text": (0, 4), "images": (0, 5)}

_FILE = "against_peers"
_ROOT = Path(__file__).parents[1]
_PROBLEMS = _ROOT / "build" / "against_peers"
_MAX_LOSS_DIFFERENCE = 1e-5
_MAX_PRODUCT_DIFFERENCE = 1e-3
_SECONDS_PER_ROUND = 0.4
_MOST_REPEATS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-python", default=str(_ROOT / ".venv-torch/bin/python"))
    parser.add_argument("--jax-python", default=str(_ROOT / ".venv-jax/bin/python"))
    parser.add_argument("--libraries", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--networks", nargs="+", choices=[*TIMED, *TRAINED])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="a rehearsal; nothing is saved")
    parser.add_argument("--again", action="store_true", help="also what is finished")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.repetitions = 2, 4
    pythons = {
        name: {
            "keras_side": sys.executable,
            "torch_side": arguments.torch_python,
            "jax_side": arguments.jax_python,
        }[MODULES[name]]
        for name in arguments.libraries
    }
    networks = {} if arguments.quick or not _exists() else networks_of(load(_FILE))
    settings = {"rounds": arguments.rounds, "repetitions": arguments.repetitions}
    for name in arguments.networks or [*TRAINED, *TIMED]:
        if name in networks and not arguments.again:
            print(f"{name}: finished before")
            continue
        start, since = time.perf_counter(), clocks()
        try:
            figures = measure(name, pythons, arguments.quick, arguments.again, **settings)
        except (WorkerError, subprocess.CalledProcessError) as error:
            print(f"{name}: failed, {error}", flush=True)
            continue
        figures["minutes"] = (time.perf_counter() - start) / 60
        networks[name] = environment(since=since) | settings | figures
        print(f"{name}: {figures['minutes']:.1f} minutes", flush=True)
        save(f"../../build/{_FILE}_quick" if arguments.quick else _FILE, {"networks": networks})


def measure(
    name: str, pythons: dict[str, str], quick: bool, again: bool, rounds: int, repetitions: int
) -> dict[str, Any]:
    """Everything about one network; what fails of a library is named, and left out."""
    path = _PROBLEMS / f"{name}.npz"
    if again or not path.exists():
        _PROBLEMS.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "peers.prepare", name, str(path)]
        with (_PROBLEMS / "prepare.log").open("a") as log:
            subprocess.run(command, check=True, cwd=Path(__file__).parent, stderr=log)
    workers, figures = {}, {}
    try:
        for library, python in pythons.items():
            log = _PROBLEMS / f"{library}_{name}.log"
            workers[library] = Worker(python, library, path, log)
            figures[library] = _attempt(lambda w=workers[library]: _start(w))
            if "error" in figures[library]:
                print(f"{name}, {library}: {figures[library]['error']}", flush=True)
                workers.pop(library).close()
        _time(workers, figures, rounds)
        results: dict[str, Any] = {"libraries": figures}
        if name in TRAINED:
            results["epochs"] = {}
            for epoch in TRAINED[name][-1:] if quick else TRAINED[name]:
                print(f"{name}, epoch {epoch}", flush=True)
                figures_then = accuracy.measure(workers, epoch, repetitions, quick)
                results["epochs"][str(epoch)] = figures_then
        return results
    finally:
        for worker in workers.values():
            worker.close()


def _start(worker: Worker) -> dict[str, Any]:
    """First calls; raises unless the library has the same loss and Hessian as Keras."""
    figures = worker("start", epoch=0)
    differences = worker("verify")
    worker("epoch", epoch=0)
    if differences["loss"] > _MAX_LOSS_DIFFERENCE:
        raise WorkerError(f"another loss than Keras's: {differences}")
    if differences["product"] > _MAX_PRODUCT_DIFFERENCE:
        raise WorkerError(f"another Hessian than Keras's: {differences}")
    return figures | {"differences": differences}


def _attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return function()
    except WorkerError as error:
        return {"error": str(error)}


def _time(workers: dict[str, Worker], figures: dict[str, Any], rounds: int) -> None:
    """Seconds of gradients and products, round by round, every library once a round."""
    kinds = ("gradient", "single", "block")
    once = {
        (library, kind): worker("time", kind=kind, repeats=1)
        for library, worker in workers.items()
        for kind in kinds
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in once}
    for _ in range(rounds):
        for (library, kind), expected in once.items():
            repeats = min(_MOST_REPEATS, max(1, round(_SECONDS_PER_ROUND / expected)))
            duration = workers[library]("time", kind=kind, repeats=repeats)
            times[library, kind].append(duration / 8 if kind == "block" else duration)
    for library in workers:
        own = times[library, "gradient"]
        figures[library]["seconds"] = {kind: spread(times[library, kind]) for kind in kinds}
        figures[library]["gradients"] = {
            kind: ratios(times[library, kind], own) for kind in ("single", "block")
        }
        if "ours" in workers:
            figures[library]["our_products"] = {
                kind: ratios(times[library, kind], times["ours", kind]) for kind in kinds
            }
            figures[library]["our_gradients"] = {
                kind: ratios(times[library, kind], times["ours", "gradient"])
                for kind in ("single", "block")
            }


def _exists() -> bool:
    return (RESULTS / f"{_FILE}.json").exists()


if __name__ == "__main__":
    main()
