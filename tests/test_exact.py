import math

import numpy as np
import pytest

from keras_hessian_callback import Exact, HessianOperator
from keras_hessian_callback.estimators import exact
from keras_hessian_callback.operators.linear_operator import DenseOperator
from tests.oracles import symmetric_matrix
from tests.problems import tanh_classifier

MATRIX = symmetric_matrix(np.linspace(-1.0, 3.0, 300))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_norm_and_trace_are_those_of_the_matrix(dtype):
    estimates, state = Exact()(DenseOperator(MATRIX.astype(dtype)))
    rel = 1e-12 if dtype == "float64" else 1e-5
    assert estimates["frobenius_norm"].value == pytest.approx(np.linalg.norm(MATRIX), rel=rel)
    assert estimates["trace"].value == pytest.approx(np.trace(MATRIX), rel=rel)
    assert state is None
    for estimate in estimates.values():
        assert estimate.standard_error == 0.0
        assert estimate.lower == estimate.value == estimate.upper
        assert estimate.num_matvecs == 300


def test_blocks_are_bounded(monkeypatch):
    widths = []

    class Watched(DenseOperator):
        def row_products(self, V):
            widths.append(V.shape[0])
            return super().row_products(V)

    monkeypatch.setattr(exact, "_BLOCK_ENTRIES", 7 * 300)
    estimates, _ = Exact()(Watched(MATRIX))
    assert set(widths) == {7, 300 % 7}
    assert estimates["trace"].value == pytest.approx(np.trace(MATRIX))


def test_the_error_of_finite_differences_is_unknown_not_zero():
    problem = tanh_classifier()
    operator = HessianOperator(*problem, products="finite_difference")
    estimates, _ = Exact(products="finite_difference")(operator)
    truth, _ = Exact()(HessianOperator(*problem))
    for name, estimate in estimates.items():
        assert estimate.value == pytest.approx(truth[name].value, rel=2e-3)
        assert math.isnan(estimate.standard_error)
        assert math.isnan(estimate.upper)


def test_what_is_not_finite_is_nan():
    operator = DenseOperator(np.full((3, 3), np.nan))
    estimates, _ = Exact()(operator)
    assert math.isnan(estimates["frobenius_norm"].value)
    assert math.isnan(estimates["frobenius_norm"].standard_error)


def test_large_models_are_refused_with_count_time_and_way_out():
    operator = DenseOperator(MATRIX)
    message = (
        r"300 trainable parameters takes 300 products, about \d+\.\d seconds a measurement\. "
        r"Use method='stochastic', or allow it: Exact\(max_parameters=300\)"
    )
    with pytest.raises(ValueError, match=message):
        Exact(max_parameters=299)(operator)
    assert Exact(max_parameters=300)(operator)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.04, "1.0 seconds"), (150, "2 minutes"), (7300, "2 hours"), (1e6, "12 days")],
)
def test_durations_read_well(seconds, text):
    assert exact._duration(seconds) == text


def test_progress_appears_only_when_it_takes_long(capsys, monkeypatch):
    operator = DenseOperator(MATRIX)
    Exact()(operator)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(exact, "_QUIET_SECONDS", 0.0)
    Exact()(operator)
    shown = capsys.readouterr().err
    assert "of 300 products" in shown
    assert "300 products in" in shown


@pytest.mark.parametrize("count", [0, -3])
def test_max_parameters_below_one_is_refused(count):
    with pytest.raises(ValueError, match="`max_parameters` must be at least 1"):
        Exact(max_parameters=count)


def test_unknown_products_are_refused_with_those_accepted():
    with pytest.raises(ValueError, match="one of auto, autodiff, finite_difference; got 'jvp'"):
        Exact(products="jvp")
