"""The Frobenius norm in three terms along a basis, summed as the products come in."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from keras_hessian_callback.operators.linear_operator import LinearOperator
from keras_hessian_callback.residuals import Residuals, columns_of
from keras_hessian_callback.rows import (
    Block,
    WeightedSum,
    as_tensor,
    at_hand,
    combine,
    gram,
    grams,
    join,
    leading_basis,
    some,
    square_sums,
)
from keras_hessian_callback.spreads import (
    Spread,
    pooled_variance,
    precisions,
    quadratic_spread,
)


class Split:
    """The products of a symmetric H with a basis and with probes, and what they add up to.

    For Q (n, k) with orthonormal columns and P = I - QQ',

        ||H||_F^2 = ||Q'HQ||^2 + 2 ||PHQ||^2 + ||PHP||^2,    tr H = tr Q'HQ + tr PHP

    The products HQ give the first two terms of the norm and the first of the trace; a probe v
    that Q does not depend on gives for the others the unbiased samples ||PHPv||^2 and v'PHPv.

    Where H is the mean of `shares` of the folds' matrices H_f, the same products give the
    terms of sum_f s_f^2 ||H_f||_F^2, which the population's norm is found with.

    Args:
        operator: The operator (n, n).
        room: Residuals that may be kept, at least 2; the products of pairs are of these.

    Attributes:
        shares: s_f.
        basis, products: Q and HQ, as rows (k, n).
        inner, outer: Q'HQ and (HQ)'HQ, (k, k), in float64.
        residuals: PHPv of each probe.
        tails, quadratics: The samples ||PHPv||^2 and v'PHPv, (m,).
        folds, fold_tails: What tails and `exact` are for sum_f s_f^2 H_f instead of H.
        num_matvecs: Products spent, those of probes that were dropped included.
        num_deflated: Products spent on the basis.
        dtype: Of all vectors.

    Memory: 2 k + min(m, room) + 2 vectors, and blocks of the operator's `block_size`.
    """

    def __init__(self, operator: LinearOperator, *, room: float = math.inf) -> None:
        self._operator, self._room = operator, room
        self.shares, self.dtype = operator.shares, operator.dtype
        self._squares = np.square(operator.shares)
        self._nothing = at_hand(tf.constant(np.zeros((0, operator.shape[0]), operator.dtype)))
        self.basis = self.products = self._nothing
        self.inner = self.outer = np.zeros((0, 0))
        self._known = np.zeros((len(columns_of(operator.layers)), 0, 0))  # of [Q, HQ], by layer
        self.folds = 0.0
        self.num_matvecs = self.num_deflated = 0
        self._drop_probes()

    def _drop_probes(self) -> None:
        along = [self.basis, self.products]
        self.residuals = Residuals(self._operator.layers, along, self._known, self._room)
        self._spread: Spread | None = None
        self.tails = self.quadratics = self.fold_tails = np.zeros(0)

    @property
    def rank(self) -> int:
        """Columns of the basis."""
        return len(self.inner)

    @property
    def exact(self) -> float:
        """The first two terms of ||H||_F^2."""
        return float(2.0 * np.trace(self.outer) - np.sum(self.inner**2))

    @property
    def finite(self) -> bool:
        """Whether all products were."""
        return bool(np.isfinite(self.outer).all() and np.isfinite(self.tails).all())

    def let_go(self) -> None:
        """Holds no vectors any more: what they add up to stays."""
        self.basis = self.products = self._nothing
        self.residuals.let_go()

    def deflate(self, basis: Block) -> None:
        """Adds rows (k, n), orthonormal to each other, to the basis; drops the probes.

        The probes so far may have shaped the rows; those to come must not.
        """
        self._drop_probes()
        if not basis.shape[0]:
            return
        if self.rank:  # orthogonal to the rows that are there, which rounding took away from
            basis = combine([self.basis], -gram(self.basis, basis), onto=basis)
            basis, _ = leading_basis([basis], basis.shape[0])
        parts = []
        size = self._operator.block_size
        for first in range(0, basis.shape[0], size):
            mean = WeightedSum()
            products = self._fold_products(some(basis, first, first + size))
            for share, square in zip(self.shares, self._squares, strict=True):
                part = next(products)
                mean.add(share, part)
                if len(self._squares) > 1:
                    cross, own = gram(self.basis, part), gram(basis, part)
                    squares = 2.0 * (square_sums(part).sum() - np.sum(cross**2))
                    self.folds += float(square * (squares - np.sum(own**2)))
                del part  # while the next is made
            parts.append(mean.total())
        self.num_deflated += basis.shape[0]
        if self.rank:
            basis, parts = join([self.basis, basis]), [self.products, *parts]
        self.basis, self.products = basis, join(parts)
        k = basis.shape[0]
        columns = columns_of(self._operator.layers)
        self._known = grams([self.basis, self.products], 2 * k, columns)
        found = self._known.sum(axis=0)
        self.inner = (found[:k, k:] + found[k:, :k]) / 2.0
        self.outer = found[k:, k:]
        self._drop_probes()

    def probe(self, blocks: Iterable[tf.Tensor]) -> None:
        """Adds samples from blocks of Rademacher vectors, (w, n) each."""
        for signs in blocks:
            block = signs
            if self.rank:
                block = combine([self.basis], -gram(self.basis, signs), onto=signs)
            mean, folds = WeightedSum(), np.zeros(block.shape[0])
            products = self._fold_products(block)
            for share, square in zip(self.shares, self._squares, strict=True):
                part = next(products)
                mean.add(share, part)
                if len(self._squares) > 1:
                    inside = np.sum(gram(self.basis, part) ** 2, axis=0)
                    folds += square * (square_sums(part) - inside)
                del part
            tails, quadratics = self.residuals.add(signs, mean.total())
            self.tails = np.append(self.tails, tails)
            self.quadratics = np.append(self.quadratics, quadratics)
            self.fold_tails = np.append(self.fold_tails, folds)
        self._spread = None

    def _fold_products(self, block: Block) -> Iterator[tf.Tensor]:
        """The products of each fold."""
        self.num_matvecs += block.shape[0]
        return self._operator.fold_products(as_tensor(block))

    def layer_squares(self) -> dict[str, tuple[float, np.ndarray, Spread]]:
        """||rows of H||_F^2 of each layer: a known part, samples (m,) of the rest, their spread.

        With R = HPv = PHPv + Qa the rows of a layer are known up to ||R||^2 - ||Qa||^2, a
        quadratic form in v. The parts add up to those of the whole, since P and Q are
        orthogonal over all rows.
        """
        crossing = self.outer - self.inner @ self.inner  # (PHQ)'PHQ
        known: dict[str, float] = {}
        k = self.rank
        for (name, _), found in zip(self._operator.layers, self._known, strict=False):
            square = np.trace(found[k:, k:]) + np.sum(found[:k, :k] * crossing)
            known[name] = known.get(name, 0.0) + float(square)
        result = {}
        for name, products in self.residuals.products_of_layers().items():
            samples = np.diag(products).copy()
            result[name] = known[name], samples, quadratic_spread(samples, products)
        return result

    def ends(self) -> list[tuple[float, float]]:
        """The smallest and the largest Ritz value of H on the basis, with residual norms.

        With theta, s an eigenpair of Q'HQ an eigenvalue of H lies within ||HQs - theta Qs|| of
        theta (H symmetric). The residuals are formed as vectors: from the Gram matrices their
        squares would be differences of large numbers.
        """
        values, vectors = np.linalg.eigh(self.inner)
        values, vectors = values[[0, -1]], vectors[:, [0, -1]]
        residuals = combine([self.basis, self.products], np.append(-values * vectors, vectors, 0))
        return list(zip(values.tolist(), np.sqrt(square_sums(residuals)).tolist(), strict=True))

    @property
    def spread(self) -> Spread:
        """How ||PHPv||^2 spreads: v'Mv with M = (PHP)^2."""
        if self._spread is None:
            products = self.residuals.products
            diagonal = 2.0 * self.residuals.mean_of_squares() if len(self.tails) > 1 else 0.0
            self._spread = quadratic_spread(self.tails, products, diagonal=diagonal)
        return self._spread

    def trace_variance(self) -> tuple[float, float]:
        """An estimate of Var v'Av = 2 (||A||_F^2 - sum_k A_kk^2), A = PHP, and its freedom."""
        m = len(self.quadratics)
        if m < 2:
            return math.nan, math.nan
        whole = 2.0 * float(np.mean(self.tails))
        of_pairs = whole - 2.0 * self.residuals.mean_of_diagonals()
        of_samples = float(np.var(self.quadratics, ddof=1))
        guess = max(of_samples, of_pairs)
        if not guess > 0.0:
            return guess, m - 1.0
        variation, pairs = self.spread.variation, m * (m - 1)
        freedom = 2.0 / min(precisions(guess, whole, variation, m, pairs))
        return pooled_variance(of_samples, of_pairs, whole, variation, m, pairs), freedom

    def variance_left(self) -> float:
        """What part of the variance a basis of all but two of the residuals would leave.

        The span of the others is projected out of each pair of residuals (the Schur complement
        of their Gram matrix); a basis is projected out on both sides of H, which leaves the
        same share once more.
        """
        products = self.residuals.products_at_hand
        m = len(products)
        scale = np.trace(products) / max(1, m)
        if m < 4 or not scale > 0.0:
            return 1.0
        i, j = np.triu_indices(m, 1)
        inverse = np.linalg.pinv(products / scale, rcond=1e-13, hermitian=True)
        left = inverse[i, j] / np.maximum(
            inverse[i, i] * inverse[j, j] - inverse[i, j] ** 2, np.finfo(float).tiny
        )
        now = np.mean((products[i, j] / scale) ** 2)
        return min(1.0, float(np.mean(left**2) / max(now, np.finfo(float).tiny))) ** 2
