import math

import numpy as np
import pytest
from scipy import stats

from keras_hessian_callback import intervals
from keras_hessian_callback.intervals import (
    exact_estimate,
    mean_estimate,
    root_mean_estimate,
    split_norm_estimate,
)
from keras_hessian_callback.spreads import Spread


@pytest.mark.parametrize("degrees", [0.2, 0.8, 1.0, 3.5, 7.0, 31.0, 400.0, 1e5])
def test_student_quantile_is_that_of_scipy(degrees):
    quantile = intervals.student_quantile(degrees)
    assert quantile == pytest.approx(stats.t.ppf(0.975, degrees), rel=3e-5)


def test_mean_estimate_is_the_textbook_interval():
    samples = np.array([1.0, 2.0, 4.0, 8.0])
    estimate = mean_estimate(samples, num_matvecs=4)
    low, high = stats.t.interval(0.95, 3, loc=samples.mean(), scale=stats.sem(samples))
    assert estimate.value == samples.mean()
    assert estimate.standard_error == pytest.approx(stats.sem(samples))
    assert (estimate.lower, estimate.upper) == pytest.approx((low, high), rel=1e-4)
    assert estimate.num_matvecs == 4


@pytest.mark.parametrize("make", [mean_estimate, root_mean_estimate])
def test_one_sample_knows_no_error(make):
    estimate = make(np.array([4.0]), num_matvecs=1)
    assert estimate.value == (2.0 if make is root_mean_estimate else 4.0)
    assert math.isnan(estimate.standard_error)
    assert math.isnan(estimate.lower)
    assert math.isnan(estimate.upper)


@pytest.mark.parametrize("make", [mean_estimate, root_mean_estimate])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_give_nan(make, bad):
    estimate = make(np.array([1.0, bad, 2.0]), num_matvecs=3)
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.standard_error)


def test_zero_samples_are_a_certain_zero():
    estimate = root_mean_estimate(np.zeros(3), num_matvecs=3)
    assert (estimate.value, estimate.standard_error, estimate.upper) == (0.0, 0.0, 0.0)


def test_exact_estimate_has_no_width():
    estimate = exact_estimate(3.0, num_matvecs=7)
    assert (estimate.standard_error, estimate.lower, estimate.upper) == (0.0, 3.0, 3.0)


def test_root_mean_interval_scales_and_stays_positive():
    samples = np.array([0.01, 9.0, 0.2, 0.1])  # Student's interval on the mean goes below 0
    estimate = root_mean_estimate(samples, num_matvecs=4)
    larger = root_mean_estimate(100.0 * samples, num_matvecs=4)
    assert 0.0 <= estimate.lower < estimate.value < estimate.upper
    assert larger.value == pytest.approx(10.0 * estimate.value)
    assert larger.upper == pytest.approx(10.0 * estimate.upper)


SPECTRA = {
    "flat": np.ones(200),
    "decaying": 1.0 / np.arange(1, 301),
    "ten outliers": np.r_[10.0 * np.ones(10), 0.1 * np.ones(200)],
    "one eigenvalue": np.array([1.0]),
}


@pytest.mark.parametrize("num_samples", [4, 8, 32])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_root_mean_interval_covers_where_student_does_not(spectrum, num_samples):
    """Coverage 92-99 % over 1,000 repetitions; Student's on F^2 is lower where they differ."""
    squares = SPECTRA[spectrum] ** 2
    rng = np.random.default_rng(3)
    probes = rng.chisquare(1, size=(1000, num_samples, len(squares)))
    truth = math.sqrt(squares.sum())
    estimates = [root_mean_estimate(s, num_matvecs=num_samples) for s in probes @ squares]
    coverage = np.mean([e.lower <= truth <= e.upper for e in estimates])
    assert 0.92 <= coverage <= 0.99
    if spectrum == "one eigenvalue":
        students = [mean_estimate(s, num_matvecs=num_samples) for s in probes @ squares]
        assert np.mean([e.lower <= truth**2 <= e.upper for e in students]) < coverage - 0.02


def test_values_are_less_biased_than_the_plain_root():
    squares = SPECTRA["ten outliers"] ** 2
    truth = math.sqrt(squares.sum())
    samples = np.random.default_rng(0).chisquare(1, size=(4000, 8, len(squares))) @ squares
    corrected = np.mean([float(root_mean_estimate(s, num_matvecs=8)) for s in samples])
    plain = np.sqrt(samples.mean(axis=1)).mean()
    assert abs(corrected - truth) < 0.4 * abs(plain - truth)


def test_a_square_that_noise_carries_below_zero_has_an_interval():
    samples = np.array([-1.0, 3.0, 0.5, 1.5])
    found = split_norm_estimate(-2.0, samples, Spread(3.0, 3.0, 1.0), num_matvecs=4)
    assert (found.value, found.lower) == (0.0, 0.0)
    assert math.isnan(found.standard_error)
    assert 0.0 < found.upper < math.inf
    alike = split_norm_estimate(-2.0, np.ones(4), Spread(0.0, 3.0, 1.0), num_matvecs=4)
    alone = split_norm_estimate(
        -2.0, np.ones(1), Spread(math.nan, math.nan, math.nan), num_matvecs=1
    )
    for unknown in (alike, alone):
        assert unknown.value == 0.0
        assert math.isnan(unknown.standard_error)
        assert math.isnan(unknown.upper)
