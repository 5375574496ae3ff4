"""What a row of the table is: a tiny model around one layer or function, on any backend.

Nothing here imports TensorFlow or the package: the JAX oracle runs the same rows.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

RIGHT, MENDED, DIFFERENCES, REFUSED = "right", "mended", "by finite differences", "refused"
NOTHING = "nothing to differentiate"
VERDICTS = (RIGHT, MENDED, DIFFERENCES, REFUSED, NOTHING)

_NUM_DIRECTIONS = 3


@dataclass(frozen=True)
class Argument:
    """A fixed array, moved by weights in a few random directions where `step` is not 0."""

    shape: tuple[int, ...]
    value: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    step: float = 0.3
    symmetric: bool = False


def normal(*shape: int) -> Argument:
    return Argument(shape, lambda rng, shape: rng.normal(size=shape))


def positive(*shape: int) -> Argument:
    return Argument(shape, lambda rng, shape: 1.0 + np.abs(rng.normal(size=shape)), step=0.1)


def unit(*shape: int) -> Argument:
    """Between 0 and 1, as probabilities and pixels are."""
    return Argument(shape, lambda rng, shape: rng.uniform(0.25, 0.75, size=shape), step=0.05)


def spread(*shape: int) -> Argument:
    """Entries that all differ by 0.2 or more: no two change places in a maximum or a sort."""
    return Argument(shape, _spread, step=0.02)


def definite(*shape: int) -> Argument:
    """Symmetric positive definite matrices with simple eigenvalues."""
    return Argument(shape, _definite, step=0.1, symmetric=True)


def fixed(array: Any) -> Argument:
    array = np.asarray(array)
    return Argument(array.shape, lambda rng, shape: array, step=0.0)


def _spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    return (rng.permutation(size) - size / 2 + 0.3).reshape(shape) * 0.2


def _definite(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    basis = np.linalg.qr(rng.normal(size=shape))[0]
    eigenvalues = 1.0 + np.arange(shape[-1]) + 0.3 * rng.uniform(size=shape[:-1])
    return np.einsum("...ij,...j,...kj->...ik", basis, eigenvalues, basis)


@dataclass(frozen=True)
class Derivatives:
    """Of a loss at the weights of a row, by an oracle."""

    loss: np.ndarray  # (1, n), n times the same
    gradient: np.ndarray  # (1, n)
    hessian: np.ndarray  # (n, n)


@dataclass(frozen=True)
class Row:
    """One layer or function in one setting.

    Attributes:
        name: Public name under `keras`, as "layers.Dense".
        make: Makes the layer or function, when the dtype policy is set; or a tuple of the
            function and the layers in it.
        arguments: What it is called on.
        variant: The setting, in words; empty for the default.
        verdict: What must come out.
        oracle: "differences" of TensorFlow's gradient; or "jax", where those are too rough
            because TensorFlow computes in float32 inside, or where a gradient is stopped.
        on_jax: Whether the JAX backend computes the same function at all.
        training: The flag that the model is called with.
        dtype: "float32" where Keras on TensorFlow has no float64.
        step: Of the differences: large where rounding is, and the loss is quadratic.
        refusal: What the message of a refusal says, in part.
        note: For the table.
        seed: Of all that is random.
    """

    name: str
    make: Callable[[], Any]
    arguments: tuple[Argument, ...] = ()
    variant: str = ""
    verdict: str = RIGHT
    oracle: str = "differences"
    on_jax: bool = True
    training: bool = False
    dtype: str = "float64"
    step: float = 1e-3
    refusal: str = ""
    note: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def exists(self) -> bool:
        """Whether this Keras has it."""
        return public(self.name) is not None


def public(name: str) -> Any:
    """The object that `keras.<name>` is; None where this Keras has no such name."""
    found = keras
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


class Probe(keras.Model):
    """A model whose only input data is a dummy: the arguments are constants moved by weights."""

    def __init__(self, row: Row) -> None:
        super().__init__(name="probe")
        rng = np.random.default_rng(zlib.crc32(row.key.encode()) + row.seed)
        self._bases, self._directions, self._thetas = [], [], []
        for index, argument in enumerate(row.arguments):
            base = argument.value(rng, argument.shape)
            moves = argument.step * rng.normal(size=(_NUM_DIRECTIONS, *argument.shape))
            if argument.symmetric:
                moves = (moves + np.swapaxes(moves, -1, -2)) / 2
            theta = None
            if argument.step:
                theta = self.add_weight(shape=(_NUM_DIRECTIONS,), name=f"argument_{index}")
            self._bases.append(base)
            self._directions.append(moves)
            self._thetas.append(theta)
        made = row.make()
        self.function, *self.inner = made if isinstance(made, tuple) else (made,)
        self.row, self._rng = row, rng

    def call(self, inputs, training=False):
        del inputs, training  # the flag reaches the layers by Keras' call context
        arguments = []
        for base, moves, theta in zip(self._bases, self._directions, self._thetas, strict=True):
            if theta is None:
                arguments.append(ops.convert_to_tensor(base))
            else:
                move = ops.tensordot(theta, ops.convert_to_tensor(moves, theta.dtype), axes=1)
                arguments.append(ops.convert_to_tensor(base, theta.dtype) + move)
        return self.function(*arguments)

    def draw_weights(self) -> None:
        """Generic values, the same on every backend, for weights of every kind.

        Seed generators get the seeds that the operator gives them.
        """
        for variable in self.weights:
            if not keras.backend.is_float_dtype(variable.dtype):
                continue
            value = 0.4 * self._rng.normal(size=variable.shape)
            if any(word in variable.name for word in ("gamma", "scale", "variance")):
                value = 1.0 + 0.5 * np.abs(value)
            variable.assign(np.asarray(value, variable.dtype))
        for number, variable in enumerate(self.variables):
            if variable.name == "seed_generator_state":
                variable.assign(np.array([number, 0], variable.dtype))


def scalar(output: Any) -> Any:
    """Generic linear and quadratic combination of all that is floating in an output."""
    total = 0.0
    for leaf in keras.tree.flatten(output):
        leaf = ops.convert_to_tensor(leaf)
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        if dtype.startswith("complex"):
            parts = [ops.real(leaf), ops.imag(leaf)]
        elif keras.backend.is_float_dtype(dtype):
            parts = [leaf]
        else:
            continue
        for part in parts:
            flat = ops.cast(ops.reshape(part, (-1,)), keras.config.floatx())
            factors = ops.cos(ops.cast(ops.arange(ops.shape(flat)[0]) + 1, flat.dtype))
            total = total + ops.sum(factors * flat) + 0.5 * ops.sum(flat * flat)
    return total


def loss(model: Probe, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
    """The loss of every row: of the output, and what layers and regularizers add."""
    del y, sample_weight
    total = scalar(model(x, training=model.row.training))
    for term in model.losses:
        total = total + ops.sum(term)
    return total


DUMMY = np.zeros((2, 1), "float32")


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Keras' global dtype, inside."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def build(row: Row) -> Probe:
    """The row's model, built, its weights drawn. To be called inside `precision`."""
    keras.utils.set_random_seed(0)
    model = Probe(row)
    loss(model, DUMMY)
    model.draw_weights()
    return model
