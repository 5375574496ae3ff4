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
        residuals: Of probes, how many are kept at a time: all, or 2 to 8.
    """

    rank: int
    residuals: float
    _left: float  # vectors for the carried basis and one beside it
    _each: int  # that a row of that one takes: with its product, or without

    @classmethod
    def that_fit(cls, operator: LinearOperator, rank: int, products: int) -> "Holdings":
        """With a basis of at most `rank` rows, in a measurement of at most so many products.

        All residuals are kept, unless a larger basis fits with fewer.
        """
        room, width = operator.room, operator.block_size
        ranks = range(rank, -1, -1)
        with_all = next((k for k in ranks if held_with_all(k, products, width) <= room), -1)
        kept = int(max(2, min(products, BLOCK_SIZE, (room - _SUMS) / 3)))
        with_few = next((k for k in ranks if _held_with_few(k, kept, width) <= room), 0)
        if with_all >= with_few:
            left = room - held_with_all(with_all, products, width) + with_all
            return cls(with_all, math.inf, left, 1)
        left = room - _held_with_few(with_few, kept, width) + 2 * with_few
        return cls(with_few, kept, left, 2)

    def rank_beside(self, carried: int) -> int:
        """Rows of a basis that is not the carried one, as where directions were added to that."""
        return int(min(self.rank, (self._left - carried) / self._each))


def held_with_all(rank: int, products: int, width: int) -> int:
    """Vectors that are held beside a block of products, where all products are kept.

    The basis, all products, sums. The probes of a block are held as long as its products are the
    operator's. The next basis comes in the place of what a block takes, which is itself and its
    products at least.
    """
    return rank + products + _SUMS + max(0, rank - 2 * width)


def _held_with_few(rank: int, residuals: int, width: int) -> int:
    """The same with so many residuals at a time: the basis and its products, residuals, probes."""
    probes = min(width, residuals)
    return 2 * rank + residuals + _SUMS + max(probes, rank - 2 * probes)
