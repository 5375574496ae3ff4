"""A row for every layer in `keras.layers`, and for each setting that takes another path."""

import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.second_derivatives.function_rows import FLOAT32, resizing
from tests.second_derivatives.row import (
    MENDED,
    REFUSED,
    Argument,
    Row,
    fixed,
    normal,
    spread,
    unit,
)

SEQUENCE, IMAGE, VOLUME = normal(2, 4, 2), normal(2, 4, 4, 2), normal(1, 3, 3, 3, 2)
TOKENS = fixed(np.array([[1, 2, 0], [2, 2, 1]], "int32"))


_OF_ROW = (
    "verdict",
    "oracle",
    "on_jax",
    "training",
    "dtype",
    "step",
    "refusal",
    "note",
    "seed",
)


def _layer(name: str, *arguments: Argument, variant: str = "", **settings: Any) -> Row:
    """A layer with settings for its constructor, and for the row."""
    of_row = {key: settings.pop(key) for key in _OF_ROW if key in settings}

    def make() -> Any:
        layer = getattr(layers, name)(**settings)
        return layer if len(arguments) == 1 else ((lambda *xs: layer(list(xs))), layer)

    return Row(f"layers.{name}", make, arguments, variant, **of_row)


def _wrapped(
    name: str, make: Callable[[], Any], *arguments: Argument, variant: str = "", **of_row: Any
) -> Row:
    return Row(f"layers.{name}", make, arguments, variant, **of_row)


def _called(make: Callable[[], Any], call: Callable[..., Any]) -> Callable[[], Any]:
    def build() -> Any:
        layer = make()
        return (lambda *xs: call(layer, *xs)), layer

    return build


CORE = [
    _layer("Dense", normal(2, 3), units=2, activation="tanh"),
    _wrapped(
        "Dense",
        lambda: _lora(layers.Dense(2, activation="tanh"), (3, 3)),
        normal(2, 3),
        variant="enable_lora",
        **FLOAT32,
    ),
    _layer(
        "EinsumDense",
        normal(2, 2, 2),
        equation="abc,cd->abd",
        output_shape=(None, 2),
        bias_axes="d",
        activation="tanh",
    ),
    _wrapped(
        "EinsumDense",
        lambda: _lora(layers.EinsumDense("ab,bc->ac", output_shape=2), (3, 3)),
        normal(2, 3),
        variant="enable_lora",
        **FLOAT32,
    ),
    _layer("Embedding", TOKENS, input_dim=3, output_dim=2),
    _wrapped(
        "Embedding",
        lambda: _nonlinear(layers.Embedding(3, 2, mask_zero=True), layers.GRU(1, unroll=True)),
        TOKENS,
        variant="mask_zero, in front of a GRU",
    ),
    _wrapped(
        "Embedding",
        lambda: _lora(layers.Embedding(3, 2), (3,)),
        TOKENS,
        variant="enable_lora",
        **FLOAT32,
    ),
    _wrapped(
        "ReversibleEmbedding",
        _called(
            lambda: layers.ReversibleEmbedding(3, 2),
            lambda layer, x: keras.ops.softmax(layer(keras.ops.tanh(layer(x)), reverse=True)),
        ),
        TOKENS,
        variant="tied",
    ),
    _wrapped(
        "ReversibleEmbedding",
        _called(
            lambda: layers.ReversibleEmbedding(3, 2, tie_weights=False, logit_soft_cap=1.0),
            lambda layer, x: keras.ops.softmax(layer(keras.ops.tanh(layer(x)), reverse=True)),
        ),
        TOKENS,
        variant="not tied, logit_soft_cap",
    ),
    _wrapped(
        "Lambda", lambda: layers.Lambda(lambda x: keras.ops.sin(x) * x, name="sine"), normal(2, 3)
    ),
    _layer("Identity", normal(2, 3)),
    _layer("Masking", SEQUENCE),
    _wrapped(
        "Masking",
        lambda: keras.Sequential([layers.Masking(), layers.LSTM(1)]),
        fixed(np.array([[[1.0], [2.0], [0.0]], [[3.0], [0.0], [0.0]]])),
        variant="in front of an LSTM",
    ),
    _wrapped("Wrapper", lambda: Twice(layers.Dense(3, activation="tanh")), normal(2, 3)),
    _wrapped("Layer", lambda: Cubic(), normal(2, 3), variant="a layer of one's own"),
]


def _saved(trainable: bool) -> Any:
    """A layer that calls a SavedModel."""
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2, activation="tanh")])
    with tempfile.TemporaryDirectory() as directory:
        inner.export(directory, verbose=False)
        return layers.TFSMLayer(directory, trainable=trainable)


def _jax_layer() -> Any:
    import jax.numpy as jnp

    def call(params, inputs):
        return jnp.tanh(inputs @ params["kernel"]) * params["factor"]

    params = {"kernel": np.zeros((3, 2)), "factor": np.zeros(2)}
    return layers.JaxLayer(call, params=params)


FOREIGN = [
    _wrapped(
        "TFSMLayer",
        lambda: _saved(trainable=True),
        normal(2, 3),
        on_jax=False,
        verdict=REFUSED,
        refusal="reads the variable",
    ),
    _wrapped(
        "TFSMLayer",
        lambda: _saved(trainable=False),
        normal(2, 3),
        variant="trainable=False",
        on_jax=False,
    ),
    _wrapped("JaxLayer", _jax_layer, normal(2, 3), **FLOAT32),
]

ACTIVATIONS = [
    _layer("Activation", normal(2, 3), activation="tanh"),
    _layer("Activation", normal(2, 3), variant="softsign", activation="softsign", verdict=MENDED),
    _layer("ELU", normal(2, 3)),
    _layer("LeakyReLU", normal(2, 3)),
    _layer("PReLU", normal(2, 3)),
    _layer("ReLU", normal(2, 3)),
    _layer(
        "ReLU",
        normal(2, 3),
        variant="max_value, slope, threshold",
        max_value=1.0,
        negative_slope=0.1,
        threshold=0.1,
    ),
    _layer("Softmax", normal(2, 3)),
    _wrapped(
        "Softmax",
        _called(
            lambda: layers.Softmax(),
            lambda layer, x: layer(x, mask=np.array([[True, True, False]] * 2)),
        ),
        normal(2, 3),
        variant="mask",
    ),
]

ATTENTION = [
    _layer("Attention", normal(2, 3, 2), normal(2, 3, 2), use_scale=True),
    _layer(
        "Attention",
        normal(2, 3, 2),
        normal(2, 3, 2),
        variant="score_mode='concat'",
        score_mode="concat",
    ),
    _layer("AdditiveAttention", normal(2, 3, 2), normal(2, 3, 2)),
    _wrapped(
        "MultiHeadAttention",
        _called(lambda: layers.MultiHeadAttention(2, 1), lambda layer, q, v: layer(q, v)),
        normal(1, 3, 2),
        normal(1, 3, 2),
    ),
    _wrapped(
        "MultiHeadAttention",
        _called(
            lambda: layers.MultiHeadAttention(1, 2, use_bias=False),
            lambda layer, q: layer(q, q, use_causal_mask=True, return_attention_scores=True),
        ),
        normal(1, 3, 2),
        variant="causal, with scores",
    ),
    _wrapped(
        "MultiHeadAttention",
        _called(
            lambda: layers.MultiHeadAttention(
                1, 2, use_bias=False, use_gate=True, sliding_window=2
            ),
            lambda layer, q: layer(q, q),
        ),
        normal(1, 3, 2),
        variant="use_gate, sliding_window",
    ),
    _wrapped(
        "MultiHeadAttention",
        _called(
            lambda: layers.MultiHeadAttention(1, 2, use_bias=False, dropout=0.3, seed=0),
            lambda layer, q: layer(q, q),
        ),
        normal(1, 3, 2),
        variant="dropout, training=True",
        training=True,
        on_jax=False,
    ),
    _wrapped(
        "GroupQueryAttention",
        _called(
            lambda: layers.GroupQueryAttention(1, 2, 1, use_bias=False),
            lambda layer, q, v: layer(q, v, use_causal_mask=True),
        ),
        normal(1, 2, 2),
        normal(1, 2, 2),
    ),
]

CONVOLUTIONS = [
    _layer("Conv1D", normal(2, 4, 1), filters=2, kernel_size=2, activation="tanh"),
    _layer(
        "Conv1D",
        normal(2, 5, 1),
        variant="causal, dilation_rate",
        filters=2,
        kernel_size=2,
        padding="causal",
        dilation_rate=2,
    ),
    _layer("Conv2D", normal(2, 3, 3, 1), filters=2, kernel_size=2, activation="tanh"),
    _layer(
        "Conv2D",
        normal(1, 4, 4, 2),
        variant="groups, strides, padding='same'",
        filters=2,
        kernel_size=2,
        strides=2,
        groups=2,
        padding="same",
        activation="tanh",
    ),
    _layer(
        "Conv2D",
        normal(1, 5, 5, 1),
        variant="dilation_rate",
        filters=1,
        kernel_size=2,
        dilation_rate=2,
        activation="tanh",
    ),
    _wrapped(
        "Conv2D",
        lambda: _lora(layers.Conv2D(2, 2), (1, 3, 3, 1)),
        normal(1, 3, 3, 1),
        variant="enable_lora",
        **FLOAT32,
    ),
    _layer("Conv3D", normal(1, 2, 3, 3, 1), filters=1, kernel_size=2, activation="tanh"),
    _layer(
        "Conv1DTranspose", normal(1, 3, 1), filters=2, kernel_size=2, strides=2, activation="tanh"
    ),
    _layer(
        "Conv2DTranspose",
        normal(1, 2, 2, 1),
        filters=2,
        kernel_size=2,
        strides=2,
        activation="tanh",
    ),
    _layer(
        "Conv3DTranspose",
        normal(1, 2, 2, 2, 1),
        filters=1,
        kernel_size=2,
        strides=2,
        activation="tanh",
    ),
    _layer("DepthwiseConv1D", normal(1, 4, 2), kernel_size=2, activation="tanh"),
    _layer("DepthwiseConv2D", normal(1, 3, 3, 2), kernel_size=2, activation="tanh"),
    _layer(
        "DepthwiseConv2D",
        normal(1, 5, 5, 1),
        variant="strides, depth_multiplier",
        kernel_size=2,
        strides=2,
        depth_multiplier=2,
        activation="tanh",
    ),
    _layer("SeparableConv1D", normal(1, 4, 2), filters=2, kernel_size=2, activation="tanh"),
    _layer("SeparableConv2D", normal(1, 3, 3, 2), filters=2, kernel_size=2, activation="tanh"),
]

POOLING = [
    *(
        _layer(f"{kind}Pooling{rank}D", argument, pool_size=2, **(FLOAT32 if rank == 3 else {}))
        for rank, shape in ((1, (2, 4, 2)), (2, (1, 4, 4, 2)), (3, (1, 4, 2, 2, 2)))
        for kind, argument in (("Average", normal(*shape)), ("Max", spread(*shape)))
    ),
    _layer(
        "AveragePooling2D",
        normal(1, 3, 3, 2),
        variant="padding='same', strides=1",
        pool_size=2,
        strides=1,
        padding="same",
    ),
    _layer(
        "MaxPooling2D",
        spread(1, 3, 3, 2),
        variant="padding='same', strides=1",
        pool_size=2,
        strides=1,
        padding="same",
        note="In a graph TensorFlow may give 0: see above.",
    ),
    _layer(
        "MaxPooling3D",
        spread(1, 3, 2, 2, 2),
        variant="padding='same', strides=1",
        pool_size=2,
        strides=1,
        padding="same",
        note="In a graph TensorFlow may give 0: see above.",
        **FLOAT32,
    ),
    *(
        _layer(f"Global{kind}Pooling{rank}D", argument)
        for rank, shape in ((1, (2, 4, 2)), (2, (1, 3, 3, 2)), (3, (1, 2, 2, 2, 2)))
        for kind, argument in (("Average", normal(*shape)), ("Max", spread(*shape)))
    ),
    *(
        _layer(
            f"Adaptive{kind}Pooling{rank}D",
            argument,
            output_size=2,
            **(FLOAT32 if rank == 3 else {}),
        )
        for rank, shape in ((1, (2, 5, 2)), (2, (1, 5, 4, 2)), (3, (1, 3, 3, 2, 2)))
        for kind, argument in (("Average", normal(*shape)), ("Max", spread(*shape)))
    ),
]

NORMALIZATION = [
    _layer("LayerNormalization", normal(2, 3, 3), verdict=MENDED),
    _layer(
        "LayerNormalization", normal(2, 2, 3), variant="axis=(1, 2)", axis=(1, 2), verdict=MENDED
    ),
    _layer("GroupNormalization", normal(2, 3, 4), groups=2, verdict=MENDED),
    _layer("GroupNormalization", normal(2, 3, 2), variant="groups=-1", groups=-1, verdict=MENDED),
    _layer("BatchNormalization", normal(4, 2)),
    _layer(
        "BatchNormalization", normal(4, 2), variant="training=True", training=True, verdict=MENDED
    ),
    _layer(
        "BatchNormalization",
        normal(2, 3, 3, 2),
        variant="images, training=True",
        training=True,
        verdict=MENDED,
    ),
    _layer(
        "BatchNormalization",
        normal(8, 2),
        variant="renorm, training=True",
        training=True,
        renorm=True,
        epsilon=0.125,
        momentum=0.5,
        renorm_momentum=0.5,
        verdict=MENDED,
        oracle="jax",
    ),
    _layer("RMSNormalization", normal(2, 3)),
    _layer("UnitNormalization", normal(2, 3)),
    _wrapped("Normalization", lambda: _built(layers.Normalization(), (2, 3)), normal(2, 3)),
    _wrapped(
        "SpectralNormalization",
        lambda: layers.SpectralNormalization(layers.Dense(2, activation="tanh")),
        normal(2, 3),
    ),
    _wrapped(
        "SpectralNormalization",
        lambda: layers.SpectralNormalization(layers.Dense(2, activation="tanh")),
        normal(2, 3),
        variant="training=True",
        training=True,
        oracle="jax",
        verdict=MENDED,
        note="Of the loss through the division by the norm, which `fit` takes for constant.",
    ),
]

RECURRENT = [
    _layer("SimpleRNN", normal(2, 3, 2), units=2),
    _layer("GRU", normal(2, 3, 1), units=1),
    _layer(
        "GRU",
        normal(2, 3, 1),
        variant="reset_after=False, unroll",
        units=1,
        reset_after=False,
        unroll=True,
    ),
    _layer("LSTM", normal(2, 3, 1), units=1),
    _layer(
        "LSTM",
        normal(2, 3, 1),
        variant="unroll, return_sequences",
        units=1,
        unroll=True,
        return_sequences=True,
    ),
    _layer(
        "LSTM",
        normal(2, 3, 1),
        variant="go_backwards, return_state",
        units=1,
        go_backwards=True,
        return_state=True,
    ),
    _layer(
        "LSTM",
        normal(2, 3, 1),
        variant="dropouts, training=True",
        units=1,
        dropout=0.3,
        recurrent_dropout=0.3,
        training=True,
        on_jax=False,
    ),
    _wrapped(
        "Bidirectional", lambda: layers.Bidirectional(layers.LSTM(1, unroll=True)), normal(1, 3, 1)
    ),
    _wrapped(
        "Bidirectional",
        lambda: layers.Bidirectional(layers.GRU(1, unroll=True), merge_mode="mul"),
        normal(1, 3, 1),
        variant="GRU, merge_mode='mul'",
    ),
    _wrapped("RNN", lambda: layers.RNN(layers.LSTMCell(1), unroll=True), normal(1, 3, 1)),
    _wrapped(
        "StackedRNNCells",
        lambda: layers.RNN(layers.StackedRNNCells([layers.GRUCell(1), layers.SimpleRNNCell(1)])),
        normal(1, 3, 1),
        variant="in RNN",
    ),
    *(
        _wrapped(
            name,
            _called(
                lambda name=name: getattr(layers, name)(1),
                lambda layer, x, *states: layer(x, list(states))[0],
            ),
            normal(2, 2),
            *[normal(2, 1)] * num_states,
        )
        for name, num_states in (("SimpleRNNCell", 1), ("GRUCell", 1), ("LSTMCell", 2))
    ),
    _layer("ConvLSTM1D", normal(1, 2, 3, 1), filters=1, kernel_size=2),
    _layer("ConvLSTM2D", normal(1, 2, 3, 3, 1), filters=1, kernel_size=2),
    _layer("ConvLSTM3D", normal(1, 2, 2, 2, 2, 1), filters=1, kernel_size=2),
    _wrapped(
        "TimeDistributed",
        lambda: layers.TimeDistributed(layers.Dense(2, activation="tanh")),
        normal(2, 3, 2),
    ),
]

MERGING = [
    *(
        _layer(name, normal(2, 3), normal(2, 3))
        for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
    ),
    *(
        _wrapped(
            name,
            lambda name=name: lambda *xs: getattr(layers, name)(list(xs)),
            normal(2, 3),
            normal(2, 3),
        )
        for name in ("add", "subtract", "multiply", "average", "maximum", "minimum", "concatenate")
    ),
    _wrapped("dot", lambda: lambda *xs: layers.dot(list(xs), axes=1), normal(2, 3), normal(2, 3)),
    _layer("Dot", normal(2, 3), normal(2, 3), axes=1),
    _layer("Dot", normal(2, 3), normal(2, 3), variant="normalize", axes=1, normalize=True),
]

RESHAPING = [
    _layer("Cropping1D", SEQUENCE, cropping=1),
    _layer("Cropping2D", IMAGE, cropping=1),
    _layer("Cropping3D", VOLUME, cropping=1),
    _layer("ZeroPadding1D", SEQUENCE, padding=1),
    _layer("ZeroPadding2D", IMAGE, padding=1),
    _layer("ZeroPadding3D", VOLUME, padding=1),
    _layer("Flatten", IMAGE),
    _layer("Permute", SEQUENCE, dims=(2, 1)),
    _layer("Reshape", SEQUENCE, target_shape=(-1,)),
    _layer("RepeatVector", normal(2, 3), n=2),
    _layer("UpSampling1D", SEQUENCE, size=2),
    _layer("UpSampling2D", IMAGE, size=2),
    *(
        _layer(
            "UpSampling2D",
            IMAGE,
            variant=method,
            size=2,
            interpolation=method,
            verdict=MENDED,
            **resizing(method),
        )
        for method in ("bilinear", "bicubic", "lanczos3", "lanczos5")
    ),
    _layer("UpSampling3D", VOLUME, size=2),
]

REGULARIZATION = [
    *(
        _layer(name, argument, variant=variant, training=training, on_jax=not training, **settings)
        for name, argument, settings in (
            ("Dropout", normal(2, 3), {"rate": 0.4}),
            ("AlphaDropout", normal(2, 3), {"rate": 0.4}),
            ("GaussianDropout", normal(2, 3), {"rate": 0.4}),
            ("GaussianNoise", normal(2, 3), {"stddev": 0.4}),
            ("SpatialDropout1D", SEQUENCE, {"rate": 0.4}),
            ("SpatialDropout2D", IMAGE, {"rate": 0.4}),
            ("SpatialDropout3D", VOLUME, {"rate": 0.4}),
        )
        for variant, training in (("", False), ("training=True", True))
    ),
    _layer("ActivityRegularization", normal(2, 3), l1=0.3, l2=0.7),
]

PREPROCESSING = [
    _layer("Rescaling", IMAGE, scale=0.5, offset=0.1),
    _layer("CenterCrop", IMAGE, height=2, width=2),
    _layer(
        "Resizing", normal(1, 3, 3, 1), variant="", height=5, width=4, verdict=MENDED, oracle="jax"
    ),
    *(
        _layer(
            "Resizing",
            normal(1, 3, 3, 1),
            variant=method,
            height=5,
            width=4,
            interpolation=method,
            verdict=MENDED,
            **resizing(method),
        )
        for method in ("nearest", "bicubic", "lanczos3", "lanczos5")
    ),
    _layer(
        "Resizing",
        normal(1, 6, 6, 1),
        variant="antialias",
        height=3,
        width=4,
        antialias=True,
        verdict=MENDED,
        **FLOAT32,
    ),
    _layer(
        "Resizing",
        normal(1, 6, 4, 1),
        variant="crop_to_aspect_ratio",
        height=3,
        width=3,
        crop_to_aspect_ratio=True,
        verdict=MENDED,
        oracle="jax",
    ),
    _layer(
        "Resizing",
        normal(1, 6, 4, 1),
        variant="pad_to_aspect_ratio",
        height=3,
        width=3,
        pad_to_aspect_ratio=True,
        verdict=MENDED,
        oracle="jax",
    ),
    _wrapped(
        "Pipeline", lambda: layers.Pipeline([layers.Rescaling(0.5), layers.CenterCrop(2, 2)]), IMAGE
    ),
    _layer("STFTSpectrogram", normal(1, 8, 1), frame_length=4, frame_step=2, fft_length=4),
    _layer(
        "STFTSpectrogram",
        normal(1, 8, 1),
        variant="mode='magnitude'",
        mode="magnitude",
        frame_length=4,
        frame_step=2,
        fft_length=4,
    ),
    _layer(
        "MelSpectrogram",
        normal(1, 64),
        fft_length=32,
        sequence_stride=16,
        num_mel_bins=2,
        sampling_rate=200,
        **FLOAT32,
    ),
]

_AUGMENTATION: dict[str, dict[str, Any]] = {
    "AugMix": {},
    "AutoContrast": {},
    "CutMix": {},
    "Equalization": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomBrightness": {"factor": 0.3},
    "RandomColorDegeneration": {"factor": 0.3},
    "RandomColorJitter": {
        "brightness_factor": 0.1,
        "contrast_factor": 0.2,
        "saturation_factor": 0.2,
        "hue_factor": 0.1,
    },
    "RandomContrast": {"factor": 0.3},
    "RandomCrop": {"height": 3, "width": 3},
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {"factor": 0.5},
    "RandomHue": {"factor": 0.3},
    "RandomInvert": {},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 4},
    "RandomRotation": {"factor": 0.2},
    "RandomSaturation": {"factor": 0.3},
    "RandomSharpness": {"factor": 0.3},
    "RandomShear": {"x_factor": 0.2, "y_factor": 0.2},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.2},
    "Solarization": {},
}
# In inference mode, where they hand on their inputs.
AUGMENTATION = [
    _layer(name, unit(1, 4, 4, 3), **settings) for name, settings in _AUGMENTATION.items()
]

ROWS = [
    *CORE,
    *FOREIGN,
    *ACTIVATIONS,
    *ATTENTION,
    *CONVOLUTIONS,
    *POOLING,
    *NORMALIZATION,
    *RECURRENT,
    *MERGING,
    *RESHAPING,
    *REGULARIZATION,
    *PREPROCESSING,
    *AUGMENTATION,
]

NOTHING = {
    "layers.InputLayer": "a place for the inputs",
    "layers.Input": "a place for the inputs",
    "layers.InputSpec": "a description of shapes",
    "layers.CategoryEncoding": "of integers",
    "layers.Discretization": "its outputs are integers",
    "layers.HashedCrossing": "of integers or strings",
    "layers.Hashing": "of integers or strings",
    "layers.IntegerLookup": "of integers",
    "layers.StringLookup": "of strings",
    "layers.TextVectorization": "of strings",
    "layers.MaxNumBoundingBoxes": "of bounding boxes, which are data",
    "layers.TorchModuleWrapper": "for the PyTorch backend alone",
    "layers.ContrastLimitedAdaptiveHistogramEqualization": "looks pixels up in histograms",
    "layers.FlaxLayer": "a JaxLayer, made from a Flax module",
    "layers.serialize": "gives a configuration",
    "layers.deserialize": "gives a layer",
}


class Twice(layers.Wrapper):
    def call(self, inputs):
        return self.layer(self.layer(inputs))


class Cubic(layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],))

    def call(self, inputs):
        return (inputs * self.factor) ** 3


def _lora(layer: Any, shape: tuple[int, ...]) -> Any:
    layer.build(shape)
    layer.enable_lora(1)
    return layer


def _built(layer: Any, shape: tuple[int, ...]) -> Any:
    layer.build(shape)
    return layer


def _nonlinear(*stack: Any) -> Any:
    return keras.Sequential(list(stack))
