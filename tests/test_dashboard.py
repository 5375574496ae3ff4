"""What a person sees in TensorBoard: charts, titles, texts and pictures, by its own back ends."""

import dataclasses
import math
import re

import keras
import numpy as np
import pytest

from keras_hessian_callback import (
    CurvatureReport,
    Deflated,
    Estimate,
    HessianNormCallback,
    Hutchinson,
    Spectrum,
    every,
    within,
)
from keras_hessian_callback.about import about_optimizer, table
from keras_hessian_callback.charts import description, layout
from keras_hessian_callback.pictures import HEIGHT, WIDTH
from keras_hessian_callback.results import Findings
from keras_hessian_callback.spectra import Spectra, histogram
from keras_hessian_callback.summaries import SummaryWriter
from tests.board import Board
from tests.problems import tanh_classifier
from tests.test_callback import data, fit

LOSS = "Curvature of the loss"
NORM = "Frobenius norm of the Hessian, with its 95 % band"
POPULATION = "Frobenius norm for a larger held-out set, with its 95 % band"
TRACE = "Trace of the Hessian, with its 95 % band"
EIGENVALUES = "Largest and smallest eigenvalue found, and the step size's stability threshold"
SPECTRAL = "Spectral norm (largest |eigenvalue|), with its bounds"
STABLE = "Stable rank: directions that share the curvature, with its bounds"
LAYERS = "Frobenius norm by layer"
OVERHEAD = "Overhead: time of the measurements over the rest"
SIZE = 1000


def report(value=2.0, layers=("dense",), spectrum=None) -> CurvatureReport:
    estimate = Estimate(value, 0.1, value - 0.2, value + 0.2, 8)
    names = ("frobenius_norm", "trace", "largest_ritz_value", "smallest_ritz_value")
    return CurvatureReport(
        dict.fromkeys(names, estimate),
        SIZE,
        8,
        8,
        0.1,
        "Deflated()",
        layers=dict.fromkeys(layers, estimate),
        spectrum=spectrum,
    )


def part(*eigenvalues) -> Spectrum:
    return Spectrum(np.array(eigenvalues), np.full(len(eigenvalues), 1.0 / SIZE))


def whole() -> Spectrum:
    return Spectrum(np.array([-0.01, 0.0, 0.02, 9.0]), np.array([0.3, 0.399, 0.3, 0.001]))


@dataclasses.dataclass(frozen=True)
class Telling(Hutchinson):
    """Norm and trace, and a spectrum that moves with the step; nothing is carried."""

    num_probes: int = 2

    def __call__(self, operator, *, seed, state=None):
        found, _ = super().__call__(operator, seed=seed)
        return Findings(dict(found), part(-1.0, 1.0 + seed[1])), None


def assert_charts_have_their_data(board: Board, runs, category=LOSS) -> None:
    """As the front end does it: it complains where tags are missing or steps differ."""
    for title, chart in board.charts(category).items():
        found = 0
        for run in runs:
            if "margin" in chart:
                (series,) = chart["margin"]["series"]
                tags = [series[end] for end in ("value", "lower", "upper")]
                lines = board.lines(run, [re.escape(tag) for tag in tags])
                lines = {tag: lines[tag] for tag in tags if tag in lines}
                assert len(lines) in (0, 3), title
                steps = [[step for step, _ in line] for line in lines.values()]
                assert all(other == steps[0] for other in steps), title
            else:
                lines = board.lines(run, chart["multiline"]["tag"])
            found += len(lines)
        assert found, title


# --- charts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "batch_size", "expected"),
    [
        (Hutchinson(num_probes=3), None, [NORM, TRACE, OVERHEAD]),
        ("autodiff", None, [NORM, TRACE, OVERHEAD]),
        (
            Deflated(max_matvecs=10),
            5,
            [POPULATION, NORM, STABLE, SPECTRAL, TRACE, EIGENVALUES, LAYERS, OVERHEAD],
        ),
    ],
)
def test_charts_are_those_that_a_method_has_values_for(method, batch_size, expected, tmp_path):
    callback = HessianNormCallback(data(), method, log_dir=tmp_path, batch_size=batch_size)
    fit(callback, epochs=2, others=[keras.callbacks.TensorBoard(tmp_path)])
    board = Board(tmp_path)
    assert list(board.charts(LOSS)) == expected
    norm, *_ = board.categories().items()  # the one that is seen first
    assert norm[0] == f"{LOSS}: norm"
    assert list(norm[1])[-1] == NORM  # of charts with bands the last is drawn first
    assert_charts_have_their_data(board, ["hessian", "train"])
    band = board.lines("hessian", ["^hessian/frobenius_norm/lower$"])
    assert band["hessian/frobenius_norm/lower"] == [
        (epoch, pytest.approx(value))
        for epoch, value in enumerate(callback.history["frobenius_norm/lower"])
    ]


@pytest.mark.parametrize("schedule", ["epoch", every(steps=3), within(overhead=0.3)])
def test_every_schedule_draws_the_same_charts(schedule, tmp_path):
    callback = HessianNormCallback(data(), Telling(), log_dir=tmp_path, schedule=schedule)
    fit(callback, epochs=8)
    board = Board(tmp_path)
    assert_charts_have_their_data(board, ["hessian"])
    steps = callback.history["step"]
    (overhead,) = board.lines("hessian", ["^hessian/overhead$"]).values()
    assert [step for step, _ in overhead][: len(steps)] == steps
    assert all(value > 0.0 for _, value in overhead)
    assert list(board.histograms("hessian", "hessian/spectrum")) == steps
    assert max(board.pictures("hessian", "hessian/spectrum_over_time")) == steps[-1]


def test_lines_show_the_threshold_and_no_other_tag(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.write(report(), 0, others={"stability_threshold": 20.0, "overhead": 0.1})
    board = Board(tmp_path)
    chart = board.charts(LOSS)[EIGENVALUES]
    lines = board.lines("hessian", chart["multiline"]["tag"])
    assert {tag: values[0][1] for tag, values in lines.items()} == {
        "hessian/largest_ritz_value": 2.0,
        "hessian/smallest_ritz_value": 2.0,
        "hessian/stability_threshold": 20.0,
    }
    by_layer = board.charts(LOSS)[LAYERS]["multiline"]["tag"]
    assert list(board.lines("hessian", by_layer)) == ["hessian_by_layer/frobenius_norm/dense"]


def test_bands_keep_their_steps_where_values_are_missing_or_thinned(tmp_path):
    """NaN and infinity are written too, and TensorBoard's samples of the three are the same."""
    writer = SummaryWriter(tmp_path)
    for step in range(60):
        value = math.nan if step % 7 == 0 else 1.0 + step
        one = report(value)
        if step % 5 == 0:
            estimate = dataclasses.replace(one["trace"], upper=math.inf)
            one = dataclasses.replace(one, estimates={**one.estimates, "trace": estimate})
        writer.write(one, step)
    assert_charts_have_their_data(Board(tmp_path), ["hessian"])
    thinned = Board(tmp_path, most_scalars=20)
    assert_charts_have_their_data(thinned, ["hessian"])
    (line,) = thinned.lines("hessian", ["^hessian/trace$"]).values()
    assert len(line) == 20


def test_the_check_of_charts_would_see_steps_that_differ(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.write(report(), 0)
    upper = Estimate(1.0, 0.1, 0.9, 1.1, 8)
    crooked = dataclasses.replace(report(), estimates={"frobenius_norm/upper": upper})
    writer.write(crooked, 1)
    with pytest.raises(AssertionError, match="Frobenius norm of the Hessian"):
        assert_charts_have_their_data(Board(tmp_path), ["hessian"])


def test_another_group_has_its_own_run_tags_and_category(tmp_path):
    for group in ("hessian", "preconditioned_hessian"):
        spectra = Spectra().after(0, part(1.0, 2.0))
        SummaryWriter(tmp_path, group).write(
            report(spectrum=part(1.0, 2.0)), 0, others={"overhead": 0.1}, spectra=spectra
        )
    board = Board(tmp_path)
    seen = "Curvature as the optimizer sees it"
    parts = ("norm", "eigenvalues", "layers and cost")
    assert list(board.categories()) == [f"{t}: {part}" for t in (LOSS, seen) for part in parts]
    for run, category in (("hessian", LOSS), ("preconditioned_hessian", seen)):
        assert_charts_have_their_data(board, [run], category)
        tags = board.descriptions(run)
        assert {tag.split("/")[0] for tag in tags} == {run, f"{run}_by_layer"}
    assert "Preconditioned by the optimizer." in board.descriptions(run)[f"{run}/trace"]
    assert list(board.histogram_names(run)) == [f"{run}/spectrum"]


def test_two_runs_side_by_side_share_the_charts(tmp_path):
    for name, method in (("a", Hutchinson(num_probes=3)), ("b", Deflated(max_matvecs=8))):
        fit(HessianNormCallback(data(), method, log_dir=tmp_path / name), epochs=2)
    board = Board(tmp_path)
    assert set(board.charts(LOSS)) == {
        *(NORM, TRACE, OVERHEAD, EIGENVALUES, SPECTRAL, STABLE, LAYERS)
    }
    assert_charts_have_their_data(board, ["a/hessian", "b/hessian"])


# --- words ---------------------------------------------------------------------------------


def test_every_scalar_says_what_it_is(tmp_path):
    callback = HessianNormCallback(data(), Deflated(max_matvecs=8), batch_size=5, log_dir=tmp_path)
    fit(callback, epochs=2)
    described = Board(tmp_path).descriptions("hessian")
    assert len(described) > 20
    for tag, html in described.items():
        assert len(html) > 60, tag
        unit = any(word in html for word in ("per weight squared", "directions", "training's time"))
        assert unit or "stable_rank" in tag, tag
    assert "95 % interval" in described["hessian/frobenius_norm"]
    assert "Lower end of hessian/trace" in described["hessian/trace/lower"]
    assert "sharpness" in described["hessian/largest_ritz_value"]


def test_a_resumed_or_second_file_is_described_too(tmp_path):
    for epoch in (0, 1):
        writer = SummaryWriter(tmp_path)
        writer.write(report(), epoch)
        writer.close()
    (first,) = {Board(tmp_path).descriptions("hessian")["hessian/trace"]}
    sorted((tmp_path / "hessian").iterdir())[0].unlink()
    assert Board(tmp_path).descriptions("hessian")["hessian/trace"] == first


def test_the_names_of_all_groups_and_quantities_are_known():
    for name in ("stability_threshold", "overhead", "frobenius_norm/upper"):
        assert "preconditioned_hessian" not in description("hessian", name)
        assert description("preconditioned_hessian", name).count("Preconditioned") == 1
    (category,) = layout("hessian", ["trace"], layers=False).category
    assert [chart.title for chart in category.chart] == [TRACE]


def rows_of(table):
    return dict(re.findall(r"<td>(.*?)</td>\s*<td>(.*?)</td>", table, re.DOTALL))


def test_a_table_says_how_it_was_measured(tmp_path):
    callback = HessianNormCallback(
        data(), Deflated(max_matvecs=8), batch_size=5, seed=3, log_dir=tmp_path
    )
    model = fit(callback, epochs=2)
    fit(callback, model=model, epochs=4, initial_epoch=2)
    texts = Board(tmp_path).texts("hessian", "hessian/about")
    assert list(texts) == [0, 2]  # once a fit
    rows = rows_of(texts[0])
    assert rows["Method"].startswith("Deflated(max_rank=None, max_matvecs=8")
    assert rows["Held-out examples"] == "10"
    assert rows["Micro-batches"] == "2"
    assert rows["Parameters"] == "51"
    assert rows["Numbers"] == "float32"
    assert rows["Mode"] == "inference"
    assert rows["Seed"] == "3"
    assert rows["Schedule"] == "Every(epochs=1, steps=None)"
    assert rows["Optimizer"].startswith("Adam(learning_rate=0.001")
    assert keras.__version__ in rows["Versions"]


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        raise AssertionError("only training may call it")


def test_optimizers_are_named_as_they_are():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    told = about_optimizer(keras.optimizers.SGD(schedule, momentum=0.9))
    assert told["Optimizer"].startswith("SGD(learning_rate=0.1")
    assert "momentum=0.9" in told["Optimizer"]
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    assert about_optimizer(scaled)["Optimizer"].startswith("LossScaleOptimizer(Adam(learning_rate=")
    assert about_optimizer(None) == {"Optimizer": "none"}
    by_own_schedule = about_optimizer(keras.optimizers.SGD(OwnSchedule()))
    assert by_own_schedule == {"Optimizer": "SGD(momentum=0.0)"}
    by_function = about_optimizer(keras.optimizers.SGD(lambda: 1 / 0, momentum=0.5))
    assert by_function["Optimizer"] == "SGD(momentum=0.5)"
    assert r"| a | x \| y |" in table({"a": "x | y"})


@pytest.mark.parametrize(
    ("optimizer", "preconditioned", "name", "told"),
    [
        ("sgd", False, "Stability threshold", "200 at the first measurement"),
        ("adam", True, "Stability threshold", "3.8e.04 at the first measurement"),
        ("adam", False, "No stability threshold", "preconditioned Hessian.*preconditioned=True"),
        ("lion", False, "No stability threshold", "the steps of Lion have the same length"),
    ],
)
def test_the_threshold_or_why_there_is_none_is_told(
    optimizer, preconditioned, name, told, tmp_path
):
    model, data = tanh_classifier()
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = HessianNormCallback(
        data, Hutchinson(2), log_dir=tmp_path, preconditioned=preconditioned
    )
    model.fit(*data, verbose=0, callbacks=[callback])
    run = "preconditioned_hessian" if preconditioned else "hessian"
    (table,) = Board(tmp_path).texts(run, f"{run}/about").values()
    assert re.search(told, rows_of(table)[name])


# --- the spectrum --------------------------------------------------------------------------


def test_a_report_made_without_the_callback_is_drawn_whole(tmp_path):
    writer = SummaryWriter(tmp_path)
    for step in range(2):
        writer.write(report(spectrum=part(1.0, 2.0 + step)), step)
    board = Board(tmp_path)
    assert len(board.histograms("hessian", "hessian/spectrum")) == 2
    assert len(board.pictures("hessian", "hessian/spectrum_over_time")) == 2
    other = dataclasses.replace(report(), preconditioned=True)
    with pytest.raises(ValueError, match="group='preconditioned_hessian'"):
        writer.write(other, 2)
    SummaryWriter(tmp_path, "preconditioned_hessian").write(other, 2)


def test_a_part_of_the_spectrum_is_a_histogram_and_a_picture(tmp_path):
    writer, so_far = SummaryWriter(tmp_path), Spectra()
    for step in range(3):
        spectrum = part(-1.0, 2.0**step, 50.0)
        so_far = so_far.after(step, spectrum)
        writer.write(report(spectrum=spectrum), step, spectra=so_far)
    board = Board(tmp_path)
    (told,) = board.histogram_names("hessian").items()
    tag, (name, about) = told
    assert tag == "hessian/spectrum"
    assert name == "hessian/spectrum: sign(x) log10(1 + |x| / 0.001)"
    assert "carried directions" in about
    served = board.histograms("hessian", tag)
    for step, rows in served.items():
        np.testing.assert_allclose(rows, histogram(part(-1.0, 2.0**step, 50.0), SIZE))
    pictures = board.pictures("hessian", "hessian/spectrum_over_time")
    assert list(pictures) == [0, 1, 2]
    assert all(picture.shape == (HEIGHT, WIDTH, 3) for picture in pictures.values())
    assert not np.array_equal(pictures[1], pictures[2])


def test_a_whole_density_has_log_counts_beside(tmp_path):
    spectra = Spectra().after(0, whole())
    SummaryWriter(tmp_path).write(report(spectrum=whole()), 0, spectra=spectra)
    board = Board(tmp_path)
    assert list(board.histogram_names("hessian")) == [
        "hessian/spectrum",
        "hessian/spectrum_log_counts",
    ]
    counts = board.histograms("hessian", "hessian/spectrum")[0]
    logs = board.histograms("hessian", "hessian/spectrum_log_counts")[0]
    assert counts[:, 2].sum() == pytest.approx(SIZE)
    np.testing.assert_allclose(logs[:, 2], np.log10(1.0 + counts[:, 2]))
    np.testing.assert_array_equal(logs[:, :2], counts[:, :2])


@pytest.mark.parametrize("method", [Telling(), Deflated(max_matvecs=10)])
def test_a_resumed_run_draws_the_spectrum_of_the_whole(method, tmp_path):
    def run(directory, epochs):
        callback = HessianNormCallback(data(), method, log_dir=directory)
        backup = keras.callbacks.BackupAndRestore(directory / "backup", delete_checkpoint=False)
        keras.utils.clear_session()
        keras.utils.set_random_seed(2)
        fit(callback, epochs=epochs, others=[backup], shuffle=False)

    run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 3)
    run(tmp_path / "parts", 5)
    boards = [Board(tmp_path / name) for name in ("whole", "parts")]
    assert boards[0].categories() == boards[1].categories()
    for read in (Board.pictures, Board.histograms):
        tag = "hessian/spectrum" + ("_over_time" if read is Board.pictures else "")
        one, other = (read(board, "hessian", tag) for board in boards)
        assert list(one) == list(other) == [0, 1, 2, 3, 4]
        for step, content in one.items():
            np.testing.assert_array_equal(other[step], content)


def test_no_spectrum_is_drawn_where_none_is_known(tmp_path):
    fit(HessianNormCallback(data(), Hutchinson(num_probes=2), log_dir=tmp_path), epochs=1)
    assert Board(tmp_path).histogram_names("hessian") == {}
    assert not (tmp_path / "hessian" / "carried.npz").exists()
