"""Krylov spaces of a symmetric operator, by Lanczos steps with full reorthogonalisation."""

import math

import numpy as np
import tensorflow as tf

from keras_hessian_callback.grams import gram
from keras_hessian_callback.operators.linear_operator import LinearOperator
from keras_hessian_callback.rows import Block, as_tensor, at_hand, combine, join, square_sums

# In units of the dtype's epsilon, relative to ||H||.
_ROUNDING = 16.0  # of a step
_ENDED = 100.0  # what beta falls to where a space ends: 1 to 20 were seen


class Krylov:
    """An orthonormal basis of span {v, Hv, H^2 v, ...}, and what H is on it.

    With Q (n, k) the basis, kept as rows, and q the vector that continues it,

        HQ = QT + beta q e_k'

    with T tridiagonal. Each product is made orthogonal to all columns, twice, with
    inner products in float64: without that T would find eigenvalues again and again. The space
    ends where beta falls to rounding, or has no more room.

    Args:
        start: v (1, n), not zero.
        product: Hv (1, n).

    Attributes:
        following: q (1, n), whose product comes next; None where the space has ended.
        beta: As above; what rounding left of it where the space has ended.
        finite: Whether all products were. The space ends with one that is not.
        rounding: Error of Ritz values and norms by rounding.

    Memory: k n floats; while a vector is added, as many once more.
    """

    def __init__(self, start: Block, product: Block) -> None:
        self._panels: list[Block] = []  # of rows: their numbers are the powers of 2 in k
        self._coefficients: list[np.ndarray] = []
        self._betas: list[float] = []
        self._scale = 0.0
        self._dtype = tf.as_dtype(start.dtype).as_numpy_dtype
        limits = np.finfo(self._dtype)
        self._epsilon, self._tiny = float(limits.eps), float(limits.tiny)
        self.finite = True
        unit = self._dtype(square_sums(start)[0] ** -0.5)
        self.following: Block | None = start * unit
        self.extend(product * unit)

    def extend(self, product: Block) -> None:
        """Takes H `following`, (1, n): `following` joins the basis."""
        self._append(self.following)
        coefficients = np.zeros(self.size)
        for _ in range(2):  # what the first pass leaves by rounding, the second takes away
            part = self.coordinates(product)[:, 0]
            coefficients += part
            first = 0
            for panel in self._panels:
                last = first + panel.shape[0]
                product = combine([panel], -part[first:last, None], onto=product)
                first = last
        beta = math.sqrt(square_sums(product)[0])
        self._coefficients.append(coefficients)
        self._betas.append(beta)
        length = math.hypot(np.linalg.norm(coefficients), beta)
        self.finite = math.isfinite(length)
        self._scale = max(self._scale, length)
        room = self.size < product.shape[1]
        ended = beta <= max(_ENDED * self._epsilon * self._scale, self._tiny)
        if self.finite and room and not ended:
            self.following = product * self._dtype(1.0 / beta)
        else:
            self.following = None

    def _append(self, row: Block) -> None:
        """Adds a row; panels of as many rows become one, so that there are few."""
        self._panels.append(row)
        while len(self._panels) > 1 and self._panels[-1].shape[0] == self._panels[-2].shape[0]:
            self._panels[-2:] = [join(self._panels[-2:])]

    @property
    def size(self) -> int:
        """Vectors of the basis, k."""
        return sum(panel.shape[0] for panel in self._panels)

    @property
    def beta(self) -> float:
        return self._betas[-1]

    @property
    def rounding(self) -> float:
        return _ROUNDING * self._epsilon * self._scale

    @property
    def tridiagonal(self) -> np.ndarray:
        """T, (k, k) in float64."""
        alphas = [column[-1] for column in self._coefficients]
        betas = self._betas[:-1]
        return np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)

    def coordinates(self, vectors: Block) -> np.ndarray:
        """Q'v of each vector v in float64, (k, m) from (m, n)."""
        return np.concatenate([gram(panel, vectors) for panel in self._panels])

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The eigenvalues theta of T, ascending; their weights; and their residual norms.

        The weight is the square of the first component of the eigenvector s: the share of v in
        it. An eigenvalue of H lies within ||HQs - theta Qs|| of theta (H symmetric). That is
        beta |s_k|, and what the products' own asymmetry adds: the coefficients that are not in T.
        """
        theta, s = np.linalg.eigh(self.tridiagonal)
        left = np.zeros((self.size, self.size))
        for k, column in enumerate(self._coefficients):
            left[:k, k] = column[:-1]
        left -= np.diag(self._betas[:-1], 1)
        residuals = np.hypot(np.linalg.norm(left @ s, axis=0), self.beta * np.abs(s[-1]))
        return theta, s[0] ** 2, residuals + self.rounding

    def norm(self) -> float:
        """||HQ||_2, which ||H||_2 is not below."""
        last = np.zeros((1, self.size))
        last[0, -1] = self.beta
        return float(np.linalg.norm(np.concatenate([self.tridiagonal, last]), 2))

    def tails(self, vectors: Block, products: Block) -> np.ndarray:
        """||PHPv||^2 with P = I - QQ', for the rows v and Hv: (m,), none negative.

        PHPv = PHv - beta q q_k'v. As differences of large numbers they are wrong by rounding,
        which is added: they may be too high.
        """
        whole = square_sums(products)
        tails = whole - np.sum(self.coordinates(products) ** 2, axis=0)
        if self.following is not None:
            crossing = self.beta * gram(self._panels[-1], vectors)[-1]
            tails += crossing**2 - 2.0 * crossing * gram(self.following, products)[0]
        return np.maximum(tails, 0.0) + _ROUNDING * self._epsilon * whole

    def bounds(self, rest: float) -> tuple[float, float]:
        """Between which all eigenvalues of H lie, if ||PHP||_2 <= rest.

        For x = Qa + z with z in the range of P,

            a'Ta - 2 beta |a_k| ||z|| - rest ||z||^2 <= x'Hx <= a'Ta + 2 beta |a_k| ||z|| + ...

        which are quadratic forms in (a, ||z||).
        """
        if not math.isfinite(rest):
            return -math.inf, math.inf
        k = self.size
        form = np.zeros((k + 1, k + 1))
        form[:k, :k] = self.tridiagonal
        form[k, k - 1] = form[k - 1, k] = self.beta
        form[k, k] = -rest
        low = float(np.linalg.eigvalsh(form)[0]) - self.rounding
        form[k, k] = rest
        return low, float(np.linalg.eigvalsh(form)[-1]) + self.rounding


def extend_together(spaces: list[Krylov], operator: LinearOperator, steps: int) -> int:
    """Makes so many steps with each space that has not ended, in one block; gives the products."""
    products = 0
    for _ in range(steps):
        going = [space for space in spaces if space.following is not None]
        if not going or not all(space.finite for space in spaces):
            break
        block = as_tensor(join([space.following for space in going]))
        images = at_hand(operator.row_products(block))
        products += len(going)
        for i, space in enumerate(going):
            space.extend(images[i : i + 1])
    return products
