"""Dense operators with more to them: folds."""

import numpy as np

from keras_hessian_callback.operators.linear_operator import DenseOperator


class Folded(DenseOperator):
    """The weighted mean of matrices."""

    def __init__(self, matrices, shares):
        super().__init__(np.tensordot(shares, matrices, axes=1))
        self._folds = [DenseOperator(matrix) for matrix in matrices]
        self.shares = tuple(shares)

    def fold_products(self, V):
        for fold in self._folds:
            yield fold.row_products(V)
