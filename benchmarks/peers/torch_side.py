"""PyHessian, curvlinops and hessian-eigenthings, as their documentation uses them."""

import abc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from curvlinops import (
    HessianLinearOperator,
    hutchinson_squared_fro,
    hutchinson_trace,
    hutchpp_trace,
    xtrace,
)
from hessian_eigenthings import HessianOperator, LambdaOperator, lanczos, supervised_loss, trace
from pyhessian import hessian
from pyhessian.utils import hessian_vector_product
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from peers import torch_networks
from peers.problem import Arrays, Problem
from peers.side import BLOCK, Method, Side

Vectors = list[Tensor]


class TorchSide(Side):
    """What the three have in common: the network and its gradient."""

    packages = ("torch",)
    norm = nn.LayerNorm

    def __init__(self, problem: Problem) -> None:
        torch.set_num_threads(2)
        self.problem = problem
        self.network, self.parameters, self.layouts = torch_networks.module(problem, self.norm)
        # The library sees the parameters in the module's order; Keras's is for comparing.
        position = {id(p): i for i, p in enumerate(self.parameters)}
        self.order = [position[id(p)] for p in self.network.parameters()]
        self.criterion = nn.CrossEntropyLoss()
        self.x, self.y = torch_networks.data(problem)
        self.size = sum(p.numel() for p in self.parameters)

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_epoch(self, epoch: int) -> None:
        torch_networks.load(self.parameters, self.layouts, self.problem.trainable[epoch])
        if self.problem.frozen[epoch]:
            self.network.load_statistics(self.problem.frozen[epoch])
        self.build()

    @abc.abstractmethod
    def build(self) -> None:
        """The library's own object, for the weights as they are."""

    @abc.abstractmethod
    def multiply(self, flat: Tensor) -> Tensor:
        """The product with a vector (n,) or a block (n, k), in the module's order."""

    def loss(self) -> float:
        with torch.no_grad():
            return self.criterion(self.network(self.x), self.y).item()

    def product(self, vector: Arrays) -> Arrays:
        arrays = [there(v) for (there, _), v in zip(self.layouts, vector, strict=True)]
        flat = np.concatenate([arrays[i].ravel() for i in self.order])
        product = self.multiply(torch.from_numpy(flat))
        parts = product.split([self.parameters[i].numel() for i in self.order])
        by_position = dict(zip(self.order, parts, strict=True))
        return [
            back(by_position[i].reshape(p.shape).numpy())
            for i, (p, (_, back)) in enumerate(zip(self.parameters, self.layouts, strict=True))
        ]

    def timed(self) -> dict[str, Callable[[], object]]:
        block = torch.randn(self.size, BLOCK)
        single = block[:, 0].contiguous()
        return {
            "gradient": self.gradient,
            "single": lambda: self.multiply(single),
            "block": lambda: self.multiply(block),
        }

    def gradient(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.criterion(self.network(self.x), self.y), self.parameters)

    def columns(self, multiply: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        """Products one by one, where a library knows no blocks."""
        if block.ndim == 1:
            return multiply(block)
        return torch.stack([multiply(v) for v in block.T.contiguous()], dim=1)


class PyHessian(TorchSide):
    """Has the trace and eigenvalues. The norm is what its user can make of its products."""

    packages = ("torch", "pyhessian")

    def build(self) -> None:
        self.network.zero_grad()
        self.library = hessian(self.network, self.criterion, data=(self.x, self.y), cuda=False)
        self.sizes = [p.numel() for p in self.library.params]

    def multiply(self, flat: Tensor) -> Tensor:
        return self.columns(self._multiply, flat)

    def _multiply(self, flat: Tensor) -> Tensor:
        parts = flat.split(self.sizes)
        vectors = [v.reshape(p.shape) for v, p in zip(parts, self.library.params, strict=True)]
        products = hessian_vector_product(self.library.gradsH, self.library.params, vectors)
        return torch.cat([product.reshape(-1) for product in products])

    def methods(self) -> dict[str, Method]:
        return {
            "norm/hutchinson": self._norm,
            "trace/hutchinson": lambda m: (np.mean(self.library.trace(m, -math.inf)), m),
            "trace/as documented": self._trace,
            "top/power iteration": lambda m: (self.library.eigenvalues(m, 0.0)[0][0], m),
        }

    def _norm(self, m: int) -> tuple[float, int]:
        squares = []
        for _ in range(m):
            vectors = [torch.randint_like(p, 2) * 2 - 1 for p in self.library.params]
            products = hessian_vector_product(self.library.gradsH, self.library.params, vectors)
            squares.append(sum((p**2).sum() for p in products).item())
        return np.mean(squares), m

    def _trace(self, m: int) -> tuple[float, int]:
        samples = self.library.trace()
        return np.mean(samples), len(samples)


class Curvlinops(TorchSide):
    """Has the norm by probes; Hutch++ and XTrace for traces, so for the norm those of H H."""

    packages = ("torch", "curvlinops-for-pytorch")
    norm = torch_networks.WrittenOutNorm

    def build(self) -> None:
        parameters = list(self.network.parameters())
        self.operator = HessianLinearOperator(
            self.network, self.criterion, parameters, [(self.x, self.y)]
        )

    def multiply(self, flat: Tensor) -> Tensor:
        return self.operator @ flat

    def methods(self) -> dict[str, Method]:
        H = self.operator
        square = H @ H
        return {
            "norm/hutchinson": lambda m: (hutchinson_squared_fro(H, m).item(), m),
            "norm/Hutch++ of H^2": lambda m: (hutchpp_trace(square, m // 2).item(), m),
            # An even number of products with H H.
            "norm/XTrace of H^2": lambda m: (xtrace(square, m // 4 * 2).item(), m // 4 * 4),
            "trace/hutchinson": lambda m: (hutchinson_trace(H, m).item(), m),
            "trace/Hutch++": lambda m: (hutchpp_trace(H, m).item(), m),
            "trace/XTrace": lambda m: (xtrace(H, m).item(), m),
            "top/as documented": lambda m: self._top(),
        }

    def _top(self) -> tuple[float, int]:
        """SciPy's `eigsh`, to 1 %."""
        products = 0
        scipy_operator = self.operator.to_scipy()

        def counted(v: np.ndarray) -> np.ndarray:
            nonlocal products
            products += 1
            return scipy_operator @ v.astype("float32")

        operator = LinearOperator(self.operator.shape, matvec=counted, dtype="float32")
        start = np.random.default_rng(int(torch.randint(2**31, ()))).normal(size=self.size)
        values = eigsh(operator, 1, which="LA", tol=0.01, v0=start, return_eigenvectors=False)
        return float(values[0]), products


class Eigenthings(TorchSide):
    """Has traces and eigenvalues; so for the norm, traces of H H."""

    packages = ("torch", "hessian-eigenthings")

    def build(self) -> None:
        self.operator = HessianOperator(
            self.network, [(self.x, self.y)], supervised_loss(self.criterion)
        )

    def multiply(self, flat: Tensor) -> Tensor:
        return self.columns(self.operator.matvec, flat)

    def methods(self) -> dict[str, Method]:
        H = self.operator
        square = LambdaOperator(lambda v: H.matvec(H.matvec(v)), self.size)

        def estimate(operator: Any, method: str, m: int) -> float:
            seed = int(torch.randint(2**31, ()))
            return trace(operator, num_matvecs=m, method=method, seed=seed).estimate

        def top(m: int) -> float:
            seed = int(torch.randint(2**31, ()))
            return lanczos(H, k=1, max_iter=m, which="LA", seed=seed).eigenvalues[0].item()

        return {
            "norm/hutchinson": self._norm,
            "norm/Hutch++ of H^2": lambda m: (estimate(square, "hutch++", m // 2), m),
            "trace/hutchinson": lambda m: (estimate(H, "hutchinson", m), m),
            "trace/Hutch++": lambda m: (estimate(H, "hutch++", m), m),
            "top/Lanczos": lambda m: (top(m), m),
        }

    def _norm(self, m: int) -> tuple[float, int]:
        """The mean ||Hv||^2 over its own probes: half the products of a trace of H H."""
        backend, like = self.operator.backend, torch.empty(self.size)
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        squares = []
        for _ in range(m):
            v = backend.rademacher_like(like, generator=generator)
            squares.append((self.operator.matvec(v) ** 2).sum().item())
        return np.mean(squares), m


SIDES = {"pyhessian": PyHessian, "curvlinops": Curvlinops, "eigenthings": Eigenthings}
