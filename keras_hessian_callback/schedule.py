"""When to measure: after so many epochs or optimizer steps, or as often as a share of time buys."""

import contextlib
import numbers
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Every:
    """A schedule made by `every`: one of the two numbers is set."""

    epochs: int | None = None
    steps: int | None = None

    @property
    def counts_steps(self) -> bool:
        """Whether the optimizer's steps are looked at, and drawn over."""
        return self.steps is not None

    def due_after_epoch(self, epoch: int) -> bool:
        """Whether the end of `epoch`, counted from 0 over the whole training, is due."""
        return self.epochs is not None and epoch % self.epochs == 0

    def due_after_steps(self, before: int, now: int) -> bool:
        """Whether a due step lies in (before, now], both counts of optimizer steps.

        One call of `steps_per_execution` steps may pass a due step without ending on it.
        """
        return self.steps is not None and now // self.steps > before // self.steps


def every(*, epochs: int | None = None, steps: int | None = None) -> Every:
    """A schedule: measure after every `epochs` epochs, or every `steps` optimizer steps.

    Both are counted over the whole training, as `initial_epoch` and the optimizer's
    `iterations` have it, so a resumed run measures where an uninterrupted one would.
    Whatever the schedule, the first epoch of a `fit` is measured, so that loggers that fix
    their columns by it have one for the norm.

    Args:
        epochs: Int of at least 1: epochs 0, `epochs`, 2 `epochs`, ... are measured.
        steps: Int of at least 1: steps `steps`, 2 `steps`, ... are measured, each at the end
            of the call of the training function that reaches it.

    Returns:
        A schedule for `HessianNormCallback(schedule=...)`.

    Raises:
        ValueError: If not exactly one of the two is given, or it is below 1.
        TypeError: If it is no integer.

    Example:

        >>> from keras_hessian_callback import every
        >>> every(epochs=2).due_after_epoch(4)
        True
        >>> every(steps=500).due_after_steps(before=496, now=504)
        True
    """
    if (epochs is None) == (steps is None):
        raise ValueError(
            f"`every` takes either `epochs` or `steps`; got epochs={epochs!r}, steps={steps!r}. "
            "Write every(epochs=2) or every(steps=500)."
        )
    name, count = ("epochs", epochs) if epochs is not None else ("steps", steps)
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer; got {name}={count!r}.")
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1; got {name}={count}.")
    return Every(epochs=epochs, steps=steps)


@dataclass(frozen=True)
class Within:
    """A schedule made by `within`."""

    overhead: float

    counts_steps = True

    def due_after_epoch(self, epoch: int) -> bool:
        """Never: steps decide."""
        return False


def within(*, overhead: float) -> Within:
    """A schedule: measure as often as a share of the training's wall time allows.

    After each training step (each call of the training function) a measurement is due when
    the time spent on the curvature so far, and half of what the last measurement took, is
    below `overhead` of the time that the run took without. So the realised share, which the
    callback's `overhead` tells, ends within half a measurement of what was asked. The
    preparation at the start of a `fit` (tracing, checks) and the first epoch's measurement,
    which is made in any case, count: a short run may spend more, and measures once.

    The steps that are measured depend on the clock, and differ from run to run.

    Args:
        overhead: Float in (0, 1): time on the curvature over the rest of the run's time.

    Returns:
        A schedule for `HessianNormCallback(schedule=...)`; values are drawn over the
        optimizer's `iterations`.

    Raises:
        ValueError: If it is not in (0, 1).
        TypeError: If it is no float.

    Example:

        >>> from keras_hessian_callback import within
        >>> within(overhead=0.05)  # 5 % of the training time
        Within(overhead=0.05)
    """
    if isinstance(overhead, bool) or not isinstance(overhead, float):
        raise TypeError(
            f"`overhead` must be a float in (0, 1), such as 0.05 for 5 %; got {overhead!r}."
        )
    if not 0.0 < overhead < 1.0:
        raise ValueError(
            f"`overhead` must lie in (0, 1), such as 0.05 for 5 %; got overhead={overhead}."
        )
    return Within(overhead)


class Budget:
    """Time spent on the curvature, and on the rest of a run, by a clock.

    Args:
        clock: A function that gives seconds, as `time.perf_counter`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._spent = self._last = 0.0

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Counts what happens inside as spent on the curvature."""
        start = self._clock()
        try:
            yield
        finally:
            self._last = self._clock() - start
            self._spent += self._last

    @property
    def overhead(self) -> float:
        """Time spent on the curvature over the rest of the time; 0.0 at the start."""
        rest = self._clock() - self._start - self._spent
        return self._spent / rest if rest > 0.0 else 0.0

    def allows(self, overhead: float) -> bool:
        """Whether another measurement like the last keeps nearest to this share."""
        rest = self._clock() - self._start - self._spent
        return self._spent + self._last / 2.0 <= overhead * rest


Schedule = Every | Within


def resolve_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule that `schedule` names, or itself."""
    if isinstance(schedule, Every | Within):
        return schedule
    if schedule == "epoch":
        return every(epochs=1)
    raise ValueError(
        f"`schedule` must be 'epoch', every(epochs=...), every(steps=...) or "
        f"within(overhead=...); got {schedule!r}."
    )
