"""Products in portions: where memory is short, and what may not be cut."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import (
    Deflated,
    HessianNormCallback,
    HessianOperator,
    importance,
    measure_curvature,
)
from keras_hessian_callback.operators.portions import Portions
from keras_hessian_callback.operators.traced import TracedProducts
from tests.problems import (
    PROBLEMS,
    batch_normalization_and_dropout,
    least_squares,
    tanh_classifier,
)


@pytest.fixture
def memory(monkeypatch):
    """Lets a product run out of memory above so many examples, or vectors, at a time."""
    limits = {"examples": np.inf, "vectors": np.inf}
    in_one_piece = TracedProducts.in_one_piece

    def limited(self, weights, batch, vectors):
        size = next(len(leaf) for leaf in tf.nest.flatten(batch) if leaf is not None)
        if size > limits["examples"] or vectors.shape[0] > limits["vectors"]:
            raise tf.errors.ResourceExhaustedError(None, None, "no memory left")
        return in_one_piece(self, weights, batch, vectors)

    monkeypatch.setattr(TracedProducts, "in_one_piece", limited)
    return limits


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
def test_the_hessian_is_the_same_in_portions(problem, memory):
    model, data = problem()
    vectors = np.random.default_rng(0).normal(size=(model.count_params(), 5))
    whole = HessianOperator(model, data)
    vectors = vectors[: whole.shape[0]].astype(whole.dtype)
    truth = whole.matmat(vectors)
    memory |= {"examples": 6, "vectors": 2}
    with pytest.warns(UserWarning, match="Memory ran out on"):
        operator = HessianOperator(model, data)
    np.testing.assert_allclose(operator.matmat(vectors), truth, atol=1e-5 * np.abs(truth).max())


def test_micro_batches_are_cut_too_and_stay_the_folds(memory):
    model, data = tanh_classifier()
    whole = measure_curvature(model, data, Deflated(max_matvecs=6), batch_size=5)
    memory |= {"examples": 3, "vectors": 1}
    with pytest.warns(
        UserWarning,
        match="out on 5 examples and 1 vectors: .* with 3 examples at a",
    ):
        cut = measure_curvature(model, data, Deflated(max_matvecs=6), batch_size=5)
    assert cut.num_folds == whole.num_folds == 2
    for name, estimate in whole.items():
        np.testing.assert_allclose(cut[name].value, estimate.value, rtol=1e-4)


def test_examples_drawn_by_importance_are_cut(memory):
    model, data = tanh_classifier()
    pool = importance(data, num_examples=8)
    whole = measure_curvature(model, pool, "autodiff")
    memory["examples"] = 4
    with pytest.warns(UserWarning, match="Memory ran out"):
        cut = measure_curvature(model, pool, "autodiff")
    np.testing.assert_allclose(float(cut["trace"]), float(whole["trace"]), rtol=1e-5)


def test_memory_that_runs_out_while_training_does_not_end_the_measurements(memory):
    model, data = tanh_classifier()
    callback = HessianNormCallback(data, "autodiff", on_error="raise")

    def shrink(epoch, _):
        if epoch == 1:
            memory.update(examples=3, vectors=30)

    shrinking = keras.callbacks.LambdaCallback(on_epoch_begin=shrink)
    with pytest.warns(UserWarning, match="3 examples and 13 vectors at a time"):
        model.fit(*data, epochs=3, verbose=0, callbacks=[shrinking, callback])
    assert callback.history["epoch"] == [0, 1, 2]
    truth = measure_curvature(model, data, "autodiff", batch_size=3)
    np.testing.assert_allclose(callback.history["trace"][-1], float(truth["trace"]), rtol=1e-4)
    assert callback.report.batch_size == 3


def test_what_is_no_mean_over_examples_is_not_cut(memory):
    model, data = least_squares()
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    memory["examples"] = 6
    with pytest.raises(ValueError, match=r"Use a smaller `batch_size`.*no memory left"):
        HessianOperator(model, data)


def test_batch_statistics_are_not_cut(memory):
    model, data = batch_normalization_and_dropout()
    memory["examples"] = 6
    with pytest.raises(ValueError, match="no memory left"):
        HessianOperator(model, data, training=True)


def test_what_never_fits_says_so(memory):
    model, data = tanh_classifier()
    memory["examples"] = 0
    with pytest.raises(ValueError, match="no memory left"):
        HessianOperator(model, data)


def test_vectors_alone_are_halved_where_examples_may_not_be(memory):
    model, data = least_squares()
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    memory["vectors"] = 3
    with pytest.warns(UserWarning, match="the products go on with 4 vectors at a time"):
        report = measure_curvature(model, data, "autodiff")
    assert report.batch_size == 10


def test_a_single_vector_that_does_not_fit_tells_nothing_of_blocks(memory, monkeypatch):
    """The check of two micro-batches together takes more examples than a block does."""
    model, data = tanh_classifier()
    memory["examples"] = 5
    widths = []
    limited = TracedProducts.in_one_piece

    def watched(self, weights, batch, vectors):
        widths.append(vectors.shape[0])
        return limited(self, weights, batch, vectors)

    monkeypatch.setattr(TracedProducts, "in_one_piece", watched)
    with pytest.warns(UserWarning, match="the products go on with 5 examples at a time"):
        operator = HessianOperator(model, data, batch_size=5)
    widths.clear()
    operator.matmat(np.eye(operator.shape[0], 8))
    assert set(widths) == {8}
    assert operator.batch_size == 5


def test_portions_are_counted_per_device():
    portions = Portions(None, tolerance=1e-6, devices=["/CPU:0"] * 8, workers=None, divisible=True)
    assert portions.at_a_time(64) == 8
    portions.examples = 4
    assert portions.at_a_time(64) == 4
    whole = Portions(None, tolerance=1e-6, devices=["/CPU:0"] * 8, workers=None, divisible=False)
    assert whole.at_a_time(64) == 64


def test_what_is_not_finite_is_cut_and_looked_at_again(memory):
    model, data = tanh_classifier()
    summed = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile("sgd", summed)
    operator = HessianOperator(model, data)
    weights = model.get_weights()
    model.set_weights([np.full_like(weight, np.nan) for weight in weights])
    memory["examples"] = 6
    with pytest.warns(UserWarning, match="Memory ran out"):
        assert np.isnan(operator.matvec(np.ones(operator.shape[0]))).any()
    model.set_weights(weights)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        operator.matvec(np.ones(operator.shape[0]))
