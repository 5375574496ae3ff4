import math

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import rows as room
from keras_hessian_callback.rows import (
    WeightedSum,
    as_tensor,
    combine,
    gram,
    gram_of,
    leading_basis,
    row_dots,
    square_sums,
)


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    """Blocks are worked on by NumPy, or by TensorFlow as on a GPU."""
    if request.param == "device":
        monkeypatch.setattr(room, "at_hand", lambda block: block)
    return request.param


@pytest.mark.usefixtures("where")
def test_reductions_are_in_double_precision():
    block = tf.constant([[3e-4, 1e4], [1.0, 2.0]], tf.float32)
    exact = np.sum(block.numpy().astype("float64") ** 2, axis=1)
    assert square_sums(block).tolist() == exact.tolist()
    assert row_dots(block, 2.0 * block).tolist() == (2.0 * exact).tolist()


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
@pytest.mark.parametrize("weights", [[1.0], [2.0], [0.5, 0.5], [0.25, 3.0, -1.0]])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("rows", "dtype"), [(3, "float32"), (0, "float32"), (2, "float64")])
def test_blocks_are_summed_by_their_weights(weights, scale, rows, dtype):
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(rows, 30_000)).astype(dtype) for _ in weights]
    total = WeightedSum()
    given = [tf.constant(block) for block in blocks]
    for weight, block in zip(weights, given, strict=True):
        total.add(weight, block)
    found = total.total(scale)
    assert found.dtype == dtype
    expected = scale * sum(w * block for w, block in zip(weights, blocks, strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-6 * scale)
    for before, after in zip(blocks, given, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("on_a_gpu", [{0}, {1}, {2}, {0, 1}, {1, 2}])
def test_blocks_on_different_devices_are_summed(on_a_gpu, monkeypatch):
    blocks = [tf.fill([2, 5], 10.0**number) for number in range(3)]
    there = [blocks[number] for number in on_a_gpu]
    at_hand = room.at_hand
    is_there = lambda block: any(block is other for other in there)  # noqa: E731
    monkeypatch.setattr(room, "at_hand", lambda b: b if is_there(b) else at_hand(b))
    total = WeightedSum()
    for block in blocks:
        total.add(1.0, block)
    np.testing.assert_array_equal(total.total(), np.full((2, 5), 111.0))


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_stays_so_in_a_sum():
    total = WeightedSum()
    for value in (math.inf, -math.inf, math.nan):
        total.add(1.0, tf.constant([[1.0, value]]))
    found = total.total(0.0).numpy()
    assert found[0, 0] == 0.0
    assert math.isnan(found[0, 1])


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


@pytest.mark.parametrize("few", [2**20, 0])
def test_rows_are_combined(where, few, monkeypatch):
    """Few by NumPy, many by TensorFlow; part by part."""
    rng = np.random.default_rng(0)
    matrix, factors, added = (rng.normal(size=shape) for shape in ((5, 90), (5, 3), (3, 90)))
    blocks = [tf.constant(matrix[:2]), tf.constant(matrix[2:2]), tf.constant(matrix[2:])]
    monkeypatch.setattr(room, "_FEW", few)
    for length in (40, 90):
        monkeypatch.setattr(room, "_HOST_LENGTH", length)
        monkeypatch.setattr(room, "_LENGTH", length)
        np.testing.assert_allclose(combine(blocks, factors), factors.T @ matrix, atol=1e-13)
        found = combine(blocks, factors, onto=tf.constant(added))
        np.testing.assert_allclose(found, factors.T @ matrix + added, atol=1e-13)
        assert isinstance(found, np.ndarray if where == "host" and few else tf.Tensor)


def test_combinations_are_tensors_without_a_copy():
    made = combine([np.ones((2, 7), "float32")], np.eye(2))
    tensor = as_tensor(made)
    assert np.shares_memory(np.asarray(memoryview(tensor)), made)
    del made
    np.testing.assert_array_equal(tensor, np.ones((2, 7)))
    for other in (np.ones((2, 7))[:, ::2], np.asarray(memoryview(tf.ones([2, 7])))):
        np.testing.assert_array_equal(as_tensor(other), other)


def test_rows_of_a_matrix_may_be_combinations_of_blocks(where):
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
