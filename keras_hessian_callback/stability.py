"""Where an optimizer's steps turn unstable, and its preconditioner: read off the live optimizer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hessian_callback.linalg import pack
from keras_hessian_callback.second_order import is_lower_precision
from keras_hessian_callback.update_rules import RULES, Diagonal, steps_of, unwrapped

_CLIPPING = ("clipnorm", "global_clipnorm", "clipvalue")
_WITHOUT_A_THRESHOLD = {
    "Adafactor": "Adafactor scales its steps by the sizes of weights and updates",
    "Ftrl": "Ftrl sets the weights from the sum of all gradients",
    "Lamb": "Lamb scales its steps by the sizes of weights and updates",
    "Lion": "the steps of Lion have the same length at any curvature",
    "MultiOptimizer": "MultiOptimizer steps by several rules",
    "Muon": "Muon makes its steps orthogonal matrices, of the same length at any curvature",
    "ScheduleFreeAdamW": "ScheduleFreeAdamW averages its weights, by shares that shrink",
}


@dataclass(frozen=True)
class Stability:
    """What the largest eigenvalue is to be compared with.

    Attributes:
        threshold: Above it, full-batch steps on a quadratic loss with this Hessian grow without
            bound, in the state that the optimizer is in. None where there is none.
        reason: Why there is none, a sentence; empty where there is one.
        preconditioned: Whether it is the eigenvalues of D^-1/2 H D^-1/2, D the optimizer's
            `preconditioner`, that are to be compared; else those of H.
    """

    threshold: float | None
    reason: str
    preconditioned: bool


def stability(optimizer: Any, variables: Sequence[Any] = ()) -> Stability:
    """The threshold of an optimizer in its present state.

    With the step eta (schedules at their present value):

        SGD                            2 / eta
        SGD, momentum b                (2 + 2 b) / eta
        SGD, Nesterov momentum b       (2 + 2 b) / ((1 + 2 b) eta)
        Adam, AdamW, Adamax            (2 + 2 b1) / ((1 - b1) eta)
        Nadam, after its first steps   (2 + 2 b1) / ((1 - b1) (1 + 2 b1) eta)
        RMSprop, Adagrad, Adadelta     (2 + 2 b) / eta, b = 0 unless RMSprop has a momentum

    and 2 - eta d for the 2 in each where there is a decoupled weight decay d. From Adam on it is
    that of the preconditioned Hessian. Derived in update_rules.py.

    Args:
        optimizer: A `keras.optimizers.Optimizer`, or None. Not changed.
        variables: That it trains; none: those that it was built with, if it was.

    Returns:
        The threshold; where there is none or it is not known, the reason.

    Example:

        >>> import keras
        >>> from keras_hessian_callback.stability import stability
        >>> round(stability(keras.optimizers.SGD(0.5, momentum=0.9)).threshold, 4)
        7.6
        >>> stability(keras.optimizers.Lion()).reason
        'There is no threshold: the steps of Lion have the same length at any curvature.'

    References:
        Cohen et al., "Gradient descent on neural networks typically occurs at the edge of
        stability" (2021), arXiv:2103.00065; "Adaptive gradient methods at the edge of
        stability" (2022), arXiv:2207.14484.
    """
    optimizer = unwrapped(optimizer)
    rule = RULES.get(type(optimizer))
    preconditioned = rule is not None and rule.diagonal is not None
    reason = _what_is_in_the_way(optimizer, variables)
    if rule is None or reason:
        return Stability(None, f"There is no threshold: {reason}.", preconditioned)
    step, decay = learning_rate(optimizer), optimizer.weight_decay or 0.0
    b, p, q = rule.recursion(optimizer)
    threshold = (1.0 + b) * (2.0 - step * decay) / (step * (p + q * (1.0 + b)))
    if not threshold > 0.0:
        reason = "weight decay alone overshoots at this step size"
        return Stability(None, f"There is no threshold: {reason}.", preconditioned)
    return Stability(threshold, "", preconditioned)


def preconditioner(optimizer: Any, variables: Sequence[Any], dtype: np.dtype) -> tf.Tensor:
    """The diagonal D that an optimizer divides by, as of its last step.

        Adam, AdamW    (sqrt(v) + epsilon) (1 - b1^t) / sqrt(1 - b2^t), v the maximum by amsgrad
        Nadam          sqrt(v / (1 - b2^t)) + epsilon
        Adamax         (u + epsilon) (1 - b1^t)
        RMSprop        sqrt(v + epsilon), v less the square of the mean if centered
        Adagrad        sqrt(v + epsilon)
        Adadelta       sqrt(v + epsilon) / sqrt(s + epsilon), s of the squared steps

    after t steps. All bias corrections are in D, so that the threshold is that of the step as
    it is set. A weight whose gradient was always 0 has a D of about epsilon.

    Args:
        optimizer: A `keras.optimizers.Optimizer`. Not changed.
        variables: Trainable variables that it was built with, in the order of the result.
        dtype: Of the result.

    Returns:
        (n,) tensor. Not finite where the optimizer's state is not.

    Raises:
        ValueError: If the optimizer has no such diagonal, or made no step yet: D is then 0, or
            says nothing of the gradients.
    """
    optimizer = unwrapped(optimizer)
    diagonal = _diagonal(optimizer)
    if not has_made_a_step(optimizer):
        raise ValueError(
            f"preconditioned=True needs the state that {_name(optimizer)} has after a step, and "
            "it made none yet. Call `fit` before, or measure with preconditioned=False."
        )
    kind = tf.as_dtype(dtype)
    packed = pack([diagonal(optimizer, i, kind) for i in _places(optimizer, variables)], kind)
    if bool(tf.reduce_any(packed <= 0.0)):  # NaN passes: it is to be seen
        raise ValueError(
            f"{_name(optimizer)} divides by 0: its epsilon is 0, and a weight has had no gradient "
            "yet. Use an epsilon above 0, or preconditioned=False."
        )
    return packed


def has_made_a_step(optimizer: Any) -> bool:
    """Whether the optimizer has a state; with accumulated gradients it may take some batches."""
    optimizer = unwrapped(optimizer)
    return bool(optimizer.built and steps_of(optimizer) > 0)


def check_has_preconditioner(optimizer: Any, variables: Sequence[Any]) -> None:
    """Raises ValueError unless the optimizer has a diagonal preconditioner of these variables."""
    optimizer = unwrapped(optimizer)
    _diagonal(optimizer)
    if _in_half_precision(variables):
        raise ValueError(
            f"preconditioned=True needs weights in float32 or float64: {_name(optimizer)} rounds "
            "its bias corrections where they are in half precision. A policy such as mixed_float16 "
            "keeps weights in float32."
        )
    if getattr(optimizer, "beta_2", 0.0) >= 1.0:
        raise ValueError(
            f"preconditioned=True needs beta_2 below 1; {_name(optimizer)} has "
            f"beta_2={optimizer.beta_2}, with which no squares are averaged."
        )
    if optimizer.built:
        _places(optimizer, variables)


def _in_half_precision(variables: Sequence[Any]) -> bool:
    return any(is_lower_precision(variable.dtype) for variable in variables)


def _diagonal(optimizer: Any) -> Diagonal:
    rule = RULES.get(type(optimizer))
    if rule is None or rule.diagonal is None:
        known = ", ".join(kind.__name__ for kind, rule in RULES.items() if rule.diagonal)
        raise ValueError(
            "preconditioned=True measures the Hessian over the diagonal that the optimizer "
            f"divides by, which is read off {known}; got {_name(optimizer)}. Use "
            "preconditioned=False."
        )
    return rule.diagonal


def _name(optimizer: Any) -> str:
    return "no optimizer" if optimizer is None else type(optimizer).__name__


def _what_is_in_the_way(optimizer: Any, variables: Sequence[Any]) -> str:
    """Why there is no threshold; empty where there is one."""
    name = _name(optimizer)
    if optimizer is None:
        return "the model has no optimizer"
    if type(optimizer) not in RULES:
        if type(optimizer) is getattr(keras.optimizers, name, None):
            return _WITHOUT_A_THRESHOLD.get(name, f"the update rule of {name} is not known here")
        return f"{name} is not one of the optimizers of Keras, and its update rule not known here"
    for setting in _CLIPPING:
        if getattr(optimizer, setting):
            return f"{setting} may shorten any step"
    if optimizer.use_ema and optimizer.ema_overwrite_frequency:
        return "ema_overwrite_frequency replaces the weights by their average"
    variables = variables or getattr(optimizer, "_trainable_variables", ())
    if any(getattr(variable, "constraint", None) for variable in variables):
        return "a constraint changes weights after the step"
    if RULES[type(optimizer)].diagonal is not None and _in_half_precision(variables):
        return f"{name} rounds its bias corrections where weights are in half precision"
    partial = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    if optimizer.weight_decay and any(getattr(optimizer, each, None) for each in partial):
        return "weight decay leaves out some of the weights"
    step = learning_rate(optimizer)
    if math.isnan(step):
        return "the learning rate is a function or schedule of your own, or no number"
    if not step > 0.0:
        return "the learning rate is not above 0"
    if type(optimizer) is keras.optimizers.Nadam and steps_of(optimizer) == 0:
        return "Nadam made no step yet, which its momentum depends on"
    if not 0.0 <= RULES[type(optimizer)].recursion(optimizer)[0] < 1.0:
        return "the momentum is not below 1"
    return ""


def learning_rate(optimizer: Any) -> float:
    """The step size at present; NaN where the user computes it, or it is no single number.

    Functions and schedules other than Keras' own are not called: they may count their calls,
    which training is to make alone.
    """
    given = getattr(optimizer, "_learning_rate", math.nan)
    kind = type(given)
    is_of_keras = kind is getattr(keras.optimizers.schedules, kind.__name__, None)
    if callable(given) and not (is_of_keras or isinstance(given, keras.Variable)):
        return math.nan
    value = np.asarray(keras.ops.convert_to_numpy(optimizer.learning_rate))
    return float(value) if value.ndim == 0 else math.nan


def _places(optimizer: Any, variables: Sequence[Any]) -> list[int]:
    """Where the optimizer keeps the state of each variable."""
    try:
        return [optimizer._get_variable_index(variable) for variable in variables]
    except KeyError as error:
        raise ValueError(
            f"{_name(optimizer)} was built with other trainable weights than the model has now. "
            "Compile the model anew after `trainable` is changed."
        ) from error
