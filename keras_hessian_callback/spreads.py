"""How few samples of a quadratic form spread, from the products of their probes in pairs."""

import math
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """How samples v'Mv of one symmetric matrix M spread, and how well that is known.

    Attributes:
        variance: Of a sample.
        degrees: Degrees of freedom of Student's quantile for an interval with this variance.
        variation: 2 / d, with d the degrees of the chi-squared variable of the same skewness.
    """

    variance: float
    degrees: float
    variation: float


def quadratic_spread(
    samples: np.ndarray, products: np.ndarray, *, diagonal: float | None = None
) -> Spread:
    """The spread of samples v'Mv of Rademacher probes; NaN for one sample.

    The variance is 2 (||M||_F^2 - sum_k M_kk^2), the third moment 8 tr M^3 for normal probes. For
    independent v, w, x

        ||M||_F^2 = E (v'Mw)^2,    tr M^3 = E (v'Mw) (w'Mx) (x'Mv)

    so that the mean over all pairs, and over all triples, finds them: steadier than the spread
    of m samples where many eigenvalues share the variance and little of it cancels.

    Args:
        samples: (m,) floats.
        products: (m, m), v_i'Mv_j; NaN where it is not known.
        diagonal: Estimate of 2 sum_k M_kk^2 for an M without negative eigenvalues. None: it is
            not known, and the variance is that of the samples.
    """
    m = len(samples)
    if m < 2:
        return Spread(math.nan, math.nan, math.nan)
    unit = np.mean(np.abs(samples))  # not Python's: its square may overflow, or be 0
    if unit == math.inf:
        return Spread(math.nan, math.nan, math.nan)
    if not unit > 0.0:
        return Spread(unit, m - 1.0, 2.0)
    products = products / unit
    np.fill_diagonal(products, np.nan)
    known = (~np.isnan(products)).astype(float)
    products = np.where(known > 0.0, products, 0.0)
    pairs = max(1, int(known.sum()))
    triples = max(float(np.sum(known @ known * known)), pairs)
    whole = 2.0 * float(np.sum(products**2)) / pairs
    third = 8.0 * float(np.sum(products @ products * products)) / triples
    scale = whole**1.5  # 0 too where numbers are so small that it underflows
    skew = min(2.0, (max(third, 0.0) / scale) ** 2 / 4.0) if scale > 0.0 else 0.0
    of_samples = float(np.var(samples / unit, ddof=1))
    of_pairs = 0.0 if diagonal is None else whole - diagonal / unit**2
    guess = max(of_samples, of_pairs)
    if not guess > 0.0:
        return Spread(0.0, m - 1.0, 2.0)
    if diagonal is None:
        variation = max(skew, 1e-9)
        freedom = (m - 1.0) / (1.0 + variation)
        return Spread(of_samples * unit**2, freedom, variation)
    # By Cauchy and Schwarz the skewness is at least that of the chi-squared variable with this
    # mean and variance.
    variation = min(2.0, max(guess, skew))
    variance = pooled_variance(of_samples, of_pairs, whole, variation, m, pairs)
    # The error of the variance that comes with that of the mean does not count: the interval
    # is for a scale, and that is in both. A quarter is left for eigenvalues that differ.
    noise = min(
        2.0 / (m - 1.0) * (1.0 + variation),
        4.0 / pairs * (whole / guess) ** 2 + variation / m,
    )
    variation = min(2.0, max(variance, skew))
    return Spread(variance * unit**2, 2.0 / noise, variation)


def precisions(
    guess: float, whole: float, variation: float, m: int, pairs: int
) -> tuple[float, float]:
    """Relative variances of a variance from m samples, and from their pairs.

    Args:
        guess: The variance.
        whole: The larger of the two terms that the one from pairs is the difference of.
        variation: 2 / d, for the kurtosis of a chi-squared variable of d degrees.
        m: Number of samples.
        pairs: Number of ordered pairs, m (m - 1) where all are known.
    """
    of_samples = 2.0 / (m - 1.0) + 6.0 * variation / m
    return of_samples, 4.0 / pairs * (whole / guess) ** 2 + 4.0 * variation / m


def pooled_variance(
    of_samples: float, of_pairs: float, whole: float, variation: float, m: int, pairs: int
) -> float:
    """The mean of two estimates of a variance, weighted by their precision."""
    guess = max(of_samples, of_pairs)
    if not guess > 0.0:
        return guess
    noise, other_noise = precisions(guess, whole, variation, m, pairs)
    weight = noise / (noise + other_noise)
    return max(weight * of_pairs + (1.0 - weight) * of_samples, of_samples / 4.0)
