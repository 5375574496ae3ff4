"""Fits of how a figure grows: a power above a floor, or a line and a square."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, nnls

MIN_POINTS = 4  # of a power law: one more than it has parameters

_STARTS = (0.5, 1.0, 2.0)  # exponents
_NO_FLOOR = 1e-6  # of the smallest value: less is none


@dataclass(frozen=True)
class PowerLaw:
    """y = floor + factor x^exponent.

    Attributes:
        floor: What is there at any x, in the unit of y; at least 0.
        factor: In the unit of y.
        exponent: Of x.
        exponent_error: Its standard error; NaN where the points do not tell it.
        largest_deviation: Of a point from the fit, as a share of the fit.
    """

    floor: float
    factor: float
    exponent: float
    exponent_error: float
    largest_deviation: float

    def __call__(self, x: float) -> float:
        return self.floor + self.factor * x**self.exponent


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """Least squares in log y of y = floor + factor x^exponent, of at least `MIN_POINTS`.

    The standard error is that of nonlinear least squares, with the errors of log y of all points
    alike and their size from the residuals; it has what is not known of the floor in it.

    Args:
        x: Positive.
        y: Positive, as many.
    """
    if len(x) < MIN_POINTS or min(*x, *y) <= 0:
        raise ValueError(f"A power law takes {MIN_POINTS} positive points or more; got {x}, {y}.")
    logs, targets = np.log(np.asarray(x, "float64")), np.log(np.asarray(y, "float64"))
    scale, span = targets.mean(), logs - logs.max()  # in these units all parameters are near 1

    def residuals(parameters: np.ndarray) -> np.ndarray:
        floor, factor, exponent = parameters
        return np.log(floor + factor * np.exp(exponent * span)) + scale - targets

    fits = [
        least_squares(
            residuals,
            [math.exp(targets.min() - scale) / 2, math.exp(targets.max() - scale), exponent],
            bounds=([0.0, 1e-12, -10.0], np.inf),
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
        )
        for exponent in _STARTS
    ]
    best = min(fits, key=lambda fit: fit.cost)
    floor, factor, exponent = best.x
    jacobian, left = best.jac, best.fun
    if floor < _NO_FLOOR * math.exp(targets.min() - scale):
        straight = np.stack([np.ones_like(span), span], axis=1)
        (intercept, exponent), *_ = np.linalg.lstsq(straight, targets - scale, rcond=None)
        floor, factor, jacobian = 0.0, math.exp(intercept), straight
        left = straight @ [intercept, exponent] - (targets - scale)
    return PowerLaw(
        floor=float(floor * math.exp(scale)),
        factor=float(factor * math.exp(scale - exponent * logs.max())),
        exponent=float(exponent),
        exponent_error=_last_standard_error(jacobian, left),
        largest_deviation=float(np.abs(np.expm1(-left)).max()),
    )


def _last_standard_error(jacobian: np.ndarray, residuals: np.ndarray) -> float:
    """Of the last parameter of a fit; NaN where it cannot be known."""
    points, parameters = jacobian.shape
    if points <= parameters or np.linalg.matrix_rank(jacobian) < parameters:
        return math.nan
    variance = residuals @ residuals / (points - parameters)
    return math.sqrt(variance * np.linalg.inv(jacobian.T @ jacobian)[-1, -1])


@dataclass(frozen=True)
class LineAndSquare:
    """y = floor + line x + square x^2, no coefficient negative.

    Attributes:
        floor: In the unit of y.
        line: Coefficient of x.
        square: Coefficient of x^2.
    """

    floor: float
    line: float
    square: float

    @property
    def crossing(self) -> float:
        """The x from which the square is more than the line; infinite without a square."""
        return self.line / self.square if self.square else math.inf


def fit_line_and_square(x: Sequence[float], y: Sequence[float]) -> LineAndSquare:
    """Least squares of the relative residuals of y = floor + line x + square x^2.

    Args:
        x: Positive.
        y: Positive, as many.
    """
    columns = np.stack([np.asarray(x, "float64") ** power for power in range(3)], axis=1)
    largest = columns.max(axis=0)
    coefficients, _ = nnls(columns / largest / np.asarray(y)[:, None], np.ones(len(y)))
    return LineAndSquare(*(coefficients / largest).tolist())


def slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """The exponent between each two neighbouring points."""
    return (np.diff(np.log(y)) / np.diff(np.log(x))).tolist()
