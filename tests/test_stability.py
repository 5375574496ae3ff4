"""Thresholds against what the optimizers of Keras do on quadratic losses."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback.stability import (
    Stability,
    check_has_preconditioner,
    preconditioner,
    stability,
)
from tests.oracles import symmetric_matrix

SIZE = 5
FROZEN = 1.0 - 2.0**-24  # a decay so slow that averages stay; Keras has some in float32
LATE = 10**10  # steps after which bias corrections by FROZEN are over
EPSILON = 1e-3
DIAGONAL = np.linspace(0.2, 3.0, SIZE)
F64 = np.dtype("float64")
optimizers = keras.optimizers


def variable(value) -> keras.Variable:
    return keras.Variable(np.asarray(value, "float64"), dtype="float64")


def built(optimizer, weights, *, diagonal=None, steps=LATE):
    """The optimizer with a state in which it divides by `diagonal`, and goes on doing so."""
    optimizer.build([weights])
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    getattr(inner, "_iterations", inner.iterations).assign(steps)
    if diagonal is None:
        return optimizer
    kind = type(inner).__name__
    if kind in ("Adam", "AdamW", "Nadam"):
        squares = inner._velocity_hats if getattr(inner, "amsgrad", False) else inner._velocities
        squares[0].assign((diagonal - EPSILON) ** 2)
    elif kind == "Adamax":
        inner._u[0].assign(diagonal - EPSILON)
    elif kind == "RMSprop":
        mean = 0.7 if inner.centered else 0.0
        inner._velocities[0].assign(diagonal**2 + mean**2 - EPSILON)
        if inner.centered:
            inner._average_gradients[0].assign(np.full(SIZE, mean))
    elif kind == "Adagrad":
        inner._accumulators[0].assign(diagonal**2 - EPSILON)
    else:
        inner._accumulated_grads[0].assign(4.0 * diagonal**2 - EPSILON)
        inner._accumulated_delta_vars[0].assign(np.full(SIZE, 4.0 - EPSILON))
    if kind == "Nadam":
        inner._u_product.assign(0.0)
    return optimizer


def growth(optimizer, weights, hessian) -> float:
    """How many times longer the weights are after 200 steps on 1/2 w'Hw, or when it is 1,000."""

    @tf.function
    def step():
        gradient = tf.linalg.matvec(tf.constant(hessian), weights.value)
        optimizer.apply([optimizer.scale_loss(gradient)], [weights])

    start = np.linalg.norm(weights.numpy())
    for _ in range(200 * (optimizer.gradient_accumulation_steps or 1)):
        step()
        times = float(np.linalg.norm(weights.numpy()) / start)
        if times > 1000.0:  # before the gradients are seen in what they are divided by
            break
    return times


def check_dynamics(make, *, preconditioned: bool) -> None:
    """Steps shrink the weights at 0.97 of the threshold and let them grow at 1.03."""
    diagonal = DIAGONAL if preconditioned else None
    for factor in (0.97, 1.03):
        weights = variable(1e-9 * np.random.default_rng(1).normal(size=SIZE))
        optimizer = built(make(), weights, diagonal=diagonal)
        found = stability(optimizer)
        assert found.reason == ""
        assert found.preconditioned == preconditioned
        largest = factor * found.threshold
        hessian = symmetric_matrix(largest * np.linspace(0.3, 1.0, SIZE))
        if preconditioned:
            hessian *= np.sqrt(np.outer(DIAGONAL, DIAGONAL))
            assert preconditioner(optimizer, [weights], F64).numpy() == pytest.approx(DIAGONAL)
        changed = growth(optimizer, weights, hessian)
        assert changed < 0.01 if factor < 1.0 else changed > 100.0
        assert stability(optimizer) == found  # nothing moved meanwhile


GRADIENT_DESCENT = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "nesterov, little momentum": lambda: optimizers.SGD(0.1, momentum=0.2, nesterov=True),
    "nesterov, none": lambda: optimizers.SGD(0.1, nesterov=True),
    "decay": lambda: optimizers.SGD(0.1, weight_decay=8.0),
    "momentum, decay": lambda: optimizers.SGD(0.1, momentum=0.8, weight_decay=5.0),
    "nesterov, decay": lambda: optimizers.SGD(0.1, momentum=0.8, nesterov=True, weight_decay=5.0),
    "average": lambda: optimizers.SGD(0.1, momentum=0.5, use_ema=True),
    "accumulated": lambda: optimizers.SGD(0.1, momentum=0.5, gradient_accumulation_steps=2),
    "loss scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1, momentum=0.5), dynamic_growth_steps=10
    ),
    "fixed loss scale": lambda: optimizers.SGD(0.1, loss_scale_factor=64.0),
    "schedule": lambda: optimizers.SGD(
        optimizers.schedules.PiecewiseConstantDecay([2], [9.0, 0.2]), momentum=0.9
    ),
}

ADAPTIVE = {
    "adam": lambda: optimizers.Adam(0.1, beta_2=FROZEN, epsilon=EPSILON),
    "adam, little momentum": lambda: optimizers.Adam(
        0.1, beta_1=0.3, beta_2=FROZEN, epsilon=EPSILON
    ),
    "adam, none": lambda: optimizers.Adam(0.1, beta_1=0.0, beta_2=FROZEN, epsilon=EPSILON),
    "amsgrad": lambda: optimizers.Adam(0.1, beta_2=FROZEN, epsilon=EPSILON, amsgrad=True),
    "adamw": lambda: optimizers.AdamW(0.1, 7.0, beta_2=FROZEN, epsilon=EPSILON),
    "adam, loss scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.Adam(0.1, beta_2=FROZEN, epsilon=EPSILON)
    ),
    "adam, accumulated": lambda: optimizers.Adam(
        0.1, beta_2=FROZEN, epsilon=EPSILON, gradient_accumulation_steps=2
    ),
    "nadam": lambda: optimizers.Nadam(0.1, beta_2=FROZEN, epsilon=EPSILON),
    "nadam, decay": lambda: optimizers.Nadam(
        0.1, beta_1=0.7, beta_2=FROZEN, epsilon=EPSILON, weight_decay=6.0
    ),
    "adamax": lambda: optimizers.Adamax(0.1, beta_2=FROZEN, epsilon=EPSILON),
    "rmsprop": lambda: optimizers.RMSprop(0.1, rho=FROZEN, epsilon=EPSILON),
    "rmsprop, momentum": lambda: optimizers.RMSprop(
        0.1, rho=FROZEN, epsilon=EPSILON, momentum=0.8, weight_decay=4.0
    ),
    "centered": lambda: optimizers.RMSprop(0.1, rho=FROZEN, epsilon=EPSILON, centered=True),
    "adagrad": lambda: optimizers.Adagrad(0.1, epsilon=EPSILON),
    "adadelta": lambda: optimizers.Adadelta(0.1, rho=FROZEN, epsilon=EPSILON),
}


@pytest.mark.parametrize("name", GRADIENT_DESCENT)
def test_gradient_descent_turns_unstable_at_its_threshold(name):
    check_dynamics(GRADIENT_DESCENT[name], preconditioned=False)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_optimizers_turn_unstable_at_their_threshold(name):
    check_dynamics(ADAPTIVE[name], preconditioned=True)


def test_the_check_would_see_a_threshold_that_is_off(monkeypatch):
    wrong = Stability(1.05 * 2.0 / 0.1, "", preconditioned=False)
    monkeypatch.setattr("tests.test_stability.stability", lambda optimizer: wrong)
    with pytest.raises(AssertionError):
        check_dynamics(GRADIENT_DESCENT["sgd"], preconditioned=False)


def step_matrix(make, curvature: float, step: int):
    """The linear map of (weight, momentum) by the step-th step, and the optimizer after it."""
    columns = []
    for weight, momentum in ((1e-6, 0.0), (0.0, 1e-6)):
        weights = variable([weight])
        optimizer = make()
        optimizer.build([weights])
        for _ in range(step - 1):
            optimizer.apply([np.ones(1)], [weights])
        weights.assign([weight])
        optimizer._momentums[0].assign([momentum])
        optimizer.apply([curvature * weights.numpy()], [weights])
        columns.append([weights.numpy()[0], optimizer._momentums[0].numpy()[0]])
    return np.array(columns).T / 1e-6, optimizer, weights


@pytest.mark.parametrize("step", [2, 3, 30])
@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.Adam(0.01),
        lambda: optimizers.Adam(0.01, amsgrad=True, beta_2=0.9),
        lambda: optimizers.AdamW(0.01, weight_decay=10.0),
        lambda: optimizers.Nadam(0.01),
        lambda: optimizers.Nadam(0.01, beta_1=0.5, beta_2=0.9, weight_decay=10.0),
    ],
)
def test_early_steps_have_the_threshold_of_their_bias_corrections(make, step):
    """A root of the step's own matrix passes -1 there, and nothing leaves the circle before."""
    _, optimizer, weights = step_matrix(make, 0.0, step)
    scale = float(preconditioner(optimizer, [weights], F64).numpy()[0])
    threshold = stability(optimizer).threshold
    radius = {}
    for factor in (0.5, 0.97, 1.0, 1.03):
        matrix, *_ = step_matrix(make, factor * threshold * scale, step)
        roots = np.linalg.eigvals(matrix)
        radius[factor] = np.abs(roots).max()
        if factor == 1.0:
            assert np.abs(roots + 1.0).min() < 1e-3  # Keras has its betas in single precision
    assert radius[1.0] == pytest.approx(1.0, abs=1e-3)
    assert max(radius[0.5], radius[0.97]) < 0.999
    assert radius[1.03] > 1.001


@pytest.mark.parametrize(
    ("make", "moved_by"),
    [
        (lambda: optimizers.Adam(0.1), lambda o, g: o._momentums),
        (lambda: optimizers.Adam(0.1, amsgrad=True, beta_2=0.5), lambda o, g: o._momentums),
        (lambda: optimizers.Adamax(0.1), lambda o, g: o._m),
        (lambda: optimizers.RMSprop(0.1), lambda o, g: g),
        (lambda: optimizers.RMSprop(0.1, centered=True), lambda o, g: g),
        (lambda: optimizers.Adagrad(0.1), lambda o, g: g),
    ],
)
def test_a_step_is_divided_by_the_preconditioner(make, moved_by):
    """Two variables, with random gradients, after 1, 2 and 3 steps."""
    rng = np.random.default_rng(0)
    optimizer, weights = make(), [variable(np.zeros((2, 3))), variable(np.zeros(4))]
    for _ in range(3):
        before = np.concatenate([w.numpy().ravel() for w in weights])
        gradients = [rng.normal(size=w.shape) for w in weights]
        optimizer.apply([tf.constant(g) for g in gradients], weights)
        after = np.concatenate([w.numpy().ravel() for w in weights])
        moved = np.concatenate([np.ravel(m) for m in moved_by(optimizer, gradients)])
        diagonal = preconditioner(optimizer, weights, F64)
        assert diagonal.dtype == tf.float64
        np.testing.assert_allclose((before - after) * diagonal, 0.1 * moved, rtol=1e-5)
    backwards = preconditioner(optimizer, weights[::-1], F64).numpy()
    np.testing.assert_array_equal(backwards, np.roll(diagonal, 4))


def test_the_closed_forms():
    step = 0.25
    weights = variable(np.zeros(SIZE))
    for make, expected in (
        (lambda: optimizers.SGD(step), 2.0 / step),
        (lambda: optimizers.SGD(step, momentum=0.9), 3.8 / step),
        (lambda: optimizers.SGD(step, momentum=0.9, nesterov=True), 3.8 / 2.8 / step),
        (lambda: optimizers.Adam(step), 38.0 / step),
        (lambda: optimizers.Adamax(step), 38.0 / step),
        (lambda: optimizers.AdamW(step, weight_decay=0.4), 19.0 * (2.0 / step - 0.4)),
        (lambda: optimizers.RMSprop(step), 2.0 / step),
        (lambda: optimizers.RMSprop(step, momentum=0.9), 3.8 / step),
    ):
        assert stability(make()).threshold == pytest.approx(expected)
    nadam = built(optimizers.Nadam(step), weights, diagonal=DIAGONAL)
    assert stability(nadam).threshold == pytest.approx(38.0 / 2.8 / step)


def test_it_is_read_off_the_live_optimizer():
    optimizer = optimizers.SGD(0.1)
    optimizer.learning_rate = 0.5
    assert stability(optimizer).threshold == pytest.approx(4.0)
    schedule = optimizers.schedules.PolynomialDecay(1.0, 10, 0.5)
    optimizer, weights = optimizers.SGD(schedule), variable([1.0])
    assert stability(optimizer).threshold == pytest.approx(2.0)
    for _ in range(10):
        optimizer.apply([np.zeros(1)], [weights])
    assert stability(optimizer).threshold == pytest.approx(4.0)


class OwnStep(optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, gradient)


class Lion(optimizers.SGD):
    """Of the name of one of Keras."""


def constrained():
    optimizer = optimizers.SGD()
    layer = keras.layers.Dense(2, kernel_constraint="non_neg")
    layer.build((None, 3))
    optimizer.build(layer.trainable_variables)
    return optimizer


def partly_decayed():
    optimizer = optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


class OwnSchedule(optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        raise AssertionError("only training may call it")


def test_what_the_weights_are_is_known_before_the_optimizer_is_built():
    kept = keras.Variable(np.ones(2))
    kept.constraint = keras.constraints.NonNeg()
    assert stability(optimizers.SGD(0.1)).threshold == pytest.approx(20.0)
    assert "a constraint changes" in stability(optimizers.SGD(0.1), [kept]).reason
    half = keras.Variable(np.ones(2), dtype="bfloat16")
    assert "half precision" in stability(optimizers.Adam(), [half]).reason
    assert stability(optimizers.SGD(0.1), [half]).threshold == pytest.approx(20.0)
    with pytest.raises(ValueError, match="needs weights in float32 or float64: Adam rounds"):
        check_has_preconditioner(optimizers.Adam(), [half])
    with pytest.raises(ValueError, match=r"needs beta_2 below 1; Adam has beta_2=1\.0"):
        check_has_preconditioner(optimizers.Adam(beta_2=1.0), [keras.Variable(np.ones(2))])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: None, "the model has no optimizer"),
        (lambda: optimizers.Lion(), "the same length at any curvature"),
        (lambda: optimizers.Ftrl(), "sum of all gradients"),
        (lambda: optimizers.Adafactor(), "sizes of weights"),
        (lambda: OwnStep(), "OwnStep is not one of the optimizers of Keras"),
        (lambda: Lion(), "Lion is not one of the optimizers of Keras"),
        (lambda: optimizers.SGD(clipnorm=1.0), "clipnorm may shorten any step"),
        (lambda: optimizers.Adam(clipvalue=1.0), "clipvalue may shorten any step"),
        (lambda: optimizers.Adam(global_clipnorm=1.0), "global_clipnorm may shorten any step"),
        (lambda: optimizers.SGD(use_ema=True, ema_overwrite_frequency=5), "by their average"),
        (constrained, "a constraint changes weights"),
        (partly_decayed, "weight decay leaves out some of the weights"),
        (lambda: optimizers.SGD(lambda: 0.1), "learning rate is a function"),
        (lambda: optimizers.SGD(OwnSchedule()), "a function or schedule of your own"),
        (lambda: optimizers.SGD(0.0), "learning rate is not above 0"),
        (lambda: optimizers.Nadam(), "Nadam made no step yet"),
        (lambda: optimizers.SGD(momentum=1.0), "momentum is not below 1"),
        (lambda: optimizers.SGD(1.0, weight_decay=3.0), "weight decay alone overshoots"),
    ],
)
def test_where_there_is_no_threshold_there_is_a_reason(make, reason):
    found = stability(make())
    assert found.threshold is None
    assert found.reason.startswith("There is no threshold: ")
    assert found.reason.endswith(".")
    assert reason in found.reason


def test_every_optimizer_of_keras_has_a_threshold_or_a_reason_of_its_own():
    kinds = {
        name: kind
        for name, kind in vars(optimizers).items()
        if isinstance(kind, type) and issubclass(kind, optimizers.Optimizer)
    }
    assert len(kinds) >= 13
    for name, kind in kinds.items():
        if name in ("Optimizer", "LossScaleOptimizer"):  # to be inherited from, or around another
            continue
        optimizer = kind(lambda variable: None) if name == "MultiOptimizer" else kind()
        found = stability(optimizer)
        assert "not known" not in found.reason, name
        assert (found.threshold is None) == (found.reason != "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "read off Adam, AdamW, Adamax, Nadam.*got no optimizer"),
        (lambda: optimizers.SGD(), r"got SGD\. Use preconditioned=False"),
        (lambda: optimizers.Lion(), "got Lion"),
        (lambda: optimizers.Adam(), "Adam has after a step, and it made none yet"),
        (lambda: built(optimizers.Adam(), variable([1.0]), steps=0), "made none yet"),
        (
            lambda: built(optimizers.LossScaleOptimizer(optimizers.Adam()), variable([1.0])),
            "Adam was built with other trainable weights",
        ),
    ],
)
def test_where_there_is_no_preconditioner_the_error_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        preconditioner(make(), [variable(np.ones(2))], F64)


def test_a_weight_without_gradients_is_divided_by_epsilon():
    weights = variable(np.ones(2))
    optimizer = optimizers.Adam(beta_1=0.5, beta_2=0.9, epsilon=1e-3)
    optimizer.apply([np.array([2.0, 0.0])], [weights])
    expected = 0.5 * np.array([2.0 + 1e-3 / math.sqrt(0.1), 1e-3 / math.sqrt(0.1)])
    assert preconditioner(optimizer, [weights], F64).numpy() == pytest.approx(expected)
    optimizer.epsilon = 0.0
    with pytest.raises(ValueError, match="Adam divides by 0: its epsilon is 0"):
        preconditioner(optimizer, [weights], F64)


def test_a_state_that_is_not_finite_shows():
    weights = variable(np.ones(2))
    optimizer = optimizers.Adam()
    optimizer.apply([np.array([np.nan, 1.0])], [weights])
    assert np.isnan(preconditioner(optimizer, [weights], F64).numpy()).tolist() == [True, False]


def test_half_precision_is_read_in_single_precision():
    weights = keras.Variable(np.ones(2), dtype="bfloat16")
    optimizer = optimizers.Adam(beta_2=0.5)
    optimizer.apply([tf.constant([1.0, 2.0], "bfloat16")], [weights])
    found = preconditioner(optimizer, [weights], np.dtype("float32"))
    assert found.dtype == tf.float32
    assert found.numpy() == pytest.approx([0.1, 0.2], rel=1e-2)
