import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import linalg
from keras_hessian_callback.linalg import (
    BLOCK_SIZE,
    gram,
    gram_of,
    leading_basis,
    map_rows,
    pack,
    probes,
    row_dots,
    square_sums,
    unpack,
)


def draw(distribution="rademacher", *, first=0, count=BLOCK_SIZE, seed=0, size=1000):
    dtype = np.dtype("float32")
    block = probes(distribution, size=size, first=first, count=count, seed=seed, dtype=dtype)
    return block.numpy()


def test_unpack_inverts_pack():
    tensors = [tf.reshape(tf.range(6.0), (2, 3)), tf.constant(7.0), tf.constant([8.0], tf.float64)]
    vector = pack(tensors, tf.float64)
    assert vector.numpy().tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    for tensor, back in zip(tensors, unpack(vector, tensors), strict=True):
        assert back.dtype == tensor.dtype
        np.testing.assert_array_equal(back, tensor)


def test_map_rows_takes_blocks_of_any_width():
    """Each variable gets its part of a row, in its shape."""
    like = [tf.zeros((2, 3)), tf.zeros(()), tf.zeros((2,), tf.float64)]

    @tf.function
    def scaled(block):
        def function(parts):
            assert [part.shape for part in parts] == [t.shape for t in like]
            return [tf.transpose(2.0 * tf.transpose(parts[0])), 3.0 * parts[1], 4.0 * parts[2]]

        return map_rows(function, block, like)

    factors = np.array([2, 2, 2, 2, 2, 2, 3, 4, 4], "float32")
    for width in (0, 1, 5):
        block = tf.random.stateless_normal((width, 9), (1, 2))
        np.testing.assert_array_equal(scaled(block), factors * block)


def test_rademacher_probes_are_signs():
    assert set(np.unique(draw())) == {-1.0, 1.0}


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_probes_have_identity_covariance(distribution):
    """Each of the 55 entries is off by at most 5 standard deviations: false-fail rate 3e-5."""
    rows = draw(distribution, size=10, count=4000)
    covariance = rows.T @ rows / 4000
    deviation = np.sqrt((1 + (distribution == "normal") * np.eye(10)) / 4000)
    assert (np.abs(covariance - np.eye(10)) <= 5 * deviation + 1e-6).all()
    assert (np.abs(rows.mean(axis=0)) <= 5 / np.sqrt(4000)).all()


def test_seeds_steps_and_numbers_give_different_probes():
    drawn = [
        row.tobytes()
        for seed in ((0, 0), (0, 1), (1, 0), (-1, 0), (2**40, 0))
        for row in draw(seed=seed, count=70)
    ]
    assert len(set(drawn)) == len(drawn) == 5 * 70


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_a_probe_is_the_same_in_whatever_block(distribution):
    whole = draw(distribution, count=70)
    for first, count in ((0, 0), (0, 1), (5, 3), (30, 5), (31, 34), (69, 1)):
        part = draw(distribution, first=first, count=count)
        np.testing.assert_array_equal(part, whole[first : first + count])


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_probes_are_a_function_of_their_arguments(distribution):
    first, again = (draw(distribution, first=3, seed=(1, 2)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_an_int_seed_is_step_0():
    for seed in (5, np.int32(5)):
        np.testing.assert_array_equal(draw(seed=seed), draw(seed=(5, 0)))


def test_probes_leave_the_global_generators_alone():
    tf.random.set_seed(0)
    before = np.random.get_state()[1].copy()
    expected = tf.random.normal([3]).numpy()
    tf.random.set_seed(0)
    draw()
    np.testing.assert_array_equal(tf.random.normal([3]), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_reductions_are_in_double_precision():
    block = tf.constant([[3e-4, 1e4], [1.0, 2.0]], tf.float32)
    exact = np.sum(block.numpy().astype("float64") ** 2, axis=1)
    assert square_sums(block).tolist() == exact.tolist()
    assert row_dots(block, 2.0 * block).tolist() == (2.0 * exact).tolist()


def test_gram_matrices_are_summed_in_double_precision():
    """Ten thousand ones after 2^24: single precision would not move."""
    row = tf.concat([[[4096.0]], tf.ones([1, 10_000])], axis=1)
    assert gram(row, row)[0, 0] == 4096.0**2 + 10_000


def test_the_gram_matrix_of_blocks_is_that_of_their_rows():
    rows = np.random.default_rng(0).normal(size=(6, 20_000))
    blocks = [tf.constant(part) for part in (rows[:1], rows[1:1], rows[1:4], rows[4:])]
    np.testing.assert_allclose(gram_of(blocks), rows @ rows.T, rtol=1e-12, atol=1e-9)


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
    np.testing.assert_allclose(basis.numpy() @ basis.numpy().T, np.eye(5), atol=5 * eps)
    overlaps = np.abs(np.sum(left[:, :5].T * basis.numpy(), axis=1))
    np.testing.assert_allclose(overlaps, 1.0, atol=1e-4)
    assert leading_basis(list(blocks), 6)[0].shape[0] == 5  # the last one is rounding
    assert leading_basis([tf.zeros([2, 300], dtype)], 2)[0].shape[0] == 0


def test_blocks_count_by_their_scale(monkeypatch):
    """And the basis is the same where it is made part by part."""
    rng = np.random.default_rng(0)
    blocks = [tf.constant(rng.normal(size=(k, 90))) for k in (2, 3)]
    basis, energies = leading_basis(list(blocks), 4, scales=[1.0, 5.0])
    again, same = leading_basis([blocks[0], 5.0 * blocks[1]], 4)
    np.testing.assert_allclose(energies, same, rtol=1e-10)
    np.testing.assert_allclose(basis, again, atol=1e-12)
    monkeypatch.setattr(linalg, "_LENGTH", 40)
    parts, _ = leading_basis(list(blocks), 4, scales=[1.0, 5.0])
    np.testing.assert_allclose(parts, basis, atol=1e-12)
