"""What a deflated measurement hands to the next one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_hessian_callback.deflation import Split
from keras_hessian_callback.linalg import leading_basis
from keras_hessian_callback.operators.linear_operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Basis:
    """The leading directions of an operator; opaque to all but the estimator.

    Attributes:
        vectors: (k, n) orthonormal rows, the leading directions first.
        variances: (k + 1,) predicted variance of ||PHPv||^2 with the first 0, 1, ... in the basis.
        square: ||H||_F^2, which sets their scale.
        seed: Of the probes that shaped the vectors, which must not be used with them; None: not
            known, as of one from a file.
    """

    vectors: tf.Tensor
    variances: np.ndarray
    square: float
    seed: tuple[int, int] | None = None

    def leading(self, rank: int) -> tf.Tensor:
        """The first so many vectors; all of them without a copy."""
        return self.vectors if rank == self.vectors.shape[0] else self.vectors[:rank]

    def fits(self, operator: LinearOperator) -> bool:
        """Whether it can be the basis of another measurement of this operator."""
        same_size = self.vectors.shape[1] == operator.shape[0]
        return same_size and self.vectors.dtype == tf.as_dtype(operator.dtype)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for a file."""
        return {
            "vectors": self.vectors.numpy(),
            "variances": self.variances,
            "square": np.float64(self.square),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Basis":
        """The basis that `arrays` are of."""
        vectors = tf.constant(arrays["vectors"])
        return cls(vectors, arrays["variances"], float(arrays["square"]))


def next_basis(split: Split, top: Split, most: int) -> Basis | None:
    """The leading right singular vectors of [HQ, PHPv / sqrt(m)]: one block power iteration.

    Args:
        split: The measurement's, with its probes; it lets go of its vectors.
        top: Whose basis is carried on: the same, or one whose basis came after the probes.
        most: Vectors that there may be.

    Returns:
        The basis; None where nothing but zeros is left.
    """
    now, share = split.spread.variance, split.variance_left()
    own, crossing = split.residuals.products_at_hand, split.residuals.crossing
    scale = max(1, len(own)) ** -0.5
    blocks = [top.products, *split.residuals.blocks]
    top.let_go()
    split.let_go()
    vectors, squares = leading_basis(
        blocks,
        most,
        scales=[1.0, *[scale] * (len(blocks) - 1)],
        products=np.block([[top.outer, crossing], [crossing.T, own]]) if top is split else None,
    )
    if not vectors.shape[0]:
        return None
    # Of Var ||PHPv||^2 = 2 (sum lambda^4 - sum_k (A^2)_kk^2): what each direction would take away.
    # With eigenvectors spread over all n entries the second sum takes a direction's share back.
    spread_out = 2.0 * float(np.mean(split.tails)) / vectors.shape[1]
    parts = 2.0 * squares * np.maximum(squares - spread_out, 0.0)
    parts[split.rank :] *= (
        now * (1.0 - share) / max(parts[split.rank :].sum(), np.finfo(float).tiny)
    )
    variances = now * share + np.append(np.cumsum(parts[::-1])[::-1], 0.0)
    square = split.exact + float(np.mean(split.tails))
    return Basis(vectors, variances[: vectors.shape[0] + 1], square)
