"""How the tables of results are written down."""

from collections.abc import Mapping, Sequence
from typing import Any


def conditions(results: Mapping[str, Any]) -> str:
    """Date, machine, load and versions of a run."""
    return f"{circumstances(results)}\n{listed(results['versions'])}."


def listed(versions: Mapping[str, str]) -> str:
    """Packages with their versions."""
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def circumstances(results: Mapping[str, Any]) -> str:
    """Date, machine, load and rounds of a run."""
    machine = results["machine"]
    others = machine["cores_of_others"]
    load = "" if others is None else f" (other processes kept {max(others, 0.0):.1f} of them busy)"
    repeats = f"{results['rounds']} rounds" if "rounds" in results else "each draw once"
    return f"{results['date']}, {machine['cores']} cores of {machine['cpu']}{load}, {repeats}."


def span(values: Mapping[str, float], digits: int = 2) -> str:
    """Median, with the smallest and the largest in brackets."""
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def bar(value: float, limit: float, text: str) -> str:
    """Whether a bar is met."""
    return f"at most {text}: {'met' if value <= limit else '**not met**'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
