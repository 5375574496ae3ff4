"""What every library's side can be asked for."""

import abc
from collections.abc import Callable

from peers.problem import Arrays

BLOCK = 8
# An estimator: products it may spend -> what it gives, and products that it spent.
# "norm/..." gives ||H||_F^2, "trace/..." tr H, "top/..." the largest eigenvalue.
Method = Callable[[int], tuple[float, int]]


class Side(abc.ABC):
    """A library with one network's weights, data and loss."""

    packages: tuple[str, ...]

    @abc.abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """The weights that the network had after this epoch."""

    @abc.abstractmethod
    def loss(self) -> float: ...

    @abc.abstractmethod
    def product(self, vector: Arrays) -> Arrays:
        """H times a vector, both in Keras's shapes and order."""

    @abc.abstractmethod
    def timed(self) -> dict[str, Callable[[], object]]:
        """`gradient`, `single` and `block`; each returns when its result is there."""

    @abc.abstractmethod
    def methods(self) -> dict[str, Method]: ...

    @abc.abstractmethod
    def seed(self, seed: int) -> None:
        """Of the next estimate's random numbers."""
