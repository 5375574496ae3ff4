"""Runs traced graphs, without the passes that take longer than what they save."""

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context, execute


def run(function: Any, arguments: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The flat results of a `ConcreteFunction`, its graph run as it was traced.

    TensorFlow rewrites a graph before its first run (Grappler). For products with a Hessian that
    takes as long as tracing does, minutes for hundreds of layers, and leaves their CPU time the
    same within 1 % (measured on the networks of benchmarks/networks.py, on 2 cores), but for tiny
    ones: products of a BERT whose operations take microseconds took 5.8 ms instead of 4.0, where
    rewriting took 3 s. Where there is a GPU the graph is rewritten: data layouts matter there.

    Args:
        function: The function.
        arguments: Its tensors, flat.
    """
    # By its name, as `function` calls itself: what is kept for that goes with the function.
    return execute.execute(
        function.name,
        len(function.outputs),
        [*arguments, *function.captured_inputs],
        ("executor_type", "", "config_proto", _settings()),
        context.context(),
    )


@functools.cache
def _settings() -> bytes:
    config = tf.compat.v1.ConfigProto()
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    config.graph_options.rewrite_options.disable_meta_optimizer = not has_gpu
    return config.SerializeToString()
