import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf

from keras_hessian_callback.data import HeldOutData, concatenate

X, Y = np.arange(14.0).reshape(7, 2), np.arange(7)


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[3 * index : 3 * index + 3], Y[3 * index : 3 * index + 3]


def dataset():
    return tf.data.Dataset.from_tensor_slices((X.astype("float32"), Y)).batch(3)


def vectors():
    return tf.data.Dataset.from_tensor_slices((X, Y[:, None]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (X, Y),
        lambda: [X, Y],
        lambda: (tf.constant(X, tf.float32), tf.constant(Y)),
        dataset,
        lambda: dataset().unbatch().filter(lambda x, y: True).batch(2),  # of unknown length
        Sequence,
    ],
)
@pytest.mark.parametrize("batch_size", [None, 1, 3, 7, 50])
def test_every_source_gives_every_example_once_in_order(make, batch_size):
    data = HeldOutData(make())
    batches = data.micro_batches(batch_size)
    assert data.num_examples == 7
    sizes = {None: [7], 1: [1] * 7, 3: [3, 3, 1], 7: [7], 50: [7]}[batch_size]
    assert [len(batch.x) for batch in batches] == sizes
    np.testing.assert_array_equal(np.concatenate([b.x for b in batches]), X)
    np.testing.assert_array_equal(np.concatenate([b.y for b in batches]), Y)
    assert all(batch.x.dtype == tf.float32 and batch.sample_weight is None for batch in batches)


def test_nested_data_and_sample_weights_keep_their_structure():
    data = HeldOutData(({"a": X, "b": (X, Y)}, {"out": Y}, np.ones(7)))
    batch = data.micro_batches(4)[1]
    assert batch.x["a"].shape == (3, 2)
    assert batch.x["b"][1].numpy().tolist() == [4, 5, 6]
    assert batch.y["out"].numpy().tolist() == [4, 5, 6]
    assert batch.sample_weight.shape == (3,)


def test_strings_are_data_as_in_fit():
    words = tf.constant([["a"], ["b"], ["a"]])
    for data in ((words, [0, 1, 2]), tf.data.Dataset.from_tensors((words, [0, 1, 2]))):
        if isinstance(data, tuple):
            data = (words, np.arange(3))
        batch = HeldOutData(data).micro_batches(2)[0]
        assert batch.x.numpy().tolist() == [[b"a"], [b"b"]]


def test_a_pandas_series_is_a_column_as_in_fit():
    data = HeldOutData((pandas.DataFrame(X), pandas.Series(Y)))
    assert data.micro_batches(None)[0].y.shape == (7, 1)


def test_data_is_read_once():
    reads = []

    class Counting(Sequence):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    data = HeldOutData(Counting())
    data.micro_batches(2)
    data.micro_batches(None)
    assert reads == [0, 1, 2]


def test_concatenate_joins_two_micro_batches():
    first, second = HeldOutData((X, Y)).micro_batches(4)
    both = concatenate(first, second)
    np.testing.assert_array_equal(both.x, X)
    assert both.sample_weight is None


class Endless(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return X, Y


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: None, ValueError, "`data` is None"),
        (lambda: (), TypeError, "tuple of 0"),
        (lambda: X, TypeError, "got a ndarray"),
        (lambda: (X, Y, Y, Y), TypeError, "tuple of 4"),
        (lambda: (None, None), ValueError, "holds no arrays"),
        (lambda: (X[:0], Y[:0]), ValueError, "0 examples; pass at least one"),
        (lambda: dataset().take(0), ValueError, "no batches; pass at least one"),
        (lambda: (X, Y[:3]), ValueError, "as many targets and sample weights as inputs.*7, 3"),
        (lambda: (1.0, 2.0), ValueError, "scalar where examples"),
        (lambda: dataset().repeat(), ValueError, r"infinite dataset.*data.take\(num_batches\)"),
        (Endless, ValueError, "endless keras.utils.PyDataset"),
        (lambda: (pair for pair in [(X, Y)]), TypeError, "Python generator.*read only once"),
        (lambda: iter([(X, Y)]), TypeError, "Python list_iterator"),
        (lambda: (tf.ragged.constant([[1.0], [1.0, 2.0]]), [0, 1]), TypeError, "RaggedTensor"),
        (lambda: (tf.sparse.eye(3), [0, 1, 2]), TypeError, "SparseTensor"),
        (lambda: ([object()], [0]), TypeError, "not of numbers or strings"),
        (lambda: (np.array(["2026-01-01"], "M8[s]"),), TypeError, "datetime64.*, not of numbers"),
        (lambda: vectors(), ValueError, r"single examples, .*batch it: data.batch\(32\)"),
        (lambda: dataset().unbatch(), ValueError, r"single examples.*batch it: data.batch\(32\)"),
    ],
)
def test_bad_data_is_refused_with_what_to_do(make, error, message):
    with pytest.raises(error, match=message):
        HeldOutData(make())


def test_batches_of_different_shapes_are_refused():
    lengths = tf.data.Dataset.from_tensor_slices([1, 2, 3])
    ragged = lengths.map(lambda n: (tf.ones([n]), n)).padded_batch(2, ([None], []))
    with pytest.raises(ValueError, match=r"shapes differ beyond the first axis.*Pad them"):
        HeldOutData(ragged)


def test_a_dataset_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr("keras_hessian_callback.data._UNBOUNDED_BYTES", 1000)

    def endless():
        while True:
            yield X[0], Y[0]

    signature = (tf.TensorSpec((2,), tf.float64), tf.TensorSpec((), tf.int64))
    data = tf.data.Dataset.from_generator(endless, output_signature=signature).batch(4)
    with pytest.raises(ValueError, match="no known end"):
        HeldOutData(data)


def test_a_shuffled_dataset_warns_that_reading_draws_from_it():
    with pytest.warns(UserWarning, match="draws from its shuffle"):
        HeldOutData(dataset().shuffle(3))


def test_an_endless_dataset_is_seen_below_what_hides_its_length():
    finite = tf.data.Dataset.from_tensor_slices((X, Y))
    endless = finite.repeat().filter(lambda *_: True)
    for data in (endless.batch(4), endless.map(lambda x, y: (x, y)).batch(4).prefetch(2)):
        with pytest.raises(ValueError, match="infinite dataset"):
            HeldOutData(data)
    assert HeldOutData(endless.take(8).batch(4)).num_examples == 8
    zipped = tf.data.Dataset.zip(endless, finite.filter(lambda *_: True)).map(lambda a, b: b)
    assert HeldOutData(zipped.batch(4)).num_examples == len(X)


def test_a_dataset_that_takes_long_is_remarked_on(monkeypatch):
    monkeypatch.setattr("keras_hessian_callback.data._SLOW_SECONDS", -1)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda *_: True).batch(2)
    with pytest.warns(UserWarning, match="does not say where it ends") as seen:
        HeldOutData(data)
    assert len(seen) == 1


class OneBuffer(keras.utils.PyDataset):
    """Fills the same array with every batch."""

    num_batches = 2
    buffer = np.zeros((3, 2), "float32")

    def __getitem__(self, index):
        self.buffer[:] = X[3 * index : 3 * index + 3]
        return (self.buffer,)


def test_examples_are_copies():
    """A source may fill its arrays anew, between batches or later."""
    np.testing.assert_array_equal(HeldOutData(OneBuffer()).micro_batches(None)[0].x, X[:6])
    x, y = X.astype("float32"), Y.copy()
    data = HeldOutData((x, y))
    x[:], y[:] = 0.0, 0
    [batch] = data.micro_batches(None)
    np.testing.assert_array_equal(batch.x, X)
    np.testing.assert_array_equal(batch.y, Y)
