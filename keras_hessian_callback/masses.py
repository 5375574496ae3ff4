"""What a loss divides its sum over a batch by: the weight of the batch in a mean of batches."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_hessian_callback.data import Batch


def num_examples(batch: Batch) -> tf.Tensor:
    """The number of examples in a batch, a float64 scalar."""
    leaf = next(leaf for leaf in tf.nest.flatten(batch) if leaf is not None)
    return tf.cast(tf.shape(leaf)[0], tf.float64)


def masses_of(model: keras.Model, batch: Batch, y_pred: Any) -> tf.Tensor:
    """What the compiled loss divides each output's sum by, as far as it differs by batch.

    Keras averages over all entries, which is the same as over examples; but over the valid
    entries where there is a mask, and over the weights with "mean_with_sample_weight".
    """
    masses = []
    names = getattr(model, "output_names", [])
    for key, output in _by_output(y_pred).items():
        loss, target, weight = (
            _of_output(values, key, names) for values in (model.loss, batch.y, batch.sample_weight)
        )
        if loss is None:  # not part of the sum, or of an overridden compute_loss
            continue
        mask = getattr(output, "_keras_mask", None)
        ignored = getattr(loss, "ignore_class", None)
        if ignored is not None and target is not None:
            valid = tf.not_equal(target, tf.cast(ignored, target.dtype))
            valid = tf.squeeze(valid, -1) if valid.shape.rank == output.shape.rank else valid
            mask = valid if mask is None else tf.logical_and(tf.cast(mask, tf.bool), valid)
        mass = None if mask is None else tf.cast(mask, tf.float64)
        if getattr(loss, "reduction", None) == "mean_with_sample_weight" and weight is not None:
            weight = tf.cast(weight, tf.float64)
            while mass is not None and weight.shape.rank < mass.shape.rank:
                weight = weight[..., None]
            while mass is not None and weight.shape.rank > mass.shape.rank:
                weight = tf.squeeze(weight, -1)
            mass = weight if mass is None else weight * mass
        masses.append(num_examples(batch) if mass is None else tf.reduce_sum(mass))
    return tf.stack(masses or [num_examples(batch)])


def reweighted(batch: Batch, y_pred: Any = None, names: Sequence[str] = ()) -> Any:
    """The sample weights as the loss takes them, times the importance of each example.

    Keras multiplies each entry of a loss (examples, ...) by a weight, which must have an axis for
    each axis of the loss: one less than the output has.

    Args:
        batch: The examples.
        y_pred: The model's outputs; None: of a `loss_fn`, which takes weights (examples,).
        names: The names of the outputs.
    """
    if batch.importance is None:
        return batch.sample_weight
    outputs, given = _by_output(y_pred), batch.sample_weight

    def times(weight: Any, output: Any) -> tf.Tensor:
        if weight is None:
            rank = 2 if output is None else output.shape.rank
            return _with_rank(batch.importance, rank - 1)
        dtype = weight.dtype if weight.dtype.is_floating else batch.importance.dtype
        factor = _with_rank(batch.importance, weight.shape.rank)
        return tf.cast(weight, dtype) * tf.cast(factor, dtype)

    def output_of(key: Any) -> Any:
        other = _other_key(key, names)
        return outputs.get(key, outputs.get(other))

    if isinstance(given, dict):
        return {key: times(weight, output_of(key)) for key, weight in given.items()}
    if isinstance(given, list | tuple):
        return [times(weight, output_of(index)) for index, weight in enumerate(given)]
    if given is None and len({output.shape.rank for output in outputs.values()}) > 1:
        return tf.nest.map_structure(lambda output: times(None, output), y_pred)
    return times(given, next(iter(outputs.values()), None))


def _with_rank(importance: tf.Tensor, rank: int) -> tf.Tensor:
    """(examples,) with axes of length 1 after it."""
    return tf.reshape(importance, [-1, *(1,) * max(rank - 1, 0)])


def _other_key(key: Any, names: Sequence[str]) -> Any:
    """The name of an output by its place, or its place by its name."""
    if isinstance(key, int):
        return names[key] if key < len(names) else None
    return list(names).index(key) if key in names else None


def _by_output(y_pred: Any) -> dict[Any, tf.Tensor]:
    """The outputs by their key: a dictionary's own, else their place."""
    if isinstance(y_pred, dict):
        return {key: output for key, output in y_pred.items() if tf.is_tensor(output)}
    outputs = y_pred if isinstance(y_pred, list | tuple) else [y_pred]
    return {index: output for index, output in enumerate(outputs) if tf.is_tensor(output)}


def _of_output(values: Any, key: Any, names: Sequence[str]) -> Any:
    """What belongs to an output, of losses, targets or weights as `compile` and `fit` take them."""
    if isinstance(values, dict):
        return values.get(_other_key(key, names) if isinstance(key, int) else key)
    if isinstance(values, list | tuple):
        index = key if isinstance(key, int) else _other_key(key, names)
        return values[index] if index is not None and index < len(values) else None
    return values
