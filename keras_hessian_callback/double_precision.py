"""A traced function computed in float64, whatever the precision that it was traced in."""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels, op_def_registry

from keras_hessian_callback.execution import run

_LOWER = {tf.float32.as_datatype_enum, tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}
_DOUBLE = tf.float64.as_datatype_enum
_RESOURCE = tf.resource.as_datatype_enum
_SUFFIX = "_in_double_precision"


def in_double_precision(
    function: Any, results: Sequence[tf.Tensor]
) -> Callable[..., list[tf.Tensor]]:
    """The same graph with every lower floating dtype replaced by float64.

    An operation that has no float64 form, or that reads a variable, keeps its dtype between
    casts. The graph is rewritten, not traced again: casts and constants of the model's own code
    are lifted too.

    Args:
        function: A `ConcreteFunction` whose arguments are a flat list of tensors.
        results: Tensors of its graph.

    Returns:
        A function of the same arguments, lower floating ones in float64, to the results, those
        in float64.

    Raises:
        ValueError, TypeError, tf.errors.OpError: Here or when called, where an operation is
            not to be had in float64 after all.
    """
    graph_def = function.graph.as_graph_def()
    functions = {body.signature.name for body in graph_def.library.function}
    renamed = _lift(graph_def.node, functions, in_function=False)
    for body in graph_def.library.function:
        body.signature.name += _SUFFIX
        for argument in (*body.signature.input_arg, *body.signature.output_arg):
            if argument.type in _LOWER:
                argument.type = _DOUBLE
        for key in [key for key in body.attr if key.endswith("function_name")]:
            del body.attr[key]
        inside = _lift(body.node_def, functions, in_function=True)
        for name, source in body.ret.items():
            body.ret[name] = inside.get(source, source)
    for gradient in graph_def.library.gradient:
        gradient.function_name += _SUFFIX
        gradient.gradient_func += _SUFFIX
    outputs = [_output_name(tensor.name, renamed) for tensor in results]
    captured = [_as_double(tensor) for tensor in function.captured_inputs]
    names = [tensor.name for tensor in function.inputs]

    signature = [
        tf.TensorSpec(t.shape, tf.float64 if t.dtype.as_datatype_enum in _LOWER else t.dtype)
        for t in function.inputs
    ]

    def imported(*arguments: tf.Tensor) -> list[tf.Tensor]:
        values = dict(zip(names, arguments, strict=True))
        return tf.graph_util.import_graph_def(
            graph_def, input_map=values, return_elements=outputs, name=""
        )

    double = tf.compat.v1.wrap_function(imported, signature)  # it imports the library too
    library = [body.signature.name for body in graph_def.library.function]
    weakref.finalize(double, _forget, library).atexit = False
    return lambda *arguments: run(double, [*map(_as_double, arguments), *captured])


def _forget(functions: Iterable[str]) -> None:
    """Takes functions off TensorFlow's list, where those of an imported graph stay for good."""
    for name in functions:
        if context.context().has_function(name):
            context.context().remove_function(name)


def rounds_inside(function: Any) -> bool:
    """Whether some operation of the graph stays in a lower precision in float64 too."""
    graph_def = function.graph.as_graph_def()
    bodies = [body.node_def for body in graph_def.library.function]
    for node in (node for nodes in (graph_def.node, *bodies) for node in nodes):
        definition = op_def_registry.get(node.op)
        if definition is not None and _keeps_its_dtype(node, definition):
            arguments = (*definition.input_arg, *definition.output_arg)
            if not any(argument.type == _RESOURCE for argument in arguments):
                return True
    return False


def _as_double(tensor: tf.Tensor) -> tf.Tensor:
    return tf.cast(tensor, tf.float64) if tensor.dtype.as_datatype_enum in _LOWER else tensor


def _output_name(name: str, renamed: Mapping[str, str]) -> str:
    source = name.removesuffix(":0")
    return renamed[source] + ":0" if source in renamed else name


def _lift(nodes: Any, functions: set[str], *, in_function: bool) -> dict[str, str]:
    """Turns the nodes of one graph or function body to float64, in place.

    Returns:
        What stands for an output that a cast now follows, by the name that it has as an input.
    """
    casts, renamed = [], {}
    for node in nodes:
        definition = op_def_registry.get(node.op)
        if definition is None or not _keeps_its_dtype(node, definition):
            _lift_attributes(node, functions)
            continue
        for place, (dtype, _) in enumerate(_flat(definition.input_arg, node)):
            if dtype in _LOWER:
                name = f"{node.name}/as_before/{place}"
                casts.append(_cast(name, node.input[place], _DOUBLE, dtype))
                node.input[place] = f"{name}:y:0" if in_function else name
        for place, (dtype, label) in enumerate(_flat(definition.output_arg, node)):
            if dtype in _LOWER:
                name = f"{node.name}/in_double/{place}"
                plain = node.name if place == 0 else f"{node.name}:{place}"
                source = f"{node.name}:{label}" if in_function else plain
                casts.append(_cast(name, source, dtype, _DOUBLE))
                renamed[source] = f"{name}:y:0" if in_function else name
    for node in nodes:
        for place, source in enumerate(node.input):
            node.input[place] = renamed.get(source, source)
    for cast in casts:  # a kept operation may feed another
        if cast.attr["DstT"].type != _DOUBLE:
            cast.input[0] = renamed.get(cast.input[0], cast.input[0])
    nodes.extend(casts)
    return renamed


def _keeps_its_dtype(node: Any, definition: Any) -> bool:
    """Whether an operation has no float64 form, or is about a variable."""
    arguments = (*definition.input_arg, *definition.output_arg)
    if any(argument.type in _LOWER or argument.type == _RESOURCE for argument in arguments):
        return True
    return any(
        node.attr[attribute.name].type in _LOWER and not _has_double(node.op, attribute.name)
        for attribute in definition.attr
        if attribute.type == "type"
    )


@functools.cache
def _has_double(operation: str, attribute: str) -> bool:
    """Whether there is a kernel of an operation with this attribute float64."""
    constraints = [
        {constraint.name: constraint.allowed_values.list.type for constraint in kernel.constraint}
        for kernel in kernels.get_registered_kernels_for_op(operation).kernel
        if kernel.device_type in ("CPU", "GPU")
    ]
    return not constraints or any(_DOUBLE in c.get(attribute, [_DOUBLE]) for c in constraints)


def _lift_attributes(node: Any, functions: set[str]) -> None:
    if node.op in functions:
        node.op += _SUFFIX
    for value in node.attr.values():
        kind = value.WhichOneof("value")
        if kind == "type" and value.type in _LOWER:
            value.type = _DOUBLE
        elif kind == "tensor" and value.tensor.dtype in _LOWER:
            array = tf.make_ndarray(value.tensor).astype("float64")
            value.tensor.CopyFrom(tf.make_tensor_proto(array))
        elif kind == "func" and value.func.name in functions:
            value.func.name += _SUFFIX
        elif kind == "list":
            value.list.type[:] = [_DOUBLE if t in _LOWER else t for t in value.list.type]
            for function in value.list.func:
                if function.name in functions:
                    function.name += _SUFFIX


def _flat(arguments: Any, node: Any) -> Iterator[tuple[int, str]]:
    """Dtype and name in a function body of each input or output of a node."""
    for argument in arguments:
        if argument.type_list_attr:
            dtypes = list(node.attr[argument.type_list_attr].list.type)
        else:
            dtype = argument.type or node.attr[argument.type_attr].type
            dtypes = [dtype] * (node.attr[argument.number_attr].i if argument.number_attr else 1)
        for place, dtype in enumerate(dtypes):
            yield dtype, f"{argument.name}:{place}"


def _cast(name: str, source: str, source_dtype: int, dtype: int) -> Any:
    node = tf.compat.v1.NodeDef(name=name, op="Cast", input=[source])
    node.attr["SrcT"].type = source_dtype
    node.attr["DstT"].type = dtype
    return node
