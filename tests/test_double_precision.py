"""Graphs traced in a lower precision, computed in float64."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import HessianOperator
from keras_hessian_callback.data import HeldOutData
from keras_hessian_callback.double_precision import in_double_precision
from keras_hessian_callback.linalg import pack
from keras_hessian_callback.objective import Objective
from keras_hessian_callback.operators.traced import TracedProducts
from tests.oracles import double_precision
from tests.problems import (
    attention,
    convolution,
    masked_tokens,
    pooled_volumes,
    recurrent,
    tanh_classifier,
)


def lifted(function, *arguments):
    concrete = tf.function(function, autograph=False).get_concrete_function(*arguments)
    return in_double_precision(concrete, concrete.outputs)(*arguments)


@pytest.mark.parametrize(
    "problem", [tanh_classifier, convolution, attention, recurrent, masked_tokens]
)
def test_a_lifted_graph_is_the_model_in_double_precision(problem):
    """Loss, masses, products and gradient of a float32 trace are those of a float64 model."""
    model, data = problem()
    objective = Objective(model)
    batch = HeldOutData(data).micro_batches(None)[0]
    traced = TracedProducts(objective, batch, "autodiff")
    vectors = np.random.default_rng(0).normal(size=(3, traced.num_parameters))
    arguments = traced.arguments(objective.weights(), batch, tf.constant(vectors))
    results = [*traced.concrete.outputs, traced.gradient]
    actual = in_double_precision(traced.concrete, results)(*arguments)
    double, (x, *rest) = double_precision(problem, like=model)
    x = np.float32(x) if np.issubdtype(x.dtype, np.floating) else x
    rest = [np.float32(a) if np.issubdtype(a.dtype, np.floating) else a for a in rest]
    objective = Objective(double)
    widened = HeldOutData((x, *rest)).micro_batches(None)[0]
    reference = TracedProducts(objective, widened, "autodiff")
    weights = objective.weights()
    parts = reference.concrete(*reference.arguments(weights, widened, tf.constant(vectors)))
    expected = [*parts, pack(objective.gradient(weights, widened)[2], tf.float64)]
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == tf.float64
        # Not closer: constants, such as 1 / sqrt(2) in attention, were rounded to float32.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_casts_and_constants_of_the_code_are_lifted_too():
    third = np.float32(1.0) / np.float32(3.0)
    (value,) = lifted(
        lambda x: [tf.cast(tf.cast(x, tf.float16), tf.float32) * tf.constant(third)],
        tf.constant([1.0 + 2.0**-20]),
    )
    assert value.numpy()[0] == (1.0 + 2.0**-20) * float(third)


def test_variables_are_read_as_they_are():
    variable = tf.Variable([1.5, 2.0])
    (value,) = lifted(lambda x: [x * variable], tf.constant([3.0, 4.0]))
    np.testing.assert_array_equal(value, [4.5, 8.0])


@pytest.mark.parametrize("size", [(4, 4), (2, 2)])
def test_operations_without_a_double_form_stay_between_casts(size):
    """Bilinear resizing gives float32 whatever it gets."""

    def function(images):
        return [tf.image.resize(tf.image.resize(images, size), (3, 3)) * 2.0]

    images = tf.constant(np.random.default_rng(0).normal(size=(1, 3, 3, 2)), tf.float32)
    (value,) = lifted(function, images)
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, function(images)[0], rtol=1e-6)


def test_functions_loops_and_branches():
    @tf.function
    def inner(x):
        return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 1.1), (0, x))[1]

    def function(x):
        return [tf.cond(tf.reduce_sum(x) > 0.0, lambda: inner(x), lambda: -x)]

    for sign in (1.0, -1.0):
        x = tf.constant([1.0, 2.0]) * sign
        expected = x.numpy().astype("float64") * np.float64(np.float32(1.1)) ** 3
        (value,) = lifted(function, x)
        np.testing.assert_allclose(value, expected if sign > 0 else -x.numpy(), rtol=1e-14)


def test_three_dimensional_max_pooling():
    """Its second derivative has a kernel for float32 alone."""
    model, data = pooled_volumes()
    operator = HessianOperator(model, data)
    vector = np.random.default_rng(1).normal(size=operator.shape[0])
    difference = HessianOperator(model, data, products="finite_difference").matvec(vector)
    error = np.linalg.norm(operator.matvec(vector) - difference)
    assert error < 5e-3 * np.linalg.norm(difference)
