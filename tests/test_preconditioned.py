import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import Deflated, Exact, HessianOperator, Hutchinson
from keras_hessian_callback.operators.linear_operator import DenseOperator
from keras_hessian_callback.operators.preconditioned import PreconditionedOperator
from tests.oracles import SPECTRA, dense_hessian, double_precision, symmetric_matrix
from tests.problems import tanh_classifier

DIAGONAL = np.geomspace(1e-3, 10.0, 120)


def preconditioned(spectrum: str) -> tuple[PreconditionedOperator, np.ndarray]:
    """The operator, and D^-1 A."""
    matrix = symmetric_matrix(SPECTRA[spectrum])
    return PreconditionedOperator(DenseOperator(matrix), DIAGONAL), matrix / DIAGONAL[:, None]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_it_is_symmetric_with_the_eigenvalues_of_the_scaled_rows(spectrum):
    operator, rows = preconditioned(spectrum)
    assert operator.shape == (120, 120)
    dense = operator.matmat(np.eye(120))
    np.testing.assert_allclose(dense, dense.T, rtol=1e-12, atol=1e-12)
    scale = np.abs(dense).max()
    expected = np.sort(np.linalg.eigvals(rows).real)  # rows are not symmetric: less exact
    np.testing.assert_allclose(np.linalg.eigvalsh(dense), expected, rtol=1e-6, atol=1e-9 * scale)


def test_vectors_and_kinds():
    operator, rows = preconditioned("indefinite")
    dense = np.sqrt(DIAGONAL)[:, None] * rows / np.sqrt(DIAGONAL)
    vectors = np.random.default_rng(0).normal(size=(120, 3))
    np.testing.assert_allclose(operator.matmat(vectors), dense @ vectors, rtol=1e-10)
    np.testing.assert_allclose(operator.matvec(vectors[:, 0]), dense @ vectors[:, 0], rtol=1e-10)
    assert isinstance(operator.matvec(vectors[:, 0]), np.ndarray)
    assert tf.is_tensor(operator.matmat(tf.constant(vectors)))


@pytest.mark.parametrize("estimator", [Exact(), Deflated(max_matvecs=150), Hutchinson(400)])
def test_estimators_take_it(estimator):
    """Hutchinson within 4 standard errors: 6e-5 false fails."""
    operator, rows = preconditioned("outliers")
    found, _ = estimator(operator, seed=0)
    norm = np.sqrt(np.trace(rows @ rows))
    error = max(4.0 * found["frobenius_norm"].standard_error, 1e-6 * norm)
    assert abs(found["frobenius_norm"].value - norm) < error
    assert abs(found["trace"].value - np.trace(rows)) < max(
        4.0 * found["trace"].standard_error, 1e-6 * np.abs(rows.trace())
    )


def test_folds_and_layers_are_those_of_the_operator():
    model, data = double_precision(tanh_classifier)
    plain = HessianOperator(model, data, batch_size=4)
    diagonal = np.linspace(0.1, 2.0, 51)
    operator = PreconditionedOperator(plain, tf.constant(diagonal, tf.float32))
    assert (operator.shares, operator.layers) == (plain.shares, plain.layers)
    assert (operator.dtype, operator.products) == (plain.dtype, "autodiff")
    vectors = tf.constant(np.random.default_rng(0).normal(size=(51, 2)))
    parts = [part.numpy().T for part in operator.fold_products(tf.transpose(vectors))]
    assert len(parts) == 3
    mean = np.tensordot(operator.shares, parts, axes=1)
    np.testing.assert_allclose(operator.matmat(vectors), mean, rtol=1e-12, atol=1e-14)
    scales = 1.0 / np.sqrt(diagonal.astype("float32").astype("float64"))
    dense = scales[:, None] * dense_hessian(model, data) * scales
    np.testing.assert_allclose(mean, dense @ vectors.numpy(), rtol=1e-7, atol=1e-9)


def test_a_diagonal_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`diagonal` must have the shape \(120,\); got \(3,\)"):
        PreconditionedOperator(DenseOperator(np.eye(120)), np.ones(3))
