"""Times products on published architectures, in gradients, and what the first call takes.

Run:  python benchmarks/real_models.py [--rounds 3] [--models ResNet50 ...]

Models that are not asked for keep the figures that they had.
"""

import argparse
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from timing import RESULTS, environment, interleaved, load, ratios, save, seconds, spread

from keras_hessian_callback import HessianOperator

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.real_models import APPLICATIONS, BACKBONES

_BLOCK = 8
_FILE = "real_models"
_MODELS = APPLICATIONS | BACKBONES


def measure(name: str, rounds: int) -> dict[str, Any]:
    """All figures of one model, in float32, in a process of its own."""
    keras.utils.set_random_seed(0)
    model, data = _MODELS[name]()
    x, y = tf.nest.map_structure(tf.constant, data)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def gradient() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=False), training=False)
        gradients = tape.gradient(loss, variables)
        return [tf.convert_to_tensor(g) for g in gradients if g is not None]

    first = {"gradient": seconds(lambda: gradient()[-1].numpy())}
    operators: list[HessianOperator] = []
    first["operator"] = seconds(lambda: operators.append(HessianOperator(model, data)))
    operator = operators[0]
    vectors = tf.random.stateless_normal([_BLOCK, operator.shape[0]], [0, 0])
    first["product"] = seconds(lambda: operator.matvec(vectors[0]).numpy())
    times = interleaved(
        {
            "gradient": lambda: gradient()[-1].numpy(),
            "block": lambda: operator.row_products(vectors).numpy(),
            "single": lambda: operator.matvec(vectors[0]).numpy(),
        },
        rounds,
    )
    times["block"] = [value / _BLOCK for value in times["block"]]
    gradients = times.pop("gradient")
    return {
        "parameters": operator.shape[0],
        "products": operator.products,
        "first_seconds": first,
        "gradient_seconds": spread(gradients),
        "product_gradients": {kind: ratios(values, gradients) for kind, values in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=_MODELS, default=list(_MODELS))
    arguments = parser.parse_args()
    pool = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
    models = load(_FILE)["models"] if (RESULTS / f"{_FILE}.json").exists() else {}
    for name in arguments.models:
        models[name] = pool.apply(measure, (name, arguments.rounds))
        print(name, models[name], flush=True)
    pool.close()
    pool.join()
    results = environment("keras-hub") | {"rounds": arguments.rounds, "models": models}
    save(_FILE, results)


if __name__ == "__main__":
    main()
