"""How much the loss of each example bends with the model's output: what it can add to H."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch
from keras_hessian_callback.objective import Objective, dense

_PROBES = 16  # a power of 2


def output_curvature(
    objective: Objective, weights: Sequence[tf.Tensor], batch: Batch
) -> tuple[tf.Tensor, tf.Tensor]:
    """The trace of the second derivative of each example's loss by the model's outputs.

    By the logits, where an output is a softmax or sigmoid of them. The trace is the mean of
    r'Ar over 16 vectors r of signs, which are orthogonal from entry to entry in each 16 of an
    example: exact up to 16 entries (of all outputs together), else with random signs.

    Args:
        objective: The loss, as compiled.
        weights: One tensor per trainable variable.
        batch: The examples.

    Returns:
        The traces (examples,), in float64, as the loss sums them up before it divides by its
        masses; and the masses (outputs,). To be traced inside a `tf.function`.

    Raises:
        ValueError: If TensorFlow has no second derivative of the loss by the outputs.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
        outer.watch(weights)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(weights)
            loss, masses, y_pred = objective.with_outputs(weights, batch)
            outputs = [_logits(output) for output in tf.nest.flatten(y_pred)]
            outputs = [output for output in outputs if output.dtype.is_floating]
        gradients = dense(inner.gradient(loss, outputs), outputs)
    num_examples = tf.shape(tf.nest.flatten(batch)[0])[0]
    sizes = [tf.reduce_prod(tf.shape(output)[1:]) for output in outputs]
    signs = tf.split(_signs(tf.add_n(sizes)), sizes, axis=1)

    def quadratics(row: tf.Tensor) -> tf.Tensor:
        """R'Ar of each example."""
        vectors = [
            tf.ones_like(output)
            * tf.reshape(tf.cast(part[row], output.dtype), tf.shape(output)[1:])
            for part, output in zip(signs, outputs, strict=True)
        ]
        try:
            products = outer.gradient(gradients, outputs, output_gradients=vectors)
        except (LookupError, NotImplementedError, TypeError) as error:
            raise ValueError(
                "`importance` needs the second derivative of the loss by the model's output, which "
                f"TensorFlow lacks: {error}. Pass the examples themselves as `data`."
            ) from error
        rows = []
        for vector, product in zip(vectors, dense(products, outputs), strict=True):
            entries = tf.cast(vector * product, tf.float64)
            rows.append(tf.reshape(entries, [num_examples, -1]))
        return tf.reduce_sum(tf.concat(rows, axis=1), axis=1)

    signature = tf.TensorSpec([None], tf.float64)
    rows = tf.range(_PROBES)
    samples = tf.map_fn(quadratics, rows, parallel_iterations=1, fn_output_signature=signature)
    return tf.abs(tf.reduce_mean(samples, axis=0)) * tf.reduce_sum(masses), masses


def _logits(output: Any) -> tf.Tensor:
    """What an output is a softmax or sigmoid of, which Keras computes the loss from; or itself."""
    logits = getattr(output, "_keras_logits", None)
    if logits is None and output.op.type in ("Softmax", "Sigmoid"):
        logits = output.op.inputs[0]
    return output if logits is None else logits


def _signs(size: tf.Tensor) -> tf.Tensor:
    """Vectors of signs (16, size): a Hadamard matrix repeated, with random signs by column."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < _PROBES:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    columns = tf.gather(tf.constant(hadamard, tf.float32), tf.range(size) % _PROBES, axis=1)
    bits = tf.random.stateless_uniform([size], [0, 0], minval=None, maxval=None, dtype=tf.int32)
    return columns * tf.where(bits < 0, -1.0, 1.0)
