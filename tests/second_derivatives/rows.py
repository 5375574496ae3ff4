"""All rows of the table, and the public names that have nothing to differentiate."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from tests.second_derivatives import function_rows, layer_rows
from tests.second_derivatives.row import public

ROWS = [*layer_rows.ROWS, *function_rows.ROWS]
NOTHING = layer_rows.NOTHING | function_rows.NOTHING
MODULES = ("layers", "activations", "losses", "regularizers", "ops.nn", "ops.image", "ops.linalg")


def public_names(module: str) -> Iterator[tuple[str, Any]]:
    """What `keras.<module>` exports, by its full name."""
    for name in dir(public(module)):
        found = getattr(public(module), name)
        if not name.startswith("_") and not isinstance(found, ModuleType):
            yield f"{module}.{name}", found


def aliases() -> dict[str, list[str]]:
    """Other names of the same objects, by the name that the rows use."""
    known = {row.name for row in ROWS} | set(NOTHING)
    by_identity = {id(public(name)): name for name in known if public(name) is not None}
    found: dict[str, list[str]] = {}
    for module in MODULES:
        for name, thing in public_names(module):
            main = by_identity.get(id(thing))
            if name not in known and main is not None and main.startswith(f"{module}."):
                found.setdefault(main, []).append(name)
    return found
