"""Where the time of a measurement goes, and that of a block of products by kind of operation.

Run:  python benchmarks/profiles.py [--networks mlp transformer resnet]
"""

import argparse
import collections
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
from networks import NETWORKS
from peers.prepare import digits
from processes import warm_up
from products import force, gradient_function
from tensorflow.tsl.profiler.protobuf import xplane_pb2
from timing import environment, interleaved, save, spread

from keras_hessian_callback import HessianNormCallback, HessianOperator
from keras_hessian_callback.operators.traced import TracedProducts

_BLOCK = 8
_REPEATS = 5
_ROUNDS = 5
_EPOCHS = 9
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


def whole_measurements(name: str) -> dict[str, Any]:
    """Milliseconds of the hook of an epoch, event file included, and of the products in it.

    One step an epoch; without the first two measurements, which find the basis.
    """
    warm_up()
    model, x, y = digits() if name == "digits" else NETWORKS[name]()
    seconds: dict[str, list[float]] = {"hook": [], "products": []}
    vectors: list[int] = []
    in_products, multiply = 0.0, TracedProducts.__call__

    def timed(traced: TracedProducts, *arguments: Any) -> Any:
        nonlocal in_products
        start = time.perf_counter()
        results = multiply(traced, *arguments)
        in_products += time.perf_counter() - start
        vectors.append(int(arguments[2].shape[0]))
        return results

    class Timed(HessianNormCallback):
        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            nonlocal in_products
            vectors.clear()
            in_products, start = 0.0, time.perf_counter()
            super().on_epoch_end(epoch, logs)
            seconds["hook"].append(time.perf_counter() - start)
            seconds["products"].append(in_products)

    with tempfile.TemporaryDirectory() as directory:
        callback = Timed((x, y), log_dir=directory)
        with mock.patch.object(TracedProducts, "__call__", timed):
            model.fit(x, y, len(x), epochs=2 + _EPOCHS, verbose=0, callbacks=[callback])
    hook, products = (1e3 * np.array(seconds[key][2:]) for key in ("hook", "products"))
    return {
        "n": int(sum(np.prod(weight.shape) for weight in model.trainable_variables)),
        "num_matvecs": sum(vectors),
        "hook_ms": spread(hook.tolist()),
        "rest_ms": spread((hook - products).tolist()),
        "share": spread(((hook - products) / hook).tolist()),
    }


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
    measured = ["digits", *arguments.networks]
    whole = {name: pool.apply(whole_measurements, (name,)) for name in measured}
    pool.close()
    pool.join()  # its last process ends before the load of others is looked at
    for name, figures in networks.items():
        for key, found in figures.items():
            parts = ", ".join(f"{kind} {value:.2f}" for kind, value in found["ms"].items())
            print(f"{name} {key}: {found['wall_ms']['median']:.2f} ms; {parts}")
    for name, figures in whole.items():
        rest, share = figures["rest_ms"], figures["share"]
        print(f"{name}: {rest['median']:.1f} ms beside products, {100 * share['median']:.1f} %")
    figures = {"rounds": _ROUNDS, "networks": networks, "measurements": whole}
    save("profiles", environment() | figures)


if __name__ == "__main__":
    main()
