"""What the measurements of a `fit` leave behind: history, logs, event files, carried state."""

import math
import os
import warnings
from collections.abc import Callable
from typing import Any

from keras_hessian_callback.carried import CarriedState, Restore
from keras_hessian_callback.errors import not_finite, writing_failed
from keras_hessian_callback.results import LAYER, CurvatureReport
from keras_hessian_callback.spectra import Spectra
from keras_hessian_callback.summaries import SummaryWriter


class Record:
    """The values of the last `fit`, and the files that they are in.

    Args:
        log_dir: Directory that TensorBoard is started on; None: no files.
        group: First part of the tags and of the key in `logs`.
        x_name: What the steps are: "epoch" or "step".
        on_error: `"warn"` or `"raise"`: what files do that cannot be written.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None,
        *,
        group: str = "hessian",
        x_name: str = "epoch",
        on_error: str = "warn",
    ) -> None:
        self._log_dir = log_dir
        self._group = group
        self._x_name = x_name
        self._on_error = on_error
        self._key = f"{group}_frobenius_norm"
        self._carried: CarriedState | None = None
        self.report: CurvatureReport | None = None
        self.forget_state()
        self.begin()

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a model or a file stays behind; a copy makes its own.
        left_behind = {"_writer": None, "_carried": None, "_state": None, "_spectra": Spectra()}
        return {**self.__dict__, **left_behind}

    def begin(self) -> None:
        """Starts anew, with a `fit`."""
        self.history: dict[str, list[Any]] = {"epoch": [], "step": []}
        self.has_drawn = False
        self._writer: SummaryWriter | None = None
        self._latest: tuple[int, float] | None = None  # epoch and norm
        self._warned_not_finite = False
        self._warned_taken = False

    def forget_state(self) -> None:
        """Gives up what is of another model."""
        self._state: Any = None
        self._matrix = ""
        self._state_step = -1  # the last one whose probes shaped the state
        self._spectra = Spectra()

    def open_files(self, *, shared: bool) -> None:
        """Checks that event files can be written, where there is a directory for them.

        Args:
            shared: Whether other workers measure the same: all must carry the same state, so
                none is taken from a file that some may not see.
        """
        if self._log_dir is not None:
            self._writer = SummaryWriter(self._log_dir, self._group, self._x_name)
            self._carried = None if shared else CarriedState(self._log_dir, self._group)

    def state_before(self, step: int, restore: Restore, *, matrix: str) -> Any:
        """What the estimator carries to `step`; at first, from what an interrupted run left.

        Args:
            step: Of the measurement to come.
            restore: Of the estimator.
            matrix: Size and dtype of what is measured: what was left must be of the same.
        """
        self._matrix = matrix
        if self._state is None and self._carried is not None and not self.history["epoch"]:
            found = self._carried.load(restore, matrix=matrix)
            self._state, self._spectra, self._state_step = found or (None, Spectra(), -1)
        # Probes must not have shaped the state; another `fit` may count from 0 again.
        return self._state if step > self._state_step else None

    def add(self, report: CurvatureReport, *, epoch: int, step: int, overhead: float) -> None:
        """Adds a measurement to the history."""
        self.report = report
        threshold = report.stability_threshold
        row: dict[str, float] = {"epoch": epoch, "step": step, "overhead": overhead}
        row["stability_threshold"] = math.nan if threshold is None else threshold
        for name, estimate in report.items():
            row[name] = estimate.value
            row[f"{name}/lower"] = estimate.lower
            row[f"{name}/upper"] = estimate.upper
        row |= {f"{LAYER}{name}": estimate.value for name, estimate in report.layers.items()}
        row |= {"num_matvecs": report.num_matvecs, "seconds": report.seconds}
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        norm = report["frobenius_norm"].value
        self._latest = (epoch, norm)
        if not math.isfinite(norm) and not self._warned_not_finite:
            self._warned_not_finite = True
            warnings.warn(not_finite(epoch, step), stacklevel=2)

    def add_nothing(self, epoch: int) -> None:
        """Takes note that nothing could be measured in an epoch: NaN, for the logs alone."""
        self._latest = (epoch, math.nan)

    def add_to(self, logs: dict[str, Any], epoch: int) -> None:
        """Adds the norm to the logs of an epoch in which it was measured."""
        if self._latest is None or self._latest[0] != epoch:
            return
        if self._key in logs and not self._warned_taken:
            self._warned_taken = True
            warnings.warn(
                f"logs[{self._key!r}] holds the value of another HessianNormCallback, which "
                "stays. The values of this one are in its `history` and its event files.",
                stacklevel=3,
            )
        logs.setdefault(self._key, self._latest[1])

    def draw(
        self,
        report: CurvatureReport,
        state: Any,
        step: int,
        *,
        overhead: float,
        about: Callable[[], str] | None = None,
    ) -> None:
        """Writes a measurement to the files, and keeps the state for the next.

        Args:
            report: The measurement.
            state: What the estimator carries to the next.
            step: Where it is drawn.
            overhead: The share of the time so far.
            about: Gives what the run is made with, in Markdown; None: it is not written.
        """
        self._state, self._state_step = state, step
        self.has_drawn = True
        if self._writer is None:
            return
        if report.spectrum is not None:
            self._spectra = self._spectra.after(step, report.spectrum)
        self._with_writer(
            lambda writer: writer.write(
                report,
                step,
                others={"overhead": overhead},
                spectra=self._spectra,
                about=about() if about else None,
            )
        )
        if self._carried is not None:
            carried = self._carried
            self._with_writer(
                lambda _: carried.save(state, self._spectra, step, matrix=self._matrix)
            )

    def draw_overhead(self, share: float, step: int) -> None:
        """Writes the share of the time at the end."""
        self._with_writer(lambda writer: writer.write_overhead(share, step))

    def close_files(self) -> None:
        """Closes the event files."""
        self._with_writer(SummaryWriter.close)

    def _with_writer(self, act: Callable[[SummaryWriter], None]) -> None:
        """Does something to the event files, if there are any; that does not end the run."""
        if self._writer is None:
            return
        try:
            act(self._writer)
        except Exception as error:  # the run is not ours to end
            self._writer = None
            if self._on_error == "raise":
                raise
            epoch = self.history["epoch"][-1] if self.history["epoch"] else 0
            warnings.warn(writing_failed(error, epoch), stacklevel=2)
