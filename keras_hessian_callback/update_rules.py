"""How the optimizers of Keras step, as linear recursions.

For a quadratic loss with the Hessian H, and with everything but weights and momentum held as it
is, those that stand here make the step

    m' = b m + H w,    w' = (1 - eta d) w - eta D^-1 (p m' + q H w)

with the step eta, the decoupled weight decay d, and a positive diagonal D (1 where there is no
preconditioner). In the basis of eigenvectors of D^-1/2 H D^-1/2 it falls apart into 2 x 2
matrices with the trace T = 1 - eta d - eta l (p + q) + b and the determinant
E = b (1 - eta d) - eta l b q, one for each eigenvalue l. Their eigenvalues lie in the unit
circle where |E| < 1, T < 1 + E and T > -1 - E. For 0 <= b < 1 and l > 0 the last of these breaks
first, as l grows: a root passes -1, and the weights flip from side to side, at

    l = (1 + b) (2 - eta d) / (eta (p + q (1 + b)))

Weight decay is no part of the loss, so it lowers the threshold instead of raising H.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

Recursion = Callable[[Any], tuple[float, float, float]]
Diagonal = Callable[[Any, int, tf.DType], tf.Tensor]


class Rule(NamedTuple):
    """How an optimizer steps.

    Attributes:
        recursion: b, p and q of an optimizer.
        diagonal: D of an optimizer, for the variable at a place, in a dtype; None: it is 1.
    """

    recursion: Recursion
    diagonal: Diagonal | None = None


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that makes the steps: a loss scale is divided out before."""
    wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return optimizer.inner_optimizer if wrapped else optimizer


def steps_of(optimizer: Any) -> int:
    """Steps made, as bias corrections count them."""
    count = int(keras.ops.convert_to_numpy(optimizer.iterations))
    if not hasattr(optimizer, "_iterations"):  # Keras 3.4: the last batch that was stepped after
        count -= count % (optimizer.gradient_accumulation_steps or 1)
    return count


def _read(variables: Sequence[Any], place: int, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variables[place].value), dtype)


def _gradient_descent(optimizer: Any) -> tuple[float, float, float]:
    return 0.0, 1.0, 0.0


def _momentum(optimizer: Any) -> tuple[float, float, float]:
    b = optimizer.momentum
    return (b, b, 1.0) if getattr(optimizer, "nesterov", False) else (b, 1.0, 0.0)


def _moving_average(optimizer: Any) -> tuple[float, float, float]:
    return optimizer.beta_1, 1.0 - optimizer.beta_1, 0.0


def _nadam(optimizer: Any) -> tuple[float, float, float]:
    b, steps = optimizer.beta_1, steps_of(optimizer)
    now, ahead = (b * (1.0 - 0.5 * 0.96**step) for step in (steps, steps + 1))
    product = float(keras.ops.convert_to_numpy(optimizer._u_product))
    return b, (1.0 - b) * ahead / (1.0 - product * ahead), (1.0 - now) / (1.0 - product)


def _of_adam(optimizer: Any, place: int, dtype: tf.DType) -> tf.Tensor:
    steps = steps_of(optimizer)
    squares = optimizer._velocity_hats if optimizer.amsgrad else optimizer._velocities
    correction = (1.0 - optimizer.beta_1**steps) / math.sqrt(1.0 - optimizer.beta_2**steps)
    return (tf.sqrt(_read(squares, place, dtype)) + optimizer.epsilon) * correction


def _of_nadam(optimizer: Any, place: int, dtype: tf.DType) -> tf.Tensor:
    correction = 1.0 - optimizer.beta_2 ** steps_of(optimizer)
    return tf.sqrt(_read(optimizer._velocities, place, dtype) / correction) + optimizer.epsilon


def _of_adamax(optimizer: Any, place: int, dtype: tf.DType) -> tf.Tensor:
    correction = 1.0 - optimizer.beta_1 ** steps_of(optimizer)
    return (_read(optimizer._u, place, dtype) + optimizer.epsilon) * correction


def _of_rmsprop(optimizer: Any, place: int, dtype: tf.DType) -> tf.Tensor:
    squares = _read(optimizer._velocities, place, dtype)
    if optimizer.centered:
        squares -= tf.square(_read(optimizer._average_gradients, place, dtype))
    return tf.sqrt(squares + optimizer.epsilon)


def _of_adagrad(optimizer: Any, place: int, dtype: tf.DType) -> tf.Tensor:
    return tf.sqrt(_read(optimizer._accumulators, place, dtype) + optimizer.epsilon)


def _of_adadelta(optimizer: Any, place: int, dtype: tf.DType) -> tf.Tensor:
    gradients = _read(optimizer._accumulated_grads, place, dtype) + optimizer.epsilon
    steps = _read(optimizer._accumulated_delta_vars, place, dtype) + optimizer.epsilon
    return tf.sqrt(gradients / steps)


RULES = {  # by the very class: what inherits from one may step in another way
    keras.optimizers.SGD: Rule(_momentum),
    keras.optimizers.Adam: Rule(_moving_average, _of_adam),
    keras.optimizers.AdamW: Rule(_moving_average, _of_adam),
    keras.optimizers.Adamax: Rule(_moving_average, _of_adamax),
    keras.optimizers.Nadam: Rule(_nadam, _of_nadam),
    keras.optimizers.RMSprop: Rule(_momentum, _of_rmsprop),
    keras.optimizers.Adagrad: Rule(_gradient_descent, _of_adagrad),
    keras.optimizers.Adadelta: Rule(_gradient_descent, _of_adadelta),
}
