"""What a deflated measurement hands to the next one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.deflation import Split
from keras_hessian_callback.grams import leading_basis
from keras_hessian_callback.linalg import Seed, words_of
from keras_hessian_callback.operators.linear_operator import LinearOperator
from keras_hessian_callback.rows import Block, some

_LEAST = 1e-3  # part of a residual's square that counts: it comes last, but comes


@dataclass(frozen=True, eq=False)
class Basis:
    """The leading directions of an operator; opaque to all but the estimator.

    Attributes:
        vectors: (k, n) orthonormal rows, the leading directions first.
        variances: (k + 1,) predicted variance of ||PHPv||^2 with the first 0, 1, ... in the basis.
        square: ||H||_F^2, which sets their scale.
        seeds: Of the probes that shaped the vectors, which must not be used with them.
    """

    vectors: Block
    variances: np.ndarray
    square: float
    seeds: frozenset[tuple[int, int]] = frozenset()

    def leading(self, rank: int) -> Block:
        """The first so many vectors; of an array without a copy, as where n is above 2^21."""
        return some(self.vectors, 0, rank)

    def fits(self, operator: LinearOperator) -> bool:
        """Whether it can be the basis of another measurement of this operator."""
        same_size = self.vectors.shape[1] == operator.shape[0]
        return same_size and tf.as_dtype(self.vectors.dtype) == tf.as_dtype(operator.dtype)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for a file."""
        return {
            "vectors": np.asarray(self.vectors),
            "variances": self.variances,
            "square": np.array(self.square),
            "seeds": np.array(sorted(self.seeds), "int64").reshape(-1, 2),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Basis":
        """The basis that `arrays` are of."""
        vectors = tf.constant(arrays["vectors"])
        seeds = frozenset((int(first), int(second)) for first, second in arrays["seeds"])
        return cls(vectors, arrays["variances"], float(arrays["square"]), seeds)


def carried_basis(state: Any, operator: LinearOperator, seed: Seed) -> Basis | None:
    """The basis of an earlier measurement, where there is one for this operator."""
    if state is None:
        return None
    if not isinstance(state, Basis):
        raise TypeError(
            "`state` must be what Deflated returned beside its estimates, or None; got "
            f"{type(state).__name__}."
        )
    if not state.fits(operator):
        return None
    if words_of(seed) in state.seeds:
        raise ValueError(
            f"The probes of seed={seed!r} have shaped this `state`, so they would see a norm that "
            "is too low. Pass another seed or step, such as seed=(0, 1) after seed=(0, 0)."
        )
    return state


def next_basis(split: Split, top: Split, most: int) -> Basis | None:
    """The leading right singular vectors of [HQ, c PHPv / sqrt(m)]: one block power iteration.

    With n much larger than m most of ||PHPv||^2 / m is not what leading directions have, but the
    sum of all small ones: residuals alone would pass for directions larger than those of HQ. So
    they count by c^2, the part of a residual's square that lies in the span of the others.

    Args:
        split: The measurement's, with its probes; it lets go of its vectors.
        top: Whose basis is carried on: the same, or one whose basis came after the probes.
        most: Vectors that there may be.

    Returns:
        The basis; None where nothing but zeros is left.
    """
    residuals, k = split.residuals, top.rank
    now, share = split.spread.variance, residuals.variance_left()
    count = len(residuals.products_at_hand)
    scale = math.sqrt(max(residuals.in_common(), _LEAST) / max(1, count))
    if top is split:
        images = np.eye(len(residuals.mixing), k, -k)  # of HQ, which come after Q
        blocks, products = residuals.rows, residuals.gram
        mixing = np.append(images, scale * residuals.mixing, axis=1)
    else:
        blocks, products = [*top.products, *residuals.images], None
        mixing = np.diag(np.repeat([1.0, scale], [k, count]))
    top.let_go()
    split.let_go()
    vectors, energies = leading_basis(blocks, most, mixing=mixing, products=products)
    if not vectors.shape[0]:
        return None
    # Of Var ||PHPv||^2 = 2 (sum lambda^4 - sum_k (A^2)_kk^2): what each direction would take away.
    # With eigenvectors spread over all n entries the second sum takes a direction's share back.
    spread_out = 2.0 * float(np.mean(split.tails)) / vectors.shape[1]
    known, rest = energies[: split.rank].sum(axis=0), energies[split.rank :].sum(axis=0)
    parts = 2.0 * known * np.maximum(known - spread_out, 0.0)
    # What residuals add is known in sum alone.
    parts += now * (1.0 - share) * rest**2 / max(np.sum(rest**2), np.finfo(float).tiny)
    variances = now * share + np.append(np.cumsum(parts[::-1])[::-1], 0.0)
    square = split.exact + float(np.mean(split.tails))
    return Basis(vectors, variances[: vectors.shape[0] + 1], square)
