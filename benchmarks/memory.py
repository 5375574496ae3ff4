"""The memory of a process while something runs in it, and what an operator plans to take."""

import ctypes
import gc
import math
import os
import platform
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from timing import peak_memory

_EVERY_SECONDS = 0.002


def resident() -> float:
    """The memory that this process holds now, in MB. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def settle() -> float:
    """Gives free memory back to the system, and tells what is held then, in MB.

    Without it what an earlier peak left with the allocator is counted, or filled and not counted.
    """
    gc.collect()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident()


class MemoryWatch:
    """The most memory that this process holds inside a `with` block, in `peak_mb` after it.

    A thread looks every 2 ms, since the peak that the system keeps is the whole process's. Where
    that one rises in the block it is this one's too, and exact.
    """

    peak_mb: float

    def __enter__(self) -> "MemoryWatch":
        self._peak_before = peak_memory()
        self.peak_mb = resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        peak = peak_memory()
        self.peak_mb = peak if peak > self._peak_before else max(self.peak_mb, resident())

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self.peak_mb = max(self.peak_mb, resident())


def held_while_measuring(operator: Any, report: Any, carried: int, basis: Any) -> float:
    """The memory in MB that a measurement by `Deflated` takes by the formula of the README.

    Args:
        operator: That was measured.
        report: Of the measurement.
        carried: Vectors of the basis that it began with.
        basis: That it left.
    """
    vector = operator.shape[0] * operator.dtype.itemsize
    following = 0 if basis is None else int(basis.vectors.shape[0])
    held = carried + report.num_matvecs + 2
    if not report.carried:  # probes are multiplied as they are, in the place of a block's own
        held -= operator.block_size
    return (held + max(operator.peak_bytes / vector, following)) * vector / 1e6


def plan(operator: Any) -> dict[str, float | None]:
    """Examples and vectors that an operator computes on at a time, and the memory it predicts."""
    return {
        "examples": operator.batch_size,
        "vectors": operator.block_size,
        "predicted_mb": None if math.isnan(operator.peak_bytes) else operator.peak_bytes / 1e6,
    }
