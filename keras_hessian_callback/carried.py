"""The file that a run leaves its estimator's state in, for the run that resumes it."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

_MAX_BYTES = 2**26  # of a state that is worth a file at every measurement

Restore = Callable[[Mapping[str, np.ndarray]], Any]


class CarriedState:
    """State of an estimator beside the event files of its run.

    Args:
        log_dir: The directory that the event files are under.
        group: Name of their run.
    """

    def __init__(self, log_dir: str | os.PathLike[str], group: str = "hessian") -> None:
        self._path = os.path.join(os.fspath(log_dir), group, "carried.npz")

    def save(self, state: Any, step: int) -> None:
        """Writes the state after the measurement at `step`; a large one is left out."""
        arrays = {} if state is None else state.arrays()
        if not arrays or sum(array.nbytes for array in arrays.values()) > _MAX_BYTES:
            return
        buffer = io.BytesIO()
        np.savez(buffer, step=np.int64(step), **arrays)
        with tf.io.gfile.GFile(f"{self._path}.part", "wb") as file:
            file.write(buffer.getvalue())
        tf.io.gfile.rename(f"{self._path}.part", self._path, overwrite=True)

    def load(self, restore: Restore) -> tuple[Any, int] | None:
        """The state and its step; None where there is none, or none that can be read."""
        if not tf.io.gfile.exists(self._path):
            return None
        with tf.io.gfile.GFile(self._path, "rb") as file:
            content = file.read()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return restore(arrays), int(arrays["step"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # written by another version, or cut off: the run starts cold
