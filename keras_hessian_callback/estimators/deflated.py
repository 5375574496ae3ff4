"""Deflated Monte Carlo: a carried basis holds the top of the spectrum, probes the rest."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.basis import Basis, carried_basis, next_basis
from keras_hessian_callback.deflation import Split
from keras_hessian_callback.estimators.estimator import check_count
from keras_hessian_callback.holdings import Holdings, held_with_all
from keras_hessian_callback.intervals import split_norm_estimate, student_quantile
from keras_hessian_callback.linalg import BLOCK_SIZE, Seed, probes, words_of
from keras_hessian_callback.operators.linear_operator import LinearOperator, check_products
from keras_hessian_callback.results import Findings
from keras_hessian_callback.split_estimates import split_estimates

_FEWEST_PROBES = 5  # with them an interval is finite, however skewed the samples
_UNTRIED = 16  # on a basis that has just been made: after 8, stopped, intervals covered 92 %
_PLANNED = 0.6  # of the target: what was planned for that seldom misses it


@dataclass(frozen=True)
class Deflated:
    """The Frobenius norm and the top of the spectrum, with a basis carried along training.

    The few large eigenvalues hold most of the norm of a trained network's Hessian, and most of
    the variance of random probes; their space moves slowly. Along a basis Q of it, P = I - QQ',

        ||H||_F^2 = ||Q'HQ||^2 + 2 ||PHQ||^2 + ||PHP||^2

    has two terms that k products give exactly. Only the third is left to probes v:
    E ||PHPv||^2 = ||PHP||^2, with the variance of the tail. Q comes from the measurement
    before, does not depend on the probes, and may be as wrong as it likes: that costs accuracy,
    never bias. The first measurement starts with probes alone; where the products of these
    point in common directions it makes a basis of them and draws others, where not (a flat
    spectrum) it is `Hutchinson`, with a tenth of the products spent on the spectrum's ends.
    Every measurement moves the basis by one block power iteration, and how many of its columns
    are used next is what makes the interval narrowest.

    Args:
        max_rank: Int from 1 to max_matvecs - 2: most columns of the basis, each one product a
            measurement. None: max_matvecs - 4, or 1.
        max_matvecs: Int of at least 3: products of a measurement.
        target_error: Float in (0, 1): stop when the 95 % interval of the norm is within this
            share of it, on either side. Products are planned for 0.6 of it, since to stop
            wherever it is just reached would pick samples that are small by chance. None: spend
            `max_matvecs`.
        products: How products are made: `"autodiff"`, `"finite_difference"`, or `"auto"`, the
            first where it is right and the second where not. The error bars are those of the
            sampling, not of the differences.

    Raises:
        ValueError, TypeError: At construction, if a setting is not accepted.

    Cost: At most `max_matvecs` products, in blocks of the operator's `block_size`. Memory, in
    vectors of n floats: between measurements the carried basis, r of them (at most `max_rank`).
    While measuring at most about r + max_matvecs + 2, and what a block of products takes or the
    next basis, whichever is more; up to r more where directions are added to a carried basis, and
    with less than 2^21 weights as many for a moment as the next basis is made of. Where there is
    less room the rank is lowered, down to none, with a warning, or residuals are kept a few at a
    time.

    Example:

        >>> import numpy as np
        >>> from keras_hessian_callback import Deflated
        >>> from keras_hessian_callback.operators.linear_operator import DenseOperator
        >>> basis = np.linalg.qr(np.random.default_rng(0).normal(size=(500, 500)))[0]
        >>> H = basis * np.r_[9.0, -7.0, 5.0, np.full(497, 0.1)] @ basis.T  # norm 12.65
        >>> estimator = Deflated(max_matvecs=16)
        >>> cold, state = estimator(DenseOperator(H), seed=(0, 0))
        >>> warm, state = estimator(DenseOperator(H), seed=(0, 1), state=state)
        >>> print(f"{warm['frobenius_norm'].value:.2f}, {warm['spectral_norm'].value:.2f}")
        12.65, 9.00

    References:
        Meyer, Musco, Musco and Woodruff, "Hutch++" (2021), arXiv:2010.09649.
        Gur-Ari, Roberts and Dyer, "Gradient descent happens in a tiny subspace" (2018),
        arXiv:1812.04754.
    """

    max_rank: int | None = None
    max_matvecs: int = 20
    target_error: float | None = 0.01
    products: str = "auto"

    def __post_init__(self) -> None:
        check_count("max_matvecs", self.max_matvecs)
        if self.max_matvecs < 3:
            raise ValueError(
                "`max_matvecs` must be at least 3, one product for the basis and two probes; "
                f"got max_matvecs={self.max_matvecs}."
            )
        if self.max_rank is not None:
            check_count("max_rank", self.max_rank)
        if self.max_rank is not None and self.max_rank > self.max_matvecs - 2:
            raise ValueError(
                f"`max_rank` must be at most max_matvecs - 2 = {self.max_matvecs - 2}, which "
                f"leaves two probes for the error; got max_rank={self.max_rank}. Lower it, or "
                f"allow max_matvecs={self.max_rank + 2}."
            )
        if self.target_error is not None:
            if isinstance(self.target_error, bool) or not isinstance(self.target_error, float):
                raise TypeError(
                    "`target_error` must be a float in (0, 1), such as 0.01 for 1 %, or None; "
                    f"got target_error={self.target_error!r}."
                )
            if not 0.0 < self.target_error < 1.0:
                raise ValueError(
                    "`target_error` must lie in (0, 1), such as 0.01 for 1 %; got "
                    f"target_error={self.target_error}."
                )
        check_products(self.products)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> Basis:
        """The state whose arrays these are."""
        return Basis.of_arrays(arrays)

    def smaller(self, products: int) -> "Deflated":
        """These settings with at most so many products, and a basis that leaves two for probes."""
        most = min(self.max_matvecs, max(3, products))
        rank = None if self.max_rank is None else min(self.max_rank, most - 2)
        return replace(self, max_matvecs=most, max_rank=rank)

    def check(self, operator: LinearOperator) -> None:
        """Warns where the basis would not fit."""
        fits = self._what_fits(operator).rank
        if fits < self._rank:
            vectors = held_with_all(self._rank, self.max_matvecs, operator.block_size)
            size = vectors * operator.shape[0] * operator.dtype.itemsize / 2**20
            warnings.warn(
                f"With a basis of {self._rank} vectors of {operator.shape[0]:,} weights a "
                f"measurement takes {size:,.1f} MiB beside a block of products, more than is left "
                f"of the memory limit, so {fits or 'none'} will be kept. The error bars say what "
                "that costs; more probes (`max_matvecs`) make up for it, or a higher "
                "`memory_limit`.",
                stacklevel=2,
            )

    def __call__(
        self, operator: LinearOperator, *, seed: Seed = 0, state: Any = None
    ) -> tuple[Findings, Basis | None]:
        """The estimates of `operator`, and the basis for the next measurement.

        Args:
            operator: The symmetric operator (n, n).
            seed: Int, or a pair (seed, step): the probes are a function of it.
            state: The basis of an earlier measurement, made with other seeds or steps; None, or
                one of an operator of another size or dtype: a fresh start.

        Returns:
            `"frobenius_norm"`, `"trace"`, `"spectral_norm"`, `"stable_rank"`,
            `"largest_ritz_value"`, `"smallest_ritz_value"`, `"population_frobenius_norm"`
            where the data are in several folds, `"frobenius_norm/layer/<name>"`; as the spectrum
            the Ritz values; and the basis. Where no basis was made, as may be with fewer than 10
            products, the eigenvalues, the spectral norm and the stable rank are NaN.

        Raises:
            TypeError: If `state` is no basis.
            ValueError: If `state` was made with these probes.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # products may be NaN or infinite
            return self._measure(operator, seed, state)

    def _measure(
        self, operator: LinearOperator, seed: Seed, state: Any
    ) -> tuple[Findings, Basis | None]:
        n = operator.shape[0]
        fits = self._what_fits(operator)
        most, kept = fits.rank, fits.residuals
        split = Split(operator, room=kept)
        carried = carried_basis(state, operator, seed)
        if n <= self.max_matvecs:
            split.deflate(tf.eye(n, dtype=operator.dtype))  # all of it: exact
            return split_estimates(split, split), None
        draws = _Draws(operator, seed, kept)
        spare = min(most, self.max_matvecs // 10)
        rank, first, planned = self._carried_plan(carried, spare, most)
        most_in_use = fits.rank_beside(carried.vectors.shape[0]) if carried else most
        if carried is not None and rank:
            split.deflate(carried.leading(rank), draws.take(min(first, self.max_matvecs - rank)))
        else:
            split.probe(draws.take(int(max(2, min(round(self.max_matvecs / 3), 16, kept)))))
        while split.finite and not (planned and self._reached(split)):
            left = self.max_matvecs - split.num_matvecs - (0 if split.rank else spare)
            if left < 1:
                break
            added, width, planned = self._next(split, left, most_in_use)
            if added:
                split.deflate(split.residuals.leading(added), draws.take(width))
            else:
                split.probe(draws.take(width))
        top = split
        if split.finite and not split.rank and spare:
            # A flat spectrum: these are for its ends and for the next measurement alone.
            top = Split(operator)
            top.deflate(split.residuals.leading(spare))
            split.num_matvecs += top.num_matvecs
        found = replace(split_estimates(split, top), carried=carried is not None and rank > 0)
        if not (split.finite and top.finite):
            return found, None
        basis = next_basis(split, top, most)
        seeds = carried.seeds if carried else frozenset()
        return found, basis and replace(basis, seeds=seeds | {words_of(seed)})

    @property
    def _rank(self) -> int:
        return self.max_rank or max(1, self.max_matvecs - 4)

    def _what_fits(self, operator: LinearOperator) -> Holdings:
        return Holdings.that_fit(operator, self._rank, self.max_matvecs)

    def _reached(self, split: Split) -> bool:
        """Whether the interval is as narrow as `target_error` asks.

        Asked only where a plan made before the last probes said that these would do, with a
        margin. To look again and again, and stop at the first narrow interval, picks samples
        that are small by chance: values came out 0.4 standard errors low, coverage at 88-96 %.
        """
        if self.target_error is None or len(split.tails) < min(_FEWEST_PROBES, self.max_matvecs):
            return False
        norm = split_norm_estimate(split.exact, split.tails, split.spread, num_matvecs=0)
        half_width = max(norm.upper - norm.value, norm.value - norm.lower)
        return half_width <= self.target_error * norm.value

    def _carried_plan(self, carried: Basis | None, fewest: int, most: int) -> tuple[int, int, bool]:
        """Columns of the basis to use, probes to draw first, and whether these should do."""
        if carried is None:
            return 0, 0, False
        ranks = range(fewest, min(carried.vectors.shape[0], most, self.max_matvecs - 2) + 1)
        options = [
            (rank, self._outlook(carried.variances[rank], carried.square, rank, self.max_matvecs))
            for rank in ranks
        ]
        rank, (spent, width) = min(
            options, key=lambda option: option[1][::-1], default=(0, (0, math.inf))
        )
        if rank and width == 0.0:
            return rank, spent - rank, True
        # What would not do for another basis and its probes is drawn at once, in whole blocks.
        left = self.max_matvecs - rank
        return rank, left if left <= 2 * _FEWEST_PROBES else _FEWEST_PROBES, False

    def _next(self, split: Split, left: int, most: int) -> tuple[int, int, bool]:
        """How many residuals to add to the basis, probes to draw then, and if these should do."""
        now, share = split.spread.variance, split.residuals.variance_left()
        m = len(split.tails)
        square = split.exact + float(np.mean(split.tails))
        best, outlook = 0, self._outlook(now, square, 0, left, drawn=m)
        kept = len(split.residuals.products_at_hand)
        for rank in range(1, min(most - split.rank, kept, left - 2) + 1):
            # What all but 2 rows leave is known; fewer are taken to leave what lies between.
            variance = now * share ** min(1.0, rank / max(1, kept - 2))
            other = self._outlook(variance, square, rank, left)
            if other[::-1] < outlook[::-1]:
                best, outlook = rank, other
        planned = outlook[1] == 0.0
        width = outlook[0] - best if planned else BLOCK_SIZE
        # The rank is not chosen by the probes that come on top: what few rows would leave is a
        # guess, and a basis that is too small costs more than one that is too large.
        fewest = _UNTRIED if best and planned else _FEWEST_PROBES
        return best, min(max(fewest, width), left - best), planned

    def _outlook(
        self, variance: float, square: float, rank: int, left: int, drawn: int = 0
    ) -> tuple[int, float]:
        """Products that the target takes, or `left`, and the interval's width then, squared.

        Args:
            variance: Of a sample.
            square: ||H||_F^2.
            rank: Products that are spent on the basis first.
            left: Products that there are.
            drawn: Probes that there are already.
        """
        most = drawn + left - rank
        if most < min(_FEWEST_PROBES, drawn + left - 1):
            return left, math.inf

        def width(m: int) -> float:
            return student_quantile(m - 1.0) * math.sqrt(variance / m) / (2.0 * square)

        if self.target_error is not None and square > 0.0:
            for m in range(max(drawn + 1, _FEWEST_PROBES), most + 1):
                if width(m) <= _PLANNED * self.target_error:
                    return rank + m - drawn, 0.0
        return left, width(most) if square > 0.0 else 0.0


class _Draws:
    """Probes one after another, whatever the blocks that they are taken in."""

    def __init__(self, operator: LinearOperator, seed: Seed, most: float) -> None:
        self._operator, self._seed, self._most = operator, seed, most
        self._next = 0

    def take(self, count: int) -> Iterator[tf.Tensor]:
        """The next `count` probes, in blocks (w, n)."""
        n, dtype, seed = self._operator.shape[0], self._operator.dtype, self._seed
        while count > 0:
            width = int(min(count, self._operator.block_size, self._most))
            first = self._next
            yield probes("rademacher", size=n, first=first, count=width, seed=seed, dtype=dtype)
            self._next += width
            count -= width
