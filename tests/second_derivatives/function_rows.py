"""A row for every activation, loss, regularizer, and function of ops.nn, ops.image, ops.linalg."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import losses, ops, regularizers

from tests.second_derivatives.row import (
    DIFFERENCES,
    MENDED,
    REFUSED,
    Argument,
    Row,
    definite,
    fixed,
    normal,
    positive,
    public,
    spread,
    unit,
)

VECTORS = normal(2, 4)
CLASSES = np.array([0, 2], "int32")
ONE_HOT = np.eye(3)[CLASSES]
LABELS = np.array([[1, 2], [2, 0]], "int32")
METHODS = ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5")


def _function(
    name: str, *arguments: Argument, variant: str = "", call: Any = None, **settings: Any
) -> Row:
    """A function by its public name, with settings for it and for the row."""
    of_row = {key: settings.pop(key) for key in _OF_ROW if key in settings}
    if "seed_of_call" in settings:
        settings["seed"] = settings.pop("seed_of_call")

    def make() -> Callable[..., Any]:
        function = public(name)
        if call is not None:
            return lambda *xs: call(function, *xs)
        return lambda *xs: function(*xs, **settings)

    return Row(name, make, arguments, variant, **of_row)


_OF_ROW = (
    "verdict",
    "oracle",
    "on_jax",
    "dtype",
    "step",
    "refusal",
    "note",
    "seed",
)

# Keras on TensorFlow has no float64 here, or holds some weights in float32.
FLOAT32: dict[str, Any] = {"dtype": "float32", "oracle": "jax"}

ACTIVATIONS = [
    *(
        _function(f"activations.{name}", VECTORS)
        for name in (
            "celu",
            "elu",
            "exponential",
            "gelu",
            "glu",
            "hard_shrink",
            "hard_sigmoid",
            "hard_silu",
            "hard_tanh",
            "leaky_relu",
            "linear",
            "log_sigmoid",
            "log_softmax",
            "mish",
            "relu",
            "relu6",
            "selu",
            "sigmoid",
            "silu",
            "soft_shrink",
            "softmax",
            "softplus",
            "sparse_plus",
            "sparse_sigmoid",
            "sparsemax",
            "squareplus",
            "tanh",
            "tanh_shrink",
        )
    ),
    _function("activations.softsign", VECTORS, verdict=MENDED),
    _function("activations.gelu", VECTORS, variant="approximate", approximate=True),
    _function(
        "activations.relu",
        VECTORS,
        variant="max_value, negative_slope",
        max_value=1.0,
        negative_slope=0.1,
    ),
    _function("activations.threshold", VECTORS, threshold=0.1, default_value=0.5),
]


def _loss(name: str, target: Any, prediction: Argument, variant: str = "", **settings: Any) -> Row:
    """A class of losses, or a function, on fixed targets."""
    of_row = {key: settings.pop(key) for key in _OF_ROW if key in settings}

    def make() -> Callable[[Any], Any]:
        function = public(f"losses.{name}")
        if name[0].isupper():
            instance = function(**settings)
            return lambda prediction: instance(target, prediction)
        return lambda prediction: function(target, prediction, **settings)

    return Row(f"losses.{name}", make, (prediction,), variant, **of_row)


_REAL = np.array([[0.3, -0.7, 1.2], [0.9, 0.1, -0.4]])
_SHARES = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
_BITS = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
_SIGNS = 2 * _BITS - 1
_LOSS_CASES: dict[str, tuple[str, Any, Argument, dict[str, Any]]] = {
    "BinaryCrossentropy": ("binary_crossentropy", _BITS, unit(2, 3), {}),
    "BinaryFocalCrossentropy": ("binary_focal_crossentropy", _BITS, unit(2, 3), {}),
    "CategoricalCrossentropy": ("categorical_crossentropy", ONE_HOT, unit(2, 3), {}),
    "CategoricalFocalCrossentropy": ("categorical_focal_crossentropy", ONE_HOT, unit(2, 3), {}),
    "CategoricalGeneralizedCrossEntropy": (
        "categorical_generalized_cross_entropy",
        CLASSES,
        unit(2, 3),
        {"q": 0.5},
    ),
    "CategoricalHinge": ("categorical_hinge", ONE_HOT, normal(2, 3), {}),
    "Circle": ("circle", np.array([0, 1, 0, 1], "int32"), normal(4, 3), {}),
    "CosineSimilarity": ("cosine_similarity", _REAL, normal(2, 3), {}),
    "CTC": ("ctc", LABELS, normal(2, 4, 3), {"verdict": DIFFERENCES, **FLOAT32}),
    "Dice": ("dice", _BITS, unit(2, 3), {}),
    "Hinge": ("hinge", _SIGNS, normal(2, 3), {}),
    "Huber": ("huber", _REAL, normal(2, 3), {"delta": 0.7}),
    "KLDivergence": ("kl_divergence", _SHARES, unit(2, 3), {}),
    "LogCosh": ("log_cosh", _REAL, normal(2, 3), {}),
    "MeanAbsoluteError": ("mean_absolute_error", _REAL, normal(2, 3), {}),
    "MeanAbsolutePercentageError": ("mean_absolute_percentage_error", _REAL, normal(2, 3), {}),
    "MeanSquaredError": ("mean_squared_error", _REAL, normal(2, 3), {}),
    "MeanSquaredLogarithmicError": ("mean_squared_logarithmic_error", _SHARES, unit(2, 3), {}),
    "Poisson": ("poisson", _SHARES, positive(2, 3), {}),
    "SparseCategoricalCrossentropy": ("sparse_categorical_crossentropy", CLASSES, unit(2, 3), {}),
    "SquaredHinge": ("squared_hinge", _SIGNS, normal(2, 3), {}),
    "Tversky": ("tversky", _BITS, unit(2, 3), {"alpha": 0.3, "beta": 0.6}),
}

LOSSES = [
    *(
        _loss(name, target, prediction, **settings)
        for name, (_, target, prediction, settings) in _LOSS_CASES.items()
    ),
    *(
        _loss(function, target, prediction, **settings)
        for name, (function, target, prediction, settings) in _LOSS_CASES.items()
        if name != "Circle"
    ),
    Row(
        "losses.circle",
        lambda: (
            lambda x: losses.circle(
                np.array([0, 1, 0, 1], "int32"),
                x,
                ref_labels=np.array([0, 1, 0, 1], "int32"),
                ref_embeddings=x,
            )
        ),
        (normal(4, 3),),
    ),
    *(
        _loss(name, target, normal(2, 3), variant="from_logits", from_logits=True)
        for name, target in (
            ("BinaryCrossentropy", _BITS),
            ("BinaryFocalCrossentropy", _BITS),
            ("CategoricalCrossentropy", ONE_HOT),
            ("CategoricalFocalCrossentropy", ONE_HOT),
            ("SparseCategoricalCrossentropy", CLASSES),
        )
    ),
    *(
        _loss(
            name,
            target,
            normal(2, 3),
            variant="from_logits, label_smoothing",
            from_logits=True,
            label_smoothing=0.2,
        )
        for name, target in (("BinaryCrossentropy", _BITS), ("CategoricalCrossentropy", ONE_HOT))
    ),
    _loss(
        "SparseCategoricalCrossentropy",
        np.array([0, -1], "int32"),
        normal(2, 3),
        variant="from_logits, ignore_class",
        from_logits=True,
        ignore_class=-1,
    ),
    Row("losses.Loss", lambda: _one_of_ones_own(), (normal(2, 3),), "a loss of one's own"),
]


def _one_of_ones_own() -> Callable[[Any], Any]:
    class Quartic(losses.Loss):
        def call(self, y_true, y_pred):
            return ops.mean((y_true - y_pred) ** 4, axis=-1)

    instance = Quartic()
    return lambda prediction: instance(_REAL, prediction)


REGULARIZERS = [
    *(
        Row(
            f"regularizers.{name}",
            lambda name=name, settings=settings: getattr(regularizers, name)(**settings),
            (normal(3, 3),),
            **(FLOAT32 if name == "OrthogonalRegularizer" else {}),
        )
        for name, settings in (
            ("L1", {"l1": 0.3}),
            ("L2", {"l2": 0.3}),
            ("L1L2", {"l1": 0.2, "l2": 0.3}),
            ("OrthogonalRegularizer", {"factor": 0.3}),
        )
    ),
    Row(
        "regularizers.OrthogonalRegularizer",
        lambda: regularizers.OrthogonalRegularizer(factor=0.3, mode="columns"),
        (normal(3, 3),),
        "mode='columns'",
        **FLOAT32,
    ),
    Row("regularizers.Regularizer", lambda: _Quartic(), (normal(3, 3),), "one of one's own"),
]


class _Quartic(regularizers.Regularizer):
    def __call__(self, x):
        return ops.sum(x**4)


def _conv(name: str, *arguments: Argument, variant: str = "", **settings: Any) -> Row:
    return _function(f"ops.nn.{name}", *arguments, variant=variant, **settings)


NN = [
    *(
        _function(f"ops.nn.{name}", VECTORS)
        for name in (
            "celu",
            "elu",
            "gelu",
            "glu",
            "hard_shrink",
            "hard_sigmoid",
            "hard_silu",
            "hard_tanh",
            "leaky_relu",
            "log_sigmoid",
            "log_softmax",
            "relu",
            "relu6",
            "selu",
            "sigmoid",
            "silu",
            "soft_shrink",
            "softmax",
            "softplus",
            "sparse_plus",
            "sparse_sigmoid",
            "sparsemax",
            "squareplus",
            "tanh_shrink",
            "normalize",
            "rms_normalization",
        )
    ),
    _function("ops.nn.softsign", VECTORS, verdict=MENDED),
    _function("ops.nn.gelu", VECTORS, variant="approximate=False", approximate=False),
    _function("ops.nn.softmax", normal(2, 2, 2), variant="axis=(1, 2)", axis=(1, 2)),
    _function("ops.nn.normalize", VECTORS, variant="order=3", order=3),
    _function("ops.nn.threshold", VECTORS, threshold=0.1, default_value=0.5),
    _function("ops.nn.rms_normalization", VECTORS, normal(4), variant="scale"),
    _function("ops.nn.layer_normalization", VECTORS, normal(4), normal(4), verdict=MENDED),
    _function(
        "ops.nn.layer_normalization",
        normal(2, 2, 3),
        variant="axis=(1, 2)",
        axis=(1, 2),
        verdict=MENDED,
    ),
    _function(
        "ops.nn.batch_normalization",
        VECTORS,
        normal(4),
        positive(4),
        normal(4),
        normal(4),
        call=lambda f, x, mean, variance, offset, scale: f(x, mean, variance, -1, offset, scale),
    ),
    _function("ops.nn.moments", VECTORS, axes=[0], verdict=MENDED),
    _function(
        "ops.nn.moments", VECTORS, variant="keepdims", axes=[0, 1], keepdims=True, verdict=MENDED
    ),
    _function("ops.nn.moments", VECTORS, variant="synchronized", axes=[0], synchronized=True),
    *(
        _function(
            f"ops.nn.{name}",
            prediction,
            variant="from_logits" if logits else "",
            call=lambda f, x, target=target, logits=logits: f(target, x, from_logits=logits),
        )
        for name, target in (
            ("binary_crossentropy", _BITS),
            ("categorical_crossentropy", ONE_HOT),
            ("sparse_categorical_crossentropy", CLASSES),
        )
        for logits, prediction in ((False, unit(2, 3)), (True, normal(2, 3)))
    ),
    _function(
        "ops.nn.categorical_crossentropy",
        normal(2, 3),
        normal(2, 3),
        variant="targets that depend on weights",
        verdict=MENDED,
        call=lambda f, a, b: f(ops.softmax(a), b, from_logits=True),
    ),
    _function(
        "ops.nn.binary_crossentropy",
        normal(2, 3),
        normal(2, 3),
        variant="targets that depend on weights",
        call=lambda f, a, b: f(ops.sigmoid(a), b, from_logits=True),
    ),
    _function(
        "ops.nn.ctc_loss",
        normal(2, 4, 3),
        call=lambda f, x: f(LABELS, x, np.array([2, 1], "int32"), np.array([4, 4], "int32")),
        verdict=DIFFERENCES,
        **FLOAT32,
    ),
    _conv("conv", normal(1, 4, 2), normal(2, 2, 1)),
    _conv(
        "conv",
        normal(1, 4, 4, 1),
        normal(2, 2, 1, 2),
        variant="2D, padding='same', strides",
        padding="same",
        strides=2,
    ),
    _conv("conv", normal(1, 4, 4, 2), normal(2, 2, 1, 2), variant="2D, groups"),
    _conv("conv", normal(1, 3, 3, 3, 1), normal(2, 2, 2, 1, 1), variant="3D"),
    _conv(
        "conv",
        normal(1, 1, 3, 3, 3),
        normal(2, 2, 2, 1, 1),
        variant="3D, channels_first",
        data_format="channels_first",
    ),
    _conv("conv_transpose", normal(1, 3, 1), normal(2, 2, 1), strides=2),
    _conv("conv_transpose", normal(1, 3, 3, 1), normal(2, 2, 2, 1), variant="2D", strides=2),
    _conv("conv_transpose", normal(1, 2, 2, 2, 1), normal(2, 2, 2, 1, 1), variant="3D"),
    _conv("depthwise_conv", normal(1, 4, 4, 2), normal(2, 2, 2, 1)),
    _conv(
        "depthwise_conv",
        normal(1, 5, 5, 1),
        normal(2, 2, 1, 2),
        variant="dilation_rate",
        dilation_rate=2,
    ),
    _conv(
        "depthwise_conv",
        normal(1, 7, 7, 1),
        normal(2, 2, 1, 1),
        variant="strides and dilation_rate",
        strides=2,
        dilation_rate=2,
    ),
    _conv("separable_conv", normal(1, 4, 4, 2), normal(2, 2, 2, 1), normal(1, 1, 2, 2)),
    _function("ops.nn.average_pool", normal(1, 4, 4, 2), pool_size=2),
    _function(
        "ops.nn.average_pool",
        normal(1, 4, 4, 1),
        variant="padding='same', strides=1",
        pool_size=3,
        strides=1,
        padding="same",
    ),
    _function("ops.nn.max_pool", spread(1, 4, 4, 2), pool_size=2),
    _function(
        "ops.nn.max_pool",
        spread(1, 4, 4, 1),
        variant="padding='same', strides=1",
        pool_size=3,
        strides=1,
        padding="same",
        note="In a graph TensorFlow may give 0: see above.",
    ),
    _function(
        "ops.nn.max_pool",
        spread(1, 2, 4, 4),
        variant="channels_first",
        pool_size=2,
        data_format="channels_first",
    ),
    _function("ops.nn.adaptive_average_pool", normal(1, 5, 4, 2), output_size=2),
    _function("ops.nn.adaptive_max_pool", spread(1, 5, 4, 2), output_size=2),
    _function(
        "ops.nn.dot_product_attention",
        *[normal(1, 3, 2, 2)] * 3,
    ),
    _function(
        "ops.nn.dot_product_attention",
        *[normal(1, 3, 2, 2)] * 3,
        normal(1, 2, 3, 3),
        variant="bias, is_causal",
        call=lambda f, q, k, v, bias: f(q, k, v, bias=bias, is_causal=True),
    ),
    _function("ops.nn.unfold", normal(1, 2, 4, 4), kernel_size=2),
    _function("ops.nn.fold", normal(1, 4, 9), output_size=(4, 4), kernel_size=2),
    _function("ops.nn.depth_to_space", normal(1, 2, 2, 4), block_size=2),
    _function("ops.nn.space_to_depth", normal(1, 4, 4, 1), block_size=2),
    _function("ops.nn.polar", positive(2, 3), normal(2, 3)),
    _function("ops.nn.psnr", unit(2, 3), unit(2, 3), max_val=1.0),
]


def resizing(method: str) -> dict[str, Any]:
    """How a resize is checked: it is linear, but TensorFlow's weights are rounded to float32."""
    if method.startswith("lanczos"):
        return FLOAT32
    # Keras on JAX has another bicubic kernel; a wide step finds a quadratic loss' Hessian.
    return {"step": 1.0} if method == "bicubic" else {"oracle": "jax"}


IMAGE = [
    *(
        _function(
            "ops.image.resize",
            normal(1, 3, 4, 1),
            variant=method,
            size=(5, 6),
            interpolation=method,
            verdict=MENDED,
            **resizing(method),
        )
        for method in METHODS
    ),
    *(
        _function(
            "ops.image.resize",
            normal(1, 6, 5, 1),
            variant=f"{method}, antialias, smaller",
            size=(3, 2),
            interpolation=method,
            antialias=True,
            verdict=MENDED,
            oracle="jax",
            dtype="float32",
        )
        for method in ("bilinear", "bicubic")
    ),
    *(
        _function(
            "ops.image.resize",
            normal(1, 6, 4, 1),
            variant=setting,
            size=(3, 3),
            verdict=MENDED,
            oracle="jax",
            **{setting: True},
        )
        for setting in ("crop_to_aspect_ratio", "pad_to_aspect_ratio")
    ),
    _function(
        "ops.image.resize",
        normal(1, 2, 3, 4),
        variant="channels_first",
        size=(5, 6),
        data_format="channels_first",
        verdict=MENDED,
        oracle="jax",
    ),
    *(
        _function(
            "ops.image.affine_transform",
            normal(1, 4, 4, 1),
            fixed(np.array([[1.0, 0.2, 0.3, -0.1, 0.9, 0.4, 0.0, 0.0]])),
            variant=method,
            interpolation=method,
            step=0.1,
            fill_mode="reflect",
            verdict=REFUSED,
            refusal="ImageProjectiveTransformV3",
        )
        for method in ("nearest", "bilinear")
    ),
    _function(
        "ops.image.perspective_transform",
        normal(1, 4, 4, 1),
        fixed(np.array([[[0.0, 0.0], [0.0, 4.0], [4.0, 0.0], [4.0, 4.0]]])),
        fixed(np.array([[[0.1, 0.2], [0.0, 3.7], [3.9, 0.3], [4.0, 4.0]]])),
        step=0.1,
        verdict=REFUSED,
        refusal="ImageProjectiveTransformV3",
    ),
    _function(
        "ops.image.map_coordinates",
        normal(4, 4),
        Argument((2, 3), lambda rng, shape: rng.uniform(0.2, 2.8, size=shape), step=0.02),
        order=1,
    ),
    _function(
        "ops.image.map_coordinates",
        normal(4, 4),
        fixed(np.array([[0.3, 1.2, 2.2], [1.1, 0.4, 2.6]])),
        variant="order=0",
        order=0,
    ),
    _function(
        "ops.image.elastic_transform", normal(1, 4, 4, 1), seed_of_call=3, on_jax=False, step=0.1
    ),
    *(
        _function(
            "ops.image.scale_and_translate",
            normal(1, 4, 4, 1),
            Argument(
                (2,), lambda rng, shape, dtype=dtype: np.array([1.25, 0.75], dtype), step=step
            ),
            Argument(
                (2,), lambda rng, shape, dtype=dtype: np.array([0.25, -0.25], dtype), step=step
            ),
            variant=method,
            **(FLOAT32 if method != "linear" else {}),
            call=lambda f, x, scale, translation, method=method: f(
                x, (1, 5, 3, 1), scale, translation, (1, 2), method
            ),
        )
        for method, step, dtype in (
            ("linear", 0.02, "float64"),
            ("cubic", 0.02, "float32"),
            ("lanczos3", 0.0, "float32"),
        )
    ),
    _function(
        "ops.image.crop_images",
        normal(1, 4, 4, 2),
        top_cropping=1,
        left_cropping=1,
        target_height=2,
        target_width=2,
    ),
    _function(
        "ops.image.pad_images",
        normal(1, 3, 3, 2),
        top_padding=1,
        left_padding=1,
        target_height=5,
        target_width=5,
    ),
    _function("ops.image.extract_patches", normal(1, 4, 4, 2), size=2),
    _function(
        "ops.image.extract_patches",
        normal(1, 4, 4, 1),
        variant="strides, padding='same'",
        size=3,
        strides=1,
        padding="same",
    ),
    _function("ops.image.extract_patches_3d", normal(1, 4, 4, 4, 1), size=2),
    _function("ops.image.gaussian_blur", normal(1, 4, 4, 1)),
    _function("ops.image.sobel_edges", normal(1, 4, 4, 1)),
    _function("ops.image.rgb_to_grayscale", unit(1, 2, 2, 3)),
    _function("ops.image.rgb_to_hsv", unit(1, 2, 2, 3)),
    _function(
        "ops.image.hsv_to_rgb",
        unit(1, 2, 2, 3),
        verdict=REFUSED,
        refusal="does not depend on any trainable weight",
        note="TensorFlow has no first derivative of it, and takes it for constant.",
    ),
    _function("ops.image.ssim", unit(1, 6, 6, 1), unit(1, 6, 6, 1), filter_size=3),
]

_MATRIX, _SQUARE = normal(4, 3), normal(3, 3)
LINALG = [
    _function("ops.linalg.cholesky", definite(3, 3)),
    _function("ops.linalg.cholesky", definite(3, 3), variant="upper", upper=True),
    _function(
        "ops.linalg.cholesky_inverse",
        definite(3, 3),
        call=lambda f, x: f(ops.cholesky(x)),
    ),
    _function("ops.linalg.det", _SQUARE),
    _function("ops.linalg.inv", _SQUARE),
    _function("ops.linalg.pinv", _MATRIX),
    _function("ops.linalg.solve", _SQUARE, normal(3, 2)),
    _function(
        "ops.linalg.solve_triangular",
        definite(3, 3),
        normal(3, 2),
        call=lambda f, a, b: f(ops.tril(a), b, lower=True),
    ),
    _function("ops.linalg.lstsq", _MATRIX, normal(4, 1)),
    _function(
        "ops.linalg.lu_factor",
        _SQUARE,
        call=lambda f, x: f(x)[0],
        verdict=REFUSED,
        refusal="Lu",
    ),
    _function("ops.linalg.qr", _MATRIX),
    _function("ops.linalg.qr", _SQUARE, variant="mode='complete'", mode="complete"),
    _function(
        "ops.linalg.eigh",
        definite(3, 3),
        variant="eigenvalues, and eigenvectors up to sign",
        call=lambda f, x: _squares(f(x), [1]),
    ),
    _function(
        "ops.linalg.eig",
        definite(3, 3),
        variant="eigenvalues",
        call=lambda f, x: ops.sum(ops.exp(f(x)[0])),
    ),
    _function(
        "ops.linalg.eig",
        definite(3, 3),
        variant="eigenvectors, up to phase and order",
        call=lambda f, x: _of_eigenvectors(*f(x)),
        on_jax=False,
    ),
    _function("ops.linalg.svd", _MATRIX, variant="singular values", compute_uv=False),
    _function(
        "ops.linalg.svd",
        _MATRIX,
        variant="full_matrices=False, vectors up to sign",
        call=lambda f, x: _squares(f(x, full_matrices=False), [0, 2]),
    ),
    _function(
        "ops.linalg.svd",
        _SQUARE,
        variant="square, vectors up to sign",
        call=lambda f, x: _squares(f(x), [0, 2]),
    ),
    *(
        _function("ops.linalg.norm", _MATRIX, variant=f"ord={order!r}", ord=order)
        for order in (None, "fro", "nuc", 1, 2, -2, np.inf)
    ),
    *(
        _function("ops.linalg.norm", VECTORS, variant=f"vectors, ord={order!r}", ord=order, axis=-1)
        for order in (1, 2, 3, np.inf)
    ),
    _function(
        "ops.linalg.jvp",
        normal(2, 3),
        normal(2, 3),
        call=lambda f, x, v: f(lambda z: ops.sin(z) * z, (x,), (v,)),
    ),
]


def _squares(parts: Any, places: list[int]) -> list[Any]:
    return [part**2 if place in places else part for place, part in enumerate(parts)]


def _of_eigenvectors(values: Any, vectors: Any) -> Any:
    return ops.sum(ops.abs(vectors) ** 2 * ops.exp(0.3 * ops.real(values)), axis=-1)


ROWS = [*ACTIVATIONS, *LOSSES, *REGULARIZERS, *NN, *IMAGE, *LINALG]

NOTHING = {
    **{
        f"{module}.{name}": "gives an object or its configuration"
        for module in ("activations", "losses", "regularizers")
        for name in ("get", "serialize", "deserialize")
    },
    "ops.nn.ctc_decode": "gives labels, and scores that TensorFlow has no first derivative of",
    "ops.nn.multi_hot": "of integers",
    "ops.nn.one_hot": "of integers",
    "ops.linalg.matrix_rank": "gives an integer",
}
