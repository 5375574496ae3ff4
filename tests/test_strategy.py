"""Models made under a distribution strategy, in a process of their own with two devices."""

import subprocess
import sys

SCRIPT = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
from keras_hessian_callback import HessianNormCallback, measure_curvature
from tests.problems import batch_normalization_and_dropout

with strategy.scope():
    model, (x, y) = batch_normalization_and_dropout()
callback = HessianNormCallback((x, y), "autodiff", on_error="raise")
model.fit(x, y, verbose=0, callbacks=[callback])
single, _ = batch_normalization_and_dropout()
single.set_weights(model.get_weights())
truth = measure_curvature(single, (x, y), "autodiff")
np.testing.assert_allclose(float(callback.report["trace"]), float(truth["trace"]), rtol=1e-5)
try:
    with strategy.scope():
        model.fit(x, y, verbose=0, callbacks=[HessianNormCallback((x, y))])
except ValueError as error:
    assert "inside the scope of a strategy of 2 replicas" in str(error), error
    print("both as expected")
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


def test_a_mirrored_model_is_measured_right_outside_the_scope_and_refused_inside():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert "both as expected" in done.stdout, done.stderr
