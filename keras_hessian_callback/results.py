"""What a measurement gives: frozen records with a value, an error bar and a cost."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

LAYER = "frobenius_norm/layer/"  # how an estimator names the norm of a layer's rows


@dataclass(frozen=True)
class Estimate:
    """A number with its error bar and its cost.

    Attributes:
        value: The estimate. `float(estimate)` gives it too.
        standard_error: Standard error of `value`, in its unit. 0.0 only where the
            value is exact up to rounding, NaN where the error cannot be known.
        lower: Lower end of the 95 % confidence interval.
        upper: Upper end of the 95 % confidence interval. May be infinite.
        num_matvecs: Hessian-vector products that the value was made from.

    Example:

        >>> from keras_hessian_callback import Estimate
        >>> norm = Estimate(2.0, standard_error=0.1, lower=1.8, upper=2.2, num_matvecs=32)
        >>> float(norm)
        2.0
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    num_matvecs: int

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields as a dictionary for JSON: None stands for NaN and infinity."""
        return {
            "value": _finite(self.value),
            "standard_error": _finite(self.standard_error),
            "lower": _finite(self.lower),
            "upper": _finite(self.upper),
            "num_matvecs": self.num_matvecs,
        }


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Where the eigenvalues of the Hessian lie: nodes, and the share of them that each stands for.

    A quadrature of the spectral density: for a smooth function f, sum_j weights_j f(nodes_j) is
    near tr f(H) / n, or as much of it as was resolved.

    Attributes:
        nodes: Array (m,) of float64, ascending: places on the axis of the eigenvalues.
        weights: Array (m,) of float64, none negative: shares of the n eigenvalues. They add up
            to 1 where the whole density was found (`Lanczos`), and to k / n where only k
            eigenvalues were (`Deflated`, each with the weight 1 / n).

    Example:

        >>> import numpy as np
        >>> from keras_hessian_callback import Spectrum
        >>> spectrum = Spectrum(nodes=np.array([0.0, 5.0]), weights=np.array([0.9, 0.1]))
        >>> float(spectrum.weights @ spectrum.nodes)  # tr H / n
        0.5
    """

    nodes: np.ndarray
    weights: np.ndarray

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spectrum):
            return NotImplemented
        same_nodes = np.array_equal(self.nodes, other.nodes, equal_nan=True)
        return same_nodes and np.array_equal(self.weights, other.weights, equal_nan=True)

    def to_dict(self) -> dict[str, list[float | None]]:
        """The fields as lists for JSON: None stands for NaN and infinity."""
        return {
            "nodes": [_finite(float(node)) for node in self.nodes],
            "weights": [_finite(float(weight)) for weight in self.weights],
        }


@dataclass(frozen=True)
class Findings(Mapping[str, Estimate]):
    """What an estimator found: a read-only mapping of name to `Estimate`, and the spectrum.

    Attributes:
        estimates: The estimates by name.
        spectrum: The spectral density, or the part of it that was resolved; None: not found.
        carried: Whether they started from the state of an earlier measurement.
    """

    estimates: Mapping[str, Estimate]
    spectrum: Spectrum | None = None
    carried: bool = False

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)


@dataclass(frozen=True)
class CurvatureReport(Mapping[str, Estimate]):
    """All that one measurement found: a read-only mapping of name to `Estimate`.

    Attributes:
        estimates: The estimates by name; which, the method says. All have
            `"frobenius_norm"` and `"trace"`.
        num_parameters: Trainable parameters n; the Hessian is n x n.
        num_examples: Held-out examples that the loss was averaged over.
        num_matvecs: Hessian-vector products spent in all.
        seconds: Wall time of the products and of the estimator.
        method: The estimator with its settings.
        products: How the products were made: `"autodiff"` or `"finite_difference"`.
        num_folds: Micro-batches, whose differences `"population_frobenius_norm"` is found from.
        carried: Whether the measurement started from the basis of an earlier one; False: a
            cold start.
        layers: The Frobenius norm of each layer's rows of the Hessian, by the path of the
            layer: their squares add up to the square of the whole. Empty where the method
            does not tell them.
        pool_size: Examples of the pool that `num_examples` were drawn from by `importance`;
            None: not drawn.
        spectrum: The spectral density, or the part of it that the method resolved; None where it
            tells none.
        batch_size: Examples that products were computed on at a time: all, or `batch_size`, or
            fewer where memory is short or several devices share them. None: not told.
        preconditioned: Whether it is the Hessian as the optimizer sees it, D^-1/2 H D^-1/2, that
            all of this speaks of.
        stability_threshold: The largest eigenvalue at which full-batch steps of the optimizer are
            stable on a quadratic loss with the Hessian measured; None where it has none.
        block_size: Vectors that were multiplied at a time; None: not told.

    Example:

        >>> from keras_hessian_callback import CurvatureReport, Estimate
        >>> norm = Estimate(2.0, standard_error=0.1, lower=1.8, upper=2.2, num_matvecs=32)
        >>> report = CurvatureReport({"frobenius_norm": norm}, num_parameters=50,
        ...     num_examples=8, num_matvecs=32, seconds=0.1, method="Hutchinson(num_probes=32)")
        >>> report["frobenius_norm"].upper
        2.2
        >>> list(report)
        ['frobenius_norm']
    """

    estimates: Mapping[str, Estimate]
    num_parameters: int
    num_examples: int
    num_matvecs: int
    seconds: float
    method: str
    products: str = "autodiff"
    num_folds: int = 1
    carried: bool = False
    layers: Mapping[str, Estimate] = field(default_factory=dict)
    pool_size: int | None = None
    spectrum: Spectrum | None = None
    batch_size: int | None = None
    preconditioned: bool = False
    stability_threshold: float | None = None
    block_size: int | None = None

    def __getitem__(self, name: str) -> Estimate:
        try:
            return self.estimates[name]
        except KeyError:
            raise KeyError(f"{name!r}; the report has {', '.join(self.estimates)}") from None

    def __str__(self) -> str:
        rows = [
            f"{name}: {estimate.value:.4g} [{estimate.lower:.4g}, {estimate.upper:.4g}]"
            for name, estimate in self.estimates.items()
        ]
        return "\n".join([f"{self.method}, {self.num_matvecs} products", *rows])

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def to_dict(self) -> dict[str, object]:
        """The report as a dictionary for JSON: None stands for NaN and infinity."""
        return {
            "estimates": {name: estimate.to_dict() for name, estimate in self.items()},
            "num_parameters": self.num_parameters,
            "num_examples": self.num_examples,
            "num_matvecs": self.num_matvecs,
            "seconds": self.seconds,
            "method": self.method,
            "products": self.products,
            "num_folds": self.num_folds,
            "carried": self.carried,
            "layers": {name: estimate.to_dict() for name, estimate in self.layers.items()},
            "pool_size": self.pool_size,
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "spectrum": self.spectrum.to_dict() if self.spectrum else None,
            "preconditioned": self.preconditioned,
            "stability_threshold": self.stability_threshold,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
