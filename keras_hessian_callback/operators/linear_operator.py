"""The contract between operators and estimators, and a dense operator for small matrices."""

import math
from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np
import tensorflow as tf

from keras_hessian_callback.linalg import BLOCK_SIZE

Vectors = TypeVar("Vectors", np.ndarray, tf.Tensor)


PRODUCTS = ("auto", "autodiff", "finite_difference")


class LinearOperator(Protocol):
    """A real symmetric n x n matrix known by its products; the same one between calls."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the vectors."""

    @property
    def products(self) -> str:
        """How they are made: `"autodiff"`, exact up to rounding, or `"finite_difference"`."""

    def matvec(self, v: Vectors) -> Vectors:
        """The product with v (n,); arrays give arrays, tensors give tensors."""

    def matmat(self, V: Vectors) -> Vectors:
        """The products with the columns of V (n, k); arrays give arrays, tensors tensors."""

    def row_products(self, V: tf.Tensor) -> tf.Tensor:
        """The products with the rows of V (k, n), as rows: V H. No vector is transposed."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each fold: parts of the data, whose weighted mean the matrix is."""

    def fold_products(self, V: tf.Tensor) -> Iterator[tf.Tensor]:
        """V H_f (k, n) with the matrix H_f of each fold; at the cost of `row_products`."""

    @property
    def block_size(self) -> int:
        """Vectors that are best multiplied at a time: more would take more memory than planned."""

    @property
    def room(self) -> float:
        """Vectors (n,) that an estimator may hold beside what the products take."""

    @property
    def layers(self) -> tuple[tuple[str, slice], ...]:
        """Names and entries of the parts of a vector, in order; a name may come again."""


class DenseOperator:
    """A symmetric matrix that is at hand, as an operator: for tests and small experiments.

    Args:
        matrix: (n, n) array of floats, symmetric.
    """

    products = "autodiff"
    layers: tuple[tuple[str, slice], ...] = ()
    shares: tuple[float, ...] = (1.0,)
    block_size = BLOCK_SIZE
    room = math.inf

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = tf.constant(matrix)
        self.shape = (len(matrix), len(matrix))
        self.dtype = np.dtype(matrix.dtype)

    def matvec(self, v: Vectors) -> Vectors:
        """The product with v (n,)."""
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, V: Vectors) -> Vectors:
        """The products with the columns of V (n, k)."""
        return columns_by_rows(self, V)

    def row_products(self, V: tf.Tensor) -> tf.Tensor:
        """The products with the rows of V (k, n), as rows."""
        return tf.matmul(V, self._matrix, transpose_b=True)

    def fold_products(self, V: tf.Tensor) -> Iterator[tf.Tensor]:
        """The row products, in one fold."""
        yield self.row_products(V)


def columns_by_rows(operator: LinearOperator, V: Vectors) -> Vectors:
    """The products of a symmetric operator with the columns of V (n, k), of the kind of V."""
    products = tf.transpose(operator.row_products(tf.transpose(V)))
    return products if tf.is_tensor(V) else products.numpy()


def check_products(products: str) -> None:
    """Raises ValueError unless `products` names a way to make Hessian-vector products."""
    if products not in PRODUCTS:
        raise ValueError(f"`products` must be one of {', '.join(PRODUCTS)}; got {products!r}.")
