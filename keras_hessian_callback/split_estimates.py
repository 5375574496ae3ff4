"""What a split along a basis has paid for, as estimates with their errors."""

import math

import numpy as np

from keras_hessian_callback.deflation import Split
from keras_hessian_callback.intervals import (
    exact_estimate,
    mean_estimate,
    signed_root_estimate,
    split_norm_estimate,
    stable_rank_estimate,
)
from keras_hessian_callback.results import LAYER, Estimate, Findings, Spectrum


def split_estimates(split: Split, top: Split) -> Findings:
    """The estimates by name, and the Ritz values.

    Args:
        split: With the samples of the norm and of the trace.
        top: With the basis that the ends of the spectrum are read off; `split` itself, but
            where its norm is measured without a basis.
    """
    rounding = 4.0 * float(np.finfo(split.dtype).eps)
    spent = split.num_matvecs
    norm = split_norm_estimate(
        split.exact, split.tails, split.spread, num_matvecs=spent, rounding=rounding
    )
    trace = _trace(split)
    estimates = {"frobenius_norm": norm}
    if np.count_nonzero(split.shares) > 1:
        estimates["population_frobenius_norm"] = _population(split)
    spectral = _spectral_norm(split, top, norm, rounding)
    estimates |= {"trace": trace, "spectral_norm": spectral}
    estimates["stable_rank"] = stable_rank_estimate(norm, spectral)
    smallest, largest = _ritz(top, rounding)
    estimates |= {"largest_ritz_value": largest, "smallest_ritz_value": smallest}
    return Findings(estimates | _layers(split, norm), _ritz_values(top))


def _ritz_values(top: Split) -> Spectrum | None:
    """The Ritz values of the basis: so many of the n eigenvalues, the outermost."""
    if not top.rank or not np.isfinite(top.inner).all():
        return None
    share = 1.0 / int(top.basis.shape[1])
    return Spectrum(np.linalg.eigvalsh(top.inner), np.full(top.rank, share))


def _trace(split: Split) -> Estimate:
    known = float(np.trace(split.inner))
    if not len(split.quadratics):
        return exact_estimate(known, num_matvecs=split.num_matvecs)
    samples = known + split.quadratics
    variance = split.trace_variance()
    return mean_estimate(samples, num_matvecs=split.num_matvecs, variance=variance)


def _population(split: Split) -> Estimate:
    """The norm without what the folds add to it by differing: all pairs of different folds.

    ||sum_f s_f H_f||^2 - sum_f s_f^2 ||H_f||^2 has the expectation (1 - sum_f s_f^2) times the
    square of the population's norm, over folds drawn from it. The interval is for the error of
    the probes alone; it covers 93-97 % (tests/test_coverage.py).
    """
    pairs = 1.0 - float(np.sum(np.square(split.shares)))
    known = (split.exact - split.folds) / pairs
    samples = (split.tails - split.fold_tails) / pairs
    return signed_root_estimate(known, samples, split.spread, num_matvecs=split.num_matvecs)


def _ritz(top: Split, rounding: float) -> list[Estimate]:
    """The smallest and the largest Ritz value."""
    spent = top.num_deflated
    if not top.rank or not np.isfinite(top.inner).all():
        return 2 * [Estimate(math.nan, math.nan, math.nan, math.nan, spent)]
    slack = rounding * math.sqrt(np.linalg.eigvalsh(top.outer)[-1])
    return [
        Estimate(theta, math.nan, theta - residual - slack, theta + residual + slack, spent)
        for theta, residual in top.ends()
    ]


def _spectral_norm(split: Split, top: Split, norm: Estimate, rounding: float) -> Estimate:
    """||H||_2: at least ||HQ||_2; at most the norm of [[b, c], [c, t]] on the two spaces.

    b = ||Q'HQ||_2, c = ||PHQ||_2, and t = ||PHP||_F by its upper end stands for ||PHP||_2. The
    lower end is a theorem; the upper end is too high in nearly all cases, and the interval
    covers 99-100 % (tests/test_coverage.py): bounds, not an interval of 95 %.
    """
    if not top.rank or not np.isfinite(top.outer).all():
        return Estimate(math.nan, math.nan, math.nan, math.nan, split.num_matvecs)
    value = math.sqrt(max(np.linalg.eigvalsh(top.outer)[-1], 0.0))
    inner = float(np.abs(np.linalg.eigvalsh(top.inner)).max())
    crossing = top.outer - top.inner @ top.inner
    outer = math.sqrt(max(np.linalg.eigvalsh(crossing)[-1], 0.0))
    rest = norm.upper**2 - top.exact
    if split is top:
        tail = split_norm_estimate(0.0, split.tails, split.spread, num_matvecs=0)
        rest = tail.upper**2
    rest = math.sqrt(max(rest, 0.0)) if not math.isnan(rest) else math.nan
    upper = (inner + rest) / 2.0 + math.hypot((inner - rest) / 2.0, outer)
    upper = min(upper, norm.upper) if not math.isnan(upper) else math.nan
    lower, upper = value * (1.0 - rounding), max(upper, value) * (1.0 + rounding)
    return Estimate(value, math.nan, lower, upper, split.num_matvecs)


def _layers(split: Split, norm: Estimate) -> dict[str, Estimate]:
    """The norm of each layer's rows; their squares add up to the square of the norm.

    An estimate of a square may fall below 0: the layer's norm is then 0, with an interval.
    Intervals cover 92-98 % (tests/test_coverage.py).
    """
    estimates = {}
    layers = split.layer_squares()
    squares = {
        name: np.maximum(known + (float(np.mean(rest)) if len(rest) else 0.0), 0.0)
        for name, (known, rest, _) in layers.items()
    }
    total = sum(squares.values())
    for name, (known, rest, spread) in layers.items():
        estimate = split_norm_estimate(known, rest, spread, num_matvecs=split.num_matvecs)
        value = norm.value * math.sqrt(squares[name] / total) if total != 0.0 else 0.0
        estimates[LAYER + name] = Estimate(
            value,
            estimate.standard_error,
            float(np.minimum(estimate.lower, value)),  # NaN where one of them is
            float(np.maximum(estimate.upper, value)),
            estimate.num_matvecs,
        )
    return estimates
