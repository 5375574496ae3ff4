"""A symmetric operator as it is seen through a diagonal preconditioner."""

from collections.abc import Iterator

import tensorflow as tf

from keras_hessian_callback.operators.linear_operator import (
    LinearOperator,
    Vectors,
    columns_by_rows,
)


class PreconditionedOperator:
    """D^-1/2 A D^-1/2 of a symmetric A and a positive diagonal D.

    It is symmetric, as estimators need it, and similar to D^-1 A: the eigenvalues are the same.

    Args:
        operator: A, (n, n).
        diagonal: D, (n,), above 0.

    Raises:
        ValueError: If the shapes do not fit.

    Cost: That of A's products, and two passes over their vectors.

    Example:

        >>> import numpy as np
        >>> from keras_hessian_callback.operators.linear_operator import DenseOperator
        >>> from keras_hessian_callback.operators.preconditioned import PreconditionedOperator
        >>> operator = DenseOperator(np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> PreconditionedOperator(operator, np.array([4.0, 1.0])).matmat(np.eye(2))
        array([[0.5, 0.5],
               [0.5, 2. ]])
    """

    def __init__(self, operator: LinearOperator, diagonal: Vectors) -> None:
        if diagonal.shape != operator.shape[:1]:
            raise ValueError(
                f"`diagonal` must have the shape {operator.shape[:1]}; got {diagonal.shape}."
            )
        self._operator = operator
        self._scale = 1.0 / tf.sqrt(tf.cast(diagonal, operator.dtype))
        self.shape = operator.shape
        self.dtype = operator.dtype
        self.products = operator.products
        self.shares = operator.shares
        self.layers = operator.layers

    @property
    def block_size(self) -> int:
        """That of A."""
        return self._operator.block_size

    @property
    def room(self) -> float:
        """That of A, less the diagonal and what scaling a block takes."""
        return max(0.0, self._operator.room - 1 - 2 * self.block_size)

    def matvec(self, v: Vectors) -> Vectors:
        """The product with v (n,)."""
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, V: Vectors) -> Vectors:
        """The products with the columns of V (n, k)."""
        return columns_by_rows(self, V)

    def row_products(self, V: tf.Tensor) -> tf.Tensor:
        """The products with the rows of V (k, n), as rows."""
        return self._scale * self._operator.row_products(self._scale * tf.cast(V, self.dtype))

    def fold_products(self, V: tf.Tensor) -> Iterator[tf.Tensor]:
        """The row products with the matrix of each fold, preconditioned alike."""
        for products in self._operator.fold_products(self._scale * tf.cast(V, self.dtype)):
            yield self._scale * products
