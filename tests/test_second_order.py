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


def bilinear_model() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((3, 3, 1)),
            keras.layers.Conv2D(1, 1, activation="tanh"),
            keras.layers.UpSampling2D(interpolation="bilinear"),
        ]
    )
    model.compile("sgd", "mse")
    return model


def softsign_model() -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, activation="softsign")])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("make", "shapes", "message"),
    [
        (
            bilinear_model,
            ((4, 3, 3, 1), (4, 6, 6, 1)),
            "drops.*bilinear resize|entry for: ResizeBilinearGrad",
        ),
        (softsign_model, ((4, 2), (4, 1)), "cannot differentiate the gradient.*SoftsignGrad"),
    ],
)
def test_what_tensorflow_cannot_differentiate_twice_is_refused_with_the_way_out(
    make, shapes, message
):
    model, data = make(), tuple(np.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=f"({message}).*products='finite_difference'"):
        HessianOperator(model, data)
    operator = HessianOperator(model, data, products="finite_difference")
    assert np.isfinite(operator.matvec(np.ones(operator.shape[0]))).all()
