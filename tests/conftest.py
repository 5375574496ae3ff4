import keras
import pytest


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Each test starts from the same seeds and leaves the global settings as they were."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
