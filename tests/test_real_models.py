"""A product on published architectures, against differences of TensorFlow's own gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import HessianOperator
from tests.real_models import APPLICATIONS, BACKBONES, away_from_kinks

# The rest needs minutes and gigabytes.
FAST = {"MobileNetV3Small", "BERT", "Llama", "ViT"}
# (length of the step, tolerance): Llama rounds to float32 inside, which wants a longer step;
# convolutional networks have kinks, which want a shorter one.
STEPS = {"Llama": (1e-2, 1e-4)} | dict.fromkeys(BACKBONES.keys() - {"Llama"}, (1e-4, 1e-6))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in (*APPLICATIONS, *BACKBONES)
    ],
)
def test_a_product_is_a_difference_of_gradients(name):
    keras.config.set_dtype_policy("float64")
    if name != "T5":  # it mixes integers of floatx' width
        keras.config.set_floatx("float64")
    model, data = (APPLICATIONS | BACKBONES)[name]()
    away_from_kinks(model)
    operator = HessianOperator(model, data, products="autodiff")
    vector = np.random.default_rng(0).choice([-1.0, 1.0], size=operator.shape[0])
    actual = operator.matvec(vector)
    step, tolerance = STEPS.get(name, (1e-5, 1e-6))
    expected = difference(model, data, vector, step)
    sizes = np.cumsum([np.prod(v.shape, dtype=int) for v in model.trainable_variables])[:-1]
    total = np.linalg.norm(expected)
    assert total > 0
    for variable, a, e in zip(
        model.trainable_variables,
        np.split(actual, sizes),
        np.split(expected, sizes),
        strict=True,
    ):
        scale = max(np.linalg.norm(e), 1e-4 * total)
        assert np.linalg.norm(a - e) <= tolerance * scale, variable.path
    del operator, model
    keras.utils.clear_session()


def difference(model, data, vector, step):
    """Fourth-order central difference of the gradient along `vector`, ||h v|| = step."""
    variables = model.trainable_variables
    x, y = tf.nest.map_structure(tf.constant, data)

    @tf.function(autograph=False)
    def gradient():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=False))
        gradients = tape.gradient(loss, [v.value for v in variables])
        dense = [
            tf.zeros(v.shape, v.dtype) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, variables, strict=True)
        ]
        return tf.concat([tf.reshape(g, [-1]) for g in dense], axis=0)

    originals = [v.numpy() for v in variables]
    sizes = np.cumsum([original.size for original in originals])[:-1]
    h = step / np.linalg.norm(vector)
    total = 0.0
    for shift, factor in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
        parts = np.split(shift * h * vector, sizes)
        for variable, original, part in zip(variables, originals, parts, strict=True):
            variable.assign(original + part.reshape(original.shape))
        total = total + factor * gradient().numpy()
    for variable, original in zip(variables, originals, strict=True):
        variable.assign(original)
    return total / (12.0 * h)
