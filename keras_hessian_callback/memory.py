"""How much memory there is, and how much something takes."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

_SECONDS = 0.002  # between two looks
_CGROUPS = (
    # Of version 2 and of version 1: limit, use, what the use breaks down into, the part of it
    # that files take and would be given back.
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_bytes() -> int | None:
    """Bytes that this process can have before its machine or container is out of memory.

    None where that is not known: on other systems than Linux, and where TensorFlow computes on a
    GPU, whose memory it does not tell the size of.
    """
    if tf.config.list_logical_devices("GPU"):
        return None
    found = [_of_machine(), *(_of_container(Path("/sys/fs/cgroup"), *names) for names in _CGROUPS)]
    return min((size for size in found if size is not None), default=None)


def check_memory_limit(limit: int | None) -> None:
    """Raises unless `memory_limit` is None or an int above 0."""
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer):
        raise TypeError(f"`memory_limit` must be an integer, in bytes, or None; got {limit!r}.")
    if limit <= 0:
        raise ValueError(
            f"`memory_limit` must be above 0 bytes, such as 8 * 2**30 for 8 GiB; got {limit}."
        )


class Growth:
    """The most that this process's memory grew while something ran.

    By what the system says and by what TensorFlow's allocator says, whichever is more: with oneDNN
    the allocator keeps what was freed, and what takes its memory from there seems to the system to
    take none; of memory outside TensorFlow the allocator does not know.

    Attributes:
        bytes: So many, looked at every 2 ms; None where it cannot be seen.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watches meanwhile."""
        _give_back()
        before, peak = resident_bytes(), _allocated("peak")
        if before is None:
            yield
            return
        tensors = _allocated("current")
        most, most_tensors, over = before, tensors, threading.Event()

        def look() -> None:
            nonlocal most, most_tensors
            most = max(most, resident_bytes() or 0)
            most_tensors = max(most_tensors, _allocated("current"))

        def watch() -> None:
            while not over.wait(_SECONDS):
                look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
        look()
        if _allocated("peak") > peak:  # it was in the meantime
            most_tensors = _allocated("peak")
        self.bytes = max(most - before, most_tensors - tensors)


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds; None where that is not known."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _allocated(what: str) -> int:
    """Bytes of tensors, `"current"` or `"peak"`, as TensorFlow's allocator counts; else 0."""
    try:
        return int(tf.config.experimental.get_memory_info("CPU:0")[what])
    except ValueError:  # an allocator that does not count: without oneDNN
        return 0


def _give_back() -> None:
    """Hands memory that was freed, and that the C library keeps, back to the system.

    glibc keeps freed blocks of up to 32 MiB for later, as TensorFlow's allocator does.
    """
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    available = sizes.get("MemAvailable", "").split()
    return int(available[0]) * 1024 if available else None


def _of_container(root: Path, limit: str, use: str, stat: str, files: str) -> int | None:
    """What a control group leaves; None where there is none, or no limit."""
    try:
        most, used = (root / limit).read_text().strip(), int((root / use).read_text())
        entries = dict(line.split() for line in (root / stat).read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    return max(0, int(most) - used + int(entries.get(files, 0)))
