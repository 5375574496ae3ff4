"""The document docs/second_derivatives.md: what is written by hand, and the tables.

    python -m tests.second_derivatives.document

runs all rows, with JAX beside every one that it can compute, and writes the tables. It lives
with the rows and the oracles because it is a test's report: benchmarks measure time.
"""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from tests.second_derivatives.check import Outcome, check
from tests.second_derivatives.jax_oracle import derivatives
from tests.second_derivatives.row import NOTHING as NO_ROW
from tests.second_derivatives.row import VERDICTS, Row
from tests.second_derivatives.rows import MODULES, NOTHING, ROWS, aliases

DOCUMENT = Path(__file__).parents[2] / "docs" / "second_derivatives.md"
BEGIN = "<!-- Made by python -m tests.second_derivatives.document: do not edit below. -->"
_HEAD = ["name", "setting", "verdict", "error", "plain TensorFlow", "JAX", "remark"]


def verdicts_written() -> dict[tuple[str, str], str]:
    """The verdicts in the document, by name and setting."""
    found = {}
    for line in DOCUMENT.read_text().split(BEGIN)[1].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(_HEAD) and cells[0].startswith("`"):
            name = cells[0].split("`")[1]
            found[name, cells[1].replace("\\|", "|")] = cells[2]
    return found


def verdicts_declared() -> dict[tuple[str, str], str]:
    """The verdicts that the rows declare, as the document has them."""
    rows = {(row.name, row.variant): row.verdict for row in ROWS}
    return rows | {(name, ""): NO_ROW for name in NOTHING}


def tables(outcomes: dict[str, Outcome]) -> str:
    """All below the mark."""
    counts = Counter([row.verdict for row in ROWS] + [NO_ROW] * len(NOTHING))
    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "keras", "jax"))
    parts = [
        f"{versions}; on CPU.",
        _table(["verdict", "rows"], [[name, str(counts[name])] for name in VERDICTS]),
    ]
    names = aliases()
    for module in MODULES:
        rows = [row for row in ROWS if row.name.startswith(f"{module}.")]
        cells = [_cells(row, outcomes[row.key], names.get(row.name, [])) for row in rows]
        cells += [
            [_name(name, names.get(name, [])), "", NO_ROW, "", "", "", reason]
            for name, reason in NOTHING.items()
            if name.startswith(f"{module}.")
        ]
        parts += [f"## keras.{module}", _table(_HEAD, sorted(cells, key=lambda row: row[:2]))]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row, outcome: Outcome, names: list[str]) -> list[str]:
    error = "" if outcome.error != outcome.error else f"{outcome.error:.0e}"
    remark = row.note or _shortened(outcome.message)
    if row.dtype == "float32":
        remark = f"In float32. {remark}".strip()
    plain = _shortened(outcome.plain)
    return [_name(row.name, names), row.variant, row.verdict, error, plain, outcome.jax, remark]


def _name(name: str, names: Iterable[str]) -> str:
    others = ", ".join(f"`{other.rsplit('.', 1)[1]}`" for other in names)
    return f"`{name}`" + (f" ({others})" if others else "")


def _shortened(message: str) -> str:
    """One line without what differs from run to run."""
    line = " ".join(message.split())
    line = re.sub(r"\bprobe(_\d+)?/", "", line)
    return line if len(line) <= 400 else line[:397] + "..."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def main() -> None:
    wanted = [row.key for row in ROWS if row.on_jax]
    with tempfile.TemporaryDirectory() as directory:
        by_jax, failures = derivatives(wanted, Path(directory))
    print(failures, file=sys.stderr)
    outcomes = {}
    for row in ROWS:
        outcome = outcomes[row.key] = check(row, by_jax.get(row.key))
        print(f"{row.key}: {outcome}", flush=True)
    wrong = {row.key: outcomes[row.key] for row in ROWS if outcomes[row.key].verdict != row.verdict}
    text = DOCUMENT.read_text().split(BEGIN)[0] if DOCUMENT.exists() else ""
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(f"{text.rstrip()}\n\n{BEGIN}\n\n{tables(outcomes)}")
    if wrong:
        raise SystemExit(f"Not as declared: {wrong}")


if __name__ == "__main__":
    main()
