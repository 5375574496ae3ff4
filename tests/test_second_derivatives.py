"""Every layer and function of Keras has a row in the table, and each row says what is so."""

import subprocess
import sys

import numpy as np
import pytest

from tests.second_derivatives import document
from tests.second_derivatives.check import check
from tests.second_derivatives.jax_oracle import derivatives
from tests.second_derivatives.row import REFUSED, public
from tests.second_derivatives.rows import MODULES, NOTHING, ROWS, public_names

BY_DIFFERENCES = [row for row in ROWS if row.oracle == "differences"]
BY_JAX = [row for row in ROWS if row.oracle == "jax"]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_row(module):
    known = {id(public(name)) for name in [*(row.name for row in ROWS), *NOTHING]}
    missing = [name for name, thing in public_names(module) if id(thing) not in known]
    assert not missing, f"add a row in tests/second_derivatives for {missing}"


def test_rows_have_keys_of_their_own():
    keys = [row.key for row in ROWS]
    assert len(set(keys)) == len(keys)
    assert not {row.name for row in ROWS} & set(NOTHING)


@pytest.mark.parametrize("row", BY_DIFFERENCES, ids=lambda row: row.key)
def test_row_against_differences_of_the_gradient(row):
    if not row.exists:
        pytest.skip("not in this Keras")
    _check(row)


def test_rows_against_jax(tmp_path):
    """Where TensorFlow rounds to float32 inside; in one test, for one process of JAX."""
    rows = [row for row in BY_JAX if row.exists]
    found, failures = derivatives([row.key for row in rows], tmp_path)
    assert {row.key for row in rows} == set(found), failures
    for row in rows:
        _check(row, found[row.key])


def _check(row, jax=None):
    outcome = check(row, jax)
    assert outcome.verdict == row.verdict, f"{row.key}: {outcome}"
    assert outcome.jax in ("", "agrees"), f"{row.key}: {outcome}"
    if row.verdict == REFUSED:
        assert row.refusal, f"{row.key}: {outcome.message}"
        assert row.refusal in outcome.message


def test_the_document_says_what_the_rows_say():
    assert document.verdicts_written() == document.verdicts_declared()


def test_the_script_in_the_document_shows_the_error_of_tensorflow(tmp_path):
    text = document.DOCUMENT.read_text()
    script = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in script.splitlines() if line]) <= 15
    file = tmp_path / "script.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    tapes, differences = (np.array(line.split()[1:], float) for line in done.stdout.splitlines())
    assert np.abs(tapes - differences).max() > 0.05 * np.abs(differences).max()
