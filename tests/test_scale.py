"""The arithmetic and the simulation of docs/scale.md agree with the page and the package."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback.deflation import Split
from keras_hessian_callback.intervals import split_norm_estimate
from keras_hessian_callback.operators.linear_operator import DenseOperator
from keras_hessian_callback.operators.planning import vectors_held

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import scale_tables
from carried_forms import by_layer, leading, low_rank, orthonormal, rounded, whole_numbers
from scale_simulation import estimates, measured, sketched, times

LAYERS = ((10, 12), (12,), (12, 13), (12,))
SIZE = 300  # their entries


@pytest.fixture
def hessian():
    rng = np.random.default_rng(0)
    eigenvectors = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    values = np.r_[9.0, -7.0, 5.0, 4.0, rng.normal(scale=0.3, size=SIZE - 4)]
    H = eigenvectors * values @ eigenvectors.T
    return ((H + H.T) / 2.0).astype("float32")


def test_the_page_has_the_tables_of_its_formulas():
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    assert scale_tables.page(text) == text
    assert scale_tables.page(text.replace("| 160 n |", "| 150 n |")) == text


def test_the_page_counts_the_vectors_of_a_block_as_the_plan_does():
    assert [scale_tables.block_vectors(k) for k in (1, 8)] == [vectors_held(1), vectors_held(8)]


def test_the_simulation_measures_as_the_package_does(hessian):
    rng = np.random.default_rng(1)
    Q = np.linalg.qr(rng.normal(size=(SIZE, 4)))[0].T
    signs = np.sign(rng.normal(size=(1, 12, SIZE)))
    found = estimates(measured(hessian, Q[None], signs, times(hessian, signs)))[0]
    split = Split(DenseOperator(hessian))
    split.deflate(tf.constant(Q, tf.float32))
    split.probe([tf.constant(signs[0], tf.float32)])
    known = split_norm_estimate(split.exact, split.tails, split.spread, num_matvecs=20)
    for name in ("value", "standard_error", "lower", "upper"):
        assert getattr(found, name) == pytest.approx(getattr(known, name), rel=1e-5)


@pytest.mark.parametrize(
    ("keep", "bytes_held"),
    [
        (leading, 16.0),
        (rounded(np.float16), 8.0),
        (whole_numbers(8), 4.0),
        (by_layer, None),
        (low_rank(1), 4 * 4 * (10 + 12 + 12 + 12 + 13 + 12) / SIZE),
    ],
)
def test_what_is_carried_is_orthonormal_once_mended(hessian, keep, bytes_held):
    rows = hessian.astype("float64")[None, :20]
    Q, held = keep(rows, 4, LAYERS)
    assert Q.shape == (1, 4, SIZE)
    assert bytes_held is None or held == pytest.approx(bytes_held)
    Q = orthonormal(Q)
    np.testing.assert_allclose(Q[0] @ Q[0].T, np.eye(4), atol=1e-12)


def test_directions_by_layer_are_zero_elsewhere(hessian):
    Q, held = by_layer(hessian.astype("float64")[None, :20], 6, LAYERS)
    first = np.sum(Q[0, :, :132] ** 2, axis=1)
    np.testing.assert_allclose(first * (1.0 - first), 0.0, atol=1e-12)
    assert 4 * 6 * 132 / SIZE <= held <= 4 * 6 * 168 / SIZE


def test_sketches_keep_lengths_on_average():
    """The mean of 4,000 is off by 5 standard errors with a probability below 1e-6."""
    x = np.broadcast_to(np.arange(1.0, 31.0), (1, 4000, 30))
    squares = np.sum(sketched(x, 7, np.random.default_rng(0)) ** 2, axis=2)
    assert np.mean(squares) == pytest.approx(np.sum(x[0, 0] ** 2), abs=5.0 * squares.std() / 63.0)
