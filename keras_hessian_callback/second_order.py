"""Makes derivatives right while a gradient is traced, and says where they are not to be had."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import ops, registry

from keras_hessian_callback.gradient_rules import RULES

# Gradient operations that TensorFlow registers as not differentiable: their second derivative
# is dropped without a word.
_SILENT = {
    "SparseAddGrad": "addition of sparse tensors",
    "FakeQuantWithMinMaxArgsGradient": "fake quantisation",
    "FakeQuantWithMinMaxVarsGradient": "fake quantisation",
    "FakeQuantWithMinMaxVarsPerChannelGradient": "fake quantisation",
}


# Operations whose first gradient is not the derivative in TensorFlow.
_WRONG = {
    f"ImageProjectiveTransformV{version}": "affine and perspective transforms of images"
    for version in (2, 3)
}


class SecondDerivativeError(ValueError):
    """Products by autodiff would be wrong, or cannot be had; by finite differences they can."""


_lock = threading.Lock()
_layers_lock = threading.RLock()
_tracing = threading.local()
_num_tracing = 0
_Function = type(tf.function(lambda: None))
# What is put back.
_moments, _call, _lookup = tf.nn.moments, _Function.__call__, registry.Registry.lookup
_recompute_grad, _cross_entropy = tf.recompute_grad, tf.nn.softmax_cross_entropy_with_logits


@contextlib.contextmanager
def exact_derivatives(layers: Iterable[keras.layers.Layer] = ()) -> Iterator[None]:
    """What this thread traces inside can be differentiated twice, by mapped weights.

    Replaced for the thread that asked and no other:

    * `tf.nn.moments` computes the variance with a gradient stopped at the mean. The first
      derivative is right, the second is not, and LayerNormalization, GroupNormalization and
      BatchNormalization(training=True) use it. It becomes the plain formula.
    * `tf.nn.softmax_cross_entropy_with_logits` drops the derivative of its gradient by labels
      that depend on weights. It becomes the plain formula.
    * Gradients of gradient operations that TensorFlow lacks or drops come from
      `gradient_rules`: softsign, resizing, crops, local response normalisation and others.
    * A `tf.function` inside the model keeps traces: one made in training reads the variables
      instead of the mapped weights, one made here would be left to training. A copy without
      traces is called, not compiled by XLA except for Keras' own (grouped convolutions need it).

    * `tf.recompute_grad` leaves its function as it is: it reads variables anew in the backward
      pass, past the mapping.

    And of `layers`, for as long as the context is open:

    * half-precision layers compute in float32;
    * recurrent layers do not use cuDNN, whose kernels have no second derivative;
    * rematerialisation is off, for the reason that `tf.recompute_grad` is.
    """
    global _num_tracing, _moments, _call, _lookup, _recompute_grad, _cross_entropy
    with _lock:
        if _num_tracing == 0:
            _moments, tf.nn.moments = tf.nn.moments, _dispatching_moments
            _call, _Function.__call__ = _Function.__call__, _dispatching_call
            _lookup, registry.Registry.lookup = registry.Registry.lookup, _dispatching_lookup
            _recompute_grad, tf.recompute_grad = tf.recompute_grad, _dispatching_recompute_grad
            _cross_entropy = tf.nn.softmax_cross_entropy_with_logits
            tf.nn.softmax_cross_entropy_with_logits = _dispatching_cross_entropy
        _num_tracing += 1
    depth = getattr(_tracing, "depth", 0)
    _tracing.depth = depth + 1
    try:
        with _twice_differentiable(layers):
            yield
    finally:
        _tracing.depth = depth
        with _lock:
            _num_tracing -= 1
            if _num_tracing == 0:
                tf.nn.moments = _moments
                _Function.__call__ = _call
                registry.Registry.lookup = _lookup
                tf.recompute_grad = _recompute_grad
                tf.nn.softmax_cross_entropy_with_logits = _cross_entropy


def check_first_derivatives(graph: tf.Graph) -> None:
    """Raises ValueError where a traced gradient is not the derivative in TensorFlow."""
    for name, kind in operations(graph):
        if kind in _WRONG and "gradient_tape" in name:
            raise ValueError(
                f"TensorFlow's gradient of {_WRONG[kind]} ({kind} in {name!r}) is not the "
                "derivative, so there is no Hessian to be had. Put such layers before the first "
                "weights, or into the input pipeline."
            )


def check_second_derivatives(graph: tf.Graph) -> None:
    """Raises SecondDerivativeError where a traced gradient drops a second derivative, or has none.

    A SymbolicGradient is TensorFlow's stand-in for the gradient of a function without a rule (the
    second one of CTC); where Grappler has not replaced it, to run it ends the process.
    """
    for name, kind in operations(graph):
        if kind == "SymbolicGradient":
            raise SecondDerivativeError(
                f"TensorFlow cannot differentiate the gradient of this model ({kind} in {name!r})."
            )
        if kind in _SILENT:
            raise SecondDerivativeError(
                f"TensorFlow drops the second derivative of {_SILENT[kind]} ({kind} in {name!r}), "
                "so products by autodiff would be wrong."
            )


def custom_gradients(graph: tf.Graph) -> list[str]:
    """Names of the operations that carry a gradient of their own (`tf.custom_gradient`)."""
    return [
        node.name
        for node in _nodes(graph)
        if node.attr["_gradient_op_type"].s.startswith(b"CustomGradient")
    ]


def operations(graph: tf.Graph) -> list[tuple[str, str]]:
    """Name and type of every operation of a graph and of the functions it calls."""
    return [(node.name, node.op) for node in _nodes(graph)]


def is_lower_precision(dtype: str) -> bool:
    """Whether it is a half-precision dtype, which is computed in float32 here."""
    return dtype in ("float16", "bfloat16")


def _nodes(graph: tf.Graph) -> list[Any]:
    definition = graph.as_graph_def()
    functions = [node for function in definition.library.function for node in function.node_def]
    return [*definition.node, *functions]


@contextlib.contextmanager
def _twice_differentiable(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Sets attributes of layers, and puts them back; two threads take turns."""
    layers = list(layers)
    if not layers:
        yield
        return
    with _layers_lock, contextlib.ExitStack() as stack:
        for layer in layers:
            settings = vars(layer)
            if is_lower_precision(layer.compute_dtype) and not layer.quantization_mode:
                _replace(stack, settings, "_dtype_policy", keras.DTypePolicy("float32"))
            for name, value in (("use_cudnn", False), ("_remat_mode", None)):
                if name in settings:
                    _replace(stack, settings, name, value)
        yield


def _replace(stack: contextlib.ExitStack, settings: dict[str, Any], name: str, value: Any) -> None:
    stack.callback(settings.__setitem__, name, settings[name])
    settings[name] = value


def _dispatching_moments(x: Any, axes: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(_tracing, "depth", 0):
        return _exact_moments(x, axes, *args, **kwargs)
    return _moments(x, axes, *args, **kwargs)


def _dispatching_cross_entropy(
    labels: Any, logits: Any, axis: int = -1, name: str | None = None
) -> tf.Tensor:
    if not getattr(_tracing, "depth", 0):
        return _cross_entropy(labels, logits, axis, name)
    with tf.name_scope(name or "cross_entropy"):
        logits = tf.convert_to_tensor(logits)
        labels = tf.cast(labels, logits.dtype)
        normalizer = tf.reduce_logsumexp(logits, axis)
        loss = normalizer - tf.reduce_sum(labels * logits, axis)
        # TensorFlow's gradient by the logits is softmax - labels, whatever the labels sum up to.
        return loss + (tf.reduce_sum(labels, axis) - 1.0) * tf.stop_gradient(normalizer)


def _dispatching_call(function: Any, *args: Any, **kwargs: Any) -> Any:
    if not getattr(_tracing, "depth", 0):
        return _call(function, *args, **kwargs)
    copy = function._clone(None)
    if not function.python_function.__module__.startswith("keras."):
        copy._jit_compile = None  # XLA lacks the second derivative of a conditional
    return _call(copy, *args, **kwargs)


def _dispatching_recompute_grad(function: Any) -> Any:
    return function if getattr(_tracing, "depth", 0) else _recompute_grad(function)


def _dispatching_lookup(entries: registry.Registry, name: str) -> Any:
    if getattr(_tracing, "depth", 0) and entries is ops.gradient_registry and name in RULES:
        return RULES[name]
    return _lookup(entries, name)


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
