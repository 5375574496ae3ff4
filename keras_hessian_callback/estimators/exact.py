"""The exact Frobenius norm and trace: a product with every unit vector."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.estimators.estimator import check_count
from keras_hessian_callback.intervals import exact_estimate
from keras_hessian_callback.linalg import Seed
from keras_hessian_callback.operators.linear_operator import LinearOperator, check_products
from keras_hessian_callback.results import Estimate, Findings
from keras_hessian_callback.rows import square_sums

_BLOCK_ENTRIES = 2**20  # of one block of unit vectors: 4 MiB in float32
_QUIET_SECONDS = 3.0  # before a progress line appears


@dataclass(frozen=True)
class Exact:
    """The Frobenius norm and the trace of the Hessian, from all of its columns.

        ||H||_F^2 = sum_i ||H e_i||^2,    tr H = sum_i e_i' H e_i

    Unit vectors e_i go through the operator a block at a time; H itself is never held.

    Args:
        products: `"autodiff"`: exact up to rounding, standard error 0; refused where TensorFlow's
            second derivatives are missing or wrong. `"auto"`: differences there, with a warning.
            `"finite_difference"`: the norm to about 1e-4 in float32 and 1e-8 in float64 on
            smooth models with inputs near 1 (1e-3 in float32 where the examples are fitted
            closely, 1e-2 with inputs near 20); that error cannot be told from the products, so it
            is reported as NaN.
        max_parameters: Int of at least 1: refuse models of more trainable parameters, since
            each costs a product. 20,000 are half a minute for a small network on a CPU.

    Raises:
        ValueError, TypeError: At construction, if a setting is not accepted. By `check` and
            when called, if the model has more than `max_parameters` parameters.

    Cost: n products; memory beside the operator's: a few blocks of at most 4 MiB, or of one
    vector where that is more. A line on stderr shows progress after 3 seconds.

    Example:

        >>> import numpy as np
        >>> from keras_hessian_callback import Exact
        >>> from keras_hessian_callback.operators.linear_operator import DenseOperator
        >>> estimates, state = Exact()(DenseOperator(np.diag([3.0, 4.0])))
        >>> estimates["frobenius_norm"].value, estimates["trace"].value
        (5.0, 7.0)
    """

    products: str = "auto"
    max_parameters: int = 20_000

    def __post_init__(self) -> None:
        check_products(self.products)
        check_count("max_parameters", self.max_parameters)

    def smaller(self, products: int) -> None:
        """The exact norm takes all products."""

    def check(self, operator: LinearOperator) -> None:
        """Raises ValueError where the operator has more columns than `max_parameters`."""
        n = operator.shape[0]
        if n <= self.max_parameters:
            return
        block = _unit_vectors(operator, 0, min(8, _width(n)))
        operator.row_products(block)  # the first call is slower
        start = time.perf_counter()
        operator.row_products(block)
        seconds = (time.perf_counter() - start) / block.shape[0] * n
        raise ValueError(
            f"The exact Hessian norm of a model with {n:,} trainable parameters takes {n:,} "
            f"products, about {_duration(seconds)} a measurement. Use method='stochastic', or "
            f"allow it: Exact(max_parameters={n})."
        )

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Nothing is carried."""

    def __call__(
        self, operator: LinearOperator, *, seed: Seed = 0, state: Any = None
    ) -> tuple[Findings, None]:
        """The estimates of `operator`'s norm and trace.

        Args:
            operator: The symmetric operator (n, n).
            seed: Not used: nothing is random.
            state: Not used: nothing is carried.

        Returns:
            `"frobenius_norm"` and `"trace"`, and None.
        """
        self.check(operator)
        n = operator.shape[0]
        width = _width(n)
        square = trace = 0.0
        progress = _Progress(n)
        for first in range(0, n, width):
            rows = operator.row_products(_unit_vectors(operator, first, min(first + width, n)))
            square += float(square_sums(rows).sum())
            diagonal = tf.linalg.diag_part(rows[:, first : first + width])
            trace += float(tf.reduce_sum(tf.cast(diagonal, tf.float64)))
            progress.show(min(first + width, n))
        progress.close()
        estimates = {
            "frobenius_norm": _estimate(operator, math.sqrt(square)),
            "trace": _estimate(operator, trace),
        }
        return Findings(estimates), None


class _Progress:
    """A line on stderr that counts the products, where they take more than a few seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._shown = time.monotonic()
        self._visible = False

    def show(self, done: int) -> None:
        now = time.monotonic()
        interval = 0.5 if sys.stderr.isatty() else 30.0
        if now - self._start < _QUIET_SECONDS or (self._visible and now - self._shown < interval):
            return
        self._visible, self._shown = True, now
        remaining = (now - self._start) * (self._total - done) / done
        count = f"{done:,} of {self._total:,} products"
        self._write(f"exact Hessian: {count}, {_duration(remaining)} left")

    def close(self) -> None:
        if self._visible:
            spent = _duration(time.monotonic() - self._start)
            self._write(f"exact Hessian: {self._total:,} products in {spent}", end="\n")

    def _write(self, text: str, end: str = "") -> None:
        start, end = ("\r", end) if sys.stderr.isatty() else ("", "\n")
        print(f"{start}{text:<70}", end=end, file=sys.stderr, flush=True)


def _estimate(operator: LinearOperator, value: float) -> Estimate:
    n = operator.shape[0]
    if operator.products == "autodiff" and math.isfinite(value):
        return exact_estimate(value, num_matvecs=n)
    return Estimate(value, math.nan, math.nan, math.nan, n)


def _width(n: int) -> int:
    """Unit vectors in a block."""
    return max(1, min(128, _BLOCK_ENTRIES // n))


def _unit_vectors(operator: LinearOperator, first: int, last: int) -> tf.Tensor:
    """Rows first to last (exclusive) of the identity: (last - first, n)."""
    return tf.one_hot(np.arange(first, last), operator.shape[0], dtype=operator.dtype)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} seconds"
