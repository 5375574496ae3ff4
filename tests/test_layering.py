"""Imports between the rooms point down only, and the host frameworks stay at the border."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

import keras_hessian_callback

ROOT = Path(keras_hessian_callback.__file__).parent
PACKAGE = "keras_hessian_callback"

ESTIMATOR = {"estimators.estimator", "intervals", "linalg", "operators.linear_operator", "results"}
ALLOWED = {
    "callback": {
        "about",
        "budget",
        "data",
        "errors",
        "estimators.estimator",
        "measurement",
        "memory",
        "objective",
        "operators.hessian",
        "pool",
        "record",
        "replicas",
        "results",
        "schedule",
        "stability",
    },
    "record": {"carried", "errors", "results", "spectra", "summaries"},
    "measurement": {
        "errors",
        "estimators.deflated",
        "estimators.estimator",
        "estimators.exact",
        "linalg",
        "objective",
        "operators.hessian",
        "operators.linear_operator",
        "operators.preconditioned",
        "results",
        "stability",
    },
    "linalg": {"rows"},
    "stability": {"linalg", "second_order", "update_rules"},
    "operators.preconditioned": {"operators.linear_operator"},
    "pool": {"data", "linalg"},
    "about": {"results", "stability"},
    "summaries": {"carried", "charts", "pictures", "results", "spectra"},
    "carried": {"spectra"},
    "charts": {"spectra"},
    "spectra": {"pictures", "results"},
    "budget": {"estimators.estimator", "operators.linear_operator"},
    "intervals": {"results", "spreads"},
    "masses": {"data"},
    "second_order": {"gradient_rules"},
    "objective": {"data", "execution", "masses", "replicas", "second_order"},
    "estimators.estimator": {"linalg", "operators.linear_operator", "results"},
    "krylov": {"grams", "operators.linear_operator", "rows"},
    "basis": {"deflation", "grams", "linalg", "operators.linear_operator", "rows"},
    "deflation": {"grams", "operators.linear_operator", "residuals", "rows", "spreads"},
    "residuals": {"grams", "rows"},
    "grams": {"rows"},
    "split_estimates": {"deflation", "intervals", "results"},
    "holdings": {"linalg", "operators.linear_operator"},
    "estimators.deflated": ESTIMATOR | {"basis", "deflation", "holdings", "split_estimates"},
    "estimators.exact": ESTIMATOR | {"rows"},
    "estimators.hutchinson": ESTIMATOR | {"rows"},
    "estimators.lanczos": ESTIMATOR | {"krylov", "rows"},
    "operators.hessian": {
        "data",
        "errors",
        "generators",
        "linalg",
        "memory",
        "objective",
        "operators.drawn",
        "operators.guard",
        "operators.linear_operator",
        "operators.planning",
        "operators.shares",
        "operators.traced",
        "pool",
        "replicas",
        "rows",
        "second_order",
    },
    "operators.linear_operator": {"linalg"},
    "operators.planning": {"data", "errors", "linalg", "memory", "operators.traced", "replicas"},
    "operators.drawn": {
        "data",
        "linalg",
        "operators.output_curvature",
        "operators.portions",
        "operators.traced",
        "pool",
        "second_order",
    },
    "operators.output_curvature": {"data", "objective"},
    "operators.guard": {
        "data",
        "double_precision",
        "errors",
        "linalg",
        "operators.traced",
        "second_order",
    },
    "double_precision": {"execution"},
    "operators.shares": {"data", "operators.parts", "operators.portions", "operators.traced"},
    "operators.parts": {"replicas", "rows"},
    "operators.portions": {"data", "errors", "linalg", "operators.parts", "replicas"},
    "operators.traced": {
        "data",
        "errors",
        "execution",
        "linalg",
        "objective",
        "operators.autodiff",
        "operators.finite_difference",
        "operators.portions",
        "replicas",
        "second_order",
    },
    "operators.autodiff": {"data", "linalg", "objective", "second_order"},
    "operators.finite_difference": {"data", "linalg", "objective"},
}
KERAS_ROOMS = {
    "about",
    "callback",
    "data",
    "masses",
    "objective",
    "replicas",
    "second_order",
    "stability",
    "update_rules",
}
THIRD_PARTY = {"tensorflow", "keras", "numpy", "tensorboard"}

ROOMS = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_below(room):
    own = {name.removeprefix(f"{PACKAGE}.") for name in imports(ROOMS[room]) if PACKAGE in name}
    assert own <= ALLOWED.get(room, set())


def test_there_is_no_cycle_in_what_is_allowed():
    done: set[str] = set()
    remaining = dict.fromkeys(ROOMS)
    while remaining:
        free = [room for room in remaining if ALLOWED.get(room, set()) - {room} <= done]
        assert free, f"cycle among {sorted(remaining)}"
        done.update(free)
        for room in free:
            del remaining[room]


@pytest.mark.parametrize("room", ROOMS)
def test_keras_stays_at_the_border(room):
    tops = {name.split(".")[0] for name in imports(ROOMS[room])}
    assert "keras" not in tops or room in KERAS_ROOMS
    outside = {t for t in tops if t not in sys.stdlib_module_names and t != PACKAGE}
    assert outside <= THIRD_PARTY
    assert all(importlib.util.find_spec(name) for name in outside)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_small_and_named_for_its_job(room):
    assert len(ROOMS[room].read_text().splitlines()) <= 320
    assert not set(room.split(".")) & {"utils", "helpers", "base", "common", "misc"}


def test_the_package_itself_only_names_what_is_public():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in tree.body)
