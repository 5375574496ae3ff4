"""Every example runs as a user would run it."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_hessian_callback import HessianNormCallback
from tests.test_summaries import events

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, directory: Path) -> tuple[list[str], Path]:
    """The lines that an example prints, and the directory that it logs to."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, "logs"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tensorboard --logdir logs" in done.stdout
    (log_dir,) = (directory / "logs").iterdir()
    return done.stdout.splitlines(), log_dir


def numbers(row: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", row)]


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "early_warning.py",
        "edge_of_stability.py",
        "offline.py",
        "quickstart.py",
        "spectrum.py",
        "transformer.py",
    }


def test_the_quickstart_prints_the_curve_that_it_logs(tmp_path):
    lines, log_dir = run("quickstart.py", tmp_path)
    rows = [line for line in lines if re.match(r"\s+\d+ ", line)]
    printed = [tuple(map(float, re.findall(r"[\d.]+", row))) for row in rows]
    read = events(log_dir / "hessian")
    for end, column in (("", 2), ("/lower", 3), ("/upper", 4)):
        written = [value for _, value in read[f"hessian/frobenius_norm{end}"]]
        assert len(written) > 1
        assert [row[column] for row in printed] == pytest.approx(written, abs=6e-4)
    assert all(row[3] < row[2] < row[4] for row in printed)


def test_training_settles_at_the_edge_of_stability(tmp_path):
    """In the last third: gradient descent within 10 % of 2 / eta, Adam within 20 % of 38 / eta."""
    lines, log_dir = run("edge_of_stability.py", tmp_path)
    for name, group, line, tolerance in (
        ("gradient descent, 0.2", "hessian", 2.0 / 0.2, 0.1),
        ("gradient descent, 0.3", "hessian", 2.0 / 0.3, 0.1),
        ("Adam, 0.003", "preconditioned_hessian", 38.0 / 0.003, 0.2),
    ):
        read = events(log_dir / name / group)
        drawn = [value for _, value in read[f"{group}/stability_threshold"]]
        assert drawn == pytest.approx([line] * 35, rel=1e-5)
        steps, sharpness = zip(*read[f"{group}/largest_ritz_value"], strict=True)
        assert steps == tuple(range(100, 3501, 100))
        share = np.array(sharpness) / line
        assert share[0] < 0.8  # it gets there
        assert np.abs(share[-12:] - 1.0).max() < tolerance
        printed = [row for row in lines if row.startswith(name)]
        assert [float(row.split()[-1]) for row in printed] == pytest.approx(share[4::5], abs=6e-3)


def test_nine_outliers_stand_out_of_the_spectrum(tmp_path):
    lines, log_dir = run("spectrum.py", tmp_path)
    rows = [numbers(line[len("epoch 0") :]) for line in lines if line.startswith("epoch ")]
    assert len(rows) == 5
    for row in rows:
        assert sum(row[:5]) == pytest.approx(5962, abs=3)  # each is rounded
    for *_, above_one, outliers, gap in rows[2:]:
        assert outliers == 9
        assert gap > 1.4  # 1.6 to 2.2 with seeds 0 to 4
        assert above_one == pytest.approx(9, abs=4)
    assert all(row[2] > 0.9 * 5962 for row in rows[2:])  # near 0
    steps, largest = zip(*events(log_dir / "hessian")["hessian/largest_ritz_value"], strict=True)
    assert steps == tuple(range(5))
    assert min(largest) > 4.0


def test_curvature_warns_before_the_loss(tmp_path):
    lines, log_dir = run("early_warning.py", tmp_path)
    losses, ends, shares = {}, {}, {}
    for remedy in ("none", "stop", "stay below"):
        rows = [line[11:] for line in lines if line.startswith(f"{remedy:<11}")]
        losses[remedy] = np.array([numbers(row)[2] for row in rows[:-1]])
        ends[remedy] = numbers(rows[-1])[0]
        read = events(log_dir / remedy / "hessian")
        threshold, *bar = (
            np.array([value for _, value in read[f"hessian/{tag}"]])
            for tag in (
                "stability_threshold",
                "largest_ritz_value",
                "largest_ritz_value/lower",
                "largest_ritz_value/upper",
            )
        )
        shares[remedy] = np.array(bar) / threshold
        printed = np.array([numbers(row)[-3:] for row in rows[:-1]])
        assert printed == pytest.approx(shares[remedy].T, abs=6e-3)
    loss = losses["none"]
    doubles = 1 + int(np.argmax(loss[1:] > 2.0 * np.minimum.accumulate(loss)[:-1]))
    assert np.all(np.diff(loss[:doubles]) < 0.0)
    assert loss[doubles:].max() > loss[0]
    passed = int(np.argmax(shares["none"][1] > 1.0))  # the lower end of the bar
    assert 0 < passed <= doubles - 2
    assert len(losses["stop"]) < len(losses["none"])
    assert ends["stop"] < 0.3
    assert len(losses["stay below"]) == 14
    assert np.all(np.diff(losses["stay below"]) < 0.0)
    assert shares["stay below"][2, 4:].max() < 1.0  # the upper end, once it is cut
    assert ends["stay below"] < 0.15


def test_embeddings_come_to_hold_the_curvature_of_a_transformer(tmp_path):
    lines, log_dir = run("transformer.py", tmp_path)
    read = events(log_dir / "hessian")
    squares = {
        tag.removeprefix("hessian_by_layer/frobenius_norm/"): np.array([v**2 for _, v in curve])
        for tag, curve in read.items()
        if tag.startswith("hessian_by_layer/")
    }
    norm = np.array([value for _, value in read["hessian/frobenius_norm"]])
    assert len(norm) == 5
    shares = {layer: square / norm**2 for layer, square in squares.items()}
    assert sum(shares.values()) == pytest.approx(np.ones(5), rel=1e-3)
    assert shares["embedding"][0] + shares["head"][0] == pytest.approx(0.5, abs=0.15)
    assert shares["embedding"][4] + shares["positions"][4] == pytest.approx(0.75, abs=0.15)
    assert shares["head"][4] < 0.5 * shares["head"][0]
    assert norm[4] > 3.0 * norm[0]
    rows = [line for line in lines if re.match(r"\s+\d+ ", line)]
    assert [numbers(row)[2] for row in rows] == pytest.approx(norm, abs=6e-3)
    for epoch, row in enumerate(rows):
        most = [(layer, int(share)) for layer, share in re.findall(r"(\S+) (\d+)%", row)]
        assert len(most) == 4
        for layer, share in most:
            assert share == pytest.approx(100.0 * shares[layer][epoch], abs=0.51)


def test_checkpoints_tell_what_the_callback_would_have(tmp_path):
    lines, log_dir = run("offline.py", tmp_path)
    read = events(log_dir / "hessian")
    steps, norms = zip(*read["hessian/frobenius_norm"], strict=True)
    assert steps == tuple(range(5))
    printed = [numbers(line)[2] for line in lines if re.match(r"\s+\d+ ", line)]
    assert printed == pytest.approx(norms, abs=6e-4)

    example = runpy.run_path(str(EXAMPLES / "offline.py"))
    x, y = load_digits(return_X_y=True)
    live = HessianNormCallback((x[:512], y[:512]), example["METHOD"])
    example["train"](live)
    for name in live.report:  # cold, and with the same probes
        for end in ("", "/lower", "/upper"):
            (_, offline), *_ = read[f"hessian/{name}{end}"]
            assert offline == pytest.approx(live.history[f"{name}{end}"][0], rel=1e-3), name
    for epoch in range(1, 5):  # the callback starts from a basis then
        for one, other in (("lower", "upper"), ("upper", "lower")):
            sign = 1.0 if one == "lower" else -1.0
            offline = read[f"hessian/frobenius_norm/{one}"][epoch][1]
            assert sign * offline < sign * live.history[f"frobenius_norm/{other}"][epoch]
