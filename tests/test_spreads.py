"""The spread of quadratic forms, on closed forms and on spectra where few samples show little."""

import math

import numpy as np
import pytest

from keras_hessian_callback.intervals import split_norm_estimate
from keras_hessian_callback.spreads import quadratic_spread

BULK = np.full(200, 0.05)
SPECTRA = {
    "bulk": np.r_[BULK],
    "decaying": 1.0 / np.arange(1.0, 101.0),
    "one eigenvalue": np.array([1.0]),
    "five eigenvalues": np.ones(5),
    "one out of a bulk": np.r_[1.0, BULK],
}


def pairs(eigenvalues, m, rng):
    """v_i'A^2 v_j of m normal probes, in the basis of the eigenvectors."""
    products = eigenvalues * rng.normal(size=(m, len(eigenvalues)))
    return products @ products.T


@pytest.mark.parametrize("count", [1, 2, 10, 50])
def test_equal_eigenvalues_are_a_chi_squared_variable(count):
    """With many samples the spread is that of 4 chi^2_d: variance 32 d, variation 2 / d."""
    products = pairs(np.full(count, 2.0), 2000, np.random.default_rng(0))
    spread = quadratic_spread(np.diag(products), products, diagonal=0.0)
    assert spread.variance == pytest.approx(32.0 * count, rel=0.1)
    assert spread.variation == pytest.approx(2.0 / count, rel=0.15)


def test_a_bulk_hides_the_variance_of_one_eigenvalue_but_not_its_skewness():
    eigenvalues = np.r_[1.0, np.full(2000, 0.05)]
    products = pairs(eigenvalues, 1000, np.random.default_rng(0))
    spread = quadratic_spread(np.diag(products), products, diagonal=0.0)
    mean = np.sum(eigenvalues**2)
    assert spread.variance / mean**2 < 0.1
    assert spread.variation == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("m", [5, 8, 16])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_cover(spectrum, m):
    """93-97 % of 2,000, give or take 1 % of chance; up to 99 % of 5 where one eigenvalue is all.

    The chi-squared variable with the mean and variance alone covers 90-93 % out of a bulk.
    """
    eigenvalues = SPECTRA[spectrum]
    truth = math.sqrt(np.sum(eigenvalues**2))
    rng = np.random.default_rng(1)
    hits, gamma_hits = [], []
    for _ in range(2000):
        products = pairs(eigenvalues, m, rng)
        samples = np.diag(products)
        spread = quadratic_spread(samples, products, diagonal=0.0)
        gamma = spread._replace(variation=min(2.0, spread.variance / samples.mean() ** 2))
        for found, kind in ((hits, spread), (gamma_hits, gamma)):
            estimate = split_norm_estimate(0.0, samples, kind, num_matvecs=m)
            found.append(estimate.lower <= truth <= estimate.upper)
    assert 0.92 <= np.mean(hits) <= (0.995 if spectrum == "one eigenvalue" and m < 8 else 0.98)
    if spectrum == "one out of a bulk" and m < 16:
        assert np.mean(gamma_hits) < np.mean(hits) - 0.02


def test_an_interval_is_finite_from_five_samples_on():
    """However skewed: here one eigenvalue, seen as unevenly as it comes."""
    rng = np.random.default_rng(2)
    for _ in range(1000):
        products = pairs(np.ones(1), 5, rng)
        spread = quadratic_spread(np.diag(products), products, diagonal=0.0)
        assert math.isfinite(
            split_norm_estimate(1.0, np.diag(products), spread, num_matvecs=5).upper
        )


def test_without_the_diagonal_the_variance_is_that_of_the_samples():
    products = pairs(np.ones(3), 6, np.random.default_rng(0))
    samples = np.diag(products)
    spread = quadratic_spread(samples, products)
    assert spread.variance == pytest.approx(np.var(samples, ddof=1))
    assert 0.0 < spread.degrees <= 5.0


def test_a_spread_of_no_width_leaves_the_value_alone():
    samples = np.full(4, 2.0)
    spread = quadratic_spread(samples, np.diag(samples), diagonal=0.0)
    estimate = split_norm_estimate(2.0, samples, spread, num_matvecs=4)
    assert estimate.lower == estimate.value == estimate.upper == 2.0
    assert math.isnan(quadratic_spread(samples[:1], np.eye(1)).variance)
