"""Plain Monte Carlo: the Frobenius norm and the trace from random probes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keras_hessian_callback.estimators.estimator import check_count
from keras_hessian_callback.intervals import mean_estimate, root_mean_estimate
from keras_hessian_callback.linalg import PROBES, Seed, probes
from keras_hessian_callback.operators.linear_operator import LinearOperator, check_products
from keras_hessian_callback.results import Findings
from keras_hessian_callback.rows import row_dots, square_sums


@dataclass(frozen=True)
class Hutchinson:
    """The Frobenius norm and the trace of the Hessian, by random probes.

    For v with E[v v'] = I, from the same products:

        E ||H v||^2 = ||H||_F^2,    E v' H v = tr H

    The squares are averaged, then the root is taken. Variance of ||H v||^2: for normal probes
    2 sum_i lambda_i^4; for Rademacher probes 2 (||H^2||_F^2 - sum_i (H^2)_ii^2), never larger.
    Assumes a symmetric operator.

    Args:
        num_probes: Int of at least 1: probes, each one product. The relative standard error
            of the norm is at most sqrt(1 / (2 num_probes)), reached where one eigenvalue
            dominates: 18 % for the default 16. With 1 probe the error is NaN; where one weight
            dominates, all m samples are nearly the same in 2^(1-m) of the cases, and the interval
            misses.
        distribution: `"rademacher"`, entries -1 and +1, or `"normal"`.
        products: How products are made: `"autodiff"`, `"finite_difference"`, or `"auto"`, the
            first where it is right and the second where not. The error bars are those of the
            sampling, not of the differences.

    Raises:
        ValueError, TypeError: At construction, if a setting is not accepted.

    Cost: `num_probes` products in blocks of the operator's `block_size`; memory: that of the
    operator's products, and no vector more.

    Example:

        >>> import numpy as np
        >>> from keras_hessian_callback import Hutchinson
        >>> from keras_hessian_callback.operators.linear_operator import DenseOperator
        >>> H = DenseOperator(np.array([[3.0, 1.0], [1.0, 2.0]]))  # norm sqrt(15) = 3.87
        >>> estimates, state = Hutchinson(num_probes=1000)(H, seed=0)
        >>> print(f"{estimates['frobenius_norm'].value:.1f}")
        3.9

    References:
        Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989).
        Martinsson and Tropp, "Randomized numerical linear algebra" (2020), arXiv:2002.01387.
    """

    num_probes: int = 16
    distribution: str = "rademacher"
    products: str = "auto"

    def __post_init__(self) -> None:
        check_count("num_probes", self.num_probes)
        if self.distribution not in PROBES:
            raise ValueError(
                f"`distribution` must be one of {', '.join(PROBES)}; got {self.distribution!r}."
            )
        check_products(self.products)

    def smaller(self, products: int) -> "Hutchinson":
        """These settings with at most so many probes, of which an error takes two."""
        return replace(self, num_probes=min(self.num_probes, max(2, products)))

    def check(self, operator: LinearOperator) -> None:
        """Every symmetric operator can be measured."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Nothing is carried."""

    def __call__(
        self, operator: LinearOperator, *, seed: Seed = 0, state: Any = None
    ) -> tuple[Findings, None]:
        """The estimates of `operator`'s norm and trace.

        Args:
            operator: The symmetric operator (n, n).
            seed: Int, or a pair (seed, step): the probes are a function of it.
            state: Not used: nothing is carried.

        Returns:
            `"frobenius_norm"` and `"trace"`, and None.
        """
        squares, quadratics = [], []
        for first in range(0, self.num_probes, operator.block_size):
            block = probes(
                self.distribution,
                size=operator.shape[0],
                first=first,
                count=min(operator.block_size, self.num_probes - first),
                seed=seed,
                dtype=operator.dtype,
            )
            products = operator.row_products(block)
            squares.append(square_sums(products))
            quadratics.append(row_dots(block, products))
        num_matvecs = self.num_probes
        estimates = {
            "frobenius_norm": root_mean_estimate(np.concatenate(squares), num_matvecs=num_matvecs),
            "trace": mean_estimate(np.concatenate(quadratics), num_matvecs=num_matvecs),
        }
        return Findings(estimates), None
