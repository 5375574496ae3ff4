import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import linalg, rows
from keras_hessian_callback.linalg import BLOCK_SIZE, map_rows, pack, probes, unpack


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


@pytest.mark.parametrize(
    ("shapes", "parted_by"),
    [([(2, 3), (), (2,)], "Slice"), ([(2, 16), (16,), (3, 32)], "SplitV")],
    ids=["cut", "shared"],
)
def test_map_rows_takes_blocks_of_any_width(shapes, parted_by):
    """Each variable gets its part of a row, in its shape; where it can be, without a copy."""
    like = [tf.zeros(shape) for shape in shapes]
    like[-1] = tf.cast(like[-1], tf.float64)
    sizes = [int(tf.size(t)) for t in like]

    @tf.function
    def scaled(block):
        def function(parts):
            assert [part.shape for part in parts] == [t.shape for t in like]
            return [tf.transpose(2.0 * tf.transpose(parts[0])), 3.0 * parts[1], 4.0 * parts[2]]

        return map_rows(function, block, like)

    graph = scaled.get_concrete_function(tf.TensorSpec([None, sum(sizes)])).graph.as_graph_def()
    operations = {node.op for function in graph.library.function for node in function.node_def}
    assert operations & {"Slice", "SplitV"} == {parted_by}
    factors = np.repeat(np.array([2, 3, 4], "float32"), sizes)
    for width in (0, 1, 5):
        block = tf.random.stateless_normal((width, sum(sizes)), (1, 2))
        before = block.numpy().copy()
        np.testing.assert_array_equal(scaled(block), factors * before)
        np.testing.assert_array_equal(block, before)


def test_rademacher_probes_are_signs():
    assert set(np.unique(draw())) == {-1.0, 1.0}


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_probes_have_identity_covariance(distribution):
    """Each of the 55 entries is off by at most 5 standard deviations: false-fail rate 3e-5."""
    drawn = draw(distribution, size=10, count=4000)
    covariance = drawn.T @ drawn / 4000
    deviation = np.sqrt((1 + (distribution == "normal") * np.eye(10)) / 4000)
    assert (np.abs(covariance - np.eye(10)) <= 5 * deviation + 1e-6).all()
    assert (np.abs(drawn.mean(axis=0)) <= 5 / np.sqrt(4000)).all()


@pytest.mark.parametrize("first", [0, 30])
def test_probes_are_the_same_by_numpy_and_by_tensorflow(first, monkeypatch):
    words = linalg._words(1000, 0, 0)
    bits = np.arange(first, 32, dtype="int32")
    by_numpy = linalg._signs(words, bits)
    monkeypatch.setattr(rows, "_FEW", 0)
    by_tensorflow = linalg._signs(words, bits)
    assert isinstance(by_numpy, np.ndarray)
    assert isinstance(by_tensorflow, tf.Tensor)
    np.testing.assert_array_equal(by_numpy, by_tensorflow)


def test_seeds_steps_and_numbers_give_different_probes():
    drawn = [
        row.tobytes()
        for seed in ((0, 0), (0, 1), (1, 0), (-1, 0), (2**40, 0), (2**32, 0))
        for row in draw(seed=seed, count=70)
    ]
    assert len(set(drawn)) == len(drawn) == 6 * 70


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
