"""Times Hessian-vector products, and the first measurement, in gradients and training steps.

Run:  python benchmarks/products.py [--rounds 9] [--networks mlp transformer resnet]
"""

import argparse
import multiprocessing
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from networks import NETWORKS
from processes import warm_up
from timing import environment, interleaved, peak_memory, ratios, save, seconds, spread

from keras_hessian_callback import CurvatureReport, HessianOperator, measure_curvature

_BLOCK = 8
_FRESH_MODELS = 3


def measure_network(name: str, rounds: int) -> dict[str, Any]:
    """All figures of one network, in a process of its own: its peak memory is its own too."""
    warm_up()
    first, memory = _first_calls(name)
    model, x, y = NETWORKS[name]()
    n = model.count_params() - sum(np.prod(v.shape) for v in model.non_trainable_variables)
    return {
        "parameters": int(n),
        "batch": len(x),
        "first": first,
        "memory_growth_mb": memory,
        **_steady(model, x, y, rounds),
    }


def _first_calls(name: str) -> tuple[dict[str, Any], dict[str, float]]:
    """Seconds of first calls, each on a fresh model; and how they raised the peak memory."""
    levels = [peak_memory()]
    times: dict[str, list[float]] = {"train_step": [], "operator": [], "measurement": []}
    reports: list[CurvatureReport] = []
    calls: dict[str, Callable[[keras.Model, np.ndarray, np.ndarray], object]] = {
        "train_step": lambda model, x, y: model.train_on_batch(x, y),
        "operator": lambda model, x, y: HessianOperator(model, (x, y)),
        "measurement": lambda model, x, y: reports.append(measure_curvature(model, (x, y))),
    }
    for _ in range(_FRESH_MODELS):
        for call, function in calls.items():
            problem = NETWORKS[name]()
            times[call].append(seconds(lambda f=function, p=problem: f(*p)))
            levels.append(peak_memory())
    return {
        "products": reports[-1].num_matvecs,
        "seconds": {call: spread(values) for call, values in times.items()},
        "train_steps": {
            call: ratios(times[call], times["train_step"]) for call in ("operator", "measurement")
        },
    }, {
        # Of the first model alone: later ones find the memory that it gave back.
        "train_step": levels[1] - levels[0],
        "measurement": levels[3] - levels[1],
    }


def _steady(model: keras.Model, x: np.ndarray, y: np.ndarray, rounds: int) -> dict[str, Any]:
    """Seconds of a product, and the same in gradients."""
    operator = HessianOperator(model, (x, y))
    differences = HessianOperator(model, (x, y), products="finite_difference")
    gradient = gradient_function(model, x, y)
    vectors = tf.random.stateless_normal([_BLOCK, operator.shape[0]], [0, 0])
    times = interleaved(
        {
            "gradient": lambda: force(gradient()[-1]),
            "block": lambda: force(operator.row_products(vectors)),
            "single": lambda: force(operator.matvec(vectors[0])),
            "finite_difference": lambda: force(differences.row_products(vectors)),
        },
        rounds,
    )
    for name in ("block", "finite_difference"):
        times[name] = [value / _BLOCK for value in times[name]]
    gradients = times.pop("gradient")
    return {
        "gradient_seconds": spread(gradients),
        "product_seconds": {name: spread(values) for name, values in times.items()},
        "product_gradients": {name: ratios(values, gradients) for name, values in times.items()},
    }


def gradient_function(
    model: keras.Model, x: np.ndarray, y: np.ndarray
) -> Callable[[], list[tf.Tensor]]:
    """The gradient as a user would write it, of the loss that the products are of."""
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function
    def gradient(x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=False), training=False)
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]

    x, y = tf.constant(x), tf.constant(y)
    return lambda: gradient(x, y)


def force(result: tf.Tensor) -> float:
    """Waits until the result is there; reads one entry, not to time a copy."""
    return float(tf.reshape(result, [-1])[0])


def _print_table(networks: dict[str, Any]) -> None:
    print(f"{'':12s} {'n':>9s} {'gradient':>9s}   product in gradients: median (min-max)")
    for name, figures in networks.items():
        products = "   ".join(
            f"{kind} {r['median']:.2f} ({r['min']:.2f}-{r['max']:.2f})"
            for kind, r in figures["product_gradients"].items()
        )
        milliseconds = figures["gradient_seconds"]["median"] * 1e3
        print(f"{name:12s} {figures['parameters']:9,d} {milliseconds:6.1f} ms   {products}")
    print(f"\n{'':12s} first calls, seconds, and in first training steps; growth of peak memory")
    for name, figures in networks.items():
        first, memory = figures["first"], figures["memory_growth_mb"]
        times = "   ".join(f"{call} {t['median']:.2f} s" for call, t in first["seconds"].items())
        steps = "   ".join(f"{call} {r['median']:.2f}" for call, r in first["train_steps"].items())
        growth = "   ".join(f"{call} {value:.0f} MB" for call, value in memory.items())
        print(f"{name:12s} {times}\n{'':12s} {steps}\n{'':12s} {growth}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    arguments = parser.parse_args()
    pool = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
    networks = {
        name: pool.apply(measure_network, (name, arguments.rounds)) for name in arguments.networks
    }
    pool.close()
    pool.join()
    results = environment() | {"rounds": arguments.rounds, "fresh_models": _FRESH_MODELS}
    results["networks"] = networks
    save("products", results)
    _print_table(networks)


if __name__ == "__main__":
    main()
