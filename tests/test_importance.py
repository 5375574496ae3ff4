import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import stats

from keras_hessian_callback import (
    HessianNormCallback,
    HessianOperator,
    Hutchinson,
    importance,
    measure_curvature,
)
from keras_hessian_callback import pool as pool_room
from keras_hessian_callback.pool import Importance
from tests.oracles import double_precision
from tests.problems import (
    NUM_EXAMPLES,
    activity_regularized,
    ignored_class,
    least_squares,
    mean_with_sample_weight,
    regularized,
    sample_weights,
    tanh_classifier,
    two_inputs_two_outputs,
    two_outputs_in_a_tuple,
)
from tests.test_hessian import matrix, relative_error
from tests.test_side_effects import assert_identical, run


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(NUM_EXAMPLES, *shape))


def weight_decay():
    """A regularizer and sample weights: only the one has weight 1 in every draw."""
    decay = keras.regularizers.L1L2(l2=0.3)
    hidden = layers.Dense(4, "tanh", kernel_regularizer=decay)
    model = keras.Sequential([keras.Input((3,)), hidden, layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy")
    y = np.arange(NUM_EXAMPLES)[:, None] % 2
    return model, (normal(3), y, np.linspace(0.1, 3.0, NUM_EXAMPLES))


def masked_words():
    """A prediction per token, over the valid ones: each draw has another number of them."""
    inputs = keras.Input((3,), dtype="int32")
    embedded = layers.Embedding(4, 2, mask_zero=True)(inputs)
    model = keras.Model(inputs, layers.Dense(3)(embedded))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lengths = 1 + np.arange(NUM_EXAMPLES) % 3
    tokens = np.where(np.arange(3) < lengths[:, None], 1 + np.arange(30).reshape(10, 3) % 3, 0)
    return model, (tokens.astype("int32"), np.arange(30).reshape(10, 3) % 3)


def pictures():
    """A class per pixel, and a class per picture: losses of two ranks, no sample weights."""
    inputs = keras.Input((2, 3, 1))
    pixels = layers.Dense(2)(inputs)
    model = keras.Model(inputs, [pixels, layers.Dense(2)(layers.Flatten()(inputs))])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", [loss, loss])
    y = np.arange(6 * NUM_EXAMPLES).reshape(-1, 2, 3) % 5 % 2
    return model, (normal(2, 3, 1), [y, np.arange(NUM_EXAMPLES) % 2])


def partly_weighted():
    """Sample weights of one of the outputs alone."""
    model, (x, y) = two_outputs_in_a_tuple()
    return model, (x, y, [None, np.linspace(0.1, 3.0, NUM_EXAMPLES)])


def first_of(data, count):
    """The first examples, so that all draws of two are few."""
    return tf.nest.map_structure(lambda leaf: leaf[:count], data)


def is_same(actual, expected, tolerance=1e-9):
    return relative_error(actual, expected) < tolerance


class Enumeration:
    """Every draw of an operator, with its probability."""

    def __init__(self, model, data, num_examples, monkeypatch, **arguments):
        self.operator = HessianOperator(model, importance(data, num_examples), **arguments)
        self.probabilities = self._now(monkeypatch)
        self._count, self._monkeypatch = num_examples, monkeypatch

    def _now(self, monkeypatch):
        seen, compute = [], Importance.probabilities
        with monkeypatch.context() as patch:
            patch.setattr(
                Importance,
                "probabilities",
                lambda self, scores: seen.append(compute(self, scores)) or seen[-1],
            )
            self.operator.drawn(0)
        return seen[0]

    def __iter__(self):
        centres = np.cumsum(self.probabilities) - self.probabilities / 2
        for places in itertools.product(range(len(centres)), repeat=self._count):
            with self._monkeypatch.context() as patch:
                numbers = centres[list(places)]
                patch.setattr(pool_room, "uniforms", lambda count, seed, n=numbers: n)
                yield math.prod(self.probabilities[list(places)]), self.operator.drawn(0)


@pytest.mark.parametrize(
    "make",
    [
        tanh_classifier,
        sample_weights,
        two_inputs_two_outputs,
        two_outputs_in_a_tuple,
        partly_weighted,
        weight_decay,
        pictures,
    ],
)
def test_the_expected_hessian_of_a_draw_is_that_of_the_pool(make, monkeypatch):
    """All draws of one example, by their probabilities, in float64: no statistics needed."""
    model, data = double_precision(make)
    draws = Enumeration(model, data, 1, monkeypatch)
    expected = sum(probability * matrix(operator) for probability, operator in draws)
    assert is_same(expected, matrix(HessianOperator(model, data)))
    assert np.ptp(draws.probabilities) > 0.0


@pytest.mark.parametrize("make", [masked_words, ignored_class])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_masks_are_divided_by_what_the_pool_has(make, batch_size, monkeypatch):
    """Keras divides by the valid entries of the draw, which would be a ratio of two means."""
    model, data = double_precision(make)
    data = first_of(data, 5)
    draws = Enumeration(model, data, 2, monkeypatch, batch_size=batch_size)
    expected = sum(probability * matrix(operator) for probability, operator in draws)
    # Keras before 3.13 adds 1e-7 to the number of entries that a mask leaves.
    assert is_same(expected, matrix(HessianOperator(model, data)), 1e-6)


def test_two_micro_batches_are_independent_draws(monkeypatch):
    """What the population's norm is made of: <H_1, H_2> of two folds is ||H||^2 of the pool."""
    model, data = double_precision(weight_decay)
    data = first_of(data, 5)
    expected = np.sum(matrix(HessianOperator(model, data)) ** 2)
    whole = pairs = 0.0
    for probability, operator in Enumeration(model, data, 2, monkeypatch, batch_size=1):
        first, second = operator.fold_products(np.eye(operator.shape[0]))
        pairs += probability * np.sum(first.numpy() * second.numpy())
        whole += probability * np.sum(matrix(operator) ** 2)
    assert pairs == pytest.approx(expected, rel=1e-9)
    assert whole > 1.05 * expected  # and the batch's norm is too high


def test_draws_by_seed_are_unbiased():
    """A quadratic form over 250 draws; 1e-4 false fails, and a bias of 5 % fails."""
    model, data = double_precision(weight_decay)
    pool = HessianOperator(model, data)
    v = np.random.default_rng(0).normal(size=pool.shape[0])
    operator = HessianOperator(model, importance(data, 9))
    samples = np.empty(250)
    for step in range(len(samples)):
        samples[step] = v @ operator.drawn((5, step)).matvec(v)
    truth = v @ pool.matvec(v)
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    assert abs(samples.mean() - truth) < stats.norm.isf(1e-4 / 2) * error
    assert abs(1.05 * samples.mean() - truth) > stats.norm.isf(1e-4 / 2) * error


def curvatures(model, data, monkeypatch):
    """What the probabilities of a pool are in proportion to, floor aside."""
    draws = Enumeration(model, data, 1, monkeypatch)
    scores = draws.probabilities - 0.1 / len(draws.probabilities)
    return scores / scores.sum()


@pytest.mark.parametrize("ending", ["logits", "softmax", "softmax layer", "operation"])
def test_scores_are_traces_at_the_logits(ending, monkeypatch):
    """1 - sum_k p_k^2 of a cross-entropy, whether the loss is given probabilities or not."""
    _, (x, y) = double_precision(tanh_classifier)
    weights = np.linspace(0.5, 2.0, NUM_EXAMPLES)
    inputs = keras.Input((4,))
    logits = layers.Dense(3)(layers.Dense(6, activation="tanh")(inputs))
    outputs = {
        "logits": lambda: logits,
        "softmax": lambda: layers.Activation("softmax")(logits),
        "softmax layer": lambda: layers.Softmax()(logits),
        "operation": lambda: keras.ops.softmax(logits),
    }[ending]()
    model = keras.Model(inputs, outputs)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(ending == "logits"))
    p = tf.nn.softmax(keras.Model(inputs, logits)(x)).numpy()
    expected = weights * (1.0 - np.sum(p**2, axis=1))
    actual = curvatures(model, (x, y, weights), monkeypatch)
    np.testing.assert_allclose(actual, expected / expected.sum(), rtol=1e-6)


def test_a_squared_error_is_drawn_by_its_weights_alone(monkeypatch):
    model, (x, y) = double_precision(least_squares)
    weights = np.linspace(0.5, 2.0, NUM_EXAMPLES)
    actual = curvatures(model, (x, y, weights), monkeypatch)
    np.testing.assert_allclose(actual, weights / weights.sum(), rtol=1e-9)


def test_many_outputs_have_their_trace_within_the_error_of_probes(monkeypatch):
    """40 classes: the parts beyond 16 entries are told apart by random signs."""
    keras.config.set_floatx("float64")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(40, dtype="float64")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = 3.0 * normal(4)
    p = tf.nn.softmax(model(x)).numpy()
    expected = 1.0 - np.sum(p**2, axis=1)
    actual = curvatures(model, (x, np.arange(NUM_EXAMPLES)), monkeypatch)
    np.testing.assert_allclose(actual, expected / expected.sum(), rtol=0.5)


def test_a_trained_network_is_measured_more_precisely(monkeypatch):
    """E||H_S - H||^2 = (sum_i ||H_i||^2 / (N^2 p_i) - ||H||^2) / b, against p_i = 1 / N."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    y = (x[:, 0] + 0.3 * x[:, 1] ** 2 > 0).astype("int32")
    model, _ = double_precision(tanh_classifier)
    model.compile("adam", model.loss)
    model.optimizer.learning_rate = 0.05
    model.fit(x, y, epochs=40, batch_size=20, verbose=0)
    each = HessianOperator(model, (x, y), batch_size=1)
    parts = np.array(list(each.fold_products(np.eye(each.shape[0]))))
    squares = np.sum(parts**2, axis=(1, 2))
    square = np.sum(parts.mean(axis=0) ** 2)
    p = Enumeration(model, (x, y), 20, monkeypatch).probabilities
    variance = np.sum(squares / p) / len(x) ** 2 - square
    uniform = squares.mean() - square
    assert variance < 0.6 * uniform


def test_probabilities_have_a_floor_and_add_up_to_one():
    data = importance((np.ones((5, 1)),), 2, floor=0.25)
    actual = data.probabilities(np.array([0.0, 0.0, 1.0, 2.0, 1.0]))
    np.testing.assert_allclose(actual, 0.05 + 0.75 * np.array([0.0, 0.0, 0.25, 0.5, 0.25]))
    np.testing.assert_allclose(data.probabilities(np.zeros(5)), 0.2)
    broken = data.probabilities(np.array([0.0, 1.0, np.nan, 5.0, np.inf]))
    np.testing.assert_allclose(broken, 0.05 + 0.75 * np.array([0.0, 0.0, 0.5, 0.0, 0.5]))
    uniform = importance((np.ones((5, 1)),), 2, floor=1)
    np.testing.assert_allclose(uniform.probabilities(np.arange(5.0)), 0.2)


def test_a_draw_has_the_probabilities_that_it_is_given():
    """A chi-squared test, 1e-4 false fails; a neighbour's probabilities fail it."""
    data = importance((np.ones((20_001, 1)),), 20_000)
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    places, factors = data.draw(probabilities, (0, 3))
    np.testing.assert_allclose(factors, 0.25 / probabilities[places])
    counts = np.bincount(places, minlength=4)
    assert stats.chisquare(counts, 20_000 * probabilities).pvalue > 1e-4
    assert stats.chisquare(counts, 20_000 * probabilities[::-1]).pvalue < 1e-4


def test_a_draw_is_a_function_of_seed_and_step():
    model, data = tanh_classifier()
    operator = HessianOperator(model, importance(data, 4))

    def product(seed):
        return operator.drawn(seed).matvec(np.ones(operator.shape[0])).tolist()

    assert product((3, 2)) == product((3, 2))
    assert len({str(product(seed)) for seed in ((3, 2), (3, 1), (2, 2), 0)}) == 4
    assert product(3) == product((3, 0))


def test_a_resumed_run_logs_what_an_uninterrupted_one_does():
    def fit(model, x, y, *spans):
        logged = []
        for first, last in spans:
            callback = HessianNormCallback(importance((x, y), 4), Hutchinson(3), seed=1)
            model.fit(x, y, initial_epoch=first, epochs=last, shuffle=False, verbose=0,
                      callbacks=[callback])  # fmt: skip
            logged += callback.history["frobenius_norm"]
        return logged

    first, (x, y) = tanh_classifier()
    second = keras.models.clone_model(first)
    second.set_weights(first.get_weights())
    second.compile("adam", first.loss)
    whole = fit(first, x, y, (0, 4))
    assert fit(second, x, y, (0, 2), (2, 4)) == whole
    assert len(set(whole)) == 4


def test_nothing_of_the_run_changes():
    rng = np.random.default_rng(1)
    y = [rng.integers(0, 3, 20), rng.normal(size=(20, 1))]
    data = importance((rng.normal(size=(20, 6)), y), num_examples=8)
    measuring = HessianNormCallback(data, Hutchinson(3), batch_size=3, on_error="raise")
    assert_identical(run([measuring]), run([]))
    assert np.isfinite(measuring.history["trace"]).all()


def test_the_model_is_traced_once():
    calls = []

    class Counting(layers.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    model = keras.Sequential([keras.Input((4,)), Counting(), layers.Dense(2)])
    model.compile("sgd", "mse")
    operator = HessianOperator(model, importance((normal(4), normal(2)), 5), batch_size=2)
    before = len(calls)
    for step in range(3):
        model.set_weights([1.1 * weight for weight in model.get_weights()])
        operator.drawn((0, step)).matmat(np.eye(operator.shape[0], dtype="float32"))
    assert len(calls) == before


def test_draws_follow_the_weights_and_leave_the_operator_as_it_was():
    model, data = double_precision(tanh_classifier)
    operator = HessianOperator(model, importance(data, 5))
    v = np.ones(operator.shape[0])
    before = operator.matvec(v)
    other = operator.drawn((0, 7))
    assert not np.allclose(other.matvec(v), before)
    np.testing.assert_array_equal(operator.matvec(v), before)
    plain = HessianOperator(model, data)
    assert plain.drawn((0, 7)) is plain


def test_the_report_tells_the_number_drawn_and_the_pool():
    model, data = tanh_classifier()
    batches = tf.data.Dataset.from_tensor_slices(data).batch(4)
    report = measure_curvature(model, importance(batches, num_examples=6), batch_size=4)
    assert (report.num_examples, report.pool_size, report.num_folds) == (6, 10, 2)
    assert report.to_dict()["pool_size"] == 10
    assert measure_curvature(model, data, Hutchinson(2)).pool_size is None


def test_finite_differences_draw_the_same():
    model, data = double_precision(tanh_classifier)
    first, second = (
        HessianOperator(model, importance(data, 5), products=products)
        for products in ("autodiff", "finite_difference")
    )
    assert is_same(matrix(second), matrix(first), 1e-6)


def unweighted_loss():
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean((y - y_pred) ** 2)

    inputs = keras.Input((4,))
    model = Own(inputs, layers.Dense(2)(inputs))
    model.compile("sgd")
    return model, (normal(4), normal(2))


def summed_loss():
    model, data = least_squares()
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    return model, data


def masked_differently():
    model, data = masked_words()
    flat = layers.Dense(1)(layers.GlobalAveragePooling1D()(model.layers[1].output))
    two = keras.Model(model.inputs, [model.outputs[0], flat])
    two.compile("adam", [model.loss, "mse"])
    return two, (data[0], [data[1], normal(1)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (activity_regularized, "an activity regularizer"),
        (regularized, "an `add_loss` of the inputs"),
        (unweighted_loss, "leaves out `sample_weight`"),
        (mean_with_sample_weight, "not linear in the sample weights"),
        (summed_loss, "not the mean of theirs"),
        (masked_differently, "masked differently"),
    ],
)
def test_what_would_be_biased_is_refused(make, reason):
    model, data = make()
    with pytest.raises(ValueError, match=reason):
        HessianOperator(model, importance(data, 4))


def test_batches_of_one_size_only_are_refused():
    class Fixed(layers.Layer):
        def call(self, inputs):
            return inputs + tf.ones(inputs.shape)

    model = keras.Sequential([keras.Input(batch_shape=(5, 4)), Fixed(), layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="one size only"):
        HessianOperator(model, importance((normal(4), normal(2)), 5))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"training": True}, "training=True"), ({"loss_fn": lambda m, x, y, w: 0.0}, "`loss_fn`")],
)
def test_settings_that_do_not_go_together_are_refused(arguments, reason):
    model, data = tanh_classifier()
    drawn = importance(data, 5)
    with pytest.raises(ValueError, match=f"{reason} does not go with `importance`"):
        HessianNormCallback(drawn, **arguments)
    with pytest.raises(ValueError, match=f"{reason} does not go with `importance`"):
        measure_curvature(model, drawn, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"num_examples": 0}, ValueError, "must be at least 1; got num_examples=0"),
        ({"num_examples": -5}, ValueError, "must be at least 1; got num_examples=-5"),
        ({"num_examples": 10}, ValueError, "less than the 10 examples.*Pass the pool itself"),
        ({"num_examples": 2.5}, TypeError, "must be an integer; got num_examples=2.5"),
        ({"num_examples": True}, TypeError, "must be an integer; got num_examples=True"),
        ({"num_examples": 4, "floor": 0.0}, ValueError, "(0, 1], such as 0.1.*got floor=0.0"),
        ({"num_examples": 4, "floor": 1.5}, ValueError, "(0, 1], such as 0.1.*got floor=1.5"),
        ({"num_examples": 4, "floor": math.nan}, ValueError, "got floor=nan"),
        ({"num_examples": 4, "floor": "a"}, TypeError, "must be a float in (0, 1].*floor='a'"),
    ],
)
def test_bad_settings_say_what_to_do(arguments, error, reason):
    with pytest.raises(error, match=reason.replace("(0, 1]", r"\(0, 1\]")):
        importance((normal(4), normal(2)), **arguments)


def test_a_bad_pool_says_what_is_accepted():
    with pytest.raises(TypeError, match=r"takes \(x, y\)"):
        importance(np.ones((3, 2)))
    with pytest.raises(TypeError, match=r"takes \(x, y\)"):
        importance(importance((normal(4), normal(2)), 4), 2)
