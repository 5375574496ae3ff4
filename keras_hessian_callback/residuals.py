"""What probes leave outside of a basis, and how it goes together in pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.grams import grams, leading_basis
from keras_hessian_callback.rows import (
    Block,
    at_hand,
    pieces,
    square_sums,
)

Layers = Sequence[tuple[str, slice]]


def columns_of(layers: Layers) -> list[slice]:
    """The entries of each layer; where there are none, all of them as one part."""
    return [rows for _, rows in layers] or [slice(None)]


class Residuals:
    """The residuals r = PHPv of probes v, the products of their pairs, as a whole and by layer.

    Not they themselves are kept but the products HPv, as many as there is room for: the r are
    HPv - Qs with s = Q'HPv, and so are their products, in float64. Where one more would not fit,
    the products of those at hand stay, and they make way. What pairs of different groups have in
    common is then not known.

    Args:
        layers: Names and entries of the parts of a vector.
        along: Q (k, n), and HQ in blocks of as many rows; P = I - QQ'.
        known: The Gram matrices of these rows, (p, 2 k, 2 k) in float64, by layer.
        room: Products HPv that may be kept, at least 2.

    Attributes:
        images: HPv of the probes at hand, (w, n) each.
        gram: The products of all `rows`, in float64.
        products_at_hand: r_i . r_j of the residuals at hand, (w, w) in float64.

    Memory: `room` + 2 vectors.
    """

    def __init__(
        self, layers: Layers, along: Sequence[Block], known: np.ndarray, room: float
    ) -> None:
        self._layers, self._along, self._known, self._room = layers, list(along), known, room
        self._rank = int(along[0].shape[0])
        self._dtype = tf.as_dtype(along[0].dtype).as_numpy_dtype
        self._groups: list[np.ndarray] = []
        self._groups_of_layers: list[dict[str, np.ndarray]] = []
        self._signed: Any = 0.0  # sum of v * r, entry by entry
        self._squared: Any = 0.0  # sum of r * r
        self._square_sum = self._fourth_sum = 0.0
        self._unit: np.float64 | None = None  # of entries whose squares are summed
        self._empty()

    def _empty(self) -> None:
        self.images: list[Block] = []
        self.gram = self._known.sum(axis=0)
        self._products = np.zeros((len(self._known), 0, 0))  # of HPv with each other, by layer
        self.products_at_hand = np.zeros((0, 0))
        self._inverted: np.ndarray | None = None

    def add(self, signs: Block, images: Block) -> tuple[np.ndarray, np.ndarray]:
        """Takes in HPv (w, n) of probes v (w, n); gives ||r||^2 and v'r, (w,) each."""
        width = images.shape[0]
        if self.images and self._at_hand + width > self._room:
            self._groups_of_layers.append(self._of_layers())
            self._groups.append(self.products_at_hand)
            self._empty()
        self._multiply(images)
        lengths = np.diagonal(self.products_at_hand)[-width:]
        self._square_sum += float(np.sum(lengths))
        self._unit = _unit(lengths, images) if self._unit is None else self._unit
        return lengths, self._add_entries(signs, images)

    def _multiply(self, images: Block) -> None:
        """The products of a block with all that is at hand, in one pass."""
        self.images.append(images)
        found = grams(self.rows, images.shape[0], columns_of(self._layers))
        self.gram = _bordered(self.gram, found.sum(axis=0))
        self._products = _bordered(self._products, found[:, 2 * self._rank :])
        self.products_at_hand = self.mixing.T @ self.gram @ self.mixing
        self._inverted = None

    def _add_entries(self, signs: Block, images: Block) -> np.ndarray:
        """The sums that go entry by entry, while r is made piece by piece; v'r, (w,)."""
        width = images.shape[0]
        signs, images, basis = at_hand(signs), at_hand(images), at_hand(self._along[0])
        shadows = np.ascontiguousarray(self._shadows[:, -width:].T, self._dtype)
        dots, signed, squared = np.zeros(width), [], []
        for columns in pieces(
            images, rows=2 * width + self._rank, products=max(1, width * self._rank)
        ):
            part = images[:, columns] - shadows @ basis[:, columns]
            products = signs[:, columns] * part
            if self._unit != 1.0:
                part = part / float(self._unit or 1.0)
            squares = part * part
            dots += np.asarray(_sum(products, 1))
            self._fourth_sum += float(_sum(squares * squares))
            signed.append(_sum(products, 0))
            squared.append(_sum(squares, 0))
        self._signed = self._signed + _end_to_end(signed)
        self._squared = self._squared + _end_to_end(squared)
        return dots

    @property
    def rows(self) -> list[Block]:
        """Q, HQ and the HPv at hand: those whose combinations the residuals are."""
        return [*self._along, *self.images]

    @property
    def mixing(self) -> np.ndarray:
        """The residuals at hand as combinations of `rows`, (2 k + w, w)."""
        nothing = np.zeros((self._rank, self._at_hand))
        return np.concatenate([-self._shadows, nothing, np.eye(self._at_hand)])

    @property
    def _shadows(self) -> np.ndarray:
        """S = Q'HPv of those at hand, (k, w)."""
        return self.gram[: self._rank, 2 * self._rank :]

    def leading(self, rank: int) -> Block:
        """The leading right singular vectors of those that are kept, as rows."""
        return leading_basis(self.rows, rank, mixing=self.mixing, products=self.gram)[0]

    def let_go(self) -> None:
        """Holds no vectors any more."""
        self._along = []
        self.images = []

    @property
    def _at_hand(self) -> int:
        return self._products.shape[1]

    @property
    def count(self) -> int:
        """Residuals so far."""
        return self._at_hand + sum(len(group) for group in self._groups)

    @property
    def products(self) -> np.ndarray:
        """r_i . r_j of all, (m, m) in float64; NaN where they were not kept together."""
        return _block_diagonal([*self._groups, self.products_at_hand])

    def products_of_layers(self) -> dict[str, np.ndarray]:
        """The products of the rows of a layer in PHPv + QQ'HPv, less those of QQ'HPv alone."""
        groups = [*self._groups_of_layers, self._of_layers()]
        return {name: _block_diagonal([group[name] for group in groups]) for name in groups[-1]}

    def _of_layers(self) -> dict[str, np.ndarray]:
        parts: dict[str, np.ndarray] = {}
        k, shadows = self._rank, self._shadows
        for (name, _), known, products in zip(
            self._layers, self._known, self._products, strict=False
        ):
            inside = shadows.T @ known[:k, :k] @ shadows
            parts[name] = parts.get(name, 0.0) + products - inside
        return parts

    @property
    def _inverse(self) -> np.ndarray:
        """Of `products_at_hand`, over their mean square."""
        if self._inverted is None:
            own = self.products_at_hand
            own = own / (np.trace(own) / len(own))
            self._inverted = np.linalg.pinv(own, rcond=1e-13, hermitian=True)
        return self._inverted

    def variance_left(self) -> float:
        """What part of the variance a basis of all but two of those at hand would leave.

        The span of the others is projected out of each pair of residuals (the Schur complement
        of their Gram matrix); a basis is projected out on both sides of H, which leaves the
        same share once more.
        """
        products, m = self.products_at_hand, self._at_hand
        scale = np.trace(products) / max(1, m)
        if m < 4 or not scale > 0.0:
            return 1.0
        i, j = np.triu_indices(m, 1)
        inverse = self._inverse
        left = inverse[i, j] / np.maximum(
            inverse[i, i] * inverse[j, j] - inverse[i, j] ** 2, np.finfo(float).tiny
        )
        now = np.mean((products[i, j] / scale) ** 2)
        return min(1.0, float(np.mean(left**2) / max(now, np.finfo(float).tiny))) ** 2

    def in_common(self) -> float:
        """The mean part of a square ||r||^2 that lies in the span of the others at hand."""
        own, m = self.products_at_hand, self._at_hand
        if m < 2 or not np.trace(own) > 0.0:
            return 0.0
        # 1 over the part outside.
        sizes = np.diagonal(self._inverse) * (np.diagonal(own) / (np.trace(own) / m))
        return 1.0 - float(np.mean(1.0 / np.maximum(sizes, 1.0)))

    def mean_of_diagonals(self) -> float:
        """The mean over pairs of sum_k (v_k r_k) (w_k s_k): of the square of PHP's diagonal."""
        return self._mean_of_pairs(self._signed, self._square_sum)

    def mean_of_squares(self) -> float:
        """The mean over pairs of sum_k r_k^2 s_k^2: of the square of (PHP)^2's diagonal."""
        in_units = self._mean_of_pairs(self._squared, self._fourth_sum)
        return float(in_units * (self._unit or 1.0) ** 4)

    def _mean_of_pairs(self, total: tf.Tensor, own: float) -> float:
        """Of sum_{i != j} x_i . x_j = ||sum_i x_i||^2 - sum_i ||x_i||^2."""
        return (float(square_sums(total[None])[0]) - own) / (self.count * (self.count - 1.0))


def _bordered(matrices: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Symmetric matrices (..., r, r) with more columns (..., r + w, w), and rows of the same."""
    rows = matrices.shape[-1]
    wider = np.append(matrices, columns[..., :rows, :], axis=-1)
    return np.append(wider, columns.swapaxes(-1, -2), axis=-2)


def _end_to_end(parts: Sequence[Block]) -> Block:
    on_host = isinstance(parts[0], np.ndarray)
    return np.concatenate(parts) if on_host else tf.concat(parts, axis=0)


def _sum(block: Block, axis: int | None = None) -> Block:
    """Of the numbers of a piece, or along an axis: so few that their precision is enough."""
    return block.sum(axis) if isinstance(block, np.ndarray) else tf.reduce_sum(block, axis)


def _unit(lengths: np.ndarray, block: Block) -> np.float64:
    """1, or a power of two near the entries where float32 does not hold their fourth powers."""
    size = np.sqrt(np.mean(lengths) / int(block.shape[1]))
    if 1e-6 <= size <= 1e6 or not size > 0.0:
        return np.float64(1.0)
    return np.exp2(np.maximum(np.round(np.log2(size)), -120.0))


def _block_diagonal(groups: Sequence[np.ndarray]) -> np.ndarray:
    """One matrix of square ones along its diagonal, NaN elsewhere."""
    size = sum(len(group) for group in groups)
    whole = np.full((size, size), np.nan)
    first = 0
    for group in groups:
        last = first + len(group)
        whole[first:last, first:last] = group
        first = last
    return whole
