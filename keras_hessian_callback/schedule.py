"""When to measure: after every so many epochs, or every so many optimizer steps."""

import numbers
from dataclasses import dataclass


@dataclass(frozen=True)
class Every:
    """A schedule made by `every`: one of the two numbers is set."""

    epochs: int | None = None
    steps: int | None = None

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


def resolve_schedule(schedule: str | Every) -> Every:
    """The schedule that `schedule` names, or itself."""
    if isinstance(schedule, Every):
        return schedule
    if schedule == "epoch":
        return every(epochs=1)
    raise ValueError(
        f"`schedule` must be 'epoch', every(epochs=...) or every(steps=...); got {schedule!r}."
    )
