"""The file that a run leaves for the run that resumes it."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.spectra import Spectra

_MAX_BYTES = 2**26  # of a state that is worth a file at every measurement

Restore = Callable[[Mapping[str, np.ndarray]], Any]


def run_directory(log_dir: str | os.PathLike[str], group: str) -> str:
    """Where the files of a run are: the same also after the working directory has changed."""
    directory = os.path.join(os.fspath(log_dir), group)
    return directory if "://" in directory else os.path.abspath(directory)


class CarriedState:
    """State of an estimator, and the spectra so far, beside the event files of their run.

    Args:
        log_dir: The directory that the event files are under.
        group: Name of the run.
    """

    def __init__(self, log_dir: str | os.PathLike[str], group: str = "hessian") -> None:
        self._path = os.path.join(run_directory(log_dir, group), "carried.npz")

    def save(self, state: Any, spectra: Spectra, step: int, *, matrix: str) -> None:
        """Writes both after the measurement at `step`; a large state is left out.

        Args:
            state: Of the estimator.
            spectra: So far.
            step: Of the measurement.
            matrix: What kind of matrix they are of: its size and dtype.
        """
        arrays = {} if state is None else state.arrays()
        carries = 0 < sum(array.nbytes for array in arrays.values()) <= _MAX_BYTES
        if not carries and not spectra.columns:
            return
        arrays = (arrays if carries else {}) | spectra.arrays()
        part, is_local = f"{self._path}.part", "://" not in self._path
        with open(part, "wb") if is_local else io.BytesIO() as file:
            np.savez(file, matrix=matrix, step=np.int64(step), carries=np.bool_(carries), **arrays)
            if isinstance(file, io.BytesIO):
                with tf.io.gfile.GFile(part, "wb") as far:
                    far.write(file.getvalue())
        tf.io.gfile.rename(part, self._path, overwrite=True)

    def load(self, restore: Restore, *, matrix: str) -> tuple[Any, Spectra, int] | None:
        """State, spectra and their step; None where there is no file of the same kind."""
        try:
            if not tf.io.gfile.exists(self._path):
                return None
            with tf.io.gfile.GFile(self._path, "rb") as file:
                content = file.read()
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                if str(arrays["matrix"]) != matrix:
                    return None
                state = restore(arrays) if arrays["carries"] else None
                return state, Spectra.of_arrays(arrays), int(arrays["step"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, OSError, tf.errors.OpError):
            return None  # by another version, cut off, or not to be read: the run starts cold
