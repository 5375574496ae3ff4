"""One library with one network, in a process of its own: reads commands, writes answers.

Run by `against_peers.py`:  python -m peers.worker LIBRARY FILE
"""

import importlib
import json
import math
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from timing import peak_memory, seconds

from peers.problem import Problem
from peers.side import Side

THREADS = 2
MODULES = {
    "ours": "keras_side",
    "pyhessian": "torch_side",
    "curvlinops": "torch_side",
    "eigenthings": "torch_side",
    "matfree": "jax_side",
    "jax": "jax_side",
}


class Commands:
    """What the parent can ask for."""

    def __init__(self, library: str, path: str) -> None:
        module = importlib.import_module(f"peers.{MODULES[library]}")
        self._problem = Problem.load(Path(path))
        self._side: Side = module.SIDES[library](self._problem)

    def start(self, epoch: int) -> dict[str, Any]:
        """First calls, in this order; the peak memory of a process never falls."""
        before = peak_memory()
        first, growth = {}, {}
        first["build"] = seconds(lambda: self._side.set_epoch(epoch))
        self._timed = self._side.timed()
        for kind in ("gradient", "block", "single"):
            first[kind] = seconds(self._timed[kind])
            growth[kind] = peak_memory() - before
        self._methods = self._side.methods()
        return {
            "versions": {name: version(name) for name in self._side.packages},
            "first_seconds": first,
            "memory_growth_mb": growth,
        }

    def verify(self) -> dict[str, float]:
        """The largest relative differences to what Keras gave."""
        losses, products = [0.0], [0.0]
        for epoch, ours in self._problem.products.items():
            self.epoch(epoch)
            loss = self._problem.losses[epoch]
            losses.append(abs(self._side.loss() - loss) / abs(loss))
            pairs = zip(self._side.product(self._problem.vector), ours, strict=True)
            parts = [np.ravel(a.reshape(b.shape) - b) for a, b in pairs]
            norm = math.hypot(*(np.linalg.norm(b) for b in ours))
            products.append(float(np.linalg.norm(np.concatenate(parts)) / norm))
        return {"loss": max(losses), "product": max(products)}

    def epoch(self, epoch: int) -> None:
        self._side.set_epoch(epoch)
        self._methods = self._side.methods()

    def methods(self) -> list[str]:
        return list(self._methods)

    def time(self, kind: str, repeats: int) -> float:
        return seconds(self._timed[kind], repeats)

    def estimate(self, method: str, m: int, seed: int) -> dict[str, float]:
        self._side.seed(seed)
        found: list[tuple[float, int]] = []
        duration = seconds(lambda: found.append(self._methods[method](m)))
        value, products = found[0]
        return {"value": float(value), "products": int(products), "seconds": duration}

    def deflated(self, settings: dict[str, Any], seed: int, epochs: list[int]) -> Any:
        return self._side.deflated(settings, seed, epochs)

    def reference(self, epoch: int, exact: bool) -> dict[str, Any]:
        return self._side.reference(epoch, exact)

    def exact(self) -> dict[str, float]:
        return self._side.exact()


def main() -> None:
    # Libraries print what they like; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Also those that take a thread for each core that they find.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    commands = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if commands is None:
                commands = Commands(*sys.argv[1:])
            result = getattr(commands, request["command"])(**request["arguments"])
            answer = {"result": result}
        except Exception as error:  # the parent reports it and goes on with the others
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
