"""The Frobenius norm in three terms along a basis, summed as the products come in."""

import math
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from keras_hessian_callback.grams import gram, grams, leading_basis
from keras_hessian_callback.operators.linear_operator import LinearOperator
from keras_hessian_callback.residuals import Residuals, columns_of
from keras_hessian_callback.rows import (
    Block,
    WeightedSum,
    as_tensor,
    at_hand,
    combine,
    join,
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
        basis: Q, as rows (k, n).
        products: HQ, in blocks of such rows.
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
        self._nothing = np.zeros((0, operator.shape[0]), operator.dtype)
        self.basis = self._nothing
        self.products: list[Block] = []
        self.inner = self.outer = np.zeros((0, 0))
        self._known = np.zeros((len(columns_of(operator.layers)), 0, 0))  # of [Q, HQ], by layer
        self.folds = 0.0
        self.num_matvecs = self.num_deflated = 0
        self._drop_probes()

    def _drop_probes(self) -> None:
        along = [self.basis, *self.products]
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
        self.basis, self.products = self._nothing, []
        self.residuals.let_go()

    def deflate(self, basis: Block, blocks: Iterable[tf.Tensor] = ()) -> None:
        """Adds rows (k, n), orthonormal to each other, to the basis; drops the probes.

        The probes so far may have shaped the rows; those to come must not.

        Args:
            basis: The rows.
            blocks: Probes to come, as for `probe`. Where there is room for all, the first of them
                are multiplied with the last rows, if both fit into a block.
        """
        self._drop_probes()
        blocks = iter(blocks)
        if basis.shape[0]:
            before = self.rank
            self._extend(basis)
            del basis
            self._multiply_basis(before, next(blocks, None))
        self.probe(blocks)

    def _extend(self, basis: Block) -> None:
        if self.rank:  # orthogonal to the rows that are there, which rounding took away from
            basis = combine([self.basis], -gram(self.basis, basis), onto=basis)
            basis, _ = leading_basis([basis], basis.shape[0])
            basis = join([self.basis, basis])
        self.basis = basis
        self.residuals.let_go()  # of the basis before

    def _multiply_basis(self, before: int, signs: tf.Tensor | None) -> None:
        """Takes in the products of the rows after the first, and of probes."""
        size, k = self._operator.block_size, int(self.basis.shape[0])
        beside = None
        for first in range(before, k, size):
            rows = some(self.basis, first, min(first + size, k))
            count = int(rows.shape[0])
            if signs is not None and count + signs.shape[0] <= size and self._room == math.inf:
                beside = signs  # so these rows are the last
                rows = join([rows, self._outside(signs)])
            products, folds = self._multiply(rows, known=before, twice=count)
            self.folds += float(np.sum(folds[:count]))
            products = products if beside is None else at_hand(products)
            self.products.append(some(products, 0, count))
        self.num_deflated += k - before
        columns = columns_of(self._operator.layers)
        self._known = grams([self.basis, *self.products], 2 * k, columns)
        found = self._known.sum(axis=0)
        self.inner = (found[:k, k:] + found[k:, :k]) / 2.0
        self.outer = found[k:, k:]
        self._drop_probes()
        if beside is not None:
            self._add_samples(beside, products[count:], folds[count:])
        elif signs is not None:
            self.probe([signs])

    def probe(self, blocks: Iterable[tf.Tensor]) -> None:
        """Adds samples from blocks of Rademacher vectors, (w, n) each."""
        for signs in blocks:
            self._add_samples(signs, *self._multiply(self._outside(signs)))

    def _add_samples(self, signs: tf.Tensor, products: Block, folds: np.ndarray) -> None:
        tails, quadratics = self.residuals.add(signs, products)
        self.tails = np.append(self.tails, tails)
        self.quadratics = np.append(self.quadratics, quadratics)
        self.fold_tails = np.append(self.fold_tails, folds)
        self._spread = None

    def _outside(self, signs: tf.Tensor) -> Block:
        """Pv of probes v."""
        if not self.basis.shape[0]:
            return signs
        return combine([self.basis], -gram(self.basis, signs), onto=signs)

    def _multiply(
        self, rows: Block, *, known: int = 0, twice: int = 0
    ) -> tuple[tf.Tensor, np.ndarray]:
        """The products of some rows, and what each adds to `folds` or is of `fold_tails`.

        Args:
            rows: (k, n).
            known: Rows of the basis that were in it before.
            twice: How many of the rows are others of the basis: what their products have outside
                of those before counts twice, as rows and as columns of H.
        """
        count = int(rows.shape[0])
        self.num_matvecs += count
        products = self._operator.fold_products(as_tensor(rows))
        factors = np.where(np.arange(count) < twice, 2.0, 1.0)
        mean, folds = WeightedSum(), np.zeros(count)
        for share, square in zip(self.shares, self._squares, strict=True):
            part = next(products)
            mean.add(share, part)
            if len(self._squares) > 1:
                inside = gram(self.basis, part) ** 2
                outside = square_sums(part) - inside[:known].sum(axis=0)
                folds += square * (factors * outside - inside[known:].sum(axis=0))
            del part  # while the next is made
        return mean.total(), folds

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
        residuals = combine([self.basis, *self.products], np.append(-values * vectors, vectors, 0))
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
