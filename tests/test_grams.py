import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import grams as room
from keras_hessian_callback import rows as rows_room
from keras_hessian_callback.grams import gram, gram_of, grams, leading_basis


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    """Blocks are worked on by NumPy, or by TensorFlow as on a GPU."""
    if request.param == "device":
        for module in (room, rows_room):
            monkeypatch.setattr(module, "at_hand", lambda block: block)
    return request.param


@pytest.mark.usefixtures("where")
def test_gram_matrices_are_summed_in_double_precision():
    """Ten thousand ones after 2^24: single precision would not move."""
    row = tf.concat([[[4096.0]], tf.ones([1, 10_000])], axis=1)
    assert gram(row, row)[0, 0] == 4096.0**2 + 10_000


@pytest.mark.usefixtures("where")
def test_the_gram_matrix_of_blocks_is_that_of_their_rows():
    rows = np.random.default_rng(0).normal(size=(6, 20_000))
    blocks = [tf.constant(part) for part in (rows[:1], rows[1:1], rows[1:4], rows[4:])]
    np.testing.assert_allclose(gram_of(blocks), rows @ rows.T, rtol=1e-12, atol=1e-9)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("numbers", [1, 500, 2**18])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("last", [0, 1, 3, 7])
def test_parts_of_rows_are_multiplied_with_the_last_ones(last, own, numbers, monkeypatch):
    """In stacks of one matrix or many; a part of none, of one column, and of several matrices."""
    monkeypatch.setattr(room, "_NUMBERS", numbers)
    rows = np.random.default_rng(0).normal(size=(7, 1000))
    blocks = [tf.constant(part) for part in (rows[:2], rows[2:2], rows[2:])]
    bounds = [0, 0, 1, 300, 812, 1000]
    parts = [slice(first, end) for first, end in itertools.pairwise(bounds)]
    found = grams(blocks, last, parts, own=own)
    kept = 7 if own else 7 - last
    for part, products in zip(parts, found, strict=True):
        expected = rows[:kept, part] @ rows[7 - last :, part].T
        np.testing.assert_allclose(products, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_sums_do_not_depend_on_the_number_of_cores(monkeypatch):
    """And threads say nothing of what is not finite, as TensorFlow does not."""
    monkeypatch.setattr(room, "_STRETCH", 1024)
    monkeypatch.setattr(room, "_NUMBERS", 9 * 128 * 5)  # parts that fill a stack, and more than one
    values = np.random.default_rng(0).normal(size=(9, 5000)).astype("float32")
    parts = [slice(0, 700), slice(700, 5000)]
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(room, "_cores", lambda cores=cores: cores)
        found.append((grams([values], 9, parts), grams([values], 4, parts), gram_of([values])))
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, same)
    values[3, [17, 4000]] = np.inf, np.nan
    assert np.isnan(gram_of([values])[3]).all()
    assert np.isfinite(gram_of([values])[np.ix_([0, 8], [0, 8])]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_leading_basis_is_that_of_the_singular_value_decomposition(dtype):
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(300, 6)))[0]
    right = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    values = np.array([100.0, 30.0, 3.0, 1.0, 0.1, 1e-30])
    rows = tf.constant(((left * values) @ right.T).T, dtype)
    blocks = [rows[:2], rows[2:]]
    basis, energies = leading_basis(list(blocks), 5)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(energies.sum(axis=0)[:4], values[:4] ** 2, rtol=1e-4)
    by_row = (right * values) ** 2
    np.testing.assert_allclose(energies[:, :4], by_row[:, :4], rtol=1e-3, atol=1e-3)
    assert basis.shape[0] == 5
    np.testing.assert_allclose(np.asarray(basis) @ np.asarray(basis).T, np.eye(5), atol=5 * eps)
    overlaps = np.abs(np.sum(left[:, :5].T * np.asarray(basis), axis=1))
    np.testing.assert_allclose(overlaps, 1.0, atol=1e-4)
    assert leading_basis(list(blocks), 6)[0].shape[0] == 5  # the last one is rounding
    assert leading_basis([tf.zeros([2, 300], dtype)], 2)[0].shape[0] == 0


@pytest.mark.usefixtures("where")
def test_rows_of_a_matrix_may_be_combinations_of_blocks():
    rng = np.random.default_rng(0)
    blocks = [tf.constant(rng.normal(size=(k, 90))) for k in (2, 3)]
    mixing = rng.normal(size=(5, 4))
    matrix = mixing.T @ np.concatenate(blocks)
    basis, energies = leading_basis(list(blocks), 3, mixing=mixing)
    again, same = leading_basis([tf.constant(matrix)], 3)
    np.testing.assert_allclose(energies, same, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(np.multiply(basis, again), axis=1)), 1.0)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(energies.sum(axis=0), values**2)
    products = gram_of(blocks)
    known, _ = leading_basis(list(blocks), 3, mixing=mixing, products=products)
    np.testing.assert_allclose(known, basis, atol=1e-12)
