"""Writes measurements as TensorBoard event files: tags, steps and values."""

import os
import uuid
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import metadata as layouts
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.image import metadata as images
from tensorboard.plugins.scalar import metadata as scalars
from tensorboard.plugins.text import metadata as texts
from tensorboard.util.tensor_util import make_tensor_proto

from keras_hessian_callback.carried import run_directory
from keras_hessian_callback.charts import description, layer_description, layout, spectrum_texts
from keras_hessian_callback.pictures import HEIGHT, WIDTH, png
from keras_hessian_callback.results import CurvatureReport, Spectrum
from keras_hessian_callback.spectra import Spectra, histogram

_open_writers: weakref.WeakValueDictionary[str, "SummaryWriter"] = weakref.WeakValueDictionary()
_WHOLE = 0.99  # of the eigenvalues: a spectrum that stands for so many is not a part of it


class SummaryWriter:
    """Event files of one run, in `<log_dir>/<group>`; none before the first measurement.

    The directory is the writer's own: TensorBoard reads one writer per directory. The callback
    has one; for reports of `measure_curvature`, such as of a run's checkpoints, make one.

    Args:
        log_dir: Directory that TensorBoard is started on; local or any that `tf.io.gfile` knows.
        group: First part of the tags, and name of the run.
        x_name: What the steps are: "epoch" or "step".

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

    def __init__(
        self, log_dir: str | os.PathLike[str], group: str = "hessian", x_name: str = "epoch"
    ) -> None:
        if x_name not in ("epoch", "step"):
            raise ValueError(f"`x_name` must be 'epoch' or 'step'; got {x_name!r}.")
        self._directory = run_directory(log_dir, group)
        self._group = group
        self._x_name = x_name
        self._writer: tf.summary.SummaryWriter | None = None
        self._spectra = Spectra()
        self._laid_out: set[str] = set()
        self._described: set[str] = set()  # TensorBoard reads what it is told first in a file
        probe = os.path.join(self._directory, f".writable-{uuid.uuid4().hex}")
        try:
            tf.io.gfile.makedirs(self._directory)
            with tf.io.gfile.GFile(probe, "w") as file:
                file.write("")
            tf.io.gfile.remove(probe)
        except (OSError, UnicodeError, tf.errors.OpError) as error:
            raise ValueError(
                f"`log_dir` cannot be written to: {self._directory!r} ({error}). Pass a directory "
                "that can, or log_dir=None to write no event files."
            ) from error

    def write(
        self,
        report: CurvatureReport,
        step: int,
        *,
        others: Mapping[str, float] | None = None,
        spectra: Spectra | None = None,
        about: str | None = None,
    ) -> None:
        """Writes a measurement at `step`, as one event, and flushes.

        Tags: `<group>/<name>`, `<group>/<name>/lower`, `<group>/<name>/upper`; in a group of
        their own, without bands, `<group>_by_layer/frobenius_norm/<layer>`; histograms
        `<group>/spectrum` and, where the density is that of all eigenvalues,
        `<group>/spectrum_log_counts`; an image `<group>/spectrum_over_time`; a text
        `<group>/about`; and the layout of the charts, where the last one lacks names.

        Args:
            report: The measurement.
            step: Where it is drawn.
            others: Scalars without a band, by name.
            spectra: The spectra so far, that of `report` as the newest; None: those that this
                writer was given.
            about: What the run was made with, in Markdown; None: it is not written.

        Raises:
            ValueError: If the report is of a preconditioned Hessian and the group is "hessian".
            TypeError: If `step` is no integer.
        """
        if isinstance(step, bool) or not isinstance(step, int | np.integer):
            raise TypeError(f"`step` must be an integer; got {step!r}.")
        if report.preconditioned and self._group == "hessian":
            raise ValueError(
                "The report is of a preconditioned Hessian, and would be drawn as the Hessian "
                "itself: SummaryWriter(log_dir, group='preconditioned_hessian')."
            )
        summary = Summary()
        drawn = dict(others or {})
        if report.stability_threshold is not None:
            drawn["stability_threshold"] = report.stability_threshold
        for name, estimate in report.items():
            drawn[name] = estimate.value
            drawn[f"{name}/lower"] = estimate.lower
            drawn[f"{name}/upper"] = estimate.upper
        for name, value in drawn.items():
            tag = f"{self._group}/{name}"
            self._add_scalar(summary, tag, value, description(self._group, name))
        for layer, estimate in report.layers.items():
            tag = f"{self._group}_by_layer/frobenius_norm/{layer}"
            self._add_scalar(summary, tag, estimate.value, layer_description(self._group))
        if report.spectrum is not None and report.spectrum.nodes.size:
            self._spectra = spectra or self._spectra.after(step, report.spectrum)
            self._add_spectrum(summary, report.spectrum, report.num_parameters, self._spectra)
        if about is not None:
            markdown = np.array(about.encode(), object)
            self._add(summary, f"{self._group}/about", texts, markdown, None, "How it is measured.")
        if not drawn.keys() <= self._laid_out:
            self._laid_out |= drawn.keys()
            charts = layout(self._group, self._laid_out, layers=bool(report.layers))
            tensor = make_tensor_proto(charts.SerializeToString())
            metadata = layouts.create_summary_metadata()
            summary.value.add(tag=layouts.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=metadata)
        self._write(summary, step)

    def write_overhead(self, share: float, step: int) -> None:
        """Writes the share of the time that measurements took, as `<group>/overhead`."""
        summary = Summary()
        about = description(self._group, "overhead")
        self._add_scalar(summary, f"{self._group}/overhead", share, about)
        self._write(summary, step)

    def _add_spectrum(
        self, summary: Summary, spectrum: Spectrum, size: int, spectra: Spectra
    ) -> None:
        whole = float(spectrum.weights.sum()) > _WHOLE
        rows = histogram(spectrum, size)
        dots = [str(WIDTH), str(HEIGHT)]
        image = np.array([*dots, png(spectra.picture(size, self._x_name))], object)
        drawn = {
            f"{self._group}/spectrum": (histograms, rows),
            f"{self._group}/spectrum_over_time": (images, image),
        }
        if whole:
            heights = np.log10(1.0 + rows[:, 2:])
            rows = np.concatenate([rows[:, :2], heights], axis=1)
            drawn[f"{self._group}/spectrum_log_counts"] = (histograms, rows)
        told = spectrum_texts(self._group, whole)
        for tag, (plugin, content) in drawn.items():
            self._add(summary, tag, plugin, content, *told[tag])

    def _add_scalar(self, summary: Summary, tag: str, value: float, about: str) -> None:
        with np.errstate(over="ignore"):  # infinite in float32, as TensorBoard has it
            single = np.float32(value)
        self._add(summary, tag, scalars, single, None, about)

    def _add(
        self,
        summary: Summary,
        tag: str,
        plugin: Any,
        content: Any,
        name: str | None,
        about: str,
    ) -> None:
        """Adds a value for one of TensorBoard's plugins."""
        value = summary.value.add(tag=tag, tensor=make_tensor_proto(content))
        if tag not in self._described:
            self._described.add(tag)
            metadata = plugin.create_summary_metadata(display_name=name, description=about)
            value.metadata.CopyFrom(metadata)

    def _write(self, summary: Summary, step: int) -> None:
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
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; a later `write` opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._laid_out.clear()
            self._described.clear()
        if _open_writers.get(self._directory) is self:
            del _open_writers[self._directory]
