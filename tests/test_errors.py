import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback import HessianNormCallback, HessianOperator
from keras_hessian_callback.errors import ran_out_of_memory, summary


@pytest.fixture
def embedding():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(5, 2), keras.layers.Flatten()]
    )
    model.compile("sgd", "mse")
    return model


def test_the_cause_of_a_graph_error_is_kept(embedding):
    with pytest.raises(ValueError, match=r"product failed\..*= 99 is not in \[0, 5\)"):
        HessianOperator(embedding, (np.full((4, 3), 99), np.ones((4, 6))))


def test_the_cause_of_an_error_while_training_is_kept():
    class Asserts(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, inputs):
            with tf.control_dependencies([tf.debugging.assert_less(self.scale, 1.5, "THE CAUSE")]):
                return tf.identity(inputs)

    class Grows(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.layers[0].scale.assign(2.0)

    model = keras.Sequential([keras.Input((2,)), Asserts(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    data = (np.ones((4, 2)), np.ones((4, 1)))
    with pytest.warns(UserWarning, match="InvalidArgumentError: .*THE CAUSE") as seen:
        model.fit(*data, epochs=1, verbose=0, callbacks=[Grows(), HessianNormCallback(data)])
    assert not any("Memory ran out" in str(warning.message) for warning in seen)


def test_summaries_are_short_and_know_memory():
    message = "Graph execution error:\n\nOOM when allocating\n\t [[{{node x}}]]\nHint: see\n [Op:f]"
    error = tf.errors.ResourceExhaustedError(None, None, message)
    assert summary(error) == "ResourceExhaustedError: OOM when allocating"
    assert ran_out_of_memory(error)
    assert not ran_out_of_memory(ValueError("x"))
    assert len(summary(ValueError("x" * 1000))) < 400
