"""What probes leave outside of a basis, and how it goes together in pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.linalg import grams, leading_basis, square_sums

Layers = Sequence[tuple[str, slice]]


def columns_of(layers: Layers) -> list[slice]:
    """The entries of each layer; where there are none, all of them as one part."""
    return [rows for _, rows in layers] or [slice(None)]


class Residuals:
    """The residuals r = PHPv of probes v, the products of their pairs, as a whole and by layer.

    They are kept, as many as there is room for: where one more would not fit, the products of
    those at hand stay, and they make way. What pairs of different groups have in common is then
    not known.

    Args:
        layers: Names and entries of the parts of a vector.
        basis, images: Q and HQ, as rows (k, n); P = I - QQ'.
        room: Residuals that may be kept, at least 2.

    Attributes:
        blocks: Those at hand, (w, n) each.

    Memory: `room` + 2 vectors.
    """

    def __init__(self, layers: Layers, basis: tf.Tensor, images: tf.Tensor, room: float) -> None:
        self._layers, self._along, self._room = layers, [basis, images], room
        self._rank = int(basis.shape[0])
        self._groups: list[np.ndarray] = []
        self._groups_of_layers: list[dict[str, np.ndarray]] = []
        self._signed: Any = 0.0  # sum of v * r, entry by entry
        self._squared: Any = 0.0  # sum of r * r
        self._square_sum = self._fourth_sum = 0.0
        self._unit: np.float64 | None = None  # of entries whose squares are summed
        self._empty()

    def _empty(self) -> None:
        self.blocks: list[tf.Tensor] = []
        k, parts = self._rank, len(columns_of(self._layers))
        self._shadows = self._crossing = np.zeros((k, 0))
        self._mixed, self._products = np.zeros((parts, k, 0)), np.zeros((parts, 0, 0))

    def add(self, signs: tf.Tensor, block: tf.Tensor, shadow: np.ndarray) -> np.ndarray:
        """Takes in the residuals (w, n) of probes (w, n) with Q'Hv (k, w); gives ||r||^2, (w,)."""
        if self.blocks and self._at_hand + block.shape[0] > self._room:
            self._groups_of_layers.append(self._of_layers())
            self._groups.append(self.products_at_hand)
            self._empty()
        lengths = self._multiply(block, shadow)
        self._square_sum += float(np.sum(lengths))
        self._unit = _unit(lengths, block) if self._unit is None else self._unit
        squares = tf.square(block if self._unit == 1.0 else block / self._unit)
        self._squared += tf.reduce_sum(squares, axis=0, keepdims=True)
        self._fourth_sum += float(np.sum(square_sums(squares)))
        self._signed += tf.reduce_sum(signs * block, axis=0, keepdims=True)
        return lengths

    def _multiply(self, block: tf.Tensor, shadow: np.ndarray) -> np.ndarray:
        """The products of a block with all that is at hand, in one pass; ||r||^2."""
        k, m = self._rank, self._at_hand
        rows = [*self._along, *self.blocks, block]
        found = grams(rows, block.shape[0], columns_of(self._layers))
        mixed, crossing, before, own = np.split(found, [k, 2 * k, 2 * k + m], axis=1)
        self._shadows = np.append(self._shadows, shadow, axis=1)
        self._crossing = np.append(self._crossing, crossing.sum(axis=0), axis=1)
        self._mixed = np.append(self._mixed, mixed, axis=2)
        new = np.append(before, own, axis=1).transpose(0, 2, 1)
        products = np.append(self._products, before, axis=2)
        self._products = np.append(products, new, axis=1)
        self.blocks.append(block)
        return np.diagonal(own.sum(axis=0))

    def leading(self, rank: int) -> tf.Tensor:
        """The leading right singular vectors of those that are kept, as rows."""
        return leading_basis(list(self.blocks), rank, products=self.products_at_hand)[0]

    def let_go(self) -> None:
        """Holds no vectors any more."""
        self._along = []
        self.blocks = []

    @property
    def _at_hand(self) -> int:
        return self._products.shape[1]

    @property
    def count(self) -> int:
        """Residuals so far."""
        return self._at_hand + sum(len(group) for group in self._groups)

    @property
    def products_at_hand(self) -> np.ndarray:
        """r_i . r_j of those that are kept, in float64."""
        return self._products.sum(axis=0)

    @property
    def crossing(self) -> np.ndarray:
        """(HQ)'r of those that are kept, (k, w) in float64."""
        return self._crossing

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
        for (name, _), mixed, products in zip(
            self._layers, self._shadows.T @ self._mixed, self._products, strict=False
        ):
            parts[name] = parts.get(name, 0.0) + products + mixed + mixed.T
        return parts

    def mean_of_diagonals(self) -> float:
        """The mean over pairs of sum_k (v_k r_k) (w_k s_k): of the square of PHP's diagonal."""
        return self._mean_of_pairs(self._signed, self._square_sum)

    def mean_of_squares(self) -> float:
        """The mean over pairs of sum_k r_k^2 s_k^2: of the square of (PHP)^2's diagonal."""
        in_units = self._mean_of_pairs(self._squared, self._fourth_sum)
        return float(in_units * (self._unit or 1.0) ** 4)

    def _mean_of_pairs(self, total: tf.Tensor, own: float) -> float:
        """Of sum_{i != j} x_i . x_j = ||sum_i x_i||^2 - sum_i ||x_i||^2."""
        return (float(square_sums(total)[0]) - own) / (self.count * (self.count - 1.0))


def _unit(lengths: np.ndarray, block: tf.Tensor) -> np.float64:
    """1, or a power of two near the entries where their squares leave the range of float32."""
    size = np.sqrt(np.mean(lengths) / int(block.shape[1]))
    if 1e-12 <= size <= 1e12 or not size > 0.0:
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
