"""What the benchmarks make of their figures: fits, peaks of memory, and what tables say of bars."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from large_model_tables import _beyond_limits
from memory import MemoryWatch, settle
from peer_bars import peer_wins
from peer_results import judged, networks_of
from power_laws import fit_line_and_square, fit_power_law, slopes
from training_tables import _row

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


def test_networks_without_an_environment_have_that_of_the_file():
    old = {"date": "2026-01-01", "rounds": 5, "networks": {"a": {"minutes": 1.0}}}
    old["networks"]["b"] = {"minutes": 2.0, "date": "2026-02-02"}
    networks = networks_of(old)
    assert networks["a"] == {"date": "2026-01-01", "rounds": 5, "minutes": 1.0}
    assert networks["b"] == {"date": "2026-02-02", "rounds": 5, "minutes": 2.0}
    assert networks_of({"networks": networks}) == networks


def test_an_error_is_judged_by_a_reference_five_times_as_good():
    then = {"reference": {"relative_errors": {"trace": 0.005}}}
    assert judged(then, "trace", 0.05, [{"error": 0.002}])
    assert not judged(then, "trace", 0.01, [{"error": 0.1}, {"error": 0.02}])
    assert judged(then, "trace", 0.01, [{"error": 0.1}])  # is not that close


@pytest.mark.parametrize(("low", "high", "kept"), [(0.9, 1.19, "yes"), (0.79, 1.0, "**no**")])
def test_every_round_has_to_keep_its_share(low, high, kept):
    spread = dict.fromkeys(("median", "min", "max"), 1.0)
    figures = ("ratio", "told_ratio", "ratio_without_setup", "setup_seconds")
    figures += ("measurements", "products", "error")
    schedule = dict.fromkeys(figures, spread)
    schedule["overhead"] = {"median": 0.01, "min": 0.01 * low, "max": 0.01 * high}
    run = {"epochs": 1, "seconds": spread, "schedules": {"within 1 %": schedule}}
    assert f"{kept} ({low:.2f}-{high:.2f})" in _row("mlp", "50", run, "within 1 %")


def test_what_takes_more_than_the_memory_limit_is_named():
    memory = {"construction": 1.0, "product": 2.0, "limit": 3.0}
    models = {"gpt2": {"memory_mb": memory, "measurements": {"Deflated": {"memory_mb": 2.5}}}}
    assert "nothing took more" in _beyond_limits(models)
    memory["limit"] = 2.25
    assert "`Deflated` on a decoder" in _beyond_limits(models)


def test_each_better_figure_of_a_peer_is_named():
    def side(gradient, memory):
        seconds = {"gradient": {"median": gradient}, "block": {"median": 1.0}}
        seconds["single"] = seconds["block"]
        ratios = {kind: {"median": 1.0} for kind in ("single", "block")}
        return {
            "seconds": seconds,
            "our_products": {kind: {"median": seconds[kind]["median"]} for kind in seconds},
            "gradients": ratios,
            "our_gradients": ratios,
            "memory_growth_mb": {"gradient": memory, "block": 5.0},
        }

    libraries = {"ours": side(1.0, 3.0), "jax": side(1.0, 2.0), "matfree": side(0.5, 3.0)}
    lines = [
        line for line in peer_wins({"a": {"libraries": libraries}}).splitlines() if "`" in line
    ]
    assert lines == [
        "| `a` | memory: gradient | jax | 2 MB | 3 MB |",
        "| `a` | time of a gradient | matfree | 500.00 ms, 0.50 of ours by rounds | 1000.00 ms |",
    ]
