"""Every example runs as a user would run it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "edge_of_stability.py",
        "quickstart.py",
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
