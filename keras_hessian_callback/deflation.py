"""The Frobenius norm in three terms along a basis, summed as the products come in."""

import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_hessian_callback.linalg import (
    PROBES_PER_BLOCK,
    add_scaled,
    column_dots,
    column_square_sums,
    combine,
    gram,
    leading_basis,
)
from keras_hessian_callback.operators.linear_operator import LinearOperator
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

    Attributes:
        shares: s_f.
        basis, products: Q and HQ, (n, k).
        inner, outer: Q'HQ and (HQ)'HQ, (k, k), in float64.
        residuals: PHPv of each probe, (n, m).
        tails, quadratics: The samples ||PHPv||^2 and v'PHPv, (m,).
        folds, fold_tails: What tails and `exact` are for sum_f s_f^2 H_f instead of H.
        num_matvecs: Products spent, those of probes that were dropped included.
        num_deflated: Products spent on the basis.

    Memory: 2 (k + m) n floats, and blocks of 8.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator
        self.shares = operator.shares
        self._squares = np.square(operator.shares)
        empty = tf.zeros([operator.shape[0], 0], operator.dtype)
        self.basis = self.products = self._empty = empty
        self.inner = self.outer = np.zeros((0, 0))
        self.folds = 0.0
        self.num_matvecs = self.num_deflated = 0
        self._drop_probes()

    def _drop_probes(self) -> None:
        self.residuals = self._diagonals = self._empty
        self._spread: Spread | None = None
        self._products = np.zeros((0, 0))
        self._shadows = np.zeros((len(self.inner), 0))  # Q'HPv
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

    def deflate(self, basis: tf.Tensor) -> None:
        """Adds columns (n, k), orthonormal to each other, to the basis; drops the probes.

        The probes so far may have shaped the columns; those to come must not.
        """
        if self.rank:  # orthogonal to the columns that are there, which rounding took away from
            basis = basis - combine(self.basis, gram(self.basis, basis))
            basis, _ = leading_basis(basis, basis.shape[1])
        parts = []
        for block in _blocks(basis):
            total = None
            for share, square, part in zip(
                self.shares, self._squares, self._fold_products(block), strict=True
            ):
                total = add_scaled(total, share, part)
                if len(self._squares) > 1:
                    cross, own = gram(self.basis, part), gram(basis, part)
                    squares = 2.0 * (column_square_sums(part).sum() - np.sum(cross**2))
                    self.folds += float(square * (squares - np.sum(own**2)))
            parts.append(total)
        self.num_deflated += basis.shape[1]
        self.basis = tf.concat([self.basis, basis], axis=1)
        self.products = tf.concat([self.products, *parts], axis=1)
        inner = gram(self.basis, self.products)
        self.inner = (inner + inner.T) / 2.0
        self.outer = gram(self.products, self.products)
        self._drop_probes()

    def probe(self, vectors: tf.Tensor) -> None:
        """Adds samples from Rademacher vectors (n, m)."""
        for signs in _blocks(vectors):
            block = signs - combine(self.basis, gram(self.basis, signs))
            total, folds = None, np.zeros(block.shape[1])
            for share, square, part in zip(
                self.shares, self._squares, self._fold_products(block), strict=True
            ):
                total = add_scaled(total, share, part)
                if len(self._squares) > 1:
                    inside = np.sum(gram(self.basis, part) ** 2, axis=0)
                    folds += square * (column_square_sums(part) - inside)
            shadow = gram(self.basis, total)
            residual = total - combine(self.basis, shadow)
            self.residuals = tf.concat([self.residuals, residual], axis=1)
            self._diagonals = tf.concat([self._diagonals, signs * residual], axis=1)
            self._shadows = np.concatenate([self._shadows, shadow], axis=1)
            self.tails = np.append(self.tails, column_square_sums(residual))
            self.quadratics = np.append(self.quadratics, column_dots(block, total))
            self.fold_tails = np.append(self.fold_tails, folds)
        self._products = gram(self.residuals, self.residuals)
        self._spread = None

    def _fold_products(self, block: tf.Tensor) -> Iterator[tf.Tensor]:
        self.num_matvecs += block.shape[1]
        return self._operator.fold_products(block)

    def layer_squares(self) -> dict[str, tuple[float, np.ndarray, Spread]]:
        """||rows of H||_F^2 of each layer: a known part, samples (m,) of the rest, their spread.

        With R = HPv = PHPv + Qa the rows of a layer are known up to ||R||^2 - ||Qa||^2, a
        quadratic form in v. The parts add up to those of the whole, since P and Q are
        orthogonal over all rows.
        """
        crossing = self.outer - self.inner @ self.inner  # (PHQ)'PHQ
        parts: dict[str, tuple[float, np.ndarray]] = {}
        layers = self._operator.layers
        sizes = [rows.stop - rows.start for _, rows in layers]
        blocks = [
            tf.split(block, sizes) if layers else ()
            for block in (self.basis, self.residuals, self.products)
        ]
        for (name, _), basis, residuals, of_basis in zip(layers, *blocks, strict=True):
            known = column_square_sums(of_basis).sum()
            known += np.sum(gram(basis, basis) * crossing)
            mixed = self._shadows.T @ gram(basis, residuals)
            products = gram(residuals, residuals) + mixed + mixed.T
            before = parts.get(name, (0.0, np.zeros(products.shape)))
            parts[name] = before[0] + float(known), before[1] + products
        result = {}
        for name, (known, products) in parts.items():
            samples = np.diag(products).copy()
            result[name] = known, samples, quadratic_spread(samples, products)
        return result

    def ritz(self, index: int) -> tuple[float, float]:
        """A Ritz value of H on the basis, by its place from below, and its residual norm.

        With theta, s an eigenpair of Q'HQ an eigenvalue of H lies within ||HQs - theta Qs|| of
        theta (H symmetric). The residual is formed as a vector: from the Gram matrices its
        square would be a difference of large numbers.
        """
        values, vectors = np.linalg.eigh(self.inner)
        theta, s = float(values[index]), vectors[:, index : index + 1 or None]
        residual = combine(self.products, s) - combine(self.basis, theta * s)
        return theta, float(np.sqrt(column_square_sums(residual)[0]))

    @property
    def spread(self) -> Spread:
        """How ||PHPv||^2 spreads: v'Mv with M = (PHP)^2."""
        if self._spread is None:
            squares = tf.square(self.residuals)
            pairs = gram(squares, squares) if len(self.tails) > 1 else np.zeros((2, 2))
            diagonal = 2.0 * _mean_of_pairs(pairs)
            self._spread = quadratic_spread(self.tails, self._products, diagonal=diagonal)
        return self._spread

    def trace_variance(self) -> tuple[float, float]:
        """An estimate of Var v'Av = 2 (||A||_F^2 - sum_k A_kk^2), A = PHP, and its freedom."""
        m = len(self.quadratics)
        if m < 2:
            return math.nan, math.nan
        whole = 2.0 * float(np.mean(self.tails))
        of_pairs = whole - 2.0 * _mean_of_pairs(gram(self._diagonals, self._diagonals))
        of_samples = float(np.var(self.quadratics, ddof=1))
        guess = max(of_samples, of_pairs)
        if not guess > 0.0:
            return guess, m - 1.0
        variation = self.spread.variation
        freedom = 2.0 / min(precisions(guess, whole, variation, m))
        return pooled_variance(of_samples, of_pairs, whole, variation, m), freedom

    def variance_left(self) -> float:
        """What part of the variance a basis of all but two of the residuals would leave.

        The span of the others is projected out of each pair of residuals (the Schur complement
        of their Gram matrix); a basis is projected out on both sides of H, which leaves the
        same share once more.
        """
        m = len(self.tails)
        scale = np.trace(self._products) / max(1, m)
        if m < 4 or not scale > 0.0:
            return 1.0
        i, j = np.triu_indices(m, 1)
        inverse = np.linalg.pinv(self._products / scale, rcond=1e-13, hermitian=True)
        left = inverse[i, j] / np.maximum(
            inverse[i, i] * inverse[j, j] - inverse[i, j] ** 2, np.finfo(float).tiny
        )
        now = np.mean((self._products[i, j] / scale) ** 2)
        return min(1.0, float(np.mean(left**2) / max(now, np.finfo(float).tiny))) ** 2


def _mean_of_pairs(products: np.ndarray) -> float:
    """The mean of what is above the diagonal."""
    return float(np.mean(products[np.triu_indices(len(products), 1)]))


def _blocks(vectors: tf.Tensor) -> Iterator[tf.Tensor]:
    """The columns, a block at a time."""
    if vectors.shape[1] <= PROBES_PER_BLOCK:
        yield vectors
        return
    for first in range(0, vectors.shape[1], PROBES_PER_BLOCK):
        yield vectors[:, first : first + PROBES_PER_BLOCK]
