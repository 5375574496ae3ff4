"""The replicas of a model made under a `tf.distribute` strategy."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

Result = TypeVar("Result")

_TIMEOUT = 600.0  # seconds that a sum waits for workers where their strategy does not say
# TensorFlow's own time-out leaves two threads behind in each sum, which sleep until it is over:
# thousands, where products are fast.
_UNTIMED = tf.distribute.experimental.CommunicationOptions(timeout_seconds=0)
_APART = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,  # a worker was started anew
    tf.errors.UnavailableError,
)


def devices_of(model: keras.Model) -> list[str]:
    """The devices of this process that the model has replicas on; none: a single one."""
    strategy = model.distribute_strategy
    if strategy.num_replicas_in_sync < 2:  # the default strategy names no devices
        return []
    devices = list(strategy.extended.worker_devices)
    return devices if len(devices) > 1 else []


@dataclass(frozen=True)
class Workers:
    """The processes of a `MultiWorkerMirroredStrategy`, which all do the same.

    Attributes:
        index: Which of them this one is; the first is the chief, which writes files.
        count: How many there are.
        strategy: Theirs.
        timeout: Seconds that a sum waits for the last of them; 0: for ever.
    """

    index: int
    count: int
    strategy: tf.distribute.Strategy
    timeout: float = _TIMEOUT

    def sum(self, tensor: tf.Tensor) -> tf.Tensor:
        """The sum over the workers, each of which must call this with its own part.

        A sum that fails is the last one: TensorFlow ends all communication of this process.

        Raises:
            TimeoutError: If a worker takes no part within the time-out.
            ConnectionError: If a worker is gone, or its process stands still: TensorFlow misses
                its heartbeats after about 10 seconds.
        """
        extended = self.strategy.extended
        with self._in_time():
            summed = extended.reduce_to(
                tf.distribute.ReduceOp.SUM,
                tf.identity(tensor),
                destinations=extended.worker_devices[0],
                options=_UNTIMED,
            )
        return self.strategy.experimental_local_results(summed)[0]

    def least(self, values: Sequence[float]) -> list[float]:
        """The least of what the workers have of each value; none of them NaN."""
        mine = np.zeros([self.count, len(values)])
        mine[self.index] = values
        return self.sum(tf.constant(mine)).numpy().min(axis=0).tolist()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Gives up the communication in here where it takes too long, and says why it fails."""
        late = (
            f"One of the {self.count} workers took no part in a measurement for {self.timeout:g} "
            "seconds: it hangs, is far slower than this one, or measures something else or at "
            "other steps. The workers cannot go on together: end and restart all of them. They "
            "wait for longer under a strategy made with communication_options="
            "tf.distribute.experimental.CommunicationOptions(timeout_seconds=...)."
        )
        give_up = context.context().abort_collective_ops
        watch = threading.Timer(self.timeout, give_up, [tf.errors.DEADLINE_EXCEEDED, late])
        watch.daemon = True
        if self.timeout:
            watch.start()
        try:
            yield
        except _APART as error:
            if late in error.message:  # said here, or by a worker that gave this one up
                raise TimeoutError(late) from error
            cause = error.message.rpartition("aborted by: ")[2].splitlines()[0].rstrip(":")
            raise ConnectionError(
                f"One of the {self.count} workers is gone or hangs, which ended a measurement "
                f"({cause}). The workers cannot go on together: see their logs, and restart all "
                "of them."
            ) from error
        finally:
            watch.cancel()


def workers_of(model: keras.Model) -> Workers | None:
    """The workers that train the model together; None: this process alone."""
    strategy = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    resolver = strategy.cluster_resolver
    tasks = resolver.cluster_spec().as_dict() if resolver else {}
    chiefs = len(tasks.get("chief", ()))
    count = chiefs + len(tasks.get("worker", ()))
    if count < 2:
        return None
    index = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
    timeout = strategy.extended._communication_options.timeout_seconds
    return Workers(index, count, strategy, _TIMEOUT if timeout is None else timeout)


def check_strategy(model: keras.Model) -> None:
    """Raises ValueError where the model is trained in a way that cannot be followed."""
    strategy = model.distribute_strategy
    if isinstance(strategy, tf.distribute.TPUStrategy | tf.distribute.ParameterServerStrategy):
        raise ValueError(
            f"The model {model.name!r} was made under {type(strategy).__name__}. Its weights are "
            "read on this machine only under MirroredStrategy or a single device: load them into "
            "a copy of the model that is made outside of the strategy, and measure that with "
            "measure_curvature."
        )


def outside_scope(act: Callable[[], Result]) -> Result:
    """What `act` gives, called outside of the scope of a strategy that may be entered.

    Keras divides losses by the number of replicas in there. The scope is that of a thread, and
    another thread is outside.
    """
    if not tf.distribute.has_strategy():
        return act()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()
