"""Models made under a distribution strategy, in a process of their own with two devices."""

import subprocess
import sys

import pytest
import tensorflow as tf

from keras_hessian_callback import HessianOperator, measure_curvature
from tests.problems import tanh_classifier

SCRIPT = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from keras_hessian_callback import HessianNormCallback, HessianOperator, measure_curvature
from keras_hessian_callback.operators.traced import TracedProducts
from tests.problems import batch_normalization_and_dropout

sizes = []
in_one_piece = TracedProducts.in_one_piece
def watched(self, weights, batch, vectors):
    loss, masses, products = in_one_piece(self, weights, batch, vectors)
    sizes.append((products.device[-5:], len(batch.x)))
    return loss, masses, products
TracedProducts.in_one_piece = watched

def trained(callbacks, inside):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model, (x, y) = batch_normalization_and_dropout()
    if inside:
        with strategy.scope():
            model.fit(x, y, epochs=2, batch_size=4, verbose=0, callbacks=callbacks)
    else:
        model.fit(x, y, epochs=2, batch_size=4, verbose=0, callbacks=callbacks)
    return model, x, y

for inside in (False, True):
    plain, x, y = trained([], inside)
    callback = HessianNormCallback((x, y), on_error="raise")
    model, *_ = trained([callback], inside)
    for one, other in zip(plain.variables, model.variables):
        np.testing.assert_array_equal(one, other, err_msg=f"{one.path}, inside={inside}")
    assert len(callback.history["epoch"]) == 2

single, _ = batch_normalization_and_dropout()
single.set_weights(model.get_weights())
for examples in (10, 9, 7):  # of which the last cannot be shared evenly
    for batch_size in (None, 4):
        data = x[:examples], y[:examples]
        operator = HessianOperator(model, data, batch_size=batch_size)
        one_device = HessianOperator(single, data, batch_size=batch_size)
        vectors = np.random.default_rng(0).normal(size=(operator.shape[0], 3)).astype("float32")
        sizes.clear()
        products, truth = operator.matmat(vectors), one_device.matmat(vectors)
        np.testing.assert_allclose(products, truth, atol=1e-6 * np.abs(truth).max())
        if batch_size is None:
            half = examples // 2
            assert sorted(sizes)[0][0] != sorted(sizes)[-1][0], sizes  # both devices took part
            assert {half, examples - half} <= {size for _, size in sizes}, sizes
operator = HessianOperator(model, (x, y), training=True)  # batch statistics: on one device
single_operator = HessianOperator(single, (x, y), training=True)
np.testing.assert_allclose(
    operator.matvec(vectors[:, 0]), single_operator.matvec(vectors[:, 0]), atol=1e-6
)
truth = measure_curvature(single, (x, y), "autodiff")["trace"]
with strategy.scope():
    inside = measure_curvature(model, (x, y), "autodiff")["trace"]
np.testing.assert_allclose(float(inside), float(truth), rtol=1e-5)
print("all as expected")
"""

ADAM = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_hessian_callback import HessianNormCallback
from tests.problems import tanh_classifier

def norms(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model, (x, y) = tanh_classifier()
    callback = HessianNormCallback((x, y), "autodiff", preconditioned=True, on_error="raise")
    model.fit(x, y, epochs=2, batch_size=10, verbose=0, callbacks=[callback])
    return callback.history["frobenius_norm"]

mirrored = norms(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
np.testing.assert_allclose(mirrored, norms(tf.distribute.get_strategy()), rtol=1e-4)
print("as expected")
"""


def test_the_state_of_a_mirrored_optimizer_is_read():
    done = subprocess.run([sys.executable, "-c", ADAM], capture_output=True, text=True, check=False)
    assert "as expected" in done.stdout, done.stderr


def test_products_under_a_mirrored_strategy_are_those_of_one_device():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert "all as expected" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", [tf.distribute.TPUStrategy, tf.distribute.ParameterServerStrategy])
def test_strategies_that_cannot_be_followed_are_refused(kind, monkeypatch):
    """What is said and done; no machine for them is at hand."""
    model, data = tanh_classifier()
    strategy = kind.__new__(kind)
    monkeypatch.setattr(type(model), "distribute_strategy", property(lambda _: strategy))
    for measure in (HessianOperator, measure_curvature):
        with pytest.raises(ValueError, match=f"made under {kind.__name__}.*a copy of the model"):
            measure(model, data)
