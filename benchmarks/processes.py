"""Calls in processes of their own, and TensorFlow's start in them."""

import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import keras
import numpy as np


def in_own_process(function: Callable[..., Any], *arguments: Any, watched: bool = True) -> Any:
    """What a function of a module gives, called in a fresh process.

    Args:
        function: The function.
        arguments: Its own.
        watched: Whether TensorFlow takes its memory there from the system, so that it can be
            watched: with oneDNN its own allocator keeps what was freed, and what is filled again
            looks like none. To time what users have, it is not.

    Raises:
        concurrent.futures.process.BrokenProcessPool: If the process dies, as where the system
            ran out of memory.
    """
    os.environ["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "true" if watched else "false"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


@functools.cache
def warm_up() -> None:
    """TensorFlow's own start, which is no side's."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.train_on_batch(np.zeros((4, 2)), np.zeros((4, 1)))
