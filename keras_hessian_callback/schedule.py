"""When to measure: after so many epochs or optimizer steps, or within a share of the time."""

import numbers
from dataclasses import dataclass
from typing import Any


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

    After a training step (a call of the training function) a measurement is due when the
    measurements so far, and half of what another takes, are below `overhead` of the time that
    the run took without. So the share keeps within half a measurement of what was asked, from
    the first to the last step: within a fifth, at the end of a run that can pay for three of the
    smallest. The callback's `overhead` tells it, and the event files draw it as
    `hessian/overhead`.

    A measurement has the accuracy that the estimator asks for, as long as three of them fit
    into what the whole run buys; in a shorter run each makes fewer products, by what a product
    took so far, and its interval says what that costs. For this the length of the run must be
    known, as it is from arrays, and the estimator must have a number to lower: `Exact` has
    none. The first epoch is measured in any case, so a run that cannot pay for the fewest
    products spends more than was asked. A warning at its end says by how much.

    Not in the share is the set-up before the first step: tracing, checks, and a trial of two
    of the smallest measurements, which learns their cost. It takes about as long as the first
    training step, or a few of them, whatever the length of the run; `setup_seconds` tells it.

    The steps that are measured depend on the clock, and differ from run to run; with several
    workers, whose clocks differ too, it is an error at the start of `fit`.

    Args:
        overhead: Float in (0, 1): time of the measurements, with what is written, over the
            rest of the run's time without the set-up.

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


Schedule = Every | Within


def check_schedule(schedule: Schedule, optimizer: Any, *, shared: bool) -> None:
    """Raises ValueError where a model's training cannot go by a schedule.

    Args:
        schedule: The schedule.
        optimizer: The model's; None: it has none.
        shared: Whether several workers measure, all at the same steps.
    """
    if schedule.counts_steps and optimizer is None:
        raise ValueError(
            f"schedule={schedule!r} counts the optimizer's `iterations`, and the model has no "
            "optimizer. Use every(epochs=...)."
        )
    if shared and isinstance(schedule, Within):
        raise ValueError(
            f"schedule={schedule!r} goes by the clock, each worker's by its own, and all have to "
            "measure at the same steps. Use every(steps=...) or every(epochs=...)."
        )


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
