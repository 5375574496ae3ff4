"""The replicas of a model made under a `tf.distribute` strategy."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import keras
import tensorflow as tf

Result = TypeVar("Result")


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
    """

    index: int
    count: int
    strategy: tf.distribute.Strategy

    def sum(self, tensor: tf.Tensor) -> tf.Tensor:
        """The sum over the workers, each of which must call this with its own part.

        Raises:
            tf.errors.OpError: If a worker is gone, within the time-out of the strategy's
                `CommunicationOptions`.
        """
        parts = self.strategy.run(lambda: tf.identity(tensor))
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)


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
    return Workers(index, count, strategy)


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
