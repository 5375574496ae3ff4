"""Every example runs as a user would run it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_summaries import events

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_prints_the_curve_that_it_logs(script, tmp_path):
    done = subprocess.run(
        [sys.executable, script, "logs"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tensorboard --logdir logs" in done.stdout
    rows = [line for line in done.stdout.splitlines() if re.match(r"\s+\d+ ", line)]
    printed = [tuple(map(float, re.findall(r"[\d.]+", row))) for row in rows]
    (log_dir,) = (tmp_path / "logs").iterdir()
    read = events(log_dir / "hessian")
    for end, column in (("", 2), ("/lower", 3), ("/upper", 4)):
        written = [value for _, value in read[f"hessian/frobenius_norm{end}"]]
        assert len(written) > 1
        assert [row[column] for row in printed] == pytest.approx(written, abs=6e-4)
    assert all(row[3] < row[2] < row[4] for row in printed)
