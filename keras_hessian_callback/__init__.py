"""Curvature of neural networks, watched while they train."""

from keras_hessian_callback.callback import HessianNormCallback
from keras_hessian_callback.estimators.deflated import Deflated
from keras_hessian_callback.estimators.exact import Exact
from keras_hessian_callback.estimators.hutchinson import Hutchinson
from keras_hessian_callback.estimators.lanczos import Lanczos
from keras_hessian_callback.measurement import hessian_frobenius_norm, measure_curvature
from keras_hessian_callback.operators.hessian import HessianOperator
from keras_hessian_callback.pool import importance
from keras_hessian_callback.results import CurvatureReport, Estimate, Spectrum
from keras_hessian_callback.schedule import every, within
from keras_hessian_callback.summaries import SummaryWriter

__all__ = [
    "CurvatureReport",
    "Deflated",
    "Estimate",
    "Exact",
    "HessianNormCallback",
    "HessianOperator",
    "Hutchinson",
    "Lanczos",
    "Spectrum",
    "SummaryWriter",
    "every",
    "hessian_frobenius_norm",
    "importance",
    "measure_curvature",
    "within",
]
