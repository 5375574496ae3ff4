import doctest
import importlib
import inspect
import pkgutil

import pytest

import keras_hessian_callback as package
from keras_hessian_callback import (
    Deflated,
    Exact,
    HessianNormCallback,
    HessianOperator,
    Hutchinson,
    Lanczos,
    SummaryWriter,
    hessian_frobenius_norm,
    importance,
    measure_curvature,
)

MODULES = [
    name for _, name, _ in pkgutil.walk_packages(package.__path__, prefix="keras_hessian_callback.")
]


def test_public_names():
    assert sorted(package.__all__) == [
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
    assert all(hasattr(package, name) for name in package.__all__)


@pytest.mark.parametrize(
    ("function", "positional", "keywords"),
    [
        (
            HessianNormCallback,
            {"method": "stochastic"},
            {
                "log_dir": None,
                "schedule": "epoch",
                "batch_size": None,
                "memory_limit": None,
                "loss_fn": None,
                "training": False,
                "preconditioned": False,
                "seed": 0,
                "on_error": "warn",
            },
        ),
        (
            measure_curvature,
            {"method": "stochastic"},
            {
                "batch_size": None,
                "memory_limit": None,
                "loss_fn": None,
                "training": False,
                "preconditioned": False,
                "seed": 0,
                "state": None,
            },
        ),
        (
            hessian_frobenius_norm,
            {"method": "stochastic"},
            {
                "batch_size": None,
                "memory_limit": None,
                "loss_fn": None,
                "training": False,
                "preconditioned": False,
                "seed": 0,
            },
        ),
        (
            HessianOperator,
            {},
            {
                "products": "autodiff",
                "batch_size": None,
                "memory_limit": None,
                "loss_fn": None,
                "training": False,
            },
        ),
        (
            Deflated,
            {
                "max_rank": None,
                "max_matvecs": 20,
                "target_error": 0.01,
                "products": "auto",
            },
            {},
        ),
        (SummaryWriter, {"group": "hessian", "x_name": "epoch"}, {}),
        (importance, {"num_examples": 256}, {"floor": 0.1}),
        (Exact, {"products": "auto", "max_parameters": 20_000}, {}),
        (
            Hutchinson,
            {"num_probes": 16, "distribution": "rademacher", "products": "auto"},
            {},
        ),
        (Lanczos, {"num_probes": 4, "num_steps": 20, "products": "auto"}, {}),
    ],
)
def test_signatures_and_defaults(function, positional, keywords):
    parameters = inspect.signature(function).parameters.values()
    given = [p for p in parameters if p.default is not p.empty]
    assert {p.name: p.default for p in given if p.kind is p.POSITIONAL_OR_KEYWORD} == positional
    assert {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY} == keywords


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("name", package.__all__)
def test_public_docstrings_have_an_example(name):
    assert ">>>" in inspect.getdoc(getattr(package, name))
