"""Makes derivatives right while a gradient is traced, or refuses."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# Gradient operations that TensorFlow registers as not differentiable: their second derivative
# is dropped without a word.
_SILENT = {
    "ResizeBilinearGrad": "bilinear resize",
    "SparseAddGrad": "addition of sparse tensors",
    "FakeQuantWithMinMaxArgsGradient": "fake quantisation",
    "FakeQuantWithMinMaxVarsGradient": "fake quantisation",
    "FakeQuantWithMinMaxVarsPerChannelGradient": "fake quantisation",
}

_lock = threading.Lock()
_tracing = threading.local()
_num_tracing = 0
_Function = type(tf.function(lambda: None))
_moments, _call = tf.nn.moments, _Function.__call__  # what is put back


@contextlib.contextmanager
def exact_derivatives() -> Iterator[None]:
    """What this thread traces inside can be differentiated twice, by mapped weights.

    Two things are replaced, for the thread that asked and no other:

    * `tf.nn.moments` computes the variance with a gradient stopped at the mean. The first
      derivative is right, the second is not, and LayerNormalization, GroupNormalization and
      BatchNormalization(training=True) use it. It becomes the plain formula.
    * A `tf.function` inside the model keeps traces: one made in training reads the variables
      instead of the mapped weights, one made here would be left to training. A copy without
      traces, not compiled by XLA, is called.
    """
    global _num_tracing, _moments, _call
    with _lock:
        if _num_tracing == 0:
            _moments, tf.nn.moments = tf.nn.moments, _dispatching_moments
            _call, _Function.__call__ = _Function.__call__, _dispatching_call
        _num_tracing += 1
    depth = getattr(_tracing, "depth", 0)
    _tracing.depth = depth + 1
    try:
        yield
    finally:
        _tracing.depth = depth
        with _lock:
            _num_tracing -= 1
            if _num_tracing == 0:
                tf.nn.moments = _moments
                _Function.__call__ = _call


def refuse_dropped_second_derivatives(graph: tf.Graph) -> None:
    """Raises ValueError where a traced gradient holds an operation with a silent zero."""
    for name, kind in operations(graph):
        if kind in _SILENT:
            raise ValueError(
                f"TensorFlow drops the second derivative of {_SILENT[kind]} ({kind} in {name!r}): "
                "products by autodiff would be wrong. Use products='finite_difference'."
            )


def operations(graph: tf.Graph) -> list[tuple[str, str]]:
    """Name and type of every operation of a graph and of the functions it calls."""
    definition = graph.as_graph_def()
    functions = [node for function in definition.library.function for node in function.node_def]
    return [(node.name, node.op) for node in [*definition.node, *functions]]


def _dispatching_moments(x: Any, axes: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(_tracing, "depth", 0):
        return _exact_moments(x, axes, *args, **kwargs)
    return _moments(x, axes, *args, **kwargs)


def _dispatching_call(function: Any, *args: Any, **kwargs: Any) -> Any:
    if not getattr(_tracing, "depth", 0):
        return _call(function, *args, **kwargs)
    copy = function._clone(None)
    copy._jit_compile = None  # XLA lacks the second derivative of a conditional
    return _call(copy, *args, **kwargs)


def _exact_moments(
    x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance over `axes`, differentiable twice."""
    del shift  # as in tf.nn.moments
    with tf.name_scope(name or "moments"):
        x = tf.convert_to_tensor(x)
        y = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
        mean = tf.reduce_mean(y, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(y, mean), axes, keepdims=True)
        if not keepdims:
            mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
