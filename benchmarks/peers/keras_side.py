"""Ours: `keras_hessian_callback`, on Keras with TensorFlow."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from products import gradient_function

from keras_hessian_callback import Deflated, Exact, HessianOperator, Hutchinson
from peers import prepare
from peers.problem import Arrays, Problem
from peers.side import BLOCK, Method, Side

_EXACT = 20_000  # parameters, up to which the reference is exact: five minutes for `images`
_REFERENCE = {"max_matvecs": 160, "max_rank": 80, "target_error": None}


class Ours(Side):
    """The estimators that the callback uses."""

    packages = ("tensorflow", "keras", "keras_hessian_callback")

    def __init__(self, problem: Problem) -> None:
        prepare.limit_threads(2)
        self.problem = problem
        self.model, self.x, self.y = prepare.BUILDERS[problem.name]()
        self.frozen = [v for v in self.model.non_trainable_variables if v.dtype == "float32"]
        self._operator: HessianOperator | None = None

    @property
    def operator(self) -> HessianOperator:
        """Traced once, for all epochs."""
        if self._operator is None:
            self._operator = HessianOperator(self.model, (self.x, self.y))
        return self._operator

    def set_epoch(self, epoch: int) -> None:
        variables = self.model.trainable_variables + self.frozen
        arrays = self.problem.trainable[epoch] + self.problem.frozen[epoch]
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)

    def seed(self, seed: int) -> None:
        self.number = seed

    def loss(self) -> float:
        outputs = self.model(tf.constant(self.x), training=False)
        return float(self.model.compute_loss(self.x, self.y, outputs, training=False))

    def product(self, vector: Arrays) -> Arrays:
        flat = np.concatenate([v.ravel() for v in vector])
        return prepare.split(self.operator.matvec(flat), vector)

    def timed(self) -> dict[str, Callable[[], object]]:
        gradient = gradient_function(self.model, self.x, self.y)
        n = sum(v.size for v in self.problem.vector)
        block = tf.random.stateless_normal([BLOCK, n], [0, 0])
        return {
            "gradient": lambda: gradient()[-1].numpy(),
            "single": lambda: self.operator.matvec(block[0])[0].numpy(),
            "block": lambda: self.operator.row_products(block)[0, 0].numpy(),
        }

    def methods(self) -> dict[str, Method]:
        def hutchinson(m: int) -> dict[str, Any]:
            return Hutchinson(num_probes=m)(self.operator, seed=(self.number, 0))[0]

        return {
            # The estimate is the root of the mean square.
            "norm/hutchinson": lambda m: (hutchinson(m)["frobenius_norm"].value ** 2, m),
            "trace/hutchinson": lambda m: (hutchinson(m)["trace"].value, m),
        }

    def deflated(self, settings: dict[str, Any], seed: int, epochs: list[int]) -> Any:
        """Measurements at successive epochs, each with the basis of the one before."""
        from timing import seconds

        state, estimates, found = None, {}, []
        for epoch in epochs:
            self.set_epoch(epoch)

            def measure(epoch: int = epoch) -> None:
                nonlocal state, estimates
                estimates, state = Deflated(**settings)(
                    self.operator, seed=(seed, epoch), state=state
                )

            duration = seconds(measure)
            found.append(
                {
                    "epoch": epoch,
                    "values": {
                        "norm": estimates["frobenius_norm"].value ** 2,
                        "trace": estimates["trace"].value,
                        "top": estimates["largest_ritz_value"].value,
                    },
                    "products": estimates["frobenius_norm"].num_matvecs,
                    "seconds": duration,
                }
            )
        return found

    def reference(self, epoch: int, exact: bool) -> dict[str, Any]:
        """||H||_F^2, the trace and the largest eigenvalue, with relative standard errors.

        The norm and the trace are exact for few parameters, where that is asked for; else the
        means of three measurements whose bases each start where the one before ended.
        """
        self.set_epoch(epoch)
        state, runs = None, []
        for step in range(4):
            estimates, state = Deflated(**_REFERENCE)(
                self.operator, seed=(10**6, step), state=state
            )
            runs.append(estimates)
        exact = exact and self.operator.shape[0] <= _EXACT
        found = [Exact(max_parameters=_EXACT)(self.operator)[0]] if exact else runs[1:]
        norms = np.array([run["frobenius_norm"].value for run in found])
        traces = np.array([run["trace"].value for run in found])

        def error(quantity: str, mean: float) -> float:
            errors = [run[quantity].standard_error for run in found]
            return math.hypot(*errors) / len(errors) / abs(mean)

        top = runs[-1]["largest_ritz_value"]
        return {
            "values": {
                "norm": float(np.mean(norms)) ** 2,
                "trace": float(np.mean(traces)),
                "top": top.value,
            },
            "relative_errors": {
                "norm": error("frobenius_norm", float(np.mean(norms))),
                "trace": error("trace", float(np.mean(traces))),
                "top": (top.upper - top.value) / abs(top.value),  # a bound
            },
            "stable_rank": float(np.mean(norms)) ** 2 / runs[-1]["spectral_norm"].value ** 2,
            "exact": exact,
        }


SIDES = {"ours": Ours}
