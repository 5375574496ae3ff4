"""Published architectures with random weights: smallest inputs, few examples, their own losses."""

from collections.abc import Callable

import keras
import numpy as np

from tests.problems import Problem

NUM_EXAMPLES = 2

_VOCABULARY, _LENGTH = 11, 6


def _application(name: str, size: int) -> Callable[[], Problem]:
    def make() -> Problem:
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=3, classifier_activation=None
        )
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x = np.random.default_rng(0).uniform(0, 255, size=(NUM_EXAMPLES, size, size, 3))
        return model, (x.astype(keras.config.floatx()), np.arange(NUM_EXAMPLES))

    return make


# Applications of the same family share their operations; each family is here.
APPLICATIONS: dict[str, Callable[[], Problem]] = {
    "ResNet50": _application("ResNet50", 32),
    "MobileNetV3Small": _application("MobileNetV3Small", 32),
    "MobileNetV3Large": _application("MobileNetV3Large", 32),
    "EfficientNetV2B0": _application("EfficientNetV2B0", 32),
    "ConvNeXtTiny": _application("ConvNeXtTiny", 32),
    "DenseNet121": _application("DenseNet121", 32),
    "NASNetMobile": _application("NASNetMobile", 32),
    "Xception": _application("Xception", 71),
    "InceptionV3": _application("InceptionV3", 75),
}


def _backbone(make_backbone: Callable[[], keras.Model], output: str = "") -> Callable[[], Problem]:
    """A backbone of KerasHub with a head for every token or patch, on random inputs."""

    def make() -> Problem:
        backbone = make_backbone()
        outputs = backbone.output
        if isinstance(outputs, dict):
            outputs = outputs[output]
        logits = keras.layers.Dense(3)(outputs)
        model = keras.Model(backbone.input, logits)
        policy = keras.config.dtype_policy()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=policy)
        model.compile("sgd", loss)
        rng = np.random.default_rng(0)
        x = {}
        inputs = backbone.input if isinstance(backbone.input, dict) else {"x": backbone.input}
        for name, tensor in inputs.items():
            shape = (NUM_EXAMPLES, *(size or _LENGTH for size in tensor.shape[1:]))
            if "mask" in name:
                x[name] = np.arange(shape[1]) < np.array([[shape[1]], [shape[1] - 2]])
                x[name] = x[name].astype("int32")
            elif keras.backend.is_int_dtype(tensor.dtype):
                high = 2 if "segment" in name else _VOCABULARY
                x[name] = rng.integers(high, size=shape).astype("int32")
            else:
                x[name] = rng.normal(size=shape).astype(keras.config.floatx())
        y = rng.integers(3, size=(NUM_EXAMPLES, *_filled(logits.shape[1:-1])))
        return model, (x if isinstance(backbone.input, dict) else x["x"], y)

    return make


def _filled(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(size or _LENGTH for size in shape)


def away_from_kinks(model: keras.Model) -> None:
    """Moves every weight a little: biases of 0 put many inputs of a ReLU exactly on its kink."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + 0.02 * rng.normal(size=variable.shape))


def _bert() -> keras.Model:
    from keras_hub.models import BertBackbone

    return BertBackbone(_VOCABULARY, 2, 2, 8, 16, max_sequence_length=_LENGTH)


def _gpt2() -> keras.Model:
    from keras_hub.models import GPT2Backbone

    return GPT2Backbone(_VOCABULARY, 2, 2, 8, 16, max_sequence_length=_LENGTH)


def _llama() -> keras.Model:
    from keras_hub.models import LlamaBackbone

    return LlamaBackbone(_VOCABULARY, 2, 4, 8, 16, 2)


def _vit() -> keras.Model:
    from keras_hub.models import ViTBackbone

    return ViTBackbone((8, 8, 3), (4, 4), 2, 2, 8, 16)


def _t5() -> keras.Model:
    from keras_hub.models import T5Backbone

    return T5Backbone(_VOCABULARY, 2, 2, 8, 16)


def _whisper() -> keras.Model:
    from keras_hub.models import WhisperBackbone

    return WhisperBackbone(
        _VOCABULARY,
        2,
        2,
        8,
        16,
        num_mels=4,
        max_encoder_sequence_length=8,
        max_decoder_sequence_length=_LENGTH,
    )


BACKBONES: dict[str, Callable[[], Problem]] = {
    "BERT": _backbone(_bert, "sequence_output"),
    "GPT-2": _backbone(_gpt2),
    "Llama": _backbone(_llama),
    "ViT": _backbone(_vit),
    "T5": _backbone(_t5, "decoder_sequence_output"),
    "Whisper": _backbone(_whisper, "decoder_sequence_output"),
}
