"""Held-out data: read once into memory, handed out in micro-batches."""

import inspect
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

_ACCEPTED = (
    "`data` takes (x, y), (x, y, sample_weight) of arrays (nested as in `fit`), "
    "a tf.data.Dataset of such batches, or a keras.utils.PyDataset"
)
_SLOW_SECONDS = 10  # of reading, before a dataset without a known end is remarked on
_UNBOUNDED_BYTES = 4 * 2**30  # where a dataset does not know its length


class Batch(NamedTuple):
    """Examples as `fit` hands them to a model: each may be nested, `y` and weights None.

    `importance` (examples,) multiplies the sample weights of every output, where examples were
    drawn with unequal probabilities.
    """

    x: Any
    y: Any
    sample_weight: Any
    importance: Any = None


class HeldOutData:
    """The examples that the loss is averaged over, in memory.

    Args:
        data: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of such batches.

    Raises:
        TypeError: If `data` is of another kind.
        ValueError: If there are no examples, endlessly many, or their numbers differ.
    """

    def __init__(self, data: Any) -> None:
        self._batch = _read(data)
        leaves = _arrays(self._batch)
        if not leaves:
            raise ValueError(f"`data` holds no arrays. {_ACCEPTED}.")
        if any(leaf.ndim == 0 for leaf in leaves):
            raise ValueError(
                "`data` holds a scalar where examples are expected (lists are taken as nested "
                f"structures: pass np.asarray of a list of numbers). {_ACCEPTED}."
            )
        lengths = [len(leaf) for leaf in leaves]
        if len(set(lengths)) > 1:
            raise ValueError(
                "`data` must hold as many targets and sample weights as inputs; "
                f"its arrays have {', '.join(map(str, lengths))} examples."
            )
        self.num_examples = lengths[0]
        if self.num_examples == 0:
            raise ValueError("`data` holds 0 examples; pass at least one.")

    def __repr__(self) -> str:
        return f"<{self.num_examples} examples>"

    def micro_batches(self, batch_size: int | None) -> list[Batch]:
        """The examples in order, `batch_size` at a time; None: all in one.

        The last micro-batch is shorter where `batch_size` does not divide the number of
        examples.
        """
        size = min(batch_size or self.num_examples, self.num_examples)
        starts = range(0, self.num_examples, size)
        slices = [slice(start, start + size) for start in starts]
        return [self.examples(part) for part in slices]

    def examples(self, places: slice | np.ndarray, importance: np.ndarray | None = None) -> Batch:
        """The examples at these places as one batch, with their `importance` in Keras' floatx."""
        batch = _map_arrays(lambda leaf: tf.constant(leaf[places]), self._batch)
        if importance is None:
            return batch
        return batch._replace(importance=tf.constant(importance, keras.config.floatx()))


def check_training(training: bool, batch_size: int | None) -> None:
    """Raises unless `training` is a bool, and False where there are micro-batches."""
    if not isinstance(training, bool):
        raise TypeError(f"`training` must be True or False; got {training!r}.")
    if training and batch_size is not None:
        raise ValueError(
            f"training=True takes all examples at once; got batch_size={batch_size}. Batch "
            "normalisation by the statistics of micro-batches is the loss of another network. "
            "Use batch_size=None, with fewer examples if memory is short."
        )


def check_batch_size(batch_size: int | None) -> None:
    """Raises unless `batch_size` is None or an int of at least 1."""
    if batch_size is None:
        return
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"`batch_size` must be an integer or None; got {batch_size!r}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")


def concatenate(first: Batch, second: Batch) -> Batch:
    """One batch with the examples of both."""
    return tf.nest.map_structure(
        lambda a, b: None if a is None else tf.concat([a, b], axis=0), first, second
    )


def size_of(batch: Batch) -> int:
    """The number of examples in a batch."""
    return int(_arrays(batch)[0].shape[0])


def cut(batch: Batch, start: int, end: int) -> Batch:
    """The examples from `start` to `end`."""
    return _map_arrays(lambda leaf: leaf[start:end], batch)


def spread_out(batch: Batch, count: int) -> Batch:
    """At most `count` of the examples, evenly spaced."""

    def pick(leaf: tf.Tensor) -> tf.Tensor:
        places = np.linspace(0, leaf.shape[0] - 1, min(count, leaf.shape[0])).round()
        return tf.gather(leaf, places.astype("int64"))

    return _map_arrays(pick, batch)


def _read(data: Any) -> Batch:
    if data is None:
        raise ValueError(f"`data` is None. {_ACCEPTED}.")
    if isinstance(data, tf.data.Dataset):
        return _concatenate_batches(_dataset_batches(data))
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ValueError(
                "`data` is an endless keras.utils.PyDataset; the examples are read into memory, "
                "so give it a length (`num_batches`)."
            )
        return _concatenate_batches(data[index] for index in range(data.num_batches))
    if inspect.isgenerator(data) or isinstance(data, Iterator):
        raise TypeError(
            f"`data` is a Python {type(data).__name__}, which can be read only once. Pass arrays, "
            "or tf.data.Dataset.from_generator(...).take(num_batches)."
        )
    if isinstance(data, tf.distribute.DistributedDataset):
        raise TypeError("`data` is a distributed dataset; pass the tf.data.Dataset it is made of.")
    return _map_arrays(_as_array, _as_batch(data))


def _as_batch(data: Any) -> Batch:
    if not isinstance(data, tuple | list) or not 1 <= len(data) <= 3:
        kind = type(data).__name__
        size = f" of {len(data)}" if isinstance(data, tuple | list) else ""
        raise TypeError(f"{_ACCEPTED}; got a {kind}{size}.")
    return Batch(*data, *(None,) * (3 - len(data)))


def _dataset_batches(dataset: tf.data.Dataset) -> Iterator[Any]:
    """The batches of a finite dataset; one that does not know its length is read with a limit."""
    cardinality = int(dataset.cardinality())
    if _is_endless(dataset):
        raise ValueError(
            "`data` is an infinite dataset; the examples are read into memory, so take some: "
            "data.take(num_batches)."
        )
    if _is_shuffled(dataset):
        warnings.warn(
            "`data` is a shuffled dataset. Reading it draws from its shuffle: if the training data "
            "come from the same pipeline, their order in later epochs changes. Pass arrays, or "
            "split the held-out examples off before `.shuffle`.",
            stacklevel=2,
        )
    num_bytes, start, warned = 0, time.monotonic(), False
    for batch in dataset:
        yield batch
        if not warned and cardinality < 0 and time.monotonic() - start > _SLOW_SECONDS:
            warned = True
            warnings.warn(
                f"Reading `data` has taken {_SLOW_SECONDS} s, and does not say where it ends. If "
                "it is endless, interrupt and take some: data.take(num_batches).",
                stacklevel=2,
            )
        if cardinality == tf.data.UNKNOWN_CARDINALITY:
            num_bytes += sum(np.asarray(leaf).nbytes for leaf in tf.nest.flatten(batch))
        if num_bytes > _UNBOUNDED_BYTES:
            raise ValueError(
                f"`data` has no known end, and {num_bytes / 2**30:.0f} GiB of it were read. If it "
                "is endless, take some: data.take(num_batches); if not, say so: "
                "data.apply(tf.data.experimental.assert_cardinality(num_batches))."
            )


def _is_endless(dataset: tf.data.Dataset) -> bool:
    """Whether the batches never end, as far as the pipeline shows."""
    cardinality = int(dataset.cardinality())
    if cardinality != tf.data.UNKNOWN_CARDINALITY or "Take" in type(dataset).__name__:
        return cardinality == tf.data.INFINITE_CARDINALITY
    inputs = [_is_endless(part) for part in dataset._inputs()]
    return all(inputs) and bool(inputs) if "Zip" in type(dataset).__name__ else any(inputs)


def _is_shuffled(dataset: tf.data.Dataset) -> bool:
    kinds, queue = [], [dataset]
    while queue:
        kinds.append(type(queue[-1]).__name__)
        queue.extend(queue.pop()._inputs())
    return any("Shuffle" in kind for kind in kinds)


def _concatenate_batches(batches: Iterable[Any]) -> Batch:
    """All batches as one, on the host."""
    parts = [_map_arrays(_as_array, _as_batch(_wrapped(batch))) for batch in batches]
    if not parts:
        raise ValueError("`data` holds no batches; pass at least one.")
    lengths = {leaf.shape[:1] for leaf in _arrays(parts[0])}
    if () in lengths or len(lengths) > 1:
        raise ValueError(
            "`data` is a dataset of single examples, or its batches have not as many targets as "
            "inputs; batch it: data.batch(32)."
        )
    try:
        return tf.nest.map_structure(
            lambda *leaves: None if leaves[0] is None else np.concatenate(leaves), *parts
        )
    except ValueError as error:
        shapes = [str([leaf.shape for leaf in _arrays(part)]) for part in parts]
        differing = list(dict.fromkeys(shapes))[:3]
        raise ValueError(
            "The batches of `data` cannot be joined into one set of examples: their shapes differ "
            f"beyond the first axis ({'; '.join(differing)}). Pad them to one shape."
        ) from error


def _wrapped(batch: Any) -> Any:
    """A dataset's element as a tuple: one of inputs alone is (x,)."""
    return batch if isinstance(batch, tuple | list) else (batch,)


def _arrays(batch: Batch) -> list[np.ndarray]:
    return [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]


def _map_arrays(function: Any, batch: Batch) -> Batch:
    return tf.nest.map_structure(lambda leaf: None if leaf is None else function(leaf), batch)


def _as_array(leaf: Any) -> np.ndarray:
    """An array as `fit` would see it: floats in Keras' floatx, a pandas Series as a column."""
    if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
        raise TypeError(
            f"`data` holds a {type(leaf).__name__}; pass dense arrays (`.to_tensor()`, "
            "`tf.sparse.to_dense`)."
        )
    is_series = hasattr(leaf, "to_numpy") and getattr(leaf, "ndim", 0) == 1
    # A copy: the caller may fill the same buffer anew, even between two batches.
    array = np.asarray(leaf) if tf.is_tensor(leaf) else np.asarray(leaf).copy()
    times = array.dtype.kind in "mM"
    if times or (array.dtype == object and not all(isinstance(i, str | bytes) for i in array.flat)):
        raise TypeError(
            f"`data` holds a {type(leaf).__name__} of {array.dtype}, not of numbers or strings. "
            f"{_ACCEPTED}."
        )
    if np.issubdtype(array.dtype, np.floating) and not tf.is_tensor(leaf):
        array = array.astype(keras.config.floatx(), copy=False)
    return array[:, None] if is_series else array
