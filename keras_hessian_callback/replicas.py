"""The replicas of a model made under a `tf.distribute` strategy."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
