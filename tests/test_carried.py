import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback.basis import Basis
from keras_hessian_callback.carried import CarriedState
from keras_hessian_callback.spectra import Spectra


def basis(number):
    vectors = np.full((2, 5), float(number), "float32")
    return Basis(vectors, np.array([3.0, 2.0, 1.0]), 7.0, frozenset({(0, number)}))


@pytest.mark.parametrize("where", ["local", "far"])
def test_the_latest_state_is_taken_up(where, tmp_path):
    """From a directory, and from a file system of TensorFlow's own."""
    log_dir = str(tmp_path) if where == "local" else f"ram://carried{tmp_path}"
    tf.io.gfile.makedirs(f"{log_dir}/hessian")
    carried = CarriedState(log_dir)
    assert carried.load(Basis.of_arrays, matrix="5 float32") is None
    for step in (3, 4):
        carried.save(basis(step), Spectra(), step, matrix="5 float32")
    state, spectra, step = carried.load(Basis.of_arrays, matrix="5 float32")
    np.testing.assert_array_equal(state.vectors, basis(4).vectors)
    np.testing.assert_array_equal(state.variances, basis(4).variances)
    assert (state.square, state.seeds, step) == (7.0, basis(4).seeds, 4)
    assert not spectra.columns
    assert carried.load(Basis.of_arrays, matrix="6 float32") is None
    assert tf.io.gfile.listdir(f"{log_dir}/hessian") == ["carried.npz"]
