"""The deflated estimator on spectra that are prescribed, in a random basis.

How often its intervals hold the truth is in test_coverage.py.
"""

import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_hessian_callback import (
    Deflated,
    Lanczos,
    deflation,
    grams,
    krylov,
    linalg,
    residuals,
    rows,
)
from keras_hessian_callback.deflation import Split
from keras_hessian_callback.estimators import deflated as estimator_module
from keras_hessian_callback.estimators import lanczos
from keras_hessian_callback.operators.linear_operator import DenseOperator
from tests.operators import Folded
from tests.oracles import SPECTRA, symmetric_matrix


class Layered(DenseOperator):
    """A matrix whose rows belong to three layers, one of them in two parts."""

    layers = (
        ("a", slice(0, 40)),
        ("b", slice(40, 50)),
        ("a", slice(50, 60)),
        ("c", slice(60, 120)),
    )


def test_a_basis_follows_a_matrix_that_moves():
    """Eigenvectors turn by 6 degrees a measurement; 20 products keep the norm within 2 %."""
    eigenvalues = SPECTRA["outliers"]
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(120, 120)))[0]
    errors, state = [], None
    for step in range(12):
        basis = np.linalg.qr(basis + 0.01 * rng.normal(size=basis.shape))[0]
        operator = DenseOperator((basis * eigenvalues) @ basis.T)
        estimates, state = Deflated(target_error=None)(operator, seed=(0, step), state=state)
        errors.append(float(estimates["frobenius_norm"]) / np.linalg.norm(eigenvalues) - 1.0)
        assert estimates["frobenius_norm"].num_matvecs <= 20
    assert np.sqrt(np.mean(np.square(errors[3:]))) < 0.02


def test_the_rank_is_the_one_that_makes_the_interval_narrowest():
    """On outliers it grows to hold them; where the spectrum turns flat it falls to what pays.

    Of 20 products the variance of a mean is V_k / (20 - k) with k columns, V_k = 2 sum of the
    lambda^4 that are left over. The estimator sees it through noise: on the flat spectrum it may
    lose 15 %. Past the ten outliers it may lose half, of a width that is 100 times smaller.
    """
    estimator = Deflated(target_error=None)

    def width(eigenvalues, rank):
        left = np.sort(np.abs(eigenvalues))[: 120 - rank]
        return stats.t.ppf(0.975, 19 - rank) * math.sqrt(np.sum(left**4) / (20 - rank))

    # Of both signs, one could be hidden: w'Hw = 0 for some w between two of them.
    outliers = DenseOperator(symmetric_matrix(np.abs(SPECTRA["outliers"])))
    flat = DenseOperator(symmetric_matrix(SPECTRA["flat"]))
    ranks = []
    for seed in range(10):
        state = None
        for step, operator in enumerate([outliers] * 4 + [flat] * 4):
            estimates, state = estimator(operator, seed=(seed, step), state=state)
            ranks.append(estimates["largest_ritz_value"].num_matvecs)
    ranks = np.reshape(ranks, (10, 8))
    assert (ranks[:, 3] >= 10).all()  # as many as there are outliers
    for spectrum, rank, loss in (("outliers", ranks[:, 3], 1.5), ("flat", ranks[:, 7], 1.15)):
        widths = [width(SPECTRA[spectrum], k) for k in range(19)]
        assert np.mean([widths[k] for k in rank]) <= loss * min(widths)
    assert (ranks[:, 7] < ranks[:, 3]).all()
    assert np.median(ranks[:, 7]) <= np.median(ranks[:, 3]) / 2.0


def test_layers_add_up_to_the_whole_and_are_those_of_its_rows():
    matrix = symmetric_matrix(SPECTRA["outliers"])
    operator, state = Layered(matrix), None
    rows = {"a": [*range(40), *range(50, 60)], "b": [*range(40, 50)], "c": [*range(60, 120)]}
    for step in range(3):
        estimates, state = Deflated()(operator, seed=(0, step), state=state)
        layers = {name: estimates[f"frobenius_norm/layer/{name}"] for name in rows}
        total = math.sqrt(sum(layer.value**2 for layer in layers.values()))
        assert total == pytest.approx(estimates["frobenius_norm"].value, rel=1e-12)
    for name, layer in layers.items():
        assert layer.value == pytest.approx(np.linalg.norm(matrix[rows[name]]), rel=0.02)
        assert layer.lower <= layer.value <= layer.upper


def test_what_is_on_a_gpu_is_worked_on_there(monkeypatch):
    """Tensors that are not taken for arrays give the same numbers."""

    def measured():
        for estimator in (Deflated(), Lanczos(num_probes=2, num_steps=12)):
            for operator in (Layered(matrix), Folded(folds, np.full(3, 1.0 / 3.0))):
                state = None
                for step in range(3):
                    estimates, state = estimator(operator, seed=(0, step), state=state)
                    yield [estimate.value for estimate in estimates.values()]

    matrix = symmetric_matrix(SPECTRA["outliers"])
    noise = np.random.default_rng(0).normal(size=(3, 120, 120))
    folds = matrix + 0.01 * (noise + noise.transpose(0, 2, 1))
    on_host = list(measured())
    for module in (rows, grams, deflation, residuals, krylov, linalg, lanczos):
        monkeypatch.setattr(module, "at_hand", lambda block: block)
    for host, device in zip(on_host, measured(), strict=True):
        np.testing.assert_allclose(device, host, rtol=1e-8)


@pytest.mark.parametrize("block_size", [1, 3, 12, 32])
def test_numbers_do_not_depend_on_what_is_multiplied_together(block_size):
    """In wide blocks the first probes come beside the basis, carried or made on the way."""

    def measured(size):
        folded.block_size = layered.block_size = size
        for operator, settings in ((folded, {}), (folded, {"max_matvecs": 40}), (layered, {})):
            state = None
            for step in range(3):
                estimates, state = Deflated(**settings)(operator, seed=(0, step), state=state)
                yield [(e.value, e.lower, e.upper, e.num_matvecs) for e in estimates.values()]

    matrix = symmetric_matrix(SPECTRA["outliers"])
    noise = np.random.default_rng(0).normal(size=(3, 120, 120))
    folds = matrix + 0.01 * (noise + noise.transpose(0, 2, 1))
    folded, layered = Folded(folds, np.array([0.5, 0.3, 0.2])), Layered(matrix)
    for found, expected in zip(measured(block_size), measured(8), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("block_size", [1, 4, 7, 32])
def test_sums_along_a_basis_are_those_of_the_matrices(block_size):
    """Rows that join others, with probes beside them or after; against whole matrices."""
    rng = np.random.default_rng(0)
    folds = rng.normal(size=(3, 60, 60))
    folds, shares = folds + folds.transpose(0, 2, 1), np.array([0.5, 0.3, 0.2])
    operator = Folded(folds, shares)
    operator.block_size = block_size
    rows = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    split, rank = Split(operator), 0
    for count, width in ((5, 3), (4, 2), (6, 9), (5, 4)):
        signs = rng.choice([-1.0, 1.0], size=(width, 60))
        split.deflate(tf.constant(rows[rank : rank + count]), [tf.constant(signs)])
        rank += count
    outside = np.eye(60) - rows[:rank].T @ rows[:rank]

    def squares(matrix):
        rest = outside @ matrix @ outside
        return np.sum(matrix**2) - np.sum(rest**2), np.sum((rest @ signs.T) ** 2, axis=0), rest

    exact, tails, rest = squares(np.tensordot(shares, folds, axes=1))
    of_folds = [squares(fold)[:2] for fold in folds]
    np.testing.assert_allclose(split.exact, exact, rtol=1e-10)
    np.testing.assert_allclose(split.tails, tails, rtol=1e-10)
    quadratics = np.einsum("ki,ij,kj->k", signs, rest, signs)
    np.testing.assert_allclose(split.quadratics, quadratics, rtol=1e-10, atol=1e-10)
    parts = zip(*of_folds, strict=True)
    within = [sum(s**2 * p for s, p in zip(shares, part, strict=True)) for part in parts]
    np.testing.assert_allclose(split.folds, within[0], rtol=1e-10)
    np.testing.assert_allclose(split.fold_tails, within[1], rtol=1e-10)
    assert (split.num_matvecs, split.num_deflated) == (38, 20)


def test_the_norm_of_the_population_is_found_from_folds():
    """Folds drawn around a mean: the norm of the mean is 10 % too high, that of pairs is not.

    Over 60 draws of 6 folds; the mean of the squares is off by less than 4 standard errors,
    which a true one is at a rate of 1e-4.
    """
    rng = np.random.default_rng(0)
    center = symmetric_matrix(SPECTRA["indefinite"])
    truth = np.sum(center**2)
    shares = np.array([0.2, 0.2, 0.2, 0.15, 0.15, 0.1])
    batch, population = [], []
    for draw in range(60):
        noise = rng.normal(size=(6, 120, 120))
        folds = center + 0.11 * (noise + noise.transpose(0, 2, 1))
        operator, state = Folded(folds, shares), None
        for step in range(2):
            estimates, state = Deflated()(operator, seed=(draw, step), state=state)
        batch.append(float(estimates["frobenius_norm"]) ** 2)
        population.append(float(estimates["population_frobenius_norm"]) ** 2)
    error = np.std(population, ddof=1) / math.sqrt(60)
    assert abs(np.mean(population) - truth) < 4.0 * error
    assert error < 0.02 * truth
    assert np.mean(batch) > 1.1 * truth


def test_equal_folds_need_no_correction():
    """Without data noise both are the norm, and come from the same products."""
    matrix = symmetric_matrix(SPECTRA["outliers"])
    folded, state = Folded(np.stack([matrix] * 4), np.full(4, 0.25)), None
    whole_state = None
    for step in range(2):
        estimates, state = Deflated()(folded, seed=(0, step), state=state)
        whole, whole_state = Deflated()(DenseOperator(matrix), seed=(0, step), state=whole_state)
    norm, population = estimates["frobenius_norm"], estimates["population_frobenius_norm"]
    assert population.value == pytest.approx(norm.value, rel=1e-3)
    assert norm.value == pytest.approx(whole["frobenius_norm"].value, rel=1e-9)
    assert population.num_matvecs == norm.num_matvecs


@pytest.mark.parametrize("max_matvecs", [3, 4, 7, 20, 41])
@pytest.mark.parametrize("spectrum", ["flat", "outliers"])
def test_products_are_counted_and_stay_within_the_limit(spectrum, max_matvecs):
    spent, widths = [], []

    class Counting(DenseOperator):
        def fold_products(self, V):
            spent.append(V.shape[0])
            widths.append(V.shape[0])
            return super().fold_products(V)

    operator = Counting(symmetric_matrix(SPECTRA[spectrum]))
    state = None
    for step in range(3):
        spent.clear()
        estimator = Deflated(max_matvecs=max_matvecs, target_error=None)
        estimates, state = estimator(operator, seed=(0, step), state=state)
        assert estimates["frobenius_norm"].num_matvecs == sum(spent) <= max_matvecs
        assert estimates["largest_ritz_value"].num_matvecs <= max_matvecs - 2
    assert max(widths) <= 8


def test_a_target_is_reached_with_fewer_products():
    operator = DenseOperator(symmetric_matrix(SPECTRA["outliers"]))
    estimator, state = Deflated(max_matvecs=60, target_error=0.03), None
    for step in range(3):
        estimates, state = estimator(operator, seed=(0, step), state=state)
        norm = estimates["frobenius_norm"]
        assert max(norm.upper - norm.value, norm.value - norm.lower) <= 0.03 * norm.value
        assert norm.num_matvecs <= (60, 40, 40)[step]


def test_a_small_matrix_is_measured_exactly():
    matrix = symmetric_matrix(np.array([3.0, -5.0, 0.5, 1.0]))
    estimates, state = Deflated()(DenseOperator(matrix))
    assert state is None
    expected = {"frobenius_norm": np.sqrt(35.25), "trace": -0.5, "spectral_norm": 5.0}
    expected |= {"largest_ritz_value": 3.0, "smallest_ritz_value": -5.0, "stable_rank": 1.41}
    for name, value in expected.items():
        assert estimates[name].value == pytest.approx(value, rel=1e-9)
        assert estimates[name].lower <= value + 1e-12
        assert value - 1e-12 <= estimates[name].upper
    assert estimates["frobenius_norm"].num_matvecs == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_gives_nan_and_no_basis(bad):
    matrix = symmetric_matrix(SPECTRA["outliers"])
    estimator = Deflated()
    _, state = estimator(DenseOperator(matrix), seed=(0, 0))
    broken = matrix.copy()
    broken[3, 5] = bad
    for before in (None, state):
        estimates, after = estimator(DenseOperator(broken), seed=(0, 1), state=before)
        assert after is None
        assert all(math.isnan(estimate.value) for estimate in estimates.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_layers_of_a_run_that_diverged_are_nan_like_the_whole(bad):
    matrix = symmetric_matrix(SPECTRA["outliers"])
    _, state = Deflated()(Layered(matrix), seed=(0, 0))
    for before in (None, state):
        diverged = Layered(np.full_like(matrix, bad))
        estimates, _ = Deflated()(diverged, seed=(0, 1), state=before)
        for name in ("frobenius_norm", *(f"frobenius_norm/layer/{layer}" for layer in "abc")):
            assert math.isnan(estimates[name].value)
            assert math.isnan(estimates[name].lower)
            assert math.isnan(estimates[name].upper)


def test_a_zero_matrix_is_a_certain_zero():
    estimates, state = Deflated()(DenseOperator(np.zeros((50, 50))))
    assert state is None
    assert estimates["frobenius_norm"].value == estimates["frobenius_norm"].upper == 0.0
    assert estimates["trace"].value == 0.0


def test_the_same_seed_and_state_give_the_same_estimates():
    operator = DenseOperator(symmetric_matrix(SPECTRA["decaying"]))
    first, state = Deflated()(operator, seed=(3, 4))
    again, other_state = Deflated()(operator, seed=(3, 4))
    assert first == again
    assert (
        Deflated()(operator, seed=(3, 5), state=state)[0]
        == (Deflated()(operator, seed=(3, 5), state=other_state)[0])
    )
    assert Deflated()(operator, seed=(3, 6), state=state)[0] != first


def test_a_state_that_its_probes_have_shaped_is_refused():
    operator = DenseOperator(symmetric_matrix(SPECTRA["outliers"]))
    found, state = Deflated()(operator, seed=7)
    assert not found.carried
    for same in (7, (7, 0), np.int64(7)):
        with pytest.raises(ValueError, match="have shaped this `state`"):
            Deflated()(operator, seed=same, state=state)
    found, state = Deflated()(operator, seed=(7, 1), state=state)
    assert found.carried
    restored = Deflated().restore(state.arrays())
    for earlier in (state, restored):
        with pytest.raises(ValueError, match="have shaped this `state`"):
            Deflated()(operator, seed=7, state=earlier)
    assert Deflated()(operator, seed=(7, 2), state=restored)[0].carried


def test_known_directions_come_before_a_probes_share_of_the_bulk():
    """Most of ||PHPv||^2 / m is the bulk: of vectors in no direction that they share."""
    n = 400
    eigenvalues = np.full(n, 0.4)
    eigenvalues[:8] = 2.5
    matrix = symmetric_matrix(eigenvalues)
    operator = DenseOperator(matrix)
    vectors = np.linalg.eigh(matrix)[1][:, -8:]
    inside, ratios = [], []
    for seed in range(5):
        state = None
        for step in range(4):
            _, state = Deflated(target_error=None)(operator, seed=(seed, step), state=state)
        leading = np.asarray(state.vectors)[:8]
        inside.append(np.sum((leading @ vectors) ** 2) / 8.0)
        rest = np.eye(n) - leading.T @ leading
        left = rest @ matrix @ rest
        square = left @ left
        truth = 2.0 * (np.sum(square**2) - np.sum(np.diag(square) ** 2))
        ratios.append(state.variances[8] / truth)
    assert min(inside) > 0.95
    assert 0.5 < np.median(ratios) < 2.0


def test_only_a_basis_is_a_state():
    operator = DenseOperator(symmetric_matrix(SPECTRA["outliers"]))
    with pytest.raises(TypeError, match="`state` must be what Deflated returned"):
        Deflated()(operator, state="abc")
    _, state = Deflated()(operator)
    other = DenseOperator(np.diag(np.linspace(0.0, 1.0, 50)))
    assert not Deflated()(other, state=state)[0].carried
    with pytest.raises(TypeError, match="`state` must be what Deflated returned"):
        Deflated()(DenseOperator(np.eye(5)), state="abc")


@pytest.mark.parametrize("unit", [1e-30, 1e-25, 1e20, 1e34])
def test_the_whole_range_of_single_precision_is_measured(unit):
    matrix = symmetric_matrix(SPECTRA["outliers"])
    state = other = None
    for step in range(3):
        seed = (0, step)
        plain, state = Deflated()(DenseOperator(matrix.astype("float32")), seed=seed, state=state)
        scaled = DenseOperator((unit * matrix).astype("float32"))
        found, other = Deflated()(scaled, seed=seed, state=other)
        for name in ("frobenius_norm", "trace", "spectral_norm"):
            for end in ("value", "lower", "upper"):
                expected = getattr(plain[name], end)
                assert getattr(found[name], end) / unit == pytest.approx(expected, rel=1e-3)


def test_single_precision_measures_what_double_precision_does():
    matrix = symmetric_matrix(SPECTRA["outliers"])
    results = []
    for dtype in ("float32", "float64"):
        operator, state = DenseOperator(matrix.astype(dtype)), None
        for step in range(3):
            estimates, state = Deflated()(operator, seed=(0, step), state=state)
        results.append(estimates)
        basis = tf.cast(state.vectors, tf.float64)
        deviation = tf.matmul(basis, basis, transpose_b=True) - tf.eye(
            basis.shape[0], dtype="double"
        )
        assert float(tf.reduce_max(tf.abs(deviation))) < 10.0 * np.finfo(dtype).eps
    for name in ("frobenius_norm", "trace", "spectral_norm"):
        assert results[0][name].value == pytest.approx(results[1][name].value, rel=1e-4)


def test_a_basis_that_does_not_fit_is_dropped_with_a_message():
    operator = DenseOperator(symmetric_matrix(SPECTRA["outliers"]))
    operator.room = 0.0
    with pytest.warns(UserWarning, match="basis of 16 vectors of 120 weights.*none will be kept"):
        Deflated().check(operator)
    estimates, state = Deflated(target_error=None)(operator)
    assert state is None
    assert math.isnan(estimates["spectral_norm"].value)
    assert estimates["frobenius_norm"].num_matvecs == 20


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_matvecs": 2}, ValueError, "`max_matvecs` must be at least 3.*max_matvecs=2"),
        ({"max_matvecs": 20.0}, TypeError, "`max_matvecs` must be an integer"),
        ({"max_rank": 0}, ValueError, "`max_rank` must be at least 1"),
        ({"max_rank": 19}, ValueError, r"at most max_matvecs - 2 = 18.*allow max_matvecs=21"),
        ({"target_error": 0.0}, ValueError, r"`target_error` must lie in \(0, 1\)"),
        ({"target_error": 1.0}, ValueError, "such as 0.01 for 1 %; got target_error=1.0"),
        ({"target_error": 1}, TypeError, "`target_error` must be a float"),
        ({"target_error": math.nan}, ValueError, "`target_error` must lie in"),
        ({"products": "fd"}, ValueError, "one of auto, autodiff, finite_difference; got 'fd'"),
    ],
)
def test_bad_settings_say_what_to_do(settings, error, message):
    with pytest.raises(error, match=message):
        Deflated(**settings)


def test_the_spectrum_holds_the_ritz_values():
    eigenvalues = np.r_[9.0, -7.0, 5.0, np.full(497, 0.1)]
    operator = DenseOperator(symmetric_matrix(eigenvalues))
    _, state = Deflated(max_matvecs=16)(operator, seed=(0, 0))
    warm, _ = Deflated(max_matvecs=16)(operator, seed=(0, 1), state=state)
    nodes, weights = warm.spectrum.nodes, warm.spectrum.weights
    np.testing.assert_allclose(nodes[[0, -2, -1]], [-7.0, 5.0, 9.0], rtol=1e-3)
    np.testing.assert_array_equal(weights, 1.0 / 500)


@pytest.mark.parametrize("spectrum", ["outliers", "decaying"])
def test_a_first_measurement_stops_on_sixteen_probes_or_more(spectrum, monkeypatch):
    """After 8 on a basis that no measurement has tried intervals covered 92 %."""
    seen = []
    original = estimator_module.split_estimates

    def spy(split, top):
        seen.append((split.rank, len(split.tails), split.num_matvecs))
        return original(split, top)

    monkeypatch.setattr(estimator_module, "split_estimates", spy)
    operator = DenseOperator(symmetric_matrix(SPECTRA[spectrum]))
    for seed in range(10):
        Deflated(max_matvecs=60, target_error=0.02)(operator, seed=seed)
    stopped = [probes for rank, probes, spent in seen if rank and spent < 60]
    assert stopped
    assert min(stopped) >= 16


@pytest.mark.parametrize("room", [14.0, 17.0, 20.0])
def test_where_room_is_small_fewer_probes_are_drawn_at_a_time(room):
    """So that no more are kept than planned, and those of a first block make a basis."""
    widths = []

    class Watched(DenseOperator):
        def row_products(self, V):
            widths.append(V.shape[0])
            return super().row_products(V)

    operator = Watched(symmetric_matrix(SPECTRA["outliers"]))
    operator.room = room
    kept = max(2, int((room - 2.0) / 3.0))
    estimates, _ = Deflated(target_error=None)(operator, seed=0)
    assert widths[0] <= kept
    assert estimates["frobenius_norm"].num_matvecs == 20
    assert math.isfinite(estimates["largest_ritz_value"].value)
