"""What an exception says, in few words."""

import tensorflow as tf

_MAX_LENGTH = 300
OUT_OF_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)


def summary(error: BaseException) -> str:
    """Kind and cause of an exception on one line.

    TensorFlow's errors begin with where a node was defined, over many lines; the cause is last.
    """
    text = str(error)
    if isinstance(error, tf.errors.OpError):
        lines = [line.strip() for line in text.split(" [Op:")[0].splitlines()]
        causes = [line for line in lines if line and not line.startswith(("[[", "Hint:"))]
        text = causes[-1] if causes else text
    return f"{type(error).__name__}: {text[:_MAX_LENGTH]}"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether it was for want of memory."""
    return isinstance(error, OUT_OF_MEMORY)


def measuring_failed(error: Exception, epoch: int, step: int) -> str:
    """The warning where a measurement fails and the run goes on without."""
    return (
        f"Measuring the Hessian failed at epoch {epoch}, step {step}, and is off for "
        "the rest of this fit; what was logged before stays. "
        f"{'Memory ran out: set `batch_size`. ' if ran_out_of_memory(error) else ''}"
        f"on_error='raise' stops here with the traceback. The error was {summary(error)}"
    )


def writing_failed(error: Exception, epoch: int) -> str:
    """The warning where event files cannot be written and the run goes on without."""
    return (
        f"The event files in `log_dir` could not be written at epoch {epoch}, and are off for the "
        "rest of this fit; the values go on to `history` and `logs`. The error was "
        f"{summary(error)}"
    )


def not_counted(schedule: object) -> str:
    """The warning where the optimizer has made no step in the first epoch."""
    return (
        f"schedule={schedule!r} counts the `iterations` of `model.optimizer`, which has made no "
        "step in the first epoch. If the model trains with optimizers of its own, use "
        "every(epochs=...)."
    )


def not_finite(epoch: int, step: int) -> str:
    """The warning where the norm is NaN or infinite."""
    return (
        f"The Hessian norm is not finite at epoch {epoch}, step {step}; NaN is logged. The loss "
        "or its derivatives on the held-out examples overflow or are undefined there: the run "
        "diverges, the examples hold NaN, or a layer has no second derivative at that point (a "
        "square root or a norm at 0)."
    )
