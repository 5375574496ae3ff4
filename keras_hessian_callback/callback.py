"""The Keras callback: the life cycle of measurements during `model.fit`."""

import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hessian_callback.budget import Budget
from keras_hessian_callback.carried import CarriedState
from keras_hessian_callback.errors import measuring_failed, not_finite, writing_failed
from keras_hessian_callback.estimators.estimator import Estimator
from keras_hessian_callback.measurement import check_preconditioned, measure, resolve_method
from keras_hessian_callback.objective import LossFn, check_backend
from keras_hessian_callback.operators.hessian import (
    HessianOperator,
    check_batch_size,
    check_training,
)
from keras_hessian_callback.pool import check_drawn, held_out
from keras_hessian_callback.results import LAYER, CurvatureReport
from keras_hessian_callback.schedule import Schedule, Within, resolve_schedule
from keras_hessian_callback.stability import check_has_preconditioner
from keras_hessian_callback.summaries import SummaryWriter


class HessianNormCallback(keras.callbacks.Callback):
    """Measures the curvature of the training loss while `model.fit` runs.

    At the end of each epoch (or as `schedule` says) it estimates the Frobenius norm of the
    Hessian of the training loss on held-out examples, and what else the same products tell
    (trace, extreme eigenvalues, norm by layer), with 95 % intervals, at the weights of that
    moment and in inference mode (unless `training`). Nothing of the run changes: weights,
    optimizer, metrics and random numbers are the same, bit for bit, as without it.

    The values go to

    * TensorBoard, in the run `<log_dir>/hessian`: `hessian/frobenius_norm` with
      `.../lower` and `.../upper`, the same for `hessian/trace` and the others, and
      `hessian_by_layer/frobenius_norm/<layer>`. The step is the epoch, or the optimizer's
      `iterations` where the schedule counts steps;
    * `logs["hessian_frobenius_norm"]` at the end of an epoch in which it was measured: for
      the progress bar, `History`, and callbacks listed after this one;
    * `history`, lists of all values of the last `fit` with their `"epoch"` and `"step"`:
      `"frobenius_norm"`, `"frobenius_norm/lower"`, `"frobenius_norm/upper"`, the same for
      `"trace"` and the others, `"frobenius_norm/layer/<name>"`, `"num_matvecs"`, `"seconds"`,
      `"overhead"` so far, and the optimizer's `"stability_threshold"`, NaN where it has none;
    * `report`, the last `CurvatureReport`;
    * `overhead`, the time that the measurements of the last `fit` took over the rest of its
      time, and apart from both, `setup_seconds`, what it took here before the first step.

    Args:
        data: Held-out examples: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset` of such
            batches, or a `keras.utils.PyDataset`. Read once, here, into memory. Or an
            `importance` of these: each measurement draws examples from them.
        method: `"stochastic"` (`Deflated()`), `"autodiff"` (`Exact(products="autodiff")`),
            `"finite_difference"` (`Exact(products="finite_difference")`), or an estimator with
            its settings.
        log_dir: Directory that TensorBoard is started on. None: no event files.
        schedule: `"epoch"`, `every(epochs=...)`, `every(steps=...)` or
            `within(overhead=...)`. The first epoch of a `fit` is measured in any case, for
            loggers that fix their columns by it; the event files get that value only in epoch
            0, so a resumed run draws the curve of an uninterrupted one.
        batch_size: Int of at least 1: examples per micro-batch, which bounds the memory; the
            result is the same. None: all at once.
        loss_fn: `loss_fn(model, x, y, sample_weight) -> scalar`, instead of the compiled loss.
        training: True: the loss in training mode, with batch normalisation by the statistics of
            the held-out examples and fixed dropout masks; without `batch_size`.
        preconditioned: True: the Hessian as the optimizer sees it, as in `measure_curvature`. In
            all names above, `preconditioned_hessian` then stands in place of `hessian`.
        seed: Int: the random probes are a function of it and of the step, so a resumed run
            logs what an uninterrupted one would. So it does with a carried basis, as long as that
            takes at most 64 MiB and the `log_dir` is the same; else the basis is rebuilt, which
            changes the numbers within their error.
        on_error: `"warn"`: a measurement that fails warns once, and there are no more in this
            `fit`, which goes on. `"raise"`: its exception ends the run.

    Raises:
        ValueError, TypeError: Here, for settings and data; at the start of `fit`, before the
            first step, for a model or a loss that cannot be measured.
        RuntimeError: If Keras runs on another backend than TensorFlow.

    Cost: At the start of a `fit` one trace of the model and the checks of `HessianOperator`;
    then the products of `method` a measurement, each 1 to 2 gradients of the held-out batch.
    A second `fit` of the same compiled model traces nothing.

    Example:

        >>> import keras, numpy as np
        >>> from keras_hessian_callback import HessianNormCallback
        >>> x = np.array([[1.0], [2.0], [3.0]], "float32")
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> curvature = HessianNormCallback((x, x), method="autodiff")
        >>> history = model.fit(x, x, epochs=2, verbose=0, callbacks=[curvature])
        >>> [round(norm, 4) for norm in curvature.history["frobenius_norm"]]  # 2 mean(x^2)
        [9.3333, 9.3333]
    """

    def __init__(
        self,
        data: Any,
        method: str | Estimator = "stochastic",
        *,
        log_dir: str | os.PathLike[str] | None = None,
        schedule: str | Schedule = "epoch",
        batch_size: int | None = None,
        loss_fn: LossFn | None = None,
        training: bool = False,
        preconditioned: bool = False,
        seed: int = 0,
        on_error: str = "warn",
    ) -> None:
        super().__init__()
        check_backend()
        if on_error not in ("warn", "raise"):
            raise ValueError(f"`on_error` must be 'warn' or 'raise'; got {on_error!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"`seed` must be an integer; got {seed!r}.")
        if log_dir is not None and not isinstance(log_dir, str | os.PathLike):
            raise TypeError(f"`log_dir` must be a path or None; got {log_dir!r}.")
        check_batch_size(batch_size)
        check_training(training, batch_size)
        check_preconditioned(preconditioned)
        self._estimator = resolve_method(method)
        self._schedule = resolve_schedule(schedule)
        self._budget = Budget(getattr(self._schedule, "overhead", None))
        self._data = held_out(data)
        check_drawn(self._data, training=training, loss_fn=loss_fn)
        self._log_dir = log_dir
        self._batch_size = batch_size
        self._loss_fn = loss_fn
        self._training = training
        self._preconditioned = preconditioned
        self._group = "preconditioned_hessian" if preconditioned else "hessian"
        self._seed = int(seed)
        self._on_error = on_error
        self._operator: HessianOperator | None = None
        self._carried: CarriedState | None = None
        self._state: Any = None
        self._state_step = -1  # the last one whose probes shaped the state
        self.report: CurvatureReport | None = None
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a model or a file stays behind; a copy makes its own.
        left_behind = {"_operator": None, "_writer": None, "_model": None, "_state": None}
        left_behind["_carried"] = None
        return {**self.__dict__, **left_behind}

    def _start(self) -> None:
        """What a `fit` begins with."""
        self.history: dict[str, list[Any]] = {"epoch": [], "step": []}
        self._writer: SummaryWriter | None = None
        self._failed = False
        self._warned_not_finite = False
        self._warned_taken = False
        self._epoch = 0
        self._iterations: int | None = None  # when it was last looked at
        self._latest: tuple[int, float] | None = None  # epoch and norm
        self._budget.begin()
        self.overhead = self.setup_seconds = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._start()
        with self._budget.preparing():
            self._prepare()
        self.setup_seconds = self._budget.setup_seconds

    def _prepare(self) -> None:
        if self._preconditioned:
            check_has_preconditioner(self.model.optimizer)
        if self._operator is None or not self._operator.is_current(self.model):
            operator = HessianOperator(
                self.model,
                self._data,
                products=self._estimator.products,
                batch_size=self._batch_size,
                loss_fn=self._loss_fn,
                training=self._training,
            )
            self._estimator.check(operator)
            self._operator, self._state = operator, None
            self._budget.try_out(self._estimator, operator)
        if self._schedule.counts_steps and self.model.optimizer is None:
            raise ValueError(
                f"schedule={self._schedule!r} counts the optimizer's `iterations`, and the model "
                "has no optimizer. Use every(epochs=...)."
            )
        if self._log_dir is not None:
            self._writer = SummaryWriter(self._log_dir, self._group)
            self._carried = CarriedState(self._log_dir, self._group)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._schedule.counts_steps and self._iterations is None:
            # Not earlier: another callback may have restored the optimizer by now.
            self._iterations = self._optimizer_iterations()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._schedule.counts_steps:
            return
        if isinstance(self._schedule, Within):
            self._budget.reach(self._epoch, batch, self.params)
            if self._budget.allows_another:
                # Asking for the iterations waits for the step: that is the training's time.
                self._measure(self._optimizer_iterations())
            return
        before, now = self._iterations, self._optimizer_iterations()
        self._iterations = now
        if before is not None and self._schedule.due_after_steps(before, now):
            self._measure(now)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        due = self._schedule.due_after_epoch(epoch)
        if due or not self.history["epoch"]:
            step = self._optimizer_iterations() if self._schedule.counts_steps else epoch
            drawn = due or epoch == 0 or isinstance(self._schedule, Within)
            self._measure(step, drawn=drawn)
        if logs is None or self._latest is None or self._latest[0] != epoch:
            return
        key = f"{self._group}_frobenius_norm"
        if key in logs and not self._warned_taken:
            self._warned_taken = True
            warnings.warn(
                f"logs[{key!r}] holds the value of another HessianNormCallback, which stays. "
                "The values of this one are in its `history` and its event files.",
                stacklevel=2,
            )
        logs.setdefault(key, self._latest[1])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.overhead = self._budget.overhead
        self._budget.report_overrun()
        if isinstance(self._schedule, Within) and self.history["epoch"]:
            step = self._optimizer_iterations()
            self._with_writer(lambda writer: writer.write_overhead(self.overhead, step))
        self._with_writer(SummaryWriter.close)

    def _optimizer_iterations(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _measure(self, step: int, *, drawn: bool = True) -> None:
        if not self._failed and self._operator is not None:
            with self._budget.measuring():
                self._measure_now(self._operator, step, drawn)
            self.overhead = self._budget.overhead

    def _measure_now(self, operator: HessianOperator, step: int, drawn: bool) -> None:
        try:
            self._take_up_carried()
            # Probes must not have shaped the state; another `fit` may count from 0 again.
            state = self._state if step > self._state_step else None
            estimator = self._budget.affordable(self._estimator)
            report, state = measure(
                operator,
                estimator,
                seed=(self._seed, step),
                state=state,
                preconditioned=self._preconditioned,
            )
        except Exception as error:  # the run is not ours to end: see `on_error`
            if self._on_error == "raise":
                raise
            self._failed = True
            warnings.warn(measuring_failed(error, self._epoch, step), stacklevel=2)
            return
        self._record(report, step)
        if drawn:  # what is not is left out of the state too: an uninterrupted run has neither
            self._state, self._state_step = state, step
            self._with_writer(lambda writer: self._write(writer, report, step))

    def _take_up_carried(self) -> None:
        """Reads what an interrupted run left, before the first measurement of a `fit`."""
        if self._state is None and self._carried is not None and not self.history["epoch"]:
            found = self._carried.load(self._estimator.restore)
            self._state, self._state_step = found or (None, -1)

    def _write(self, writer: SummaryWriter, report: CurvatureReport, step: int) -> None:
        writer.write(report, step)
        if isinstance(self._schedule, Within):  # on others, a resumed run draws the same files
            writer.write_overhead(self._budget.overhead, step)
        if self._carried is not None:
            self._carried.save(self._state, step)

    def _with_writer(self, act: Callable[[SummaryWriter], None]) -> None:
        """Does something to the event files, if there are any; that does not end the run."""
        if self._writer is None:
            return
        try:
            act(self._writer)
        except (OSError, tf.errors.OpError) as error:
            self._writer = None
            if self._on_error == "raise":
                raise
            warnings.warn(writing_failed(error, self._epoch), stacklevel=2)

    def _record(self, report: CurvatureReport, step: int) -> None:
        self.report, threshold = report, report.stability_threshold
        self._budget.learn(report.seconds, report.num_matvecs)
        row: dict[str, float] = {"epoch": self._epoch, "step": step}
        row["overhead"] = self._budget.overhead
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
        self._latest = (self._epoch, norm)
        if not math.isfinite(norm) and not self._warned_not_finite:
            self._warned_not_finite = True
            warnings.warn(not_finite(self._epoch, step), stacklevel=2)
