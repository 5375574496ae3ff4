"""Times products, and takes their peak memory, as sizes grow; each size in processes of its own.

Run:  python benchmarks/scaling.py [--rounds 5] [--sweeps parameters ...] [--quick]

Each size is in two: products are timed with TensorFlow's own allocator, as users have it, and the
memory is watched with the system's. Sweeps that are not asked for keep the figures that they had.
`--quick` rehearses on a few small sizes and saves nothing; most are in one process then, so that
their memory tells nothing.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from memory import MemoryWatch, plan, settle
from networks import Problem, convolutional, mlp, mlp_of_size, transformer
from power_laws import MIN_POINTS, fit_power_law
from processes import in_own_process, warm_up
from products import force, gradient_function
from timing import RESULTS, environment, interleaved, load, peak_memory, ratios, save, spread

from keras_hessian_callback import HessianOperator

_FILE = "scaling"
_BLOCK = 8


@dataclass(frozen=True)
class Sweep:
    """Sizes of one kind, all else the same.

    Attributes:
        build: The network and its data, of a size.
        sizes: To measure at.
        quick: Sizes of a rehearsal.
        block: Vectors in a block; None: the size is that.
        own_devices: Whether `build` sets up TensorFlow's devices, once in a process.
    """

    build: Callable[[int], Problem]
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    block: int | None = _BLOCK
    own_devices: bool = False


def _texts(length: int) -> Problem:
    return transformer(256, length, 64, 2, sequences=8)


def _replicated(replicas: int) -> Problem:
    names = [f"CPU:{index}" for index in range(replicas)]
    devices = [tf.config.LogicalDeviceConfiguration()] * replicas
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    with tf.distribute.MirroredStrategy(names).scope():
        return convolutional(512)


def _replicated_thread_each(replicas: int) -> Problem:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    return _replicated(replicas)


_SIZES = (10**4, 3 * 10**4, 10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 2 * 10**7)
SWEEPS = {
    "parameters": Sweep(mlp_of_size, _SIZES, (10**4, 3 * 10**4, 10**5, 3 * 10**5)),
    # Of more parameters blocks of 8 do not fit into 16 GiB.
    "parameters_by_4": Sweep(mlp_of_size, (*_SIZES, 5 * 10**7, 12 * 10**7), (), block=4),
    "examples": Sweep(convolutional, (32, 64, 128, 256, 512, 1_024, 2_048, 4_096), (32,)),
    "vectors": Sweep(lambda _: mlp(), (1, 2, 4, 8, 16, 32, 64), (2,), block=None),
    "length": Sweep(_texts, (16, 32, 64, 128, 256, 512), (8,)),
    "replicas": Sweep(_replicated, (1, 2), (2,), own_devices=True),
    "replicas_thread_each": Sweep(_replicated_thread_each, (1, 2), (), own_devices=True),
}


def watch_memory(name: str, size: int, limit: dict[str, int]) -> dict[str, Any]:
    """Memory at one size, beyond that of the built model and its data."""
    model, x, y = SWEEPS[name].build(size)
    warm_up()
    before = settle()
    with MemoryWatch() as construction:
        operator = HessianOperator(model, (x, y), **limit)
    settle()
    with MemoryWatch() as product:
        vectors = tf.random.stateless_normal([_width(name, size), operator.shape[0]], [0, 0])
        force(operator.row_products(vectors))
    return {
        "memory_mb": {"construction": construction.peak_mb - before}
        | {"product": product.peak_mb - before},
        "process_peak_mb": peak_memory(),
        "at_a_time": plan(operator),
    }


def time_products(name: str, size: int, limit: dict[str, int], rounds: int) -> dict[str, Any]:
    """Seconds at one size, of blocks and gradients in turns."""
    model, x, y = SWEEPS[name].build(size)
    warm_up()
    start = time.perf_counter()
    operator = HessianOperator(model, (x, y), **limit)
    first_seconds = time.perf_counter() - start
    block = _width(name, size)
    vectors = tf.random.stateless_normal([block, operator.shape[0]], [0, 0])
    gradient = gradient_function(model, x, y)
    clocks: list[np.ndarray] = []
    times = interleaved(
        {
            "block": lambda: clocks.append(
                _clocks_of(lambda: force(operator.row_products(vectors)))
            ),
            "gradient": lambda: force(gradient()[-1]),
        },
        rounds,
    )
    user, system, wall = np.sum(clocks, axis=0)
    products = [seconds / block for seconds in times["block"]]
    return {
        "size": size,
        "parameters": operator.shape[0],
        "examples": len(x),
        "vectors": block,
        "block_seconds": spread(times["block"]),
        "gradient_seconds": spread(times["gradient"]),
        "product_gradients": ratios(products, times["gradient"]),
        "cores_busy": float((user + system) / wall),
        "share_of_system": float(system / (user + system)),
        "construction_seconds": first_seconds,
    }


def _width(name: str, size: int) -> int:
    return SWEEPS[name].block or size


def _clocks_of(function: Callable[[], object]) -> np.ndarray:
    """Seconds that a call took: of all cores in the program, in the system for it; of the wall."""
    before = np.array([*os.times()[:2], time.perf_counter()])
    function()
    return np.array([*os.times()[:2], time.perf_counter()]) - before


def _print_table(name: str, points: list[dict[str, Any]]) -> None:
    print(f"{name:>20s} {'n':>11s}   product        block, gradients  memory, MB   cores, system")
    for point in points:
        block, ratio = point["block_seconds"], point["product_gradients"]
        print(
            f"{point['size']:20,d} {point['parameters']:11,d}   "
            f"{block['median'] / point['vectors'] * 1e3:9.3f} ms   "
            f"{block['median']:8.4f} s   {ratio['median']:5.2f}   "
            f"{point['memory_mb']['construction']:8.0f} {point['memory_mb']['product']:8.0f}   "
            f"{point['cores_busy']:.2f} {point['share_of_system']:.0%}"
        )
    if len(points) >= MIN_POINTS:
        law = fit_power_law(
            [point["size"] for point in points],
            [point["block_seconds"]["median"] for point in points],
        )
        print(f"{'':20s} seconds: exponent {law.exponent:.2f} +- {law.exponent_error:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--memory-limit", type=float, default=16.0, help="GiB, of an operator")
    parser.add_argument("--quick", action="store_true", help="a rehearsal; nothing is saved")
    arguments = parser.parse_args()
    if arguments.quick:
        _rehearse(arguments.sweeps)
        return
    limit = {"memory_limit": int(arguments.memory_limit * 2**30)}
    sweeps = load(_FILE)["sweeps"] if (RESULTS / f"{_FILE}.json").exists() else {}
    for name in arguments.sweeps:
        points = [
            in_own_process(time_products, name, size, limit, arguments.rounds, watched=False)
            | in_own_process(watch_memory, name, size, limit)
            for size in SWEEPS[name].sizes
        ]
        _print_table(name, points)
        sweeps[name] = {"points": points}
        save(_FILE, environment("scipy") | {"rounds": arguments.rounds, "sweeps": sweeps})


def _rehearse(names: list[str]) -> None:
    for name in names:
        call = in_own_process if SWEEPS[name].own_devices else _in_this_process
        points = [
            call(time_products, name, size, {}, 1, watched=False)
            | call(watch_memory, name, size, {})
            for size in SWEEPS[name].quick
        ]
        if points:
            _print_table(name, points)


def _in_this_process(function: Callable[..., Any], *arguments: Any, watched: bool = True) -> Any:
    del watched  # nothing is
    return function(*arguments)


if __name__ == "__main__":
    main()
