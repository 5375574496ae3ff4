import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import HessianOperator, measure_curvature
from keras_hessian_callback.data import HeldOutData
from keras_hessian_callback.objective import Objective
from tests.oracles import dense_hessian, double_precision
from tests.problems import (
    PROBLEMS,
    batch_normalization_and_dropout,
    least_squares,
    tanh_classifier,
)


@pytest.mark.parametrize("make", PROBLEMS)
def test_the_loss_is_that_of_evaluate(make):
    """As Keras itself computes it at training=False, on the whole set."""
    model, data = make()
    batch = HeldOutData(data).micro_batches(None)[0]
    objective = Objective(model)
    loss, _ = objective(objective.weights(), batch)
    if make.__name__ != "overridden_compute_loss":  # evaluate shows its own tracker there
        expected = model.evaluate(*data[:2], sample_weight=(*data, None)[2], verbose=0)
        expected = expected[0] if isinstance(expected, list) else expected
        assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(objective(objective.weights(), batch)[0]) == float(loss)


@pytest.mark.parametrize("make", PROBLEMS)
def test_no_variable_of_the_model_changes(make):
    model, data = make()
    batch = HeldOutData(data).micro_batches(None)[0]
    objective = Objective(model)
    objective(objective.weights(), batch)  # may build the loss and its metrics
    before = [variable.numpy() for variable in all_variables(model)]
    tf.function(lambda: objective.gradient(objective.weights(), batch)[2])()
    objective([1.1 * weight for weight in objective.weights()], batch)
    after = [variable.numpy() for variable in all_variables(model)]
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.losses == [] or make.__name__ == "regularized"


def all_variables(model):
    return [*model.variables, *model.metrics_variables]


def test_weights_are_mapped_not_read():
    model, data = least_squares()
    batch = HeldOutData(data).micro_batches(None)[0]
    objective = Objective(model)
    zero, _ = objective([tf.zeros_like(w) for w in objective.weights()], batch)
    assert float(zero) == pytest.approx(np.mean(data[1] ** 2), rel=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)


class OwnTrainStep(keras.Model):
    def train_step(self, data):
        return {"loss": keras.ops.zeros(())}


def own_train_step() -> OwnTrainStep:
    inputs = keras.Input((2,))
    model = OwnTrainStep(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    return model


def test_a_subclassed_model_is_measured_once_it_is_built():
    model = Subclassed()
    model.compile("sgd", "mse")
    data = (np.ones((3, 2)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="is not built, so it has no weights yet"):
        HessianOperator(model, data)
    model(data[0])
    assert HessianOperator(model, data).shape == (3, 3)


def test_a_train_step_of_its_own_warns_with_both_losses():
    with pytest.warns(UserWarning, match=r"compiled loss \('mse'\).*OwnTrainStep\.train_step"):
        Objective(own_train_step())


def test_loss_fn_says_which_loss_and_silences_the_warning(recwarn):
    Objective(own_train_step(), loss_fn=lambda model, x, y, w: tf.reduce_mean(model(x)))
    assert not recwarn.list


def uncompiled():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def without_trainable_weights():
    model = uncompiled()
    model.trainable = False
    model.compile("sgd", "mse")
    return model


def with_complex_weights():
    class Complex(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(2,), dtype="complex64", initializer="ones")

        def call(self, inputs):
            return inputs * keras.ops.real(self.w)

    model = keras.Sequential([keras.Input((2,)), Complex()])
    model.compile("sgd", "mse")
    return model


def legacy():
    module = types.ModuleType("tf_keras.src.engine.training")
    legacy_class = type("Functional", (), {"__module__": module.__name__})
    return legacy_class()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (uncompiled, ValueError, r"not compiled.*model\.compile\(loss=...\).*loss_fn="),
        (without_trainable_weights, ValueError, "no trainable weights"),
        (with_complex_weights, ValueError, "complex64.*real floating-point"),
        (legacy, TypeError, "tf_keras.src.engine.training.Functional.*import keras"),
        (lambda: "model", TypeError, "must be a keras.Model of Keras 3; got a builtins.str"),
    ],
)
def test_models_that_cannot_be_measured_are_refused_with_the_reason(make, error, message):
    with pytest.raises(error, match=message):
        Objective(make())


def test_loss_fn_must_be_a_function():
    with pytest.raises(TypeError, match=r"`loss_fn` must be a function.*got 'mse'"):
        Objective(tanh_classifier()[0], loss_fn="mse")


def test_another_backend_is_named(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"Keras runs on 'jax'.*KERAS_BACKEND=tensorflow"):
        Objective(tanh_classifier()[0])


def raw_variable_layer():
    class Counter(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.count = tf.Variable(0.0, trainable=False)

        def call(self, inputs):
            self.count.assign_add(1.0)
            return inputs

    return Counter()


def generator_layer():
    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.generator = tf.random.Generator.from_seed(1)

        def call(self, inputs):
            return inputs + self.generator.normal(tf.shape(inputs))

    return Noise()


def tf_random_layer():
    class Noise(keras.layers.Layer):
        def call(self, inputs):
            return inputs + tf.random.normal(tf.shape(inputs))

    return Noise()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (raw_variable_layer, "writes variables of its own.*AssignAdd"),
        (generator_layer, "writes variables of its own"),
        (tf_random_layer, "The loss changes between two calls.*RandomStandardNormal"),
    ],
)
def test_layers_that_are_no_function_of_the_weights_are_refused(make, message):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1), make()])
    model.compile("sgd", "mse")
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(ValueError, match=message):
        HessianOperator(model, (np.ones((3, 2)), np.ones((3, 1))))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda model, x, y, w: model(x), r"must be one real number; got shape \(3, 1\)"),
        (lambda model, x, y, w: None, "must be one real number; got None"),
        (lambda model, x, y, w: tf.constant(1), "dtype int32"),
        (lambda model, x, y, w: tf.reduce_mean(model(x)) / 0.0, "`loss_fn` returned -?inf"),
        (
            lambda model, x, y, w: tf.reduce_mean(model(x)) * tf.random.uniform([]),
            "`loss_fn` changes between two calls.*RandomUniform",
        ),
    ],
)
def test_a_loss_fn_without_one_fixed_finite_number_is_refused(loss_fn, message):
    with pytest.raises(ValueError, match=message):
        HessianOperator(uncompiled(), (np.ones((3, 2)), np.ones((3, 1))), loss_fn=loss_fn)


def compiled_call(**arguments):
    class Compiled(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def build(self, shape):
            self.dense.build(shape)

        @tf.function(**arguments)
        def call(self, inputs):
            if tf.reduce_sum(inputs) > 1e9:  # AutoGraph's work
                inputs = 0.0 * inputs
            return keras.ops.tanh(self.dense(inputs)) ** 3

    model = keras.Sequential([keras.Input((3,)), Compiled(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("arguments", [{}, {"jit_compile": True}])
@pytest.mark.parametrize("called_before", [False, True])
def test_a_tf_function_in_the_model_is_measured_right_and_left_alone(called_before, arguments):
    x, y = np.random.default_rng(0).normal(size=(6, 3)), np.ones((6, 1))
    model = compiled_call(**arguments)
    if called_before:
        model(x.astype("float32"))
        model.fit(x, y, verbose=0)
    exact = measure_curvature(model, (x, y), "autodiff")
    differences = measure_curvature(model, (x, y), "finite_difference")
    assert float(exact["trace"]) == pytest.approx(float(differences["trace"]), rel=2e-3)
    assert float(exact["trace"]) > 0.1
    model(x.astype("float32"))
    before = model.get_weights()
    model.fit(x, y, verbose=0)
    assert all(np.any(a != b) for a, b in zip(model.get_weights(), before, strict=True))


def test_a_loss_without_any_weight_is_refused():
    other, (x, y) = tanh_classifier()
    model, _ = tanh_classifier()

    def of_another_model(model, x, y, weight):
        return tf.reduce_mean(other(x))

    for loss_fn in (of_another_model, lambda model, x, y, weight: tf.constant(1.0)):
        with pytest.raises(ValueError, match="does not depend on any trainable weight"):
            HessianOperator(model, (x, y), loss_fn=loss_fn)


def test_a_loss_that_reads_the_variables_themselves_is_refused():
    model, (x, y) = tanh_classifier()
    kernel = model.layers[0].kernel.value

    def past_the_mapping(model, x, y, weight):
        return tf.reduce_mean(model(x)) + tf.reduce_sum(kernel**2)

    with pytest.raises(ValueError, match=r"reads the variable '.*kernel' itself"):
        HessianOperator(model, (x, y), loss_fn=past_the_mapping)


def test_a_missing_loss_or_target_is_said_with_the_way_out():
    model, (x, y) = tanh_classifier()
    with pytest.raises(ValueError, match=r"loss.*could not be computed.*Pass targets"):
        HessianOperator(model, (x, None))
    without = keras.Model(model.inputs, model.outputs)
    without.compile("sgd")
    with pytest.raises(ValueError, match=r"loss_fn=lambda.*No loss to compute"):
        HessianOperator(without, (x, y))


def test_the_error_of_the_model_is_kept():
    model, (_, y) = tanh_classifier()
    message = r"(?s)could not be called on the inputs of `data`.*expected axis -1.*value 4"
    with pytest.raises(ValueError, match=message):
        HessianOperator(model, (np.ones((10, 7)), y))


@pytest.mark.parametrize("products", ["autodiff", "finite_difference"])
def test_functions_wrapped_by_recompute_grad_beforehand_are_refused(products):
    """Their gradients by mapped weights are lost."""

    class Block(keras.layers.Layer):
        def build(self, shape):
            self.dense = keras.layers.Dense(4, activation="tanh")
            self.dense.build(shape)
            self.function = tf.recompute_grad(self.dense.call)

        def call(self, inputs):
            return self.function(inputs)

    model = keras.Sequential([keras.Input((3,)), Block(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="is lost when a value is put in place"):
        HessianOperator(model, (np.ones((4, 3)), np.ones((4, 1))), products=products)


def test_a_train_step_on_the_instance_is_noticed():
    model, data = tanh_classifier()
    model.train_step = lambda data: {}
    with pytest.warns(UserWarning, match="train_step"):
        HessianOperator(model, data)


def test_a_loss_fn_that_is_no_graph_is_refused():
    model, data = tanh_classifier()
    for loss_fn in (
        lambda model, x, y, w: tf.reduce_mean(model(x).numpy()),
        lambda model, x, y, w: np.mean(model.predict(x)),
    ):
        with pytest.raises(ValueError, match="`loss_fn` could not be computed on `data`"):
            HessianOperator(model, data, loss_fn=loss_fn)


def test_what_the_model_cannot_be_computed_on_says_so_with_gradients_of_its_own():
    """tf.nn.silu has one."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "silu")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"failed. Check that the model runs on `data`"):
        HessianOperator(model, (np.ones((8, 3), "float32"), np.full(8, 7)))


def test_a_loss_fn_of_other_arguments_is_refused():
    model, data = tanh_classifier()
    with pytest.raises(TypeError, match=r"`loss_fn` is called as loss_fn\(model, x, y, sample"):
        HessianOperator(model, data, loss_fn=lambda model, x: 0.0)


def test_a_loss_without_reduction_names_it():
    model, data = tanh_classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match="default `reduction`"):
        HessianOperator(model, data)


def test_training_mode_is_the_loss_of_a_training_step():
    """BatchNormalization by batch statistics, against differences of that loss's gradient."""

    def build():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(5, use_bias=False),
                keras.layers.BatchNormalization(),
                keras.layers.Activation("tanh"),
                keras.layers.LayerNormalization(),
                keras.layers.Dense(1),
            ]
        )
        model.compile("sgd", "mse")
        rng = np.random.default_rng(0)
        return model, (rng.normal(size=(10, 4)), rng.normal(size=(10, 1)))

    def in_training(model, x, y, weight):
        return model.compute_loss(x, y, model(x, training=True), weight)

    model, data = double_precision(build)
    before = [variable.numpy() for variable in model.variables]
    actual = HessianOperator(model, data, training=True).matmat(np.eye(46))
    after = [variable.numpy() for variable in model.variables]
    assert all(map(np.array_equal, before, after))
    expected = dense_hessian(model, data, in_training)
    assert np.abs(actual - expected).max() < 1e-8 * np.abs(expected).max()
    assert np.trace(actual) == pytest.approx(np.trace(expected), rel=1e-8)
    report = measure_curvature(model, data, "autodiff", training=True)
    assert report["frobenius_norm"].value == pytest.approx(np.linalg.norm(expected), rel=1e-8)


def test_dropout_masks_are_the_same_at_every_product_and_measurement():
    model, data = double_precision(batch_normalization_and_dropout)
    operator = HessianOperator(model, data, training=True)
    vector = np.random.default_rng(0).normal(size=operator.shape[0])
    first = operator.matvec(vector)
    model(np.ones((3, 4)), training=True)  # draws from the model's seeds
    np.testing.assert_array_equal(operator.matvec(vector), first)
    inference = HessianOperator(model, data).matvec(vector)
    assert np.linalg.norm(first - inference) > 0.1 * np.linalg.norm(inference)


def test_training_mode_takes_all_examples_at_once():
    model, data = batch_normalization_and_dropout()
    with pytest.raises(ValueError, match=r"training=True takes all examples.*batch_size=4"):
        HessianOperator(model, data, training=True, batch_size=4)
    with pytest.raises(TypeError, match="`training` must be True or False"):
        HessianOperator(model, data, training=1)
