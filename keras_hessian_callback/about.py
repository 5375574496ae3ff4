"""What a run's curves were made with, as a table for TensorBoard's Text tab."""

import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import keras
import tensorflow as tf

from keras_hessian_callback.results import CurvatureReport
from keras_hessian_callback.stability import Stability, learning_rate

_HYPERPARAMETERS = (
    "momentum",
    "nesterov",
    "beta_1",
    "beta_2",
    "rho",
    "epsilon",
    "amsgrad",
    "centered",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
)


def about_report(report: CurvatureReport) -> dict[str, str]:
    """What the report of a measurement tells of how it was made."""
    drawn = f", drawn from a pool of {report.pool_size:,}" if report.pool_size else ""
    return {
        "Matrix": "D^-1/2 H D^-1/2, the Hessian H over what the optimizer divides by"
        if report.preconditioned
        else "the Hessian H of the loss",
        "Method": report.method,
        "Products with the Hessian": f"{report.num_matvecs} the first time, by {report.products}",
        "Parameters": f"{report.num_parameters:,}",
        "Held-out examples": f"{report.num_examples:,}{drawn}",
        "Micro-batches": str(report.num_folds),
    }


def about_optimizer(optimizer: Any) -> dict[str, str]:
    """The optimizer as it is now, of Keras, or None."""
    return {"Optimizer": _optimizer(optimizer)}


def about_threshold(report: CurvatureReport, stable: Stability) -> dict[str, str]:
    """The step size's threshold that the eigenvalues are drawn with, or why there is none."""
    if report.stability_threshold is not None:
        threshold = f"{report.stability_threshold:.4g} at the first measurement"
        return {"Stability threshold": threshold}
    other = "preconditioned Hessian" if stable.preconditioned else "Hessian itself"
    cure = f"preconditioned={stable.preconditioned}"
    elsewhere = f"It is one for the {other}: HessianNormCallback(..., {cure})."
    return {"No stability threshold": stable.reason or elsewhere}


def about_versions() -> dict[str, str]:
    """What ran."""
    try:
        own = version("keras_hessian_callback")
    except PackageNotFoundError:  # not installed, but on the path
        own = "of unknown version"
    others = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    return {"Versions": f"keras_hessian_callback {own}, {others}"}


def table(rows: Mapping[str, str]) -> str:
    """The rows in Markdown, names to the left."""
    lines = [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows.items()]
    return "\n".join(["| Curvature | measured with |", "|---|---|", *lines])


def _optimizer(optimizer: Any) -> str:
    if optimizer is None:
        return "none"
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return f"{type(optimizer).__name__}({_optimizer(inner)})"
    settings = []
    rate = learning_rate(optimizer)
    if not math.isnan(rate):
        settings.append(f"learning_rate={rate:.4g} at the first measurement")
    for name in _HYPERPARAMETERS:
        value = getattr(optimizer, name, None)
        if isinstance(value, int | float) and value is not False:
            settings.append(f"{name}={value!r}")
    return f"{type(optimizer).__name__}({', '.join(settings)})"
