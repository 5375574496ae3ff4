"""One Krylov space in double precision, against the dense matrix; bounds with their proofs."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback.krylov import Krylov, extend_together
from keras_hessian_callback.operators.linear_operator import DenseOperator
from tests.oracles import SPECTRA, symmetric_matrix


def space_of(matrix, steps, seed=0):
    start = np.random.default_rng(seed).choice([-1.0, 1.0], (len(matrix), 1)).astype(matrix.dtype)
    space = Krylov(tf.constant(start.T), tf.constant((matrix @ start).T))
    spent = extend_together([space], DenseOperator(matrix), steps - 1)
    assert spent == space.size - 1
    return start, space


def basis_of(space):
    """Q, read off by products with unit vectors."""
    n = space.following.shape[1]
    return space.coordinates(tf.eye(n, dtype=space.following.dtype)).T


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spectrum", ["flat", "decaying", "indefinite"])
def test_the_basis_is_orthonormal_and_makes_the_matrix_tridiagonal(spectrum, dtype):
    matrix = symmetric_matrix(SPECTRA[spectrum]).astype(dtype)
    start, space = space_of(matrix, 25)
    basis, eps = basis_of(space), np.finfo(dtype).eps
    assert basis.shape == (120, space.size)
    np.testing.assert_allclose(basis[:, :1], start / np.sqrt(120.0), rtol=4 * eps)
    np.testing.assert_allclose(basis.T @ basis, np.eye(space.size), atol=8 * eps)
    np.testing.assert_allclose(np.asarray(space.following) @ basis, 0.0, atol=8 * eps)
    size = np.linalg.norm(matrix, 2)
    inner = basis.T @ matrix.astype("float64") @ basis
    np.testing.assert_allclose(space.tridiagonal, inner, atol=8 * eps * size)
    crossing = space.beta * np.asarray(space.following).T * np.eye(space.size)[-1:]
    products = matrix.astype("float64") @ basis
    np.testing.assert_allclose(products - basis @ inner, crossing, atol=8 * eps * size)


def test_ritz_values_residuals_and_norm_are_those_of_the_basis():
    matrix = symmetric_matrix(SPECTRA["indefinite"])
    _, space = space_of(matrix, 10)
    basis = basis_of(space)
    theta, s = np.linalg.eigh(basis.T @ matrix @ basis)
    nodes, weights, residuals = space.ritz()
    np.testing.assert_allclose(nodes, theta, atol=1e-13)
    np.testing.assert_allclose(weights, s[0] ** 2, rtol=1e-8, atol=1e-14)
    expected = np.linalg.norm(matrix @ basis @ s - basis @ s * theta, axis=0)
    np.testing.assert_allclose(residuals, expected, rtol=1e-10, atol=1e-13)
    assert space.norm() == pytest.approx(np.linalg.norm(matrix @ basis, 2), rel=1e-12)


def test_the_asymmetry_of_products_widens_the_residuals():
    """Products of differences are those of a matrix that is not quite symmetric."""
    matrix = symmetric_matrix(SPECTRA["indefinite"])
    noise = 1e-3 * np.random.default_rng(0).normal(size=matrix.shape)
    _, space = space_of(matrix + noise, 60)
    basis = basis_of(space)
    theta, s = np.linalg.eigh(space.tridiagonal)
    expected = np.linalg.norm((matrix + noise) @ basis @ s - basis @ s * theta, axis=0)
    np.testing.assert_allclose(space.ritz()[2], expected, rtol=1e-6)
    assert expected[-1] > 1e-3
    assert space.beta * abs(s[-1, -1]) < 1e-6  # all that a symmetric one would have


def test_tails_are_those_of_the_projected_matrix():
    matrix = symmetric_matrix(SPECTRA["decaying"])
    vectors = np.random.default_rng(1).choice([-1.0, 1.0], (120, 5))
    for steps in (1, 2, 7, 110):
        _, space = space_of(matrix, steps)
        basis = basis_of(space)
        outside = np.eye(120) - basis @ basis.T
        expected = np.sum((outside @ matrix @ outside @ vectors) ** 2, axis=0)
        tails = space.tails(tf.constant(vectors.T), tf.constant((matrix @ vectors).T))
        whole = np.sum((matrix @ vectors) ** 2, axis=0)
        assert np.all(tails >= expected)
        np.testing.assert_allclose(tails - expected, 0.0, atol=1e-14 * whole.max())


@pytest.mark.parametrize("spectrum", ["flat", "decaying", "indefinite"])
def test_bounds_hold_and_are_lost_where_the_rest_is_taken_too_small(spectrum):
    matrix = symmetric_matrix(SPECTRA[spectrum])
    eigenvalues = np.linalg.eigvalsh(matrix)
    missed = 0
    for seed in range(20):
        _, space = space_of(matrix, 5, seed=seed)
        basis = basis_of(space)
        outside = np.eye(120) - basis @ basis.T
        rest = np.linalg.norm(outside @ matrix @ outside, 2)
        low, high = space.bounds(rest)
        assert low <= eigenvalues[0]
        assert eigenvalues[-1] <= high
        assert max(high, -low) <= np.abs(eigenvalues).max() + rest + space.beta
        low, high = space.bounds(0.5 * rest)
        missed += not low <= eigenvalues[0] <= eigenvalues[-1] <= high
    assert missed > 0 or spectrum == "indefinite"  # whose ends are in the basis by then
    assert space.bounds(np.inf) == (-np.inf, np.inf)
