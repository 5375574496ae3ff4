"""What a deflated measurement hands to the next one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_hessian_callback.operators.linear_operator import LinearOperator


@dataclass(frozen=True, eq=False)
class Basis:
    """The leading directions of an operator; opaque to all but the estimator.

    Attributes:
        vectors: (k, n) orthonormal rows, the leading directions first.
        variances: (k + 1,) predicted variance of ||PHPv||^2 with the first 0, 1, ... in the basis.
        square: ||H||_F^2, which sets their scale.
    """

    vectors: tf.Tensor
    variances: np.ndarray
    square: float

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
