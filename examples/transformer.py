"""Watch which layers of a small language model hold the curvature while it learns.

A transformer of two pre-norm blocks learns the characters of Python's own documentation. While the
loss falls, the norm grows severalfold, and the layers tell where: embedding and head hold half of
its square after the first epoch, embedding and positions three quarters after the fifth. Keras
starts embeddings short (0.05 at most), and the LayerNormalization after them divides by their
length: small steps turn them far. Started 20 times as long (RandomNormal(stddev=1.0), positions
too), both hold less than 3 % in every epoch, the head three quarters after the first, and the norm
is a ninth after the fifth (15 against 130).

Run:  python examples/transformer.py [directory of the logs]
"""

import os
import sys
import time
from pydoc_data.topics import topics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
import numpy as np

from keras_hessian_callback import HessianNormCallback

LENGTH, WIDTH, HEADS, BLOCKS = 32, 32, 4, 2
EPOCHS = 5


class Positions(keras.layers.Layer):
    """Adds a learned vector to each place of the sequence."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal", name="table")

    def call(self, inputs):
        return inputs + self.table


def language_model(num_characters: int) -> keras.Model:
    """A decoder of pre-norm blocks: attention to what came before, then two dense layers."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(num_characters, WIDTH, name="embedding")(tokens)
    x = Positions(name="positions")(x)
    for block in range(BLOCKS):
        seen = keras.layers.LayerNormalization(name=f"norm_{block}_attention")(x)
        attention = keras.layers.MultiHeadAttention(
            HEADS, WIDTH // HEADS, name=f"attention_{block}"
        )
        x = x + attention(seen, seen, use_causal_mask=True)
        seen = keras.layers.LayerNormalization(name=f"norm_{block}_dense")(x)
        seen = keras.layers.Dense(4 * WIDTH, activation="gelu", name=f"expand_{block}")(seen)
        x = x + keras.layers.Dense(WIDTH, name=f"contract_{block}")(seen)
    x = keras.layers.LayerNormalization(name="norm_head")(x)
    return keras.Model(tokens, keras.layers.Dense(num_characters, name="head")(x))


def main(logs: str = "logs") -> None:
    log_dir = os.path.join(logs, time.strftime("%Y-%m-%d_%H.%M.%S"))
    keras.utils.set_random_seed(0)
    text = np.array(list("".join(topics.values())[:150_000]))
    alphabet, codes = np.unique(text, return_inverse=True)
    rows = len(codes) // (LENGTH + 1)
    windows = codes[: rows * (LENGTH + 1)].reshape(rows, LENGTH + 1).astype("int32")
    np.random.default_rng(0).shuffle(windows)
    x, y = windows[:, :-1], windows[:, 1:]
    held_out, train = slice(48), slice(48, None)

    model = language_model(len(alphabet))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    curvature = HessianNormCallback((x[held_out], y[held_out]), log_dir=log_dir)

    def show(epoch: int, logs: dict) -> None:
        norm, layers = curvature.report["frobenius_norm"], curvature.report.layers
        shares = {layer: estimate.value**2 / norm.value**2 for layer, estimate in layers.items()}
        most = sorted(shares, key=shares.get, reverse=True)[:4]
        print(
            f"{epoch:5d} {logs['loss']:8.4f} {norm.value:9.2f}   "
            f"[{norm.lower:7.2f}, {norm.upper:7.2f}]   "
            + ", ".join(f"{layer} {shares[layer]:.0%}" for layer in most)
        )

    print(f"{model.count_params():,} parameters, {len(x[train]):,} rows of {LENGTH} characters")
    print("epoch     loss   ||H||_F      95 % interval   shares of its square")
    callbacks = [curvature, keras.callbacks.LambdaCallback(on_epoch_end=show)]
    model.fit(x[train], y[train], batch_size=64, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    beside_python = os.path.relpath(os.path.join(os.path.dirname(sys.executable), "tensorboard"))
    print(f"\nLook at the layers:  {beside_python} --logdir {logs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
