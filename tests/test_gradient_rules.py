"""Second derivatives that TensorFlow leaves out, against differences of its gradient."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback.gradient_rules import RULES
from keras_hessian_callback.second_order import exact_derivatives


def resized(size, method, **settings):
    return lambda x: tf.image.resize(x, size, method=method, **settings)


def segments(kind):
    def function(x):
        rows = tf.reshape(x, [-1, 3])
        return getattr(tf.sparse, f"segment_{kind}")(rows, [0, 3, 3, 7, 9], [0, 0, 1, 1, 3])

    return function


def moving_boxes(x):
    boxes = [[0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 1.0, 0.7]]
    return tf.image.crop_and_resize(x, boxes, [0, 1], (4, 6))


# Functions of x (2, 5, 4, 3), and the dtype that TensorFlow computes them in.
FUNCTIONS = {
    "softsign": (tf.nn.softsign, "float64"),
    "bilinear up": (resized((7, 9), "bilinear"), "float32"),
    "bilinear down": (resized((3, 2), "bilinear"), "float32"),
    "bilinear antialias": (resized((3, 2), "bilinear", antialias=True), "float32"),
    "bicubic": (resized((7, 3), "bicubic"), "float32"),
    "nearest": (resized((7, 3), "nearest"), "float32"),
    "lanczos": (resized((7, 3), "lanczos3"), "float32"),
    "crop": (moving_boxes, "float32"),
    "local response": (lambda x: tf.nn.lrn(x, 1, 1.3, 0.4, 0.7), "float32"),
    "max pool same": (lambda x: tf.nn.max_pool2d(x, 2, 1, "SAME"), "float64"),
    "max pool of one entry": (lambda x: tf.nn.max_pool2d(x, [1, 1], 2, "SAME"), "float64"),
    "max pool same, stride 2": (lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"), "float64"),
    "soft labels": (
        lambda x: tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(x[..., ::-1]), 2.0 * x),
        "float64",
    ),
    "max pool valid": (lambda x: tf.nn.max_pool2d(x, 2, 2, "VALID"), "float64"),
    "argmax": (lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "SAME")[0], "float64"),
    "argmax of batch": (
        lambda x: tf.nn.max_pool_with_argmax(x, 2, 1, "VALID", include_batch_in_index=True)[0],
        "float64",
    ),
    "segment sum": (segments("sum"), "float64"),
    "segment mean": (segments("mean"), "float64"),
    "segment sqrt_n": (segments("sqrt_n"), "float64"),
}


def product_and_difference(name: str) -> tuple[np.ndarray, np.ndarray]:
    """H v of a loss that goes through a function, by autodiff and by differences."""
    function, dtype = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    x, v = (tf.constant(rng.normal(size=(2, 5, 4, 3)), dtype) for _ in range(2))
    weight = tf.constant(rng.normal(size=function(x).shape), dtype)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(weight * function(x * (1.0 + 0.3 * x)) ** 3)
        return tape.gradient(loss, x)

    @tf.function
    def product(x, v):
        with tf.GradientTape() as tape:
            tape.watch(x)
            first = gradient(x)
        return tape.gradient(first, x, output_gradients=v)

    h = 1e-5 if dtype == "float64" else 3e-3
    near, far = (gradient(x + s * h * v) - gradient(x - s * h * v) for s in (1, 2))
    difference = (8.0 * near - far).numpy() / (12.0 * h)
    with exact_derivatives():
        return product(x, v).numpy(), difference


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rules_agree_with_differences(name):
    product, difference = product_and_difference(name)
    tolerance = 1e-9 if product.dtype == np.float64 else 3e-4
    assert np.abs(product - difference).max() < tolerance * np.abs(difference).max()


def test_every_rule_is_used(monkeypatch):
    used = set()

    def counted(kind, rule):
        return lambda *arguments: used.add(kind) or rule(*arguments)

    for kind, rule in list(RULES.items()):
        monkeypatch.setitem(RULES, kind, counted(kind, rule))
    for name in FUNCTIONS:
        product_and_difference(name)
    used.add("MaxPool3DGrad")  # has a test of its own, below
    # TensorFlow makes either the first or the second form of the gradients of sparse segments.
    versions = {kind for kind in RULES if kind.startswith("SparseSegment")}
    assert set(RULES) - versions <= used
    assert {kind.removesuffix("V2") for kind in used} == {k.removesuffix("V2") for k in RULES}


def test_the_two_forms_of_sparse_segment_gradients_agree():
    """The second one holds the rows of distinct indices only."""
    rng = np.random.default_rng(0)
    indices, segment_ids = tf.constant([7, 2, 2, 5]), tf.constant([0, 0, 1, 1])
    gradient = tf.constant(rng.normal(size=(2, 3)))
    whole = tf.constant(rng.normal(size=(9, 3)))
    with exact_derivatives(), tf.GradientTape(persistent=True) as tape:
        tape.watch(gradient)
        arguments = {"grad": gradient, "indices": indices, "segment_ids": segment_ids}
        first = tf.raw_ops.SparseSegmentMeanGrad(**arguments, output_dim0=9)
        second, rows = tf.raw_ops.SparseSegmentMeanGradV2(**arguments, dense_output_dim0=9)
        values = (tf.reduce_sum(first * whole), tf.reduce_sum(second * tf.gather(whole, rows)))
    with exact_derivatives():
        one, other = (tape.gradient(value, gradient) for value in values)
    np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_three_dimensional_max_pooling_is_that_in_two(size):
    """Its second derivative has a kernel for float32 alone, too coarse for differences."""
    rng = np.random.default_rng(0)
    x, cotangent = (tf.constant(rng.normal(size=(2, 5, 4, 3)), tf.float32) for _ in range(2))

    def product(pool):
        with exact_derivatives(), tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(pool(x) ** 3)
            gradient = inner.gradient(loss, x)
        with exact_derivatives():
            return outer.gradient(gradient, x, output_gradients=cotangent).numpy()

    window = [1, size, size]
    flat = product(lambda x: tf.nn.max_pool2d(x, size, 1, "SAME"))
    deep = product(lambda x: tf.nn.max_pool3d(x[:, None], window, 1, "SAME")[:, 0])
    np.testing.assert_allclose(deep, flat, rtol=1e-6)
    assert np.abs(deep).max() > 1.0
