"""The fits of the benchmarks find the laws that points were made from; memory is seen to peak."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from memory import MemoryWatch, settle
from power_laws import fit_line_and_square, fit_power_law, slopes

SIZES = [1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 2e7]


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.25])
@pytest.mark.parametrize("floor", [0.0, 1e-5, 1e-2])
def test_an_exact_law_is_found(exponent, floor):
    law = fit_power_law(SIZES, [floor + 3e-9 * size**exponent for size in SIZES])
    assert law.exponent == pytest.approx(exponent, abs=1e-3)
    assert law.factor == pytest.approx(3e-9, rel=1e-2)
    assert law.floor == pytest.approx(floor, rel=1e-2, abs=1e-7)
    assert law.largest_deviation < 1e-3
    assert law(1e6) == pytest.approx(floor + 3e-9 * 1e6**exponent, rel=1e-3)


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_the_standard_error_is_that_of_noisy_points(floor):
    """Of 100 fits 10 are off by 3 standard errors with a probability of 1e-3, by Student's t with
    5 degrees of freedom; the draws are fixed.
    """
    draws = np.random.default_rng(0).normal(size=(100, len(SIZES)))
    fits = [
        fit_power_law(
            SIZES,
            [(floor + 1e-8 * x) * math.exp(0.05 * z) for x, z in zip(SIZES, row, strict=True)],
        )
        for row in draws
    ]
    errors = np.array([law.exponent - 1.0 for law in fits])
    stated = np.array([law.exponent_error for law in fits])
    assert np.mean(np.abs(errors) > 3.0 * stated) < 0.1
    assert 0.7 < np.median(np.abs(errors)) / (0.6745 * np.median(stated)) < 1.4


def test_one_exponent_is_told_from_another():
    """Points that grow as x^1.2 are not within 0.9 to 1.1, whatever the floor."""
    for floor in (0.0, 1e-3, 1e-2):
        law = fit_power_law(SIZES, [floor + 1e-9 * size**1.2 for size in SIZES])
        assert not 0.9 <= law.exponent <= 1.1


def test_points_without_growth_tell_no_exponent():
    law = fit_power_law(SIZES, [0.5 + 0.01 * (-1) ** index for index in range(len(SIZES))])
    assert math.isnan(law.exponent_error) or law.exponent_error > 0.5 or abs(law.exponent) < 0.01


@pytest.mark.parametrize("points", [([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), (SIZES, [0.0] * 8)])
def test_what_no_law_goes_through_is_refused(points):
    with pytest.raises(ValueError, match="4 positive points"):
        fit_power_law(*points)


def test_line_and_square_are_told_apart():
    lengths = [16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
    law = fit_line_and_square(lengths, [0.1 + 0.03 * x + 1e-4 * x * x for x in lengths])
    assert (law.floor, law.line, law.square) == pytest.approx((0.1, 0.03, 1e-4), rel=1e-6)
    assert law.crossing == pytest.approx(300.0)
    assert fit_line_and_square(lengths, [2.0 * x for x in lengths]).crossing > 1e6


def test_slopes_are_those_between_neighbours():
    assert slopes([1.0, 10.0, 100.0], [1.0, 10.0, 1000.0]) == pytest.approx([1.0, 2.0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_is_seen_that_is_gone_again():
    before = settle()
    with MemoryWatch() as first:
        np.ones(25_000_000)  # 200 MB
    with MemoryWatch() as second:
        np.ones(5_000_000)  # below the peak that the process had
    assert first.peak_mb - before == pytest.approx(200, abs=20)
    assert 0 <= second.peak_mb - before < 100
