"""The Keras callback: the life cycle of measurements during `model.fit`."""

import copy
import os
import warnings
from typing import Any

import keras
import numpy as np

from keras_hessian_callback.about import (
    about_optimizer,
    about_report,
    about_threshold,
    about_versions,
    table,
)
from keras_hessian_callback.budget import Budget
from keras_hessian_callback.data import check_batch_size, check_training
from keras_hessian_callback.errors import measuring_failed, not_counted
from keras_hessian_callback.estimators.estimator import Estimator
from keras_hessian_callback.measurement import check_preconditioned, measure, resolve_method
from keras_hessian_callback.memory import check_memory_limit
from keras_hessian_callback.objective import LossFn, check_backend
from keras_hessian_callback.operators.hessian import HessianOperator
from keras_hessian_callback.pool import check_drawn, held_out
from keras_hessian_callback.record import Record
from keras_hessian_callback.replicas import workers_of
from keras_hessian_callback.results import CurvatureReport
from keras_hessian_callback.schedule import Schedule, Within, check_schedule, resolve_schedule
from keras_hessian_callback.stability import check_has_preconditioner, has_made_a_step, stability


class HessianNormCallback(keras.callbacks.Callback):
    """Measures the curvature of the training loss while `model.fit` runs.

    At the end of each epoch (or as `schedule` says) it estimates the Frobenius norm of the
    Hessian of the training loss on held-out examples, and what else the same products tell
    (trace, extreme eigenvalues, norm by layer), with 95 % intervals, at the weights of that
    moment and in inference mode (unless `training`). Nothing of the run changes: weights,
    optimizer, metrics and random numbers are the same, bit for bit, as without it.

    The values go to

    * TensorBoard, in the run `<log_dir>/hessian`: `hessian/frobenius_norm` with
      `.../lower` and `.../upper`, the same for `hessian/trace` and the others,
      `hessian_by_layer/frobenius_norm/<layer>`, the eigenvalues over time, and charts with
      bands in the tab Custom Scalars. The step is the epoch, or the optimizer's `iterations`
      where the schedule counts steps;
    * `logs["hessian_frobenius_norm"]` at the end of an epoch in which it was measured: for
      the progress bar, `History`, and callbacks listed after this one;
    * `history`, lists of all values of the last `fit` with their `"epoch"` and `"step"`:
      `"frobenius_norm"`, `"frobenius_norm/lower"`, `"frobenius_norm/upper"`, the same for
      `"trace"` and the others, `"frobenius_norm/layer/<name>"`, `"num_matvecs"`, `"seconds"`,
      `"overhead"` so far, and the optimizer's `"stability_threshold"`, NaN where there is none for
      the Hessian measured;
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
        batch_size: Int of at least 1: examples per micro-batch; the result is the same. None: as
            many at a time as the memory allows.
        memory_limit: Int: bytes that a measurement should take; None: half of what is free.
        loss_fn: `loss_fn(model, x, y, sample_weight) -> scalar`, instead of the compiled loss.
        training: True: the loss in training mode, with batch normalisation by the statistics of
            the held-out examples and fixed dropout masks; without `batch_size`.
        preconditioned: True: the Hessian as the optimizer sees it, as in `measure_curvature`. In
            all names above, `preconditioned_hessian` then stands in place of `hessian`.
        seed: Int: the random probes are a function of it and of the step, so a resumed run
            logs what an uninterrupted one would. So it does with a carried basis, as long as that
            takes at most 64 MiB, the `log_dir` is the same, and nothing was measured after the
            step that is taken up again; else the basis is rebuilt, which changes the numbers
            within their error.
        on_error: `"warn"`: a measurement that fails warns once, and there are no more in this
            `fit`, which goes on. `"raise"`: its exception ends the run.

    Raises:
        ValueError, TypeError: Here, for settings and data; at the start of `fit`, before the
            first step, for a model or a loss that cannot be measured.
        RuntimeError: If Keras runs on another backend than TensorFlow.

    Cost: At the start of a `fit` one trace of the model and the checks of `HessianOperator`;
    then the products of `method` a measurement, each 1 to 3 gradients of the held-out batch.
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
        memory_limit: int | None = None,
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
        check_memory_limit(memory_limit)
        check_training(training, batch_size)
        check_preconditioned(preconditioned)
        self._estimator = resolve_method(method)
        self._schedule = resolve_schedule(schedule)
        self._budget = Budget(getattr(self._schedule, "overhead", None))
        self._data = held_out(data)
        check_drawn(self._data, training=training, loss_fn=loss_fn)
        self._batch_size = batch_size
        self._memory_limit = memory_limit
        self._loss_fn = loss_fn
        self._training = training
        self._preconditioned = preconditioned
        self._seed = int(seed)
        self._on_error = on_error
        self._operator: HessianOperator | None = None
        self._record = Record(
            log_dir,
            group="preconditioned_hessian" if preconditioned else "hessian",
            x_name="step" if self._schedule.counts_steps else "epoch",
            on_error=on_error,
        )
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a model stays behind; a copy makes its own.
        own = {"_record": copy.copy(self._record), "_budget": copy.copy(self._budget)}
        return {**self.__dict__, **own, "_operator": None, "_model": None}

    @property
    def history(self) -> dict[str, list[Any]]:
        """All values of the last `fit`."""
        return self._record.history

    @property
    def report(self) -> CurvatureReport | None:
        """Of the last measurement."""
        return self._record.report

    def _start(self) -> None:
        """What a `fit` begins with."""
        self._record.begin()
        self._failed = self._warned_no_step = False
        self._epoch = 0
        self._iterations: int | None = None  # when it was last looked at
        self._budget.begin()
        self.overhead = self.setup_seconds = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._start()
        with self._budget.preparing():
            self._prepare()
        self.setup_seconds = self._budget.setup_seconds

    def _prepare(self) -> None:
        workers = workers_of(self.model)
        check_schedule(self._schedule, self._optimizer, shared=workers is not None)
        if self._preconditioned:
            check_has_preconditioner(self._optimizer, self.model.trainable_variables)
        if self._operator is None or not self._operator.is_current(self.model):
            operator = HessianOperator(
                self.model,
                self._data,
                products=self._estimator.products,
                batch_size=self._batch_size,
                memory_limit=self._memory_limit,
                loss_fn=self._loss_fn,
                training=self._training,
            )
            self._estimator.check(operator)
            self._operator = operator
            self._record.forget_state()
            self._budget.try_out(self._estimator, operator)
        if workers is None or workers.index == 0:
            self._record.open_files(shared=workers is not None)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        if self._schedule.counts_steps and self._iterations is None:
            # Not earlier: another callback may have restored the optimizer by now.
            self._iterations = self._optimizer_iterations()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._schedule.counts_steps:
            return
        if isinstance(self._schedule, Within):
            self._budget.reach(self._epoch, batch, self.params or {})
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
            if self._schedule.counts_steps and not (step or self._failed or self._warned_no_step):
                self._warned_no_step = True
                warnings.warn(not_counted(self._schedule), stacklevel=2)
            drawn = due or epoch == 0 or isinstance(self._schedule, Within)
            self._measure(step, drawn=drawn)
        if logs is not None:
            self._record.add_to(logs, epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.overhead = self._budget.overhead
        self._budget.report_overrun()
        if isinstance(self._schedule, Within) and self.history["epoch"]:
            self._record.draw_overhead(self.overhead, self._optimizer_iterations())
        self._record.close_files()

    @property
    def _optimizer(self) -> Any:
        return getattr(self.model, "optimizer", None)  # never compiled: it has none

    def _optimizer_iterations(self) -> int:
        return int(keras.ops.convert_to_numpy(self._optimizer.iterations))

    def _measure(self, step: int, *, drawn: bool = True) -> None:
        if self._failed or self._operator is None:
            return
        if self._preconditioned and not has_made_a_step(self._optimizer):
            self._record.add_nothing(self._epoch)
            if not self._warned_no_step:
                self._warned_no_step = True
                warnings.warn(
                    f"The optimizer made no step up to epoch {self._epoch}: what is measured "
                    "through its preconditioner begins after its first.",
                    stacklevel=2,
                )
        else:
            with self._budget.measuring():
                self._measure_now(self._operator, step, drawn)
            self.overhead = self._budget.overhead

    def _measure_now(self, operator: HessianOperator, step: int, drawn: bool) -> None:
        try:
            if not operator.is_current(self.model):
                raise ValueError(
                    "The model was compiled or frozen anew during this fit, so what was traced is "
                    "of another loss. Measure it in a fit of its own."
                )
            matrix = f"{operator.shape[0]} {operator.dtype}"
            state = self._record.state_before(step, self._estimator.restore, matrix=matrix)
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
        self._budget.learn(report.seconds, report.num_matvecs)
        self._record.add(report, epoch=self._epoch, step=step, overhead=self._budget.overhead)
        if drawn:  # what is not is left out of the state too: an uninterrupted run has neither
            about = None if self._record.has_drawn else lambda: self._about(report, operator)
            self._record.draw(report, state, step, overhead=self._budget.overhead, about=about)

    def _about(self, report: CurvatureReport, operator: HessianOperator) -> str:
        """What the measurements of this `fit` are made with, in Markdown."""
        told = {
            "Mode": "training" if self._training else "inference",
            "Loss": "`loss_fn`" if self._loss_fn else "as compiled",
            "Numbers": str(operator.dtype),
            "Schedule": repr(self._schedule),
            "Seed": str(self._seed),
        }
        optimizer = self._optimizer
        stable = stability(optimizer, operator.variables)
        told |= about_optimizer(optimizer) | about_threshold(report, stable)
        return table(about_report(report) | told | about_versions())
