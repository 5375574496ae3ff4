"""Writes measurements as TensorBoard event files: tags, steps and values."""

import os
import uuid
import warnings
import weakref

import tensorflow as tf

from keras_hessian_callback.results import CurvatureReport

_open_writers: weakref.WeakValueDictionary[str, "SummaryWriter"] = weakref.WeakValueDictionary()


class SummaryWriter:
    """Event files of one run, in `<log_dir>/hessian`; none before the first measurement.

    The directory is the callback's own: TensorBoard reads one writer per directory.

    Args:
        log_dir: Directory that TensorBoard is started on; local or any that `tf.io.gfile` knows.

    Raises:
        ValueError: If nothing can be written there.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        directory = os.path.join(os.fspath(log_dir), "hessian")
        self._directory = directory if "://" in directory else os.path.abspath(directory)
        self._writer: tf.summary.SummaryWriter | None = None
        probe = os.path.join(self._directory, f".writable-{uuid.uuid4().hex}")
        try:
            tf.io.gfile.makedirs(self._directory)
            with tf.io.gfile.GFile(probe, "w") as file:
                file.write("")
            tf.io.gfile.remove(probe)
        except (OSError, tf.errors.OpError) as error:
            raise ValueError(
                f"`log_dir` cannot be written to: {self._directory!r} ({error}). Pass a directory "
                "that can, or log_dir=None to write no event files."
            ) from error

    def write(self, report: CurvatureReport, step: int) -> None:
        """Writes each estimate with its 95 % band at `step`, and flushes.

        Tags: `hessian/<name>`, `hessian/<name>/lower`, `hessian/<name>/upper`; and in a group of
        their own, without bands, `hessian_by_layer/frobenius_norm/<layer>`.
        """
        if self._writer is None:
            if self._directory in _open_writers:
                warnings.warn(
                    f"Another HessianNormCallback writes to {self._directory!r}, and TensorBoard "
                    "reads one writer per directory. If both are in use, give each its own "
                    "`log_dir`.",
                    stacklevel=2,
                )
            _open_writers[self._directory] = self
            self._writer = tf.summary.create_file_writer(self._directory)
        # Another callback may hold a record_if(False) open between its hooks.
        with self._writer.as_default(step=step), tf.summary.record_if(True):
            for name, estimate in report.items():
                tf.summary.scalar(f"hessian/{name}", estimate.value)
                tf.summary.scalar(f"hessian/{name}/lower", estimate.lower)
                tf.summary.scalar(f"hessian/{name}/upper", estimate.upper)
            for layer, estimate in report.layers.items():
                tf.summary.scalar(f"hessian_by_layer/frobenius_norm/{layer}", estimate.value)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; a later `write` opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if _open_writers.get(self._directory) is self:
            del _open_writers[self._directory]
