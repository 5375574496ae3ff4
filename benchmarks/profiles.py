"""Where the time of a block of products goes, by kind of operation, with TensorFlow's profiler.

Run:  python benchmarks/profiles.py [--networks mlp transformer resnet]
"""

import argparse
import collections
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from networks import NETWORKS
from processes import warm_up
from products import force, gradient_function
from tensorflow.tsl.profiler.protobuf import xplane_pb2
from timing import environment, interleaved, save, spread

from keras_hessian_callback import HessianOperator

_BLOCK = 8
_REPEATS = 5
_ROUNDS = 5
# By what the name of an operation holds; the first that fits.
_KINDS = {
    "convolutions": ("Conv", "FusedBatchNorm", "Pool"),
    "matrix products": ("MatMul", "Einsum"),
    "sums and broadcasts": ("Sum", "Mean", "BroadcastTo", "AddN", "BiasAddGrad", "Max"),
    "copies": ("Transpose", "Reshape", "Concat", "Slice", "Tile", "Pad", "Pack", "Gather", "Cast"),
}
_REST = "entry by entry"
_AROUND = ("PartitionedCall", "StatefulPartitionedCall", "While")  # what they run is counted


def profile_network(name: str) -> dict[str, Any]:
    """Milliseconds of a gradient, and of a product in a block of 8, by kind of operation."""
    warm_up()
    model, x, y = NETWORKS[name]()
    operator = HessianOperator(model, (x, y))
    vectors = tf.random.stateless_normal([_BLOCK, operator.shape[0]], [0, 0])
    gradient = gradient_function(model, x, y)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "gradient": (lambda: force(gradient()[-1]), 1),
        "product": (lambda: force(operator.row_products(vectors)), _BLOCK),
    }
    times = interleaved({key: call for key, (call, _) in calls.items()}, _ROUNDS)
    found = {}
    for key, (call, number) in calls.items():
        milliseconds, counts = _by_kind(call)
        found[key] = {
            "wall_ms": spread([1e3 * seconds / number for seconds in times[key]]),
            "ms": {kind: value / number for kind, value in milliseconds.items()},
            "operations": {kind: value / number for kind, value in counts.items()},
        }
    return found


def _by_kind(call: Callable[[], object]) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds and number of operations of a call, summed over the threads."""
    milliseconds: dict[str, float] = collections.Counter()
    counts: dict[str, float] = collections.Counter()
    with tempfile.TemporaryDirectory() as directory:
        with tf.profiler.experimental.Profile(directory):
            for _ in range(_REPEATS):
                call()
        for path in Path(directory).rglob("*.xplane.pb"):
            space = xplane_pb2.XSpace.FromString(path.read_bytes())
            for plane in space.planes:
                for event in (event for line in plane.lines for event in line.events):
                    name = plane.event_metadata[event.metadata_id].name
                    node, _, operation = name.rpartition(":")
                    if node and not _is_around(name, operation):
                        kind = _kind_of(operation)
                        milliseconds[kind] += event.duration_ps / 1e9 / _REPEATS
                        counts[kind] += 1.0 / _REPEATS
    return dict(milliseconds), dict(counts)


def _is_around(name: str, operation: str) -> bool:
    """Whether it is a call of TensorFlow's own, whose time is that of what it runs."""
    return "::" in name or name.startswith(("Eager", "Kernel", "Pjrt")) or operation in _AROUND


def _kind_of(operation: str) -> str:
    for kind, parts in _KINDS.items():
        if any(part in operation for part in parts):
            return kind
    return _REST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    pool = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
    networks = {name: pool.apply(profile_network, (name,)) for name in arguments.networks}
    pool.close()
    for name, figures in networks.items():
        for key, found in figures.items():
            parts = ", ".join(f"{kind} {value:.2f}" for kind, value in found["ms"].items())
            print(f"{name} {key}: {found['wall_ms']['median']:.2f} ms; {parts}")
    save("profiles", environment() | {"rounds": _ROUNDS, "networks": networks})


if __name__ == "__main__":
    main()
