"""What a run's curves were made with, as a table for TensorBoard's Text tab."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import keras
import tensorflow as tf

from keras_hessian_callback.results import CurvatureReport

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
        "Method": report.method,
        "Products with the Hessian": f"{report.num_matvecs} the first time, by {report.products}",
        "Parameters": f"{report.num_parameters:,}",
        "Held-out examples": f"{report.num_examples:,}{drawn}",
        "Micro-batches": str(report.num_folds),
    }


def about_optimizer(optimizer: Any, reason: str = "") -> dict[str, str]:
    """The optimizer as it is now, and why there is no stability threshold.

    Args:
        optimizer: Of Keras, or None.
        reason: Why there is no threshold; empty: there is one, or nobody asked.
    """
    told = {"Optimizer": _optimizer(optimizer)}
    return told | ({"No stability threshold": reason} if reason else {})


def about_versions() -> dict[str, str]:
    """What ran."""
    return {
        "Versions": f"keras_hessian_callback {version('keras_hessian_callback')}, Keras "
        f"{keras.__version__}, TensorFlow {tf.__version__}"
    }


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
    if hasattr(optimizer, "learning_rate"):
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        settings.append(f"learning_rate={rate:.4g} at the first measurement")
    for name in _HYPERPARAMETERS:
        value = getattr(optimizer, name, None)
        if isinstance(value, int | float) and value is not False:
            settings.append(f"{name}={value!r}")
    return f"{type(optimizer).__name__}({', '.join(settings)})"
