"""matfree, and JAX alone: `linearize` of the gradient, `vmap` over the vectors, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from matfree import decomp, eig, stochtrace

from peers import jax_networks
from peers.problem import Arrays, Problem
from peers.side import BLOCK, Method, Side


class JaxSide(Side):
    """What both have in common: the network, and its gradient as a function of flat weights."""

    packages = ("jax",)

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        loss = jax_networks.loss_function(problem)
        _, unravel = ravel_pytree([jnp.asarray(v) for v in problem.vector])
        self.loss_of = lambda flat, frozen: loss(unravel(flat), frozen)
        self.gradient_of = jax.grad(self.loss_of)
        self.key = jax.random.PRNGKey(0)
        self.compiled: dict[tuple[str, int], Callable[..., Any]] = {}
        self.jitted = {
            "gradient": jax.jit(self.gradient_of),
            "single": jax.jit(self.matvec),
            "block": jax.jit(self.matmat),
        }

    def set_epoch(self, epoch: int) -> None:
        self.weights = ravel_pytree([jnp.asarray(w) for w in self.problem.trainable[epoch]])[0]
        self.frozen = [jnp.asarray(w) for w in self.problem.frozen[epoch]]

    def seed(self, seed: int) -> None:
        self.key = jax.random.PRNGKey(seed)

    def matvec(self, v: Array, weights: Array, frozen: list[Array]) -> Array:
        raise NotImplementedError

    def matmat(self, V: Array, weights: Array, frozen: list[Array]) -> Array:
        """Of the rows of V."""
        raise NotImplementedError

    def loss(self) -> float:
        return float(jax.jit(self.loss_of)(self.weights, self.frozen))

    def product(self, vector: Arrays) -> Arrays:
        flat, unravel = ravel_pytree([jnp.asarray(v) for v in vector])
        product = self.jitted["single"](flat, self.weights, self.frozen)
        return [np.asarray(part) for part in unravel(product)]

    def timed(self) -> dict[str, Callable[[], object]]:
        block = jax.random.normal(jax.random.PRNGKey(0), (BLOCK, self.weights.size))
        state = (self.weights, self.frozen)
        return {
            "gradient": lambda: self.jitted["gradient"](*state).block_until_ready(),
            "single": lambda: self.jitted["single"](block[0], *state).block_until_ready(),
            "block": lambda: self.jitted["block"](block, *state).block_until_ready(),
        }

    def run(self, name: str, m: int, make: Callable[[], Callable[..., Array]]) -> float:
        """Runs a compiled estimate(key, weights, frozen), compiled once per name and m."""
        if (name, m) not in self.compiled:
            self.compiled[name, m] = jax.jit(make())
        return float(self.compiled[name, m](self.key, self.weights, self.frozen))


class PlainJax(JaxSide):
    """What a user of JAX alone writes."""

    def matvec(self, v: Array, weights: Array, frozen: list[Array]) -> Array:
        return jax.linearize(lambda w: self.gradient_of(w, frozen), weights)[1](v)

    def matmat(self, V: Array, weights: Array, frozen: list[Array]) -> Array:
        return jax.vmap(jax.linearize(lambda w: self.gradient_of(w, frozen), weights)[1])(V)

    def methods(self) -> dict[str, Method]:
        def squares(V: Array, products: Array) -> Array:
            return jnp.sum(products**2)

        def dots(V: Array, products: Array) -> Array:
            return jnp.vdot(V, products)

        return {
            "norm/hutchinson": lambda m: (self._hutchinson("norm", squares, m), m),
            "trace/hutchinson": lambda m: (self._hutchinson("trace", dots, m), m),
        }

    def exact(self) -> dict[str, float]:
        """||H||_F^2 and the trace, from the products with all unit vectors."""

        def sums(first: Array, weights: Array, frozen: list[Array]) -> tuple[Array, Array]:
            V = jax.nn.one_hot(first + jnp.arange(BLOCK), weights.size)  # beyond the last: zeros
            products = self.matmat(V, weights, frozen)
            return jnp.sum(products**2), jnp.vdot(V, products)

        compiled = jax.jit(sums)
        blocks = range(0, self.weights.size, BLOCK)
        found = np.array([compiled(i, self.weights, self.frozen) for i in blocks], "float64")
        return dict(zip(("norm", "trace"), found.sum(axis=0).tolist(), strict=True))

    def _hutchinson(self, name: str, of: Callable[[Array, Array], Array], m: int) -> float:
        def estimate(key: Array, weights: Array, frozen: list[Array]) -> Array:
            V = jax.random.rademacher(key, (m, weights.size), weights.dtype)
            return of(V, self.matmat(V, weights, frozen)) / m

        return self.run(name, m, lambda: estimate)


class Matfree(JaxSide):
    """Has the norm by probes and leave-one-out (XSymRowNorm), traces, and Lanczos."""

    packages = ("jax", "matfree")

    def matvec(self, v: Array, weights: Array, frozen: list[Array]) -> Array:
        return jax.jvp(lambda w: self.gradient_of(w, frozen), (weights,), (v,))[1]

    def matmat(self, V: Array, weights: Array, frozen: list[Array]) -> Array:
        return jax.vmap(lambda v: self.matvec(v, weights, frozen))(V)

    def methods(self) -> dict[str, Method]:
        def square(v: Array, *state: Any) -> Array:
            return self.matvec(self.matvec(v, *state), *state)

        one_out = stochtrace.estimator_leave_one_out
        signs, normal = stochtrace.sampler_signs, stochtrace.sampler_normal

        def probes(integrand: Callable[[], Any]) -> Callable[[int], Any]:
            return lambda m: stochtrace.estimator_monte_carlo(
                integrand(), signs(self.weights, num=m)
            )

        norm = probes(stochtrace.monte_carlo_frobeniusnorm_squared)
        trace = probes(stochtrace.monte_carlo_trace)
        xrow, xtrace = (
            stochtrace.leave_one_out_xsymrownorms_squared,
            stochtrace.leave_one_out_xtrace,
        )
        xnystrace = stochtrace.leave_one_out_xnystrace
        # Per sample: XSymRowNorm and XTrace take two products, XNysTrace one.
        return {
            "norm/hutchinson": self._method("norm", norm, self.matvec),
            "norm/XSymRowNorm": self._method(
                "xrow", lambda m: one_out(xrow(), normal(self.weights, num=m // 2)), self.matvec
            ),
            "norm/XNysTrace of H^2": self._method(
                "xnys", lambda m: one_out(xnystrace(), normal(self.weights, num=m // 2)), square
            ),
            "trace/hutchinson": self._method("trace", trace, self.matvec),
            "trace/XTrace": self._method(
                "xtrace", lambda m: one_out(xtrace(), normal(self.weights, num=m // 2)), self.matvec
            ),
            "top/Lanczos": lambda m: (self._top(m), m),
        }

    def _method(
        self, name: str, estimator: Callable[[int], Any], matvec: Callable[..., Array]
    ) -> Method:
        def make(m: int) -> Callable[..., Array]:
            estimate = estimator(m)
            return lambda key, *state: jnp.sum(estimate(matvec, key, *state))

        return lambda m: (self.run(name, m, lambda: make(m)), m)

    def _top(self, m: int) -> float:
        eigh = eig.eigh_partial(decomp.tridiag_sym(m))

        def largest(key: Array, *state: Any) -> Array:
            start = jax.random.normal(key, self.weights.shape)
            return jnp.max(eigh(lambda v: self.matvec(v, *state), start)[0])

        return self.run("top", m, lambda: largest)


SIDES = {"matfree": Matfree, "jax": PlainJax}
