"""Wrong second derivatives are found, right ones are left alone."""

import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_hessian_callback import Exact, HessianNormCallback, HessianOperator, measure_curvature
from keras_hessian_callback.double_precision import in_double_precision
from keras_hessian_callback.gradient_rules import RULES
from keras_hessian_callback.operators import guard
from keras_hessian_callback.operators.guard import check_derivatives
from keras_hessian_callback.second_order import SecondDerivativeError
from tests.oracles import dense_hessian, double_precision
from tests.problems import pooled_volumes


@tf.custom_gradient
def square_without_its_second_derivative(x):
    return x * x, lambda upstream: 2.0 * upstream * tf.stop_gradient(x)


@tf.custom_gradient
def nearly_tanh(x):
    """tanh, with 5 % of its second derivative dropped."""
    y = tf.tanh(x)

    def gradient(upstream):
        slope = 1.0 - y * y
        return upstream * (0.95 * slope + 0.05 * tf.stop_gradient(slope))

    return y, gradient


def wrong_everywhere(x):
    """a b, with a gradient whose own derivatives by a and b differ."""

    @tf.custom_gradient
    def product(a, b):
        return a * b, lambda upstream: (upstream * b * b, upstream * a)

    a, b = tf.split(x, 2, axis=-1)
    return tf.concat([product(a, b), b], axis=-1)


def perceptron(activation, seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, activation=activation),
            layers.Dense(12, activation=activation),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    return model


def pooled(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2, 1, "same"),
            layers.Conv2D(8, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 6)), rng.normal(size=(32, 3))


def images() -> tuple[np.ndarray, np.ndarray]:
    """Mostly exact zeros, where units sit on their kinks as long as biases are zero."""
    pixels = np.random.default_rng(0).random((40, 8, 8, 1))
    return np.where(pixels > 0.7, pixels, 0.0), np.arange(40) % 10


@pytest.fixture(autouse=True)
def _lift_each_graph_once(monkeypatch):
    lifted = {}

    def once(function, results):
        if function not in lifted:
            lifted[function] = in_double_precision(function, results)
        return lifted[function]

    monkeypatch.setattr(guard, "in_double_precision", once)


def verdicts(model, data, seeds) -> list[bool]:
    """Whether the guard finds the traced products wrong, at weights drawn from each seed."""
    operator = HessianOperator(model, data, products="auto")
    traced, batch = operator._traced, operator._batches[0]
    found = []
    for seed in seeds:
        for number, variable in enumerate(model.trainable_variables):
            scale = 0.0 if "bias" in variable.path else 0.3
            noise = tf.random.stateless_normal(variable.shape, [seed, number])
            variable.assign(scale * noise)
        try:
            check_derivatives(traced, batch)
        except SecondDerivativeError:
            found.append(True)
        else:
            found.append(False)
    return found


def test_right_derivatives_with_kinks_are_left_alone():
    """At most 1 alarm in 200: a network with ReLU, max-pooling and units on their kinks."""
    assert sum(verdicts(pooled(), images(), range(150))) == 0
    assert sum(verdicts(perceptron("relu"), vectors(), range(50))) <= 1


@pytest.mark.parametrize("activation", [square_without_its_second_derivative, nearly_tanh])
def test_planted_errors_are_found_every_time(activation, monkeypatch):
    """100 of 100, at 4 examples."""
    module = "keras_hessian_callback.operators.guard.check_derivatives"
    monkeypatch.setattr(module, lambda *_: None)  # or differences would be used at once
    found = verdicts(perceptron(activation), vectors(), range(50))
    model = perceptron("relu")
    model.layers[1].activation = activation
    found += verdicts(model, vectors(), range(50, 100))
    assert sum(found) == 100


@pytest.mark.parametrize("activation", [square_without_its_second_derivative, nearly_tanh])
def test_differences_are_used_where_autodiff_is_wrong(activation):
    data = vectors()
    message = r"disagree.*dense.*kernel \(\d.*%\).*gradients of its own at .*Finite differences"
    model = perceptron(activation)
    with pytest.warns(UserWarning, match=message):
        report = measure_curvature(model, data, Exact())
    assert report.products == "finite_difference"
    assert np.isnan(report["frobenius_norm"].standard_error)
    model, data = double_precision(lambda: (perceptron(activation), data), like=model)
    truth = np.linalg.norm(dense_hessian(model, data))
    assert report["frobenius_norm"].value == pytest.approx(truth, rel=2e-3)
    with pytest.raises(ValueError, match=r"disagree.*Use products='finite_difference'"):
        measure_curvature(model, data, "autodiff")


def test_what_tensorflow_has_wrong_is_found_without_the_rules(monkeypatch):
    monkeypatch.delitem(RULES, "MaxPoolGrad")
    with pytest.raises(SecondDerivativeError, match=r"conv2d.*kernel"):
        HessianOperator(pooled(), images())


def test_bilinear_resizing_is_found_without_its_rule(monkeypatch):
    """Its operation rounds to float32 inside, so that differences need a longer step."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(2, 3, activation="tanh", padding="same"),
            layers.UpSampling2D(interpolation="bilinear"),
            layers.Conv2D(2, 3, activation="relu", padding="same"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(20, 4, 4, 1)), rng.normal(size=(20, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HessianOperator(model, data)
    monkeypatch.delitem(RULES, "ResizeBilinear")
    with pytest.raises(SecondDerivativeError, match=r"\(\d+ %\)"):
        HessianOperator(model, data)


def test_operations_that_round_inside_raise_no_alarm():
    """Three-dimensional pooling has a second derivative in float32 alone: a staircase."""
    for seed in range(5):
        keras.utils.set_random_seed(seed)
        model, data = pooled_volumes(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert HessianOperator(model, data, products="auto").products == "autodiff"


def test_stopped_gradients_are_held_constant_and_said():
    """The Hessian of mean((tanh(a) stop(tanh(a)) - y)^2), the stopped factor a constant."""
    model = perceptron(lambda x: tf.tanh(x) * tf.stop_gradient(tf.tanh(x)))
    with pytest.warns(UserWarning, match="held constant"):
        operator = HessianOperator(model, vectors(), products="auto")
    assert operator.products == "autodiff"
    columns = operator.matmat(np.eye(operator.shape[0], dtype="float32"))
    np.testing.assert_allclose(columns, columns.T, atol=1e-5)


def test_a_gradient_that_is_no_derivative_is_refused():
    for products in ("auto", "autodiff"):
        with pytest.raises(ValueError, match="not the derivative of any function"):
            HessianOperator(perceptron(wrong_everywhere), vectors(), products=products)


def test_models_that_need_their_batch_size_are_checked_on_all_of_it():
    inputs = keras.Input(batch_shape=(32, 6))
    hidden = layers.Dense(4, activation="tanh")(inputs)
    hidden = layers.Lambda(lambda x: x - tf.reduce_sum(x, axis=0) / x.shape[0])(hidden)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    model.compile("sgd", "mse")
    assert not HessianOperator(model, vectors())._traced.any_size
    model.layers[1].activation = nearly_tanh
    with pytest.raises(SecondDerivativeError, match="disagree"):
        HessianOperator(model, vectors())


def test_the_guard_runs_once_per_fit_and_is_cheap(monkeypatch):
    calls = []
    module = "keras_hessian_callback.operators.guard.check_derivatives"
    monkeypatch.setattr(module, lambda *arguments: calls.append(arguments))
    model, data = perceptron("relu"), vectors()
    model.fit(*data, epochs=3, verbose=0, callbacks=[HessianNormCallback(data)])
    assert len(calls) == 1


def test_evaluations_of_the_guard():
    """A product with its gradient, and two gradients, on 4 examples: at most 8 gradients."""
    operator = HessianOperator(pooled(), images())
    sizes = []
    concrete = operator._traced.concrete

    class Counted:
        def __getattr__(self, name):
            return getattr(concrete, name)

    original = operator._traced.arguments

    def arguments(weights, batch, vectors):
        sizes.append((batch.x.shape[0], vectors.shape[0]))
        return original(weights, batch, vectors)

    operator._traced.concrete = Counted()
    operator._traced.arguments = arguments
    start = time.perf_counter()
    check_derivatives(operator._traced, operator._batches[0])
    assert time.perf_counter() - start < 60
    assert sizes == [(4, 1), (4, 0), (4, 0)]


def test_a_clip_of_what_is_passed_back_is_found():
    """It lets through what training passes back, and cuts off what probes do."""

    @tf.custom_gradient
    def clipped(x):
        return tf.identity(x), lambda upstream: tf.clip_by_value(upstream, -1.0, 1.0)

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 64)).astype("float32"), rng.normal(size=(8, 1)).astype("float32")
    inputs = keras.Input((64,))
    hidden = layers.Dense(64, "tanh")(inputs)
    end = layers.Dense(1)
    plain = keras.Model(inputs, end(hidden))
    model = keras.Model(inputs, end(layers.Lambda(clipped)(hidden)))
    for each in (plain, model):
        each.compile("sgd", "mse")
    with pytest.raises(SecondDerivativeError, match="not linear in the vector"):
        HessianOperator(model, data, products="autodiff")
    with pytest.warns(UserWarning, match="differences of the gradient are used"):
        report = measure_curvature(model, data)
    truth = measure_curvature(plain, data)["frobenius_norm"]
    assert float(report["frobenius_norm"]) == pytest.approx(float(truth), rel=1e-2)


def test_a_model_in_float8_goes_by_differences():
    """Its own gradients round what is passed back, and run in a graph alone."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, "tanh"), layers.Dense(1)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Layer InputLayer does not have")
        model.quantize("float8")
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    callback = HessianNormCallback((x, x[:, :1]))
    with pytest.warns(UserWarning, match="not linear in the vector"):
        model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[callback])
    assert callback.report.products == "finite_difference"
    assert len(callback.history["epoch"]) == 2
