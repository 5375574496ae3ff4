import math

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import rows as room
from keras_hessian_callback.memory import Growth
from keras_hessian_callback.rows import (
    WeightedSum,
    as_tensor,
    combine,
    join,
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


@pytest.mark.parametrize("few", [2**20, 0])
def test_blocks_are_joined(where, few, monkeypatch):
    monkeypatch.setattr(room, "_FEW", few)
    matrix = np.random.default_rng(0).normal(size=(5, 90))
    given = [tf.constant(matrix[:2]), tf.constant(matrix[2:2]), matrix[2:]]
    found = join(given)
    np.testing.assert_array_equal(found, matrix)
    assert isinstance(found, np.ndarray if where == "host" and few else tf.Tensor)
    assert join(given[:1]) is given[0]


@pytest.mark.parametrize("weights", [[1.0], [2.0], [0.5, 0.5], [0.5, 0.5, 3.0, -1.0], [0.0, 2.0]])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(("rows", "dtype"), [(3, "float32"), (0, "float32"), (2, "float64")])
def test_blocks_are_summed_by_their_weights(weights, scale, rows, dtype):
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(rows, 30_000)).astype(dtype) for _ in weights]
    total = WeightedSum()
    given = [*(tf.constant(block) for block in blocks[:-1]), blocks[-1].copy()]
    for weight, block in zip(weights, given, strict=True):
        total.add(weight, block)
    found = total.total(scale)
    assert found.dtype == dtype
    expected = scale * sum(w * block for w, block in zip(weights, blocks, strict=True))
    np.testing.assert_allclose(found, expected, atol=1e-6 * scale)
    for before, after in zip(blocks, given, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("weights", [[0.5, 0.5, 0.5], [0.5, 0.25, 0.125]])
def test_a_sum_holds_no_more_than_three_blocks(weights):
    """The sum, what is added, and the next sum; nobody else holds what is added."""
    shape, growth = [8, 2**20], Growth()
    for _ in range(2):  # what the allocator takes at first is its own choice
        total = WeightedSum()
        with growth.watched():
            for weight in weights:
                total.add(weight, tf.fill(shape, 2.0))
    assert 2.5 < growth.bytes / (4 * math.prod(shape)) < 3.5
    np.testing.assert_array_equal(total.total()[:, :3], np.full((8, 3), 2.0 * sum(weights)))


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_stays_so_in_a_sum():
    total = WeightedSum()
    for value in (math.inf, -math.inf, math.nan):
        total.add(1.0, tf.constant([[1.0, value]]))
    found = total.total(0.0).numpy()
    assert found[0, 0] == 0.0
    assert math.isnan(found[0, 1])


@pytest.mark.parametrize("few", [2**20, 0])
def test_rows_are_combined(where, few, monkeypatch):
    """Few and long ones by NumPy, others by TensorFlow; part by part."""
    rng = np.random.default_rng(0)
    matrix, factors, added = (rng.normal(size=shape) for shape in ((5, 90), (5, 3), (3, 90)))
    blocks = [tf.constant(matrix[:2]), tf.constant(matrix[2:2]), tf.constant(matrix[2:])]
    monkeypatch.setattr(room, "_FEW", few)
    for length in (40, 90):
        monkeypatch.setattr(room, "_HOST_LENGTH", length)
        monkeypatch.setattr(room, "_WHOLE", length)
        monkeypatch.setattr(room, "_LENGTH", 40)
        np.testing.assert_allclose(combine(blocks, factors), factors.T @ matrix, atol=1e-13)
        found = combine(blocks, factors, onto=tf.constant(added))
        np.testing.assert_allclose(found, factors.T @ matrix + added, atol=1e-13)
        by_numpy = where == "host" and (few or length < 90)
        assert isinstance(found, np.ndarray if by_numpy else tf.Tensor)


def test_long_rows_are_combined_piece_by_piece():
    """In no more memory than the result takes; what the allocator takes at first is its choice."""
    rows, size = 24, room._WHOLE + 64
    blocks, growth = [tf.ones([rows, size]), tf.ones([1, size])], Growth()
    for _ in range(2):
        with growth.watched():
            found = combine(blocks, np.ones((rows + 1, 4)))
    assert found[-1, -1] == rows + 1
    assert 3.5 < growth.bytes / (4 * size) < 5.0


def test_combinations_are_tensors_without_a_copy():
    made = combine([np.ones((2, 7), "float32")], np.eye(2))
    tensor = as_tensor(made)
    assert np.shares_memory(np.asarray(memoryview(tensor)), made)
    del made
    np.testing.assert_array_equal(tensor, np.ones((2, 7)))
    for other in (np.ones((2, 7))[:, ::2], np.asarray(memoryview(tf.ones([2, 7])))):
        np.testing.assert_array_equal(as_tensor(other), other)
