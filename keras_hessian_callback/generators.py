"""Python's and NumPy's global random numbers, which code of a model may draw while it is traced."""

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def global_generators_kept() -> Iterator[None]:
    """Puts both generators back to where they were; not where other threads may draw, too."""
    alone = threading.active_count() == 1  # a PyDataset with workers draws in its own
    python, numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        yield
    finally:
        if alone:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
