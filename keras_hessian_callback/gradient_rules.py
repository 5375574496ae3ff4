"""Gradients that can be differentiated again, where TensorFlow's own cannot or are then wrong.

Most are of gradient operations that are linear in the incoming gradient, so that their own
gradient is the forward operation, or a gather where it picks entries.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_Rule = Callable[..., Any]


def _softsign_grad(operation: Any, cotangent: tf.Tensor) -> list[Any]:
    """G / (1 + |x|)^2, by g and by x."""
    gradient, x = operation.inputs
    scale = 1.0 + tf.abs(x)
    by_gradient = cotangent / tf.square(scale)
    return [by_gradient, -2.0 * by_gradient * gradient * tf.sign(x) / scale]


def _resize_bilinear(operation: Any, gradient: tf.Tensor) -> list[Any]:
    """ResizeBilinearGrad, whose own gradient is ResizeBilinear.

    A rule for ResizeBilinearGrad itself would not get its inputs: TensorFlow's tape drops them.
    """
    images = operation.inputs[0]
    settings = {name: operation.get_attr(name) for name in ("align_corners", "half_pixel_centers")}

    @tf.custom_gradient
    def transposed(gradient: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def forward(cotangent: tf.Tensor) -> tf.Tensor:
            size = tf.shape(gradient)[1:3]
            return tf.raw_ops.ResizeBilinear(images=cotangent, size=size, **settings)

        value = tf.raw_ops.ResizeBilinearGrad(grads=gradient, original_image=images, **settings)
        return value, forward

    return [transposed(gradient), None]


def _resize_grad(forward: Callable[..., tf.Tensor]) -> _Rule:
    """The resize of the cotangent: the gradient of a linear map is its transpose."""

    def rule(operation: Any, cotangent: tf.Tensor) -> list[Any]:
        resized = forward(
            images=cotangent,
            size=tf.shape(operation.inputs[0])[1:3],
            align_corners=operation.get_attr("align_corners"),
            half_pixel_centers=operation.get_attr("half_pixel_centers"),
        )
        return [resized, None]

    return rule


def _scale_and_translate_grad(operation: Any, cotangent: tf.Tensor) -> list[Any]:
    gradient, _, scale, translation = operation.inputs
    resized = tf.raw_ops.ScaleAndTranslate(
        images=cotangent,
        size=tf.shape(gradient)[1:3],
        scale=scale,
        translation=translation,
        kernel_type=operation.get_attr("kernel_type"),
        antialias=operation.get_attr("antialias"),
    )
    return [resized, None, None, None]


def _crop_and_resize_grad_image(operation: Any, cotangent: tf.Tensor) -> list[Any]:
    gradient, boxes, box_indices, _ = operation.inputs
    method = operation.get_attr("method")
    method = method.decode() if isinstance(method, bytes) else method
    crops = tf.raw_ops.CropAndResize(
        image=cotangent,
        boxes=boxes,
        box_ind=box_indices,
        crop_size=tf.shape(gradient)[1:3],
        method=method,
    )
    if method != "bilinear":  # nearest: constant in the boxes, as TensorFlow has no gradient there
        return [crops, None, None, None]
    by_boxes = tf.raw_ops.CropAndResizeGradBoxes(
        grads=gradient, image=cotangent, boxes=boxes, box_ind=box_indices, method=method
    )
    return [crops, by_boxes, None, None]


def _local_response_normalization_grad(operation: Any, cotangent: tf.Tensor) -> list[Any]:
    """By the formula of the operation: y = x s^-beta, s = bias + alpha (sum of x^2 near by)."""
    gradient, x, _ = operation.inputs
    radius = operation.get_attr("depth_radius")
    bias, alpha, beta = (operation.get_attr(name) for name in ("bias", "alpha", "beta"))
    channels = tf.range(tf.shape(x)[-1])
    distance = tf.abs(channels[:, None] - channels[None, :])
    window = tf.cast(distance <= radius, x.dtype)

    with tf.GradientTape() as tape:
        tape.watch([gradient, x])
        power = tf.tensordot(tf.square(x), window, axes=1) * alpha + bias
        crossed = tf.tensordot(gradient * x * power ** (-beta - 1.0), window, axes=1)
        value = gradient * power**-beta - 2.0 * alpha * beta * x * crossed
    return [*tape.gradient(value, [gradient, x], output_gradients=cotangent), None]


def _max_pool_grad_with_argmax(operation: Any, cotangent: tf.Tensor) -> list[Any]:
    """The entries of the cotangent that were the largest of their windows."""
    places = operation.inputs[2]
    if not operation.get_attr("include_batch_in_index"):
        shape = tf.shape(cotangent, out_type=tf.int64)
        firsts = tf.range(shape[0]) * tf.reduce_prod(shape[1:])
        places = tf.cast(places, tf.int64) + tf.reshape(firsts, [-1, 1, 1, 1])
    return [None, tf.gather(tf.reshape(cotangent, [-1]), places), None]


def _max_pool_grad(forward: Callable[..., tf.Tensor]) -> _Rule:
    """The entries of the cotangent that were the largest of their windows.

    TensorFlow's MaxPoolGradGrad clears its input on the CPU where it may write the result over
    it, that is where the pooled tensor has the shape of the input, and zeros come out. Padding
    the input beforehand makes the shapes differ, unless windows are of one entry.
    """

    def rule(operation: Any, cotangent: tf.Tensor) -> list[Any]:
        x, pooled, _ = operation.inputs
        ksize, strides = operation.get_attr("ksize"), operation.get_attr("strides")
        zeros = [tf.zeros_like(x), tf.zeros_like(pooled)]
        if all(size == 1 for size in ksize):
            return [*zeros, tf.strided_slice(cotangent, [0] * len(ksize), tf.shape(x), strides)]
        padding = operation.get_attr("padding")
        if padding in (b"SAME", "SAME"):
            last = (tf.shape(pooled) - 1) * strides + ksize
            total = tf.maximum(last - tf.shape(x), 0)
            paddings = tf.stack([total // 2, total - total // 2], axis=1)
            x = tf.pad(x, paddings, constant_values=x.dtype.min)
            cotangent = tf.pad(cotangent, paddings)
            padding = "VALID"
        entries = forward(
            orig_input=x,
            orig_output=pooled,
            grad=cotangent,
            ksize=ksize,
            strides=strides,
            padding=padding,
            data_format=operation.get_attr("data_format"),
        )
        return [*zeros, entries]

    return rule


def _sparse_segment_grad(forward: Callable[..., tf.Tensor]) -> _Rule:
    """The segments' sums (means) of the cotangent."""

    def rule(operation: Any, cotangent: tf.Tensor) -> list[Any]:
        gradient, indices, segments, _ = operation.inputs
        reduced = forward(
            data=cotangent,
            indices=indices,
            segment_ids=segments,
            num_segments=tf.shape(gradient)[0],
        )
        return [reduced, None, None, None]

    return rule


def _sparse_segment_grad_v2(forward: Callable[..., tf.Tensor]) -> _Rule:
    """The same where the gradient holds the rows of the sorted distinct indices only."""

    def rule(operation: Any, cotangent: tf.Tensor, _: Any) -> list[Any]:
        gradient, indices, segments, _ = operation.inputs
        rows = tf.searchsorted(operation.outputs[1], indices)
        reduced = forward(
            data=cotangent, indices=rows, segment_ids=segments, num_segments=tf.shape(gradient)[0]
        )
        return [reduced, None, None, None]

    return rule


# By the type of the operation that is differentiated.
RULES: dict[str, _Rule] = {
    "SoftsignGrad": _softsign_grad,
    "ResizeBilinear": _resize_bilinear,
    "ResizeBicubicGrad": _resize_grad(tf.raw_ops.ResizeBicubic),
    "ResizeNearestNeighborGrad": _resize_grad(tf.raw_ops.ResizeNearestNeighbor),
    "ScaleAndTranslateGrad": _scale_and_translate_grad,
    "CropAndResizeGradImage": _crop_and_resize_grad_image,
    "LRNGrad": _local_response_normalization_grad,
    "MaxPoolGrad": _max_pool_grad(tf.raw_ops.MaxPoolGradGrad),
    "MaxPool3DGrad": _max_pool_grad(tf.raw_ops.MaxPool3DGradGrad),
    "MaxPoolGradWithArgmax": _max_pool_grad_with_argmax,
}
for _kind in ("Sum", "Mean", "SqrtN"):
    _forward = getattr(tf.raw_ops, f"SparseSegment{_kind}WithNumSegments")
    RULES[f"SparseSegment{_kind}Grad"] = _sparse_segment_grad(_forward)
    RULES[f"SparseSegment{_kind}GradV2"] = _sparse_segment_grad_v2(_forward)
