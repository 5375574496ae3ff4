"""The contract of estimators: settings that, called with an operator, give estimates."""

import numbers
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from keras_hessian_callback.linalg import Seed
from keras_hessian_callback.operators.linear_operator import LinearOperator
from keras_hessian_callback.results import Findings


class Estimator(Protocol):
    """A frozen record of settings, checked when it is made."""

    @property
    def products(self) -> str:
        """How the products are asked for: `"auto"`, `"autodiff"` or `"finite_difference"`."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """The state whose `state.arrays()` these are."""

    def smaller(self, products: int) -> "Estimator | None":
        """The same with at most so many products, or the fewest it can do with; None: it cannot."""

    def check(self, operator: LinearOperator) -> None:
        """Raises ValueError where this estimator cannot measure `operator`."""

    def __call__(
        self, operator: LinearOperator, *, seed: Seed, state: Any = None
    ) -> tuple[Findings, Any]:
        """The estimates by name, the spectrum, and the state to pass to the next measurement.

        `state=None` is always valid; what is random depends on `seed` alone.
        """


def check_count(name: str, count: int) -> None:
    """Raises unless `count`, the argument `name`, is an int of at least 1."""
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer; got {name}={count!r}.")
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1; got {name}={count}.")
