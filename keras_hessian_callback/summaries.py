"""Writes measurements as TensorBoard event files: tags, steps and values."""

import os
import uuid
import warnings
import weakref
from collections.abc import Mapping

import tensorflow as tf

from keras_hessian_callback.results import CurvatureReport

_open_writers: weakref.WeakValueDictionary[str, "SummaryWriter"] = weakref.WeakValueDictionary()


class SummaryWriter:
    """Event files of one run, in `<log_dir>/<group>`; none before the first measurement.

    The directory is the writer's own: TensorBoard reads one writer per directory. The callback
    has one; for reports of `measure_curvature`, such as of a run's checkpoints, make one.

    Args:
        log_dir: Directory that TensorBoard is started on; local or any that `tf.io.gfile` knows.
        group: Name of the run, and what its tags begin with.

    Raises:
        ValueError: If nothing can be written there.

    Example:

        >>> import os, tempfile
        >>> from keras_hessian_callback import CurvatureReport, Estimate, SummaryWriter
        >>> norm = Estimate(2.0, standard_error=0.1, lower=1.8, upper=2.2, num_matvecs=32)
        >>> report = CurvatureReport({"frobenius_norm": norm}, num_parameters=50,
        ...     num_examples=8, num_matvecs=32, seconds=0.1, method="Hutchinson(num_probes=32)")
        >>> with tempfile.TemporaryDirectory() as log_dir:
        ...     writer = SummaryWriter(log_dir)
        ...     writer.write(report, step=0)
        ...     writer.close()
        ...     os.listdir(log_dir)  # a run of TensorBoard
        ['hessian']
    """

    def __init__(self, log_dir: str | os.PathLike[str], group: str = "hessian") -> None:
        directory = os.path.join(os.fspath(log_dir), group)
        self._group = group
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

        Tags: `<group>/<name>`, `<group>/<name>/lower`, `<group>/<name>/upper`; and in a group of
        their own, without bands, `<group>_by_layer/frobenius_norm/<layer>`. And where there is
        one, `<group>/stability_threshold`.
        """
        scalars = {}
        for name, estimate in report.items():
            scalars[f"{self._group}/{name}"] = estimate.value
            scalars[f"{self._group}/{name}/lower"] = estimate.lower
            scalars[f"{self._group}/{name}/upper"] = estimate.upper
        for layer, estimate in report.layers.items():
            scalars[f"{self._group}_by_layer/frobenius_norm/{layer}"] = estimate.value
        if report.stability_threshold is not None:
            scalars[f"{self._group}/stability_threshold"] = report.stability_threshold
        self._write_scalars(scalars, step)

    def write_overhead(self, share: float, step: int) -> None:
        """Writes the share of the time that measurements took, as `<group>/overhead`."""
        self._write_scalars({f"{self._group}/overhead": share}, step)

    def _write_scalars(self, scalars: Mapping[str, float], step: int) -> None:
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
            for tag, value in scalars.items():
                tf.summary.scalar(tag, value)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; a later `write` opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if _open_writers.get(self._directory) is self:
            del _open_writers[self._directory]
