import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import HessianOperator
from keras_hessian_callback.second_order import exact_derivatives


@pytest.mark.parametrize("axes", [[0], [-1], [0, 2]])
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_exact_moments_are_those_of_tensorflow(axes, keepdims, dtype):
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 3, 5)), dtype)
    expected = tf.nn.moments(x, axes, keepdims=keepdims)
    with exact_derivatives():
        actual = tf.nn.moments(x, axes, keepdims=keepdims)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def second_derivative_of_the_variance() -> float:
    x = tf.constant([1.0, 2.0, 4.0])
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            variance = tf.nn.moments(x, [0])[1]
        gradient = inner.gradient(variance, x)
    return float(outer.jacobian(gradient, x)[0, 1])


def test_the_variance_is_differentiable_twice_inside_and_only_there():
    """d2 var / dx_0 dx_1 = -2 / n^2 for n = 3; TensorFlow says 0."""
    assert second_derivative_of_the_variance() == 0.0
    with exact_derivatives():
        assert second_derivative_of_the_variance() == pytest.approx(-2 / 9)
    assert second_derivative_of_the_variance() == 0.0


def test_everything_is_put_back_when_tracing_fails():
    before = tf.nn.moments
    with pytest.raises(RuntimeError, match="while tracing"), exact_derivatives():
        raise RuntimeError("while tracing")
    assert tf.nn.moments is before


def test_threads_overlap_without_touching_one_another():
    before = tf.nn.moments
    inside, leave = threading.Barrier(3), threading.Barrier(3)
    found = {}

    def tracing(name):
        with exact_derivatives():
            inside.wait(10)
            found[name] = second_derivative_of_the_variance()
        leave.wait(10)

    threads = [threading.Thread(target=tracing, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    inside.wait(10)
    found["outsider"] = second_derivative_of_the_variance()
    leave.wait(10)
    for thread in threads:
        thread.join(10)
    assert found["outsider"] == 0.0
    assert found["a"] == found["b"] == pytest.approx(-2 / 9)
    assert tf.nn.moments is before


def fake_quantised(x):
    return tf.quantization.fake_quant_with_min_max_args(tf.tanh(x), -1.0, 1.0)


def dilated(x):
    kernel = tf.reshape(tf.linspace(tf.zeros([], x.dtype), 1.0, 4), [2, 2, 1])
    return tf.nn.dilation2d(x, kernel, [1, 1, 1, 1], "VALID", "NHWC", [1, 1, 1, 1])


def through(function, *shape: int) -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(1, 1, activation="tanh"),
            keras.layers.Lambda(function),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fake_quantised, "drops the second derivative of fake quantisation"),
        (dilated, "cannot differentiate the gradient.*Dilation2DBackprop"),
    ],
)
def test_what_tensorflow_cannot_differentiate_twice_goes_by_finite_differences(function, message):
    model = through(function, 3, 3, 1)
    data = (np.random.default_rng(0).normal(size=(4, 3, 3, 1)), np.ones((4, 1)))
    with pytest.raises(ValueError, match=f"{message}.*Use products='finite_difference'"):
        HessianOperator(model, data)
    with pytest.warns(UserWarning, match=f"{message}.*Finite differences .* are used instead"):
        operator = HessianOperator(model, data, products="auto")
    assert operator.products == "finite_difference"
    assert np.isfinite(operator.matvec(np.ones(operator.shape[0]))).all()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("products", ["autodiff", "finite_difference"])
def test_half_precision_is_measured_as_in_single(policy, products):
    """The same weights with a float32 policy give the same Hessian, and nothing is changed."""
    data = (np.random.default_rng(0).normal(size=(10, 6, 6, 1)), np.arange(10) % 3)

    def build(dtype):
        keras.config.set_dtype_policy(dtype)
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                keras.layers.Conv2D(3, 3, activation="tanh"),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                keras.layers.Dense(3, dtype="float32" if dtype.startswith("mixed") else None),
            ]
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    half = build(policy)
    policies = [layer.dtype_policy for layer in half._flatten_layers()]
    single = build("float32")
    single.set_weights([np.asarray(w, "float32") for w in half.get_weights()])
    expected = HessianOperator(single, data, products=products)
    actual = HessianOperator(half, data, products=products)
    vector = np.random.default_rng(1).normal(size=expected.shape[0]).astype("float32")
    error = actual.matvec(vector) - expected.matvec(vector)
    assert np.linalg.norm(error) < 1e-5 * np.linalg.norm(expected.matvec(vector))
    assert [layer.dtype_policy for layer in half._flatten_layers()] == policies
    assert half(data[0]).dtype == ("float32" if policy.startswith("mixed") else policy)


def test_layers_are_put_back_when_tracing_fails():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.LSTM(2), keras.layers.Dense(1)])
    layers = list(model._flatten_layers())
    before = [dict(vars(layer)) for layer in layers]

    def fail():
        assert model.layers[0].compute_dtype == "float32"
        assert model.layers[0].use_cudnn is False
        raise RuntimeError("while tracing")

    with pytest.raises(RuntimeError, match="while tracing"), exact_derivatives(layers):
        fail()
    assert [dict(vars(layer)) for layer in layers] == before


def test_rematerialised_layers_are_measured_as_the_plain_ones():
    def build(recompute):
        keras.utils.set_random_seed(0)

        class Block(keras.layers.Layer):
            def build(self, shape):
                self.dense = keras.layers.Dense(4, activation="tanh")
                self.dense.build(shape)

            def call(self, inputs):
                function = tf.recompute_grad(self.dense.call) if recompute else self.dense.call
                return function(inputs)

        model = keras.Sequential([keras.Input((3,)), Block(), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    data = (np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 1)))
    for products in ("autodiff", "finite_difference"):
        plain, wrapped = (
            HessianOperator(build(recompute), data, products=products).matmat(np.eye(21))
            for recompute in (False, True)
        )
        np.testing.assert_allclose(wrapped, plain, rtol=1e-5, atol=1e-6)
