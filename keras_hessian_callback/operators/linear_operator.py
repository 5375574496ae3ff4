"""The contract between operators and estimators, and a dense operator for small matrices."""

from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np
import tensorflow as tf

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

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each fold: parts of the data, whose weighted mean the matrix is."""

    def fold_products(self, V: tf.Tensor) -> Iterator[tf.Tensor]:
        """The products (n, k) with the matrix of each fold; at the cost of `matmat`."""

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

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = tf.constant(matrix)
        self.shape = (len(matrix), len(matrix))
        self.dtype = np.dtype(matrix.dtype)

    def matvec(self, v: Vectors) -> Vectors:
        """The product with v (n,)."""
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, V: Vectors) -> Vectors:
        """The products with the columns of V (n, k)."""
        products = self._matrix @ tf.convert_to_tensor(V)
        return products if tf.is_tensor(V) else products.numpy()

    def fold_products(self, V: tf.Tensor) -> Iterator[tf.Tensor]:
        """The products, in one fold."""
        yield self.matmat(V)


def check_products(products: str) -> None:
    """Raises ValueError unless `products` names a way to make Hessian-vector products."""
    if products not in PRODUCTS:
        raise ValueError(f"`products` must be one of {', '.join(PRODUCTS)}; got {products!r}.")
