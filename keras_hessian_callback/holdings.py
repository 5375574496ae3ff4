"""How many vectors a measurement along a basis may hold beside what the operator takes."""

import math
from dataclasses import dataclass

from keras_hessian_callback.linalg import BLOCK_SIZE
from keras_hessian_callback.operators.linear_operator import LinearOperator

_SUMS = 2  # vectors that sums over all probes take


@dataclass(frozen=True)
class Holdings:
    """What fits into the room that an operator leaves.

    Attributes:
        rank: Rows of the basis that is used and carried on, at most.
        residuals: Of probes that are kept: all, or a block or two.
    """

    rank: int
    residuals: float
    _room: float
    _products: int
    _width: int

    @classmethod
    def that_fit(cls, operator: LinearOperator, rank: int, products: int) -> "Holdings":
        """With a basis of at most `rank` rows, in a measurement of at most so many products.

        All residuals are kept, unless a larger basis fits with fewer.
        """
        room, width = operator.room, operator.block_size
        ranks = range(rank, -1, -1)
        with_all = next((k for k in ranks if held_with_all(k, products, width) <= room), -1)
        if with_all == rank:
            return cls(rank, math.inf, room, products, width)
        kept = max(2, min(products, BLOCK_SIZE, int((room - _SUMS) / 3)))
        few = min(width, kept)
        with_few = next((k for k in ranks if _held_with_few(k, kept, few) <= room), 0)
        if with_all >= with_few:
            return cls(with_all, math.inf, room, products, width)
        return cls(with_few, kept, room, products, few)

    def extended(self, carried: int) -> int:
        """Rows of a basis that more directions are added to, while so many are carried beside."""
        left = self._room - carried - _SUMS
        if self.residuals < math.inf:
            fits = (left - self.residuals - self._width) / 2  # and their products
        else:
            fits = left - self._products
        return int(min(self.rank, fits)) if carried else self.rank


def held_with_all(rank: int, products: int, width: int) -> int:
    """Vectors that are held beside what the operator takes, where there is room for all.

    The basis and all products, or the probes that the last of them are of. The next basis comes in
    the place of what the operator took: a block and its products at least.
    """
    return rank + products + _SUMS + max(0, rank - 2 * width)


def _held_with_few(rank: int, residuals: int, width: int) -> int:
    """The same with so many residuals at a time: the basis and its products, residuals, probes."""
    return 2 * rank + residuals + _SUMS + max(width, rank - 2 * width)
