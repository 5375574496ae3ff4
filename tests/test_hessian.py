import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse.linalg import aslinearoperator, eigsh

from keras_hessian_callback import HessianOperator
from tests.oracles import dense_hessian, double_precision
from tests.problems import (
    NUM_EXAMPLES,
    PROBLEMS,
    activity_regularized,
    attention,
    ignored_class,
    least_squares,
    masked_tokens,
    tanh_classifier,
    two_inputs_two_outputs,
)


def matrix(operator: HessianOperator) -> np.ndarray:
    return operator.matmat(np.eye(operator.shape[0], dtype=operator.dtype))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_matrix_is_that_of_finite_differences(make):
    """In float64 to 1e-8 of the largest entry, whatever the micro-batches; symmetric."""
    model, data = double_precision(make)
    expected = dense_hessian(model, data)
    # Keras before 3.13 adds 1e-7 to the number of entries that a mask leaves.
    tolerance = 1e-7 if make is ignored_class else 1e-8
    for batch_size in (None, 3):
        operator = HessianOperator(model, data, batch_size=batch_size)
        actual = matrix(operator)
        assert operator.dtype == np.float64
        assert relative_error(actual, expected) < tolerance
        assert relative_error(actual, actual.T) < 1e-12


@pytest.mark.parametrize("make", [tanh_classifier, two_inputs_two_outputs, attention])
def test_single_precision_has_its_own_accuracy(make):
    model, data = make()
    actual = matrix(HessianOperator(model, data))
    expected = dense_hessian(*double_precision(make, like=model))
    assert actual.dtype == np.float32
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("make", PROBLEMS)
def test_finite_differences_agree_in_double_precision(make):
    model, data = double_precision(make)
    expected = matrix(HessianOperator(model, data))
    operator = HessianOperator(model, data, products="finite_difference", batch_size=3)
    assert relative_error(matrix(operator), expected) < 1e-6


def test_finite_differences_in_single_precision():
    model, data = tanh_classifier()
    expected = matrix(HessianOperator(model, data))
    actual = matrix(HessianOperator(model, data, products="finite_difference"))
    assert relative_error(actual, expected) < 2e-3


def test_a_finite_difference_of_the_zero_vector_is_zero():
    operator = HessianOperator(*tanh_classifier(), products="finite_difference")
    assert not operator.matvec(np.zeros(operator.shape[0])).any()


def test_least_squares_has_its_closed_form():
    model, (x, y) = double_precision(least_squares)
    block = 2.0 / NUM_EXAMPLES * x.T @ x / 2.0  # the mean over two outputs
    expected = np.kron(block, np.eye(2))
    assert relative_error(matrix(HessianOperator(model, (x, y))), expected) < 1e-12


def test_an_activity_regularizer_is_measured_right_or_refused():
    """Keras before 3.13 sums it over the batch, so that the loss is no mean over examples."""
    model, data = double_precision(activity_regularized)
    expected = dense_hessian(model, data)
    assert relative_error(matrix(HessianOperator(model, data)), expected) < 1e-8
    if tuple(map(int, keras.version().split(".")[:2])) < (3, 13):
        with pytest.raises(ValueError, match="no mean over examples"):
            HessianOperator(model, data, batch_size=3)
    else:
        operator = HessianOperator(model, data, batch_size=3)
        assert relative_error(matrix(operator), expected) < 1e-8


def test_a_dataset_in_ragged_batches_gives_the_hessian_of_the_whole_set():
    model, (x, y) = double_precision(tanh_classifier)
    x, y = np.tile(x, (7, 1))[:70], np.tile(y, 7)[:70]
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)  # 32, 32 and 6
    expected = matrix(HessianOperator(model, (x, y)))
    assert relative_error(matrix(HessianOperator(model, batches)), expected) < 1e-12
    operator = HessianOperator(model, batches, batch_size=32)
    assert relative_error(matrix(operator), expected) < 1e-12


def test_the_hessian_of_an_output_by_loss_fn():
    model, (x, _) = double_precision(tanh_classifier)

    def output(model, x, y, sample_weight):
        return tf.reduce_sum(model(x))

    uncompiled = keras.Model(model.inputs, model.outputs[0])
    operator = HessianOperator(uncompiled, (x, None), loss_fn=output)
    expected = dense_hessian(uncompiled, (x, None), loss_fn=output)
    assert relative_error(matrix(operator), expected) < 1e-8


def test_loss_fn_takes_the_place_of_the_compiled_loss():
    model, (x, y) = double_precision(tanh_classifier)

    def squares(model, x, y, sample_weight):
        return tf.reduce_mean(model(x) ** 2 * sample_weight[:, None])

    data = (x, y, np.arange(float(NUM_EXAMPLES)))
    expected = dense_hessian(model, data, loss_fn=squares)
    for batch_size in (None, 4):
        operator = HessianOperator(model, data, loss_fn=squares, batch_size=batch_size)
        assert relative_error(matrix(operator), expected) < 1e-8


def test_products_follow_the_weights_without_a_new_trace():
    model, data = double_precision(tanh_classifier)
    calls = []

    def counted(model, x, y, sample_weight):
        calls.append(1)
        return model.compute_loss(x, y, model(x, training=False), sample_weight)

    operator = HessianOperator(model, data, loss_fn=counted)
    for factor in (1.0, 1.5):
        model.set_weights([factor * w for w in model.get_weights()])
        expected = dense_hessian(model, data)
        assert relative_error(matrix(operator), expected) < 1e-8
    operator.matvec(np.ones(operator.shape[0]))
    assert len(calls) == 1


def test_arrays_give_arrays_and_tensors_tensors():
    operator = HessianOperator(*tanh_classifier())
    n = operator.shape[0]
    assert operator.shape == (n, n)
    assert operator.num_examples == NUM_EXAMPLES
    block = np.random.default_rng(0).normal(size=(n, 3))
    products = operator.matmat(block)
    assert isinstance(products, np.ndarray)
    assert products.shape == (n, 3)
    as_tensors = operator.matmat(tf.constant(block))
    assert tf.is_tensor(as_tensors)
    np.testing.assert_array_equal(as_tensors, products)
    single = operator.matvec(block[:, 1])
    assert single.shape == (n,)
    np.testing.assert_allclose(single, products[:, 1], rtol=1e-5, atol=1e-6)


def test_scipy_takes_the_operator_as_it_is():
    operator = HessianOperator(*double_precision(tanh_classifier))
    largest = eigsh(aslinearoperator(operator), k=1, which="LA")[0][0]
    assert largest == pytest.approx(np.linalg.eigvalsh(matrix(operator))[-1])


def weighted_by_hand(model, x, y, weight):
    """A mean over the weights, which micro-batches do not share out as they do examples."""
    loss = keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)
    return tf.reduce_sum(weight * loss) / tf.reduce_sum(weight)


@pytest.mark.parametrize("shape", [(10,), (10, 1)])
def test_weights_and_ignored_classes_multiply(shape):
    model, (x, y) = double_precision(ignored_class)
    reduction = "mean_with_sample_weight"
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=-1, reduction=reduction
    )
    model.compile("sgd", loss)
    data = (x, y, np.linspace(0.5, 2.0, 10).reshape(shape))
    expected = matrix(HessianOperator(model, data))
    assert relative_error(matrix(HessianOperator(model, data, batch_size=3)), expected) < 1e-6


@pytest.mark.parametrize("scale", [1.0, 0.0])  # at 0 every example has the same loss
def test_a_mean_weighted_by_hand_needs_the_whole_batch(scale):
    model, (x, y) = tanh_classifier()
    model.set_weights([scale * weight for weight in model.get_weights()])
    weight = np.array([1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="not the mean of theirs"):
        HessianOperator(model, (x, y, weight), loss_fn=weighted_by_hand, batch_size=2)


def test_losses_belong_to_outputs_by_name_whatever_their_order():
    """Three outputs, two with a loss; the one without is masked unevenly."""
    inputs = keras.Input((5,), dtype="int32")
    hidden = keras.layers.Embedding(6, 3, mask_zero=True)(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = [
        keras.layers.Dense(2, name="z")(hidden),
        keras.layers.Dense(3, name="b")(pooled),
        keras.layers.Dense(1, name="a")(pooled),
    ]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"z": None, "b": "mse", "a": "mae"})
    tokens = masked_tokens()[1][0]
    y = {"z": np.ones((10, 5, 2)), "b": np.ones((10, 3)), "a": np.zeros((10, 1))}
    expected = matrix(HessianOperator(model, (tokens, y)))
    actual = matrix(HessianOperator(model, (tokens, y), batch_size=3))
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("ignored", [[0, 1, 2], [7, 8, 9], [0, 1, 2, 9], range(10)])
def test_micro_batches_without_a_valid_entry_count_for_nothing(ignored):
    model, (x, y) = double_precision(ignored_class)
    y = np.where(np.isin(np.arange(10), list(ignored)), -1, np.arange(10) % 3)
    expected = matrix(HessianOperator(model, (x, y)))
    actual = matrix(HessianOperator(model, (x, y), batch_size=3))
    np.testing.assert_allclose(actual, expected, atol=1e-7 * max(1e-3, np.abs(expected).max()))


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 3, 4)])
def test_vectors_of_another_length_are_refused(shape):
    operator = HessianOperator(*least_squares())
    with pytest.raises(ValueError, match=r"`matmat` takes a block \(8, k\); got shape"):
        operator.matmat(np.ones(shape))
    with pytest.raises(ValueError, match=r"`mat(vec|mat)` takes"):
        operator.matvec(np.ones(shape))


def test_mixed_dtypes_of_weights_give_the_larger():
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(3, dtype="float32")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, dtype="float64")(hidden))
    model.compile("sgd", "mse")
    operator = HessianOperator(model, (np.ones((4, 3)), np.ones((4, 1))))
    assert operator.dtype == np.float64


@pytest.mark.parametrize("batch_size", [None, 4])
def test_weights_that_the_loss_does_not_see_have_zero_rows(batch_size):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [keras.layers.Dense(1)(inputs), keras.layers.Dense(2)(inputs)])
    model.compile("sgd", ["mse", None])
    y = [np.ones((6, 1)), np.ones((6, 2))]
    operator = HessianOperator(model, (np.ones((6, 3)), y), batch_size=batch_size)
    rows = matrix(operator)
    assert operator.shape == (12, 12)
    assert np.count_nonzero(rows.any(axis=1)) == 4


def test_masks_that_differ_between_outputs_need_the_whole_batch():
    inputs = keras.Input((5,), dtype="int32")
    hidden = keras.layers.Embedding(6, 3, mask_zero=True)(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(inputs, [keras.layers.Dense(2)(hidden), keras.layers.Dense(1)(pooled)])
    model.compile("sgd", ["mse", "mse"])
    tokens = masked_tokens()[1][0]
    data = (tokens, (np.ones((10, 5, 2)), np.ones((10, 1))))
    HessianOperator(model, data)
    with pytest.raises(ValueError, match=r"masked or weighted differently.*batch_size=None"):
        HessianOperator(model, data, batch_size=3)


@pytest.mark.parametrize("batch_size", [3, 5])
def test_a_loss_that_is_no_mean_needs_the_whole_batch(batch_size):
    model, data = least_squares()
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    with pytest.raises(ValueError, match=r"no mean over examples.*Use batch_size=None"):
        HessianOperator(model, data, batch_size=batch_size)
    keras.config.set_floatx("float64")
    model, data = double_precision(least_squares)
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    assert relative_error(matrix(HessianOperator(model, data)), dense_hessian(model, data)) < 1e-8


def test_fitted_examples_leave_micro_batches_alone():
    """Where only rounding is left of the Hessian, a mean over examples is still told as one."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(44, 6)).astype("float32")
    y = x[:, :3].argmax(axis=1)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(64, "tanh"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    for _ in range(5):
        model.fit(x, y, epochs=150, verbose=0)
        parts = HessianOperator(model, (x, y), batch_size=7)
    assert model.evaluate(x, y, verbose=0) < 1e-4
    vector = rng.normal(size=parts.shape[0]).astype("float32")
    whole = HessianOperator(model, (x, y)).matvec(vector)
    assert np.linalg.norm(parts.matvec(vector) - whole) < 1e-2 * np.linalg.norm(whole)


def test_differences_step_by_the_precision_of_the_loss():
    """float64 layers under a float32 loss, as `set_dtype_policy` alone leaves them."""
    keras.config.set_dtype_policy("float64")
    model, data = tanh_classifier()
    vector = np.random.default_rng(0).normal(size=51)
    exact = HessianOperator(model, data).matvec(vector)
    difference = HessianOperator(model, data, products="finite_difference").matvec(vector)
    assert np.linalg.norm(difference - exact) < 2e-3 * np.linalg.norm(exact)
