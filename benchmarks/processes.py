"""Calls in processes of their own, and TensorFlow's start in them."""

import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import keras
import numpy as np

# With them memory is taken from the system and given back at once, so that it can be watched:
# TensorFlow's own allocator keeps what was freed, and what is filled again looks like none; glibc
# keeps blocks of up to 32 MiB, in several places for several threads, which looks like more.
_WATCHED = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "true", "MALLOC_MMAP_THRESHOLD_": str(2**16)}
_AS_USERS_HAVE_IT = {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "false"}


def in_own_process(function: Callable[..., Any], *arguments: Any, watched: bool = True) -> Any:
    """What a function of a module gives, called in a fresh process.

    Args:
        function: The function.
        arguments: Its own.
        watched: Whether the memory that it holds is what is in use. To time what users have, it
            is not.

    Raises:
        concurrent.futures.process.BrokenProcessPool: If the process dies, as where the system
            ran out of memory.
    """
    context = multiprocessing.get_context("spawn")
    with (
        mock.patch.dict(os.environ, _WATCHED if watched else _AS_USERS_HAVE_IT),
        ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(function, *arguments).result()


@functools.cache
def warm_up() -> None:
    """TensorFlow's own start, which is no side's."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.train_on_batch(np.zeros((4, 2)), np.zeros((4, 1)))
