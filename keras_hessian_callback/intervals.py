"""Estimates with standard errors and confidence intervals, from independent samples."""

import functools
import math

import numpy as np
import tensorflow as tf

from keras_hessian_callback.results import Estimate
from keras_hessian_callback.spreads import Spread


def mean_estimate(
    samples: np.ndarray, *, num_matvecs: int, variance: tuple[float, float] | None = None
) -> Estimate:
    """The mean of the population that independent samples are drawn from.

    The interval is Student's, with m - 1 degrees of freedom.

    Args:
        samples: (m,) floats. Samples that are not finite make every field NaN; m = 1, or
            samples that are all the same, leave the error NaN.
        num_matvecs: Products that the samples cost, for the record.
        variance: Of a sample, and the degrees of freedom that it is known with. None: from
            their spread.
    """
    value = float(np.mean(samples))
    if not math.isfinite(value) or len(samples) == 1:
        return _unknown_error(value, num_matvecs)
    if variance is None:
        variance = float(np.var(samples, ddof=1)), len(samples) - 1.0
        if variance[0] == 0.0 and value != 0.0:  # a few samples may agree by chance
            return _unknown_error(value, num_matvecs)
    of_sample, degrees = variance
    standard_error = math.sqrt(of_sample / len(samples))
    half_width = student_quantile(degrees) * standard_error
    return Estimate(value, standard_error, value - half_width, value + half_width, num_matvecs)


def root_mean_estimate(samples: np.ndarray, *, num_matvecs: int) -> Estimate:
    """The square root of the mean that independent, non-negative samples are drawn from.

    With X the mean of m samples ||H v||^2, s their standard deviation (ddof = 1) and
    F^2 = E X = ||H||_F^2:

    * standard error of F by the delta method, (s / sqrt(m)) / (2 F);
    * E sqrt(X) = F - Var(X) / (8 F^3) + ...: the second term is added back;
    * the interval. Samples ||H v||^2 are sums of squares, so their mean is close to a scaled
      chi-squared variable (Satterthwaite 1946) with d = 2 m / c^2 degrees of freedom, c = s / X,
      whose cube root is close to normal (Wilson and Hilferty 1931):
      F^2 in X / (1 - 2 / (9 d) +- t sqrt(2 / (9 d)))^3. Two corrections for a c that is itself
      estimated, exact to first order for chi-squared samples: c^2 is raised by the factor
      1 + c^2 / m, and t is Student's quantile with (m - 1) / (1 + c^2) degrees of freedom.
      From flat spectra to a single eigenvalue this covers F in 93-98 % of the cases for m = 4
      to 64, where Student's interval on F^2 covers it in 82-96 % (tests/test_intervals.py). It
      is wide where one eigenvalue dominates: at m = 4 the upper end is often infinite.

    Args:
        samples: (m,) non-negative floats. Samples that are not finite make every field NaN;
            m = 1, or samples that are all the same, leave the error NaN.
        num_matvecs: Products that the samples cost, for the record.
    """
    mean = float(np.mean(samples))
    if not math.isfinite(mean) or len(samples) == 1:
        return _unknown_error(math.sqrt(mean) if mean >= 0 else math.nan, num_matvecs)
    if mean == 0.0:
        return Estimate(0.0, 0.0, 0.0, 0.0, num_matvecs)
    m = len(samples)
    variation = float(np.var(samples / mean, ddof=1))
    root = math.sqrt(mean)
    if variation == 0.0:
        return _unknown_error(root, num_matvecs)
    value = root * (1.0 + variation / (8.0 * m))
    standard_error = 0.5 * root * math.sqrt(variation / m)
    variation *= 1.0 + variation / m
    spread = variation / (9.0 * m)  # 2 / (9 d)
    half_width = student_quantile((m - 1.0) / (1.0 + variation)) * math.sqrt(spread)
    lower = root * (1.0 - spread + half_width) ** -1.5
    narrow = 1.0 - spread - half_width
    upper = root * narrow**-1.5 if narrow > 0.0 else math.inf
    return Estimate(value, standard_error, min(lower, value), max(upper, value), num_matvecs)


def split_norm_estimate(
    exact: float,
    samples: np.ndarray,
    spread: Spread,
    *,
    num_matvecs: int,
    rounding: float = 0.0,
) -> Estimate:
    """sqrt(exact + the mean that samples ||Av||^2 are drawn from).

    A sample is a sum of chi-squared variables, one for each eigenvalue. What a basis has left is
    often a bulk of small ones with one that stands out: little relative variance, and the
    skewness of a single chi-squared variable. So the distribution is taken to be a constant plus
    a scaled chi-squared variable with the mean, variance and skewness of the samples (Pearson
    1959). The constant joins `exact`; for the rest R, with d degrees for the mean of m samples,
    the interval is that of `root_mean_estimate`:
    R / (1 - 2 / (9 d) +- t sqrt(2 (1 + 1 / m) / (9 d)))^3. The factor 1 + 1 / m stands for the
    error of d.

    With basis and m fixed before, this covers 93-97 % for m = 5 to 16, flat, decaying or one
    eigenvalue out of a bulk (tests/test_spreads.py); up to 99 % of few samples where one
    eigenvalue is all that is left; down to 91 % where one stands out that 4 to 8 samples do not
    show. With both chosen on the way: 92-97 % (tests/test_coverage.py).

    Args:
        exact: The part of the square that is known.
        samples: (m,) floats, independent; m = 0: there is no other part. Where the sum falls
            below 0, as it may if some are negative, the value is 0 and the error NaN.
        spread: Of the samples.
        num_matvecs: Products that all of it cost, for the record.
        rounding: Relative error of the value by rounding, added to the error.

    References:
        Pearson, "Note on an approximation to the distribution of non-central chi-squared" (1959).
    """
    m = len(samples)
    tail = float(np.mean(samples)) if m else 0.0
    square = exact + tail
    if not math.isfinite(square):
        return _unknown_error(math.nan, num_matvecs)
    if m == 1 and abs(tail) > rounding * square:
        return _unknown_error(math.sqrt(max(square, 0.0)), num_matvecs)
    if square <= 0.0 and (m < 2 or tail == 0.0):
        return exact_estimate(0.0, num_matvecs=num_matvecs)
    if square <= 0.0 and not spread.variance > 0.0:
        return _unknown_error(0.0, num_matvecs)
    if square <= 0.0:
        upper = math.sqrt(max(_ends(square, spread, m)[1], 0.0))
        return Estimate(0.0, math.nan, 0.0, upper, num_matvecs)
    root = math.sqrt(square)
    slack = rounding * root
    if m < 2 or tail == 0.0 or spread.variance <= 0.0:
        return Estimate(root, slack, root - slack, root + slack, num_matvecs)
    low, high = _ends(square, spread, m)
    lower, upper = math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))
    error = math.sqrt(spread.variance / m) / square  # relative, of the square
    value = root * (1.0 + error**2 / 8.0)
    return Estimate(
        value,
        math.hypot(0.5 * error * root, slack),
        min(lower, value) - slack,
        max(upper, value) + slack,
        num_matvecs,
    )


def signed_root_estimate(
    known: float, samples: np.ndarray, spread: Spread, *, num_matvecs: int
) -> Estimate:
    """sqrt(known + the mean of samples that may be negative); 0 where the square is below it.

    The interval is that of `split_norm_estimate`, with the variance of the samples.

    Args:
        known: The part of the square that is known.
        samples: (m,) floats, independent; m = 0: there is no other part.
        spread: Of samples that these are made from, for the skewness.
        num_matvecs: Products that all of it cost, for the record.
    """
    m = len(samples)
    if not m:
        return exact_estimate(math.sqrt(max(known, 0.0)), num_matvecs=num_matvecs)
    square = known + float(np.mean(samples))
    value = math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan
    if m == 1 or math.isnan(value):
        return _unknown_error(value, num_matvecs)
    variance = float(np.var(samples, ddof=1))
    degrees = (m - 1.0) / (1.0 + spread.variation)
    ends = _ends(square, Spread(variance, degrees, spread.variation), m)
    lower, upper = (math.sqrt(max(end, 0.0)) for end in ends)
    error = math.sqrt(variance / m) / (2.0 * value) if value > 0.0 else math.nan
    return Estimate(value, error, min(lower, value), max(upper, value), num_matvecs)


def _ends(square: float, spread: Spread, m: int) -> tuple[float, float]:
    """Of the interval for a constant plus a scaled chi-squared variable, by m samples of it."""
    rest = math.sqrt(spread.variance / spread.variation)
    known = square - rest
    center = 1.0 - spread.variation / (9.0 * m)
    half_width = student_quantile(spread.degrees) * math.sqrt(
        spread.variation * (1.0 + 1.0 / m) / (9.0 * m)
    )
    narrow = center - half_width
    high = known + rest * narrow**-3 if narrow > 0.0 else math.inf
    return known + rest * (center + half_width) ** -3, high


def exact_estimate(value: float, *, num_matvecs: int) -> Estimate:
    """A value without error: its interval is itself."""
    return Estimate(value, 0.0, value, value, num_matvecs)


def stable_rank_estimate(norm: Estimate, spectral: Estimate) -> Estimate:
    """||H||_F^2 / ||H||_2^2, between the ends of both: bounds that cover 95-100 %."""

    def ratio(frobenius: float, largest: float) -> float:
        return (frobenius / largest) ** 2 if largest > 0.0 else math.nan

    return Estimate(
        ratio(norm.value, spectral.value),
        math.nan,
        max(ratio(norm.lower, spectral.upper), 1.0) if spectral.upper > 0.0 else math.nan,
        ratio(norm.upper, spectral.lower),
        max(norm.num_matvecs, spectral.num_matvecs),
    )


def _unknown_error(value: float, num_matvecs: int) -> Estimate:
    value = value if math.isfinite(value) else math.nan
    return Estimate(value, math.nan, math.nan, math.nan, num_matvecs)


@functools.lru_cache(256)
def student_quantile(degrees: float) -> float:
    """The t with P(|T| <= t) = 0.95, to 2e-5 of it, from 0.2 degrees of freedom on."""
    return math.exp(np.interp(1.0 / degrees, *_student_table()))


@functools.cache
def _student_table() -> tuple[np.ndarray, np.ndarray]:
    """Inverse degrees of freedom, and log t, nearly linear in them: by bisection of the tail."""
    inverse = np.linspace(1e-6, 5.0, 500)
    half = tf.constant(0.5 / inverse), tf.constant(0.5, tf.float64, shape=[500])
    low, high = np.zeros(500), np.full(500, 16.0)  # of log t
    for _ in range(40):
        middle = (low + high) / 2.0
        share = tf.constant(1.0 / (1.0 + inverse * np.exp(2.0 * middle)))
        above = tf.math.betainc(*half, share).numpy() > 0.05
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return inverse, (low + high) / 2.0
