"""Runs a row on TensorFlow: the package's Hessian, plain TensorFlow's, and the oracle's."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from keras_hessian_callback import HessianOperator
from tests.second_derivatives.row import (
    DIFFERENCES,
    DUMMY,
    MENDED,
    REFUSED,
    RIGHT,
    Derivatives,
    Probe,
    Row,
    build,
    loss,
    precision,
)

WRONG = "WRONG"
# Relative to the largest entry, per variable.
TOLERANCE = {"float64": 1e-6, "float32": 3e-5}
FIRST_TOLERANCE = {"float64": 1e-6, "float32": 1e-4}
DIFFERENCES_TOLERANCE = {"float64": 1e-5, "float32": 3e-2}
PRODUCTS = "auto" if '"auto"' in (HessianOperator.__doc__ or "") else "autodiff"
_NO_GRADIENT = (LookupError, NotImplementedError, TypeError, ValueError)


@dataclass(frozen=True)
class Outcome:
    """What came out of a row."""

    verdict: str
    error: float  # of the package's Hessian, relative, of the worst variable
    plain: str  # what plain TensorFlow did
    message: str = ""  # of the refusal, or of the warning
    jax: str = ""  # whether JAX, where it was asked, says the same


def check(row: Row, jax: Derivatives | None = None) -> Outcome:
    """The verdict on a row; with JAX's derivatives where its oracle is JAX, or for comparison."""
    with precision(row.dtype):
        model = build(row)
        sizes = [int(np.prod(v.shape)) for v in model.trainable_variables]
        state = [(v, v.numpy()) for v in model.non_trainable_variables]

        def reset() -> None:
            """Seeds and statistics, which a call in training mode moves, as they were."""
            for variable, value in state:
                variable.assign(value)

        ours, products, message = package_hessian(model)
        reset()
        try:
            value, gradient = (np.atleast_2d(part) for part in _gradient(model))
        except (*_NO_GRADIENT, tf.errors.OpError) as failure:
            if ours is not None:
                raise
            return Outcome(REFUSED, np.nan, f"raises {_words(failure)}", message)
        if row.oracle == "jax":
            if jax is None:
                raise ValueError(f"{row.key} wants JAX's derivatives.")
            reference = jax
        else:
            reference = by_differences(model, reset)
        plain = plain_outcome(model, reset, reference.hessian, sizes)
        tolerance = (DIFFERENCES_TOLERANCE if products == "finite_difference" else TOLERANCE)[
            row.dtype
        ]
        against_jax = ""
        if jax is not None:
            against_jax = _against_jax(value, gradient, ours, jax, tolerance, sizes)
        first = relative_error(gradient.T, reference.gradient.T, sizes)
        if ours is None:
            return Outcome(REFUSED, np.nan, plain, message, against_jax)
        error = relative_error(ours, reference.hessian, sizes)
        if first > FIRST_TOLERANCE[row.dtype]:
            plain, verdict = f"first derivative wrong by {100 * first:.1g} %", WRONG
        elif not error <= tolerance:
            verdict = WRONG
        elif products == "finite_difference":
            verdict = DIFFERENCES
        else:
            verdict = RIGHT if plain == RIGHT else MENDED
        return Outcome(verdict, error, plain, message, against_jax)


def _against_jax(
    value: np.ndarray,
    gradient: np.ndarray,
    hessian: np.ndarray | None,
    jax: Derivatives,
    tolerance: float,
    sizes: list[int],
) -> str:
    # Each framework rounds to float32 somewhere: relative to the largest entry of all.
    tolerance, sizes = max(1e-5, tolerance), [sum(sizes)]
    if not np.allclose(value, jax.loss[:, :1], rtol=tolerance):
        return f"another loss: {value.item():.6g}, {jax.loss[0, 0]:.6g}"
    error = relative_error(gradient.T, jax.gradient.T, sizes)
    if not error <= tolerance:
        return f"another gradient, by {error:.1e}"
    error = 0.0 if hessian is None else relative_error(hessian, jax.hessian, sizes)
    return "agrees" if error <= tolerance else f"another Hessian, by {error:.1e}"


def relative_error(actual: np.ndarray, expected: np.ndarray, sizes: list[int]) -> float:
    """Largest error of a variable's rows, relative to its largest entry; the worst variable's.

    A variable whose entries are all under 1e-4 of the largest of all is measured by that: it
    may have none, as the bias of the keys in attention.
    """
    if not np.isfinite(actual).all():
        return np.inf
    starts = np.cumsum([0, *sizes])
    floor = max(1e-4 * np.abs(expected).max(), 1e-10)
    errors = []
    for start, stop in itertools.pairwise(starts):
        scale = max(np.abs(expected[start:stop]).max(), floor)
        error = np.abs(actual[start:stop] - expected[start:stop]).max()
        errors.append(error / scale)
    return float(max(errors))


def package_hessian(model: Probe) -> tuple[np.ndarray | None, str, str]:
    """The operator's dense Hessian, the products it used, and its warning or refusal."""
    data = (DUMMY, np.zeros(len(DUMMY)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            operator = HessianOperator(model, data, loss_fn=loss, products=PRODUCTS)
        except ValueError as refusal:
            return None, "", str(refusal)
        hessian = operator.matmat(np.eye(operator.shape[0]))
    messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return hessian, getattr(operator, "products", "autodiff"), " ".join(messages)


def by_differences(model: Probe, reset: Callable[[], None]) -> Derivatives:
    """Fourth-order central differences: of TensorFlow's loss, and of its first gradient.

    The first tell whether what TensorFlow calls the gradient is one.
    """
    variables = model.trainable_variables
    step = model.row.step
    evaluate = tf.function(lambda: _gradient(model), autograph=False)
    slopes, rows = [], []
    for variable in variables:
        original = variable.numpy()
        for index in np.ndindex(original.shape):
            slope, row = 0.0, 0.0
            for shift, factor in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
                moved = np.array(original)
                moved[index] += shift * step
                variable.assign(moved)
                reset()
                value, gradient = evaluate()
                slope, row = slope + factor * value.numpy(), row + factor * gradient.numpy()
            slopes.append(slope / (12.0 * step))
            rows.append(row / (12.0 * step))
        variable.assign(original)
    reset()
    return Derivatives(np.full((1, 1), np.nan), np.array([slopes]), np.stack(rows))


def plain_outcome(
    model: Probe, reset: Callable[[], None], reference: np.ndarray, sizes: list[int]
) -> str:
    """What a user gets from two nested tapes, without the package."""
    reset()
    try:
        hessian = plain_hessian(model)
    except Exception as failure:  # whatever TensorFlow raises is what is reported
        return f"raises {_words(failure)}"
    finally:
        reset()
    error = relative_error(hessian, reference, sizes)
    if error <= TOLERANCE[model.row.dtype]:
        return RIGHT
    return f"wrong by {100 * error:.1g} %" if error < 10 else "wrong by over 1000 %"


def plain_hessian(model: Probe) -> np.ndarray:
    """(n, n), by reverse over reverse differentiation of the live variables."""
    variables = model.trainable_variables
    values = [v.value for v in variables]
    with tf.GradientTape(persistent=True) as tape:
        with tf.GradientTape() as inner:
            value = loss(model, DUMMY)
        gradient = _flatten(inner.gradient(value, values), variables)
    rows = []
    for cotangent in tf.unstack(tf.eye(int(gradient.shape[0]), dtype=gradient.dtype)):
        parts = tape.gradient(gradient, values, output_gradients=cotangent)
        rows.append(_flatten(parts, variables).numpy())
    return np.stack(rows)


def _gradient(model: Probe) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss and TensorFlow's gradient (n,), at the variables' values.

    In training mode by mapped weights, so that what a call writes (seeds, statistics, the
    kernel that spectral normalization divides) is as it was at the next.
    """
    variables = model.trainable_variables
    values = [v.value for v in variables]
    with tf.GradientTape() as tape:
        if model.row.training:
            values = [tf.identity(value) for value in values]
            tape.watch(values)
            mapping = list(zip(variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                value = loss(model, DUMMY)
        else:
            value = loss(model, DUMMY)
    return value, _flatten(tape.gradient(value, values), variables)


def _flatten(parts: list[tf.Tensor | None], variables: list[keras.Variable]) -> tf.Tensor:
    dense = [
        tf.zeros(v.shape, v.dtype) if part is None else tf.convert_to_tensor(part)
        for part, v in zip(parts, variables, strict=True)
    ]
    return tf.concat(
        [tf.cast(tf.reshape(part, [-1]), keras.config.floatx()) for part in dense], axis=0
    )


def _words(failure: Exception) -> str:
    """The first line of what an exception says, without addresses."""
    text = str(failure).strip().split("\n")[0]
    return f"{type(failure).__name__}: {text[:100]}"
