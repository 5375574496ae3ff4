"""Checks of estimators over many seeds, with a stated rate of false alarms."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from keras_hessian_callback import Estimate


def covers(estimates: Sequence[Estimate], truth: float, *, false_fail_rate: float) -> bool:
    """Whether as many intervals hold the truth as 95 % coverage explains.

    A coverage of exactly 95 % is turned away at `false_fail_rate`: half of it for too few,
    half for too many.
    """
    hits = sum(estimate.lower <= truth <= estimate.upper for estimate in estimates)
    low, high = stats.binom.interval(1.0 - false_fail_rate, len(estimates), 0.95)
    return bool(low <= hits <= high)


def is_unbiased(estimates: Sequence[Estimate], truth: float, *, false_fail_rate: float) -> bool:
    """Whether the mean of the values is off the truth by no more than their spread explains."""
    values = np.array([float(estimate) for estimate in estimates])
    error = abs(values.mean() - truth) / (values.std(ddof=1) / np.sqrt(len(values)))
    return bool(error <= stats.norm.isf(false_fail_rate / 2))
