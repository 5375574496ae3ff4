"""Spectra over time: how many eigenvalues lie where, as rows of a histogram and as pixels."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import Spectrum
from keras_hessian_callback.pictures import _GLYPHS, BOTTOM, LEFT, PALETTE, RIGHT, TOP, png
from keras_hessian_callback.spectra import MOST_COLUMNS, Spectra, histogram, symlog
from tests.board import decoded_png


def spectrum(*eigenvalues, size=1000) -> Spectrum:
    return Spectrum(np.sort(np.array(eigenvalues, float)), np.full(len(eigenvalues), 1 / size))


def spectra(*all_of_them) -> Spectra:
    so_far = Spectra()
    for step, one in enumerate(all_of_them):
        so_far = so_far.after(step, one)
    return so_far


def plot(so_far: Spectra, size=1000) -> np.ndarray:
    """Brightness of the plot's pixels as indices of the ramp; 0 where nothing is drawn."""
    canvas = so_far.picture(size, "epoch")[TOP:BOTTOM, LEFT:RIGHT].astype(int)
    return np.where(canvas >= 16, canvas - 15, 0)


def peaks(column: np.ndarray) -> list[int]:
    """Rows where lines are, from the top down."""
    inner = column[1:-1]
    return [*np.flatnonzero((inner > column[:-2]) & (inner >= column[2:]) & (inner > 0)) + 1]


# --- histograms ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "place"),
    [(0.0, 0.0), (1.0, 3.0), (10.0, 4.0), (-100.0, -5.0), (1e-3, np.log10(2.0)), (1e-9, 4.34e-7)],
)
def test_the_coordinate_is_what_its_description_says(value, place):
    assert symlog(value) == pytest.approx(place, abs=1e-3, rel=1e-2 if abs(value) < 1e-6 else 1e-3)


def test_a_histogram_has_each_eigenvalue_in_its_bin():
    rows = histogram(spectrum(-2.0, 0.0, 0.5, 30.0, 30.01), 1000)
    assert rows[:, 2].sum() == pytest.approx(5.0)
    for value, count in ((-2.0, 1), (0.0, 1), (0.5, 1), (30.0, 2)):
        (inside,) = np.flatnonzero((rows[:, 0] <= symlog(value)) & (symlog(value) < rows[:, 1]))
        assert rows[inside, 2] == pytest.approx(count)
    np.testing.assert_allclose(rows[1:, 0], rows[:-1, 1])  # contiguous, as TensorBoard wants
    assert rows[0, 2] > 0.0
    assert rows[-1, 2] > 0.0


def test_what_stands_for_many_is_spread_half_way_to_its_neighbours():
    places = np.array([0.1, 0.2, 10.0])  # of a quadrature: most of the mass lies in the bulk
    rows = histogram(Spectrum(places, np.array([0.4, 0.599, 0.001])), 1000)
    middle = symlog(places[:2]).mean()
    below = rows[rows[:, 1] <= middle + 1e-9, 2].sum()
    assert below == pytest.approx(400.0, rel=0.1)
    assert rows[:, 2].sum() == pytest.approx(1000.0)
    assert np.count_nonzero(rows[rows[:, 0] < symlog(1.0), 2]) > 8
    assert np.count_nonzero(rows[rows[:, 0] > symlog(5.0), 2]) == 1  # the outlier: one place


# --- pictures ------------------------------------------------------------------------------


def test_lines_lie_where_the_eigenvalues_are():
    """100, 10 and 1 are as far from each other as the axis is logarithmic there."""
    rows = peaks(plot(spectra(spectrum(1.0, 10.0, 100.0, -100.0)))[:, 50])
    assert len(rows) == 4
    top, middle, low, bottom = rows
    # Threshold 1: log10(101), log10(11), log10(2), -log10(101).
    scale = (bottom - top) / (2 * np.log10(101))
    assert middle - top == pytest.approx(scale * np.log10(101 / 11), abs=1.1)
    assert low - top == pytest.approx(scale * np.log10(101 / 2), abs=1.1)


def test_a_spectrum_that_grows_rises_to_the_right():
    picture = plot(spectra(*(spectrum(2.0**k) for k in range(6))))
    width = RIGHT - LEFT
    rows = [peaks(picture[:, (2 * k + 1) * width // 12])[0] for k in range(6)]
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) == 6
    assert all((picture[:, int((k + 0.2) * width / 6)] > 0).any() for k in range(6))


def test_many_are_brighter_than_one():
    nodes = np.array([-1e-3, 0.0, 1e-3, 5.0])
    column = plot(spectra(Spectrum(nodes, np.array([0.3, 0.399, 0.3, 0.001]))))[:, 10]
    outlier = peaks(column)[0]
    assert 0 < column[outlier] < 0.6 * column.max()
    assert column.max() == 240
    light = PALETTE[16:].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light[::4]) > 0.0).all()  # in grey, too, more is brighter
    assert light[0] > 3.0 * (PALETTE[2] @ [0.2126, 0.7152, 0.0722])


def test_columns_are_as_wide_as_the_time_between_steps():
    so_far = Spectra()
    for step, value in ((0, 1.0), (10, 8.0), (100, 64.0)):
        so_far = so_far.after(step, spectrum(value))
    picture = plot(so_far)
    line = [peaks(picture[:, x])[0] for x in range(picture.shape[1])]
    widths = [line.count(row) for row in dict.fromkeys(line)]
    total = 10 + 50 + 90  # 5 before step 0, and 45 after step 100
    assert widths == pytest.approx([376 * w / total for w in (10, 50, 90)], abs=1.5)


def test_nothing_but_zeros_can_be_drawn():
    column = plot(spectra(Spectrum(np.zeros(1), np.ones(1))))[:, 0]
    assert column.any()
    assert np.isfinite(histogram(Spectrum(np.zeros(1), np.ones(1)), 1000)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_any_scale_can_be_drawn(scale):
    """Labels of any size fit on the canvas, and the line is in the upper half."""
    (row,) = peaks(plot(spectra(spectrum(3.0 * scale)))[:, 0])
    assert row < (BOTTOM - TOP) / 2


def test_a_png_holds_the_canvas():
    canvas = spectra(spectrum(1.0, 10.0), spectrum(2.0, 30.0)).picture(1000, "epoch")
    np.testing.assert_array_equal(decoded_png(png(canvas)), PALETTE[canvas])
    np.testing.assert_array_equal(tf.io.decode_png(png(canvas), channels=3), PALETTE[canvas])


@pytest.mark.parametrize("name", ["epoch", "step"])
def test_axes_have_names_and_numbers(name):
    """Ink lies left of the plot, below it and at the colour bar."""
    canvas = spectra(spectrum(1.0, 10.0), spectrum(2.0, 30.0)).picture(1000, name)
    ink = canvas == 1
    assert ink[TOP:BOTTOM, : LEFT - 8].any()
    assert ink[BOTTOM + 6 : BOTTOM + 20, LEFT:RIGHT].any()
    assert ink[BOTTOM + 22 :, LEFT:RIGHT].any()
    assert ink[TOP:BOTTOM, RIGHT + 32 :].any()
    assert ink[: TOP - 8, RIGHT:].any()


# --- many measurements ---------------------------------------------------------------------


def test_long_runs_are_thinned_and_keep_the_newest():
    so_far, most = Spectra(), 0
    for step in range(1000):
        so_far = so_far.after(step, spectrum(1.0 + step))
        steps = [step for step, _ in so_far.columns]
        most = max(most, len(steps))
        assert steps[-1] == step
        assert all(kept % so_far.stride == 0 for kept in steps[:-1])
    assert most == MOST_COLUMNS
    assert so_far.stride == 8
    assert steps == [*range(0, 999, 8), 999]
    assert (plot(so_far)[:, -1] > 0).any()


def test_a_run_that_starts_over_leaves_later_columns():
    whole = Spectra()
    for step in range(300):
        whole = whole.after(step, spectrum(1.0 + step))
    parts = Spectra()
    for step in [*range(210), *range(200, 300)]:  # stopped after 209, resumed at 200
        parts = parts.after(step, spectrum(1.0 + step))
    assert [step for step, _ in parts.columns] == [step for step, _ in whole.columns]
    assert [step for step, _ in whole.after(0, spectrum(1.0)).columns] == [0]


@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_arrays_hold_all_of_it(count):
    so_far = spectra(*(spectrum(*range(1 + k % 3)) for k in range(count)))
    assert Spectra.of_arrays(so_far.arrays()) == so_far


def test_glyphs_tell_digits_apart():
    shapes = {glyph.tobytes() + str(glyph.shape).encode() for glyph in _GLYPHS.values()}
    assert len(shapes) == len(_GLYPHS)
    assert set("0123456789-.e") <= set(_GLYPHS)
