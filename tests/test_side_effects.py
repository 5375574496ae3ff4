"""A run with the callback is the run without it, bit for bit."""

import random
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import HessianNormCallback, Hutchinson, every


def model_with_everything(**compile_arguments) -> keras.Model:
    """Dropout, batch normalisation, two losses, metrics, a regularizer, an averaged optimizer."""
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, kernel_regularizer="l2")(inputs)
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Activation("relu")(hidden)
    hidden = keras.layers.Dropout(0.4)(hidden)
    hidden = keras.layers.GaussianNoise(0.1)(hidden)
    outputs = [
        keras.layers.Dense(3, name="kind")(hidden),
        keras.layers.Dense(1, name="size")(hidden),
    ]
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(1e-2, use_ema=True),
        [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"],
        metrics=[["accuracy"], ["mae"]],
        **compile_arguments,
    )
    return model


def run(callbacks, *, from_dataset=False, **compile_arguments):
    """Everything that a training run leaves behind, as arrays."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(7)
    model = model_with_everything(**compile_arguments)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(44, 6)).astype("float32")
    y = (rng.integers(0, 3, 44), rng.normal(size=(44, 1)).astype("float32"))
    if from_dataset:
        data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(44).batch(8)
        fitted = model.fit(data, epochs=3, verbose=0, callbacks=callbacks)
    else:
        fitted = model.fit(
            x, y, epochs=3, batch_size=8, validation_split=0.2, verbose=0, callbacks=callbacks
        )
    left = {
        str(index): variable.numpy()
        for index, variable in enumerate(
            [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        )
    }
    history = {k: v for k, v in fitted.history.items() if "hessian" not in k}
    draws = {
        "numpy": np.random.random(3),
        "python": np.array([random.random() for _ in range(3)]),
        "tensorflow": tf.random.normal([3]).numpy(),
        "keras": np.array(keras.random.normal([3])),
    }
    return left | {f"history {k}": np.array(v) for k, v in history.items()} | draws


def callback(**arguments) -> HessianNormCallback:
    rng = np.random.default_rng(1)
    y = [rng.integers(0, 3, 10), rng.normal(size=(10, 1))]
    return HessianNormCallback(
        (rng.normal(size=(10, 6)), y), Hutchinson(num_probes=3), batch_size=4, **arguments
    )


def assert_identical(with_it: dict, without: dict) -> None:
    assert list(with_it) == list(without)
    for name, value in without.items():
        np.testing.assert_array_equal(with_it[name], value, err_msg=name)


@pytest.mark.parametrize("from_dataset", [False, True])
@pytest.mark.parametrize("schedule", ["epoch", every(steps=1)])
def test_nothing_changes(schedule, from_dataset, tmp_path):
    measuring = callback(schedule=schedule, log_dir=tmp_path)
    with_it = run([measuring], from_dataset=from_dataset)
    assert_identical(with_it, run([], from_dataset=from_dataset))
    assert len(measuring.history["trace"]) >= 3
    assert np.isfinite(measuring.history["trace"]).all()


@pytest.mark.parametrize(
    "compile_arguments", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 4}]
)
def test_nothing_changes_however_steps_are_run(compile_arguments):
    measuring = callback(schedule=every(steps=2))
    with_it = run([measuring], **compile_arguments)
    assert_identical(with_it, run([], **compile_arguments))
    assert len(measuring.history["trace"]) >= 3


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_nothing_changes_in_mixed_precision(policy):
    """The policies of the layers are others while the measurement is traced."""
    keras.config.set_dtype_policy(policy)
    measuring = callback(schedule=every(steps=2))
    assert_identical(run([measuring]), run([]))
    assert np.isfinite(measuring.history["trace"]).all()


@pytest.mark.parametrize("method", ["stochastic", "finite_difference"])
def test_nothing_changes_in_training_mode(method):
    """Dropout draws and batch statistics are taken by the measurement too."""
    rng = np.random.default_rng(1)
    y = [rng.integers(0, 3, 10), rng.normal(size=(10, 1))]
    data = (rng.normal(size=(10, 6)), y)
    measuring = HessianNormCallback(data, method, training=True)
    assert_identical(run([measuring]), run([]))
    assert np.isfinite(measuring.history["trace"]).all()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_nothing_changes_where_the_optimizer_is_read(policy):
    """Adam with weight averages; in half precision wrapped in a loss scale."""
    keras.config.set_dtype_policy(policy)
    measuring = callback(schedule=every(steps=2), preconditioned=True)
    assert_identical(run([measuring]), run([]))
    assert np.isfinite(measuring.history["trace"]).all()
    assert measuring.history["stability_threshold"] == pytest.approx([3800.0] * 7, rel=1e-6)


def test_a_learning_rate_that_counts_its_calls_is_called_by_training_alone(tmp_path):
    def weights(callbacks):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        calls = []

        def rate():
            calls.append(None)
            return 0.01 * len(calls)

        model.compile(keras.optimizers.SGD(rate), "mse", run_eagerly=True)
        x = np.random.default_rng(0).normal(size=(8, 6))
        model.fit(x, x[:, :1], epochs=3, verbose=0, callbacks=callbacks)
        return model.get_weights(), len(calls)

    x = np.random.default_rng(1).normal(size=(4, 6))
    measuring = HessianNormCallback((x, x[:, :1]), Hutchinson(2), log_dir=tmp_path)
    (with_it, calls), (without, others) = weights([measuring]), weights([])
    assert calls == others
    for one, other in zip(with_it, without, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(measuring.history["trace"]) == 3


def test_the_check_would_see_a_change():
    class Nudge(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            variable = self.model.trainable_variables[0]
            variable.assign(np.nextafter(variable.numpy(), np.float32(np.inf)))

    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_identical(run([Nudge()]), run([]))


def test_what_code_of_a_layer_draws_while_it_is_traced_is_put_back(monkeypatch):
    """In a process of one thread: others may draw from the same generators."""

    class Drawn(keras.layers.Layer):
        def call(self, inputs):
            return inputs * np.random.random() + random.random()

    def draws(callbacks):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), Drawn()])
        model.compile("sgd", "mse", run_eagerly=True)
        x = np.ones((8, 3), "float32")
        history = model.fit(x, x[:, :2], epochs=2, verbose=0, callbacks=callbacks).history
        return history["loss"], np.random.random(), random.random()

    monkeypatch.setattr(threading, "active_count", lambda: 1)
    callback = HessianNormCallback((np.ones((8, 3)), np.ones((8, 2))))
    assert draws([callback]) == draws([])
    assert len(callback.history["epoch"]) == 2
