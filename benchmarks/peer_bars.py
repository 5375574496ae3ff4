"""The bars of the comparison with peers, and every figure that a peer has better."""

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

_TRAINED = 4  # the first epoch that the bars call trained
_SIZES = ("20", "40")  # products at which an untrained network is compared with Hutchinson


def quantity_of(method: str) -> str:
    return method.split("/")[0]


def bars(networks: Mapping[str, Any]) -> str:
    rows = [*_product_bars(networks)]
    for name, figures in networks.items():
        for epoch, then in figures.get("epochs", {}).items():
            found = _trained_bars(then) if int(epoch) >= _TRAINED else _untrained_bars(then)
            rows += [[f"`{name}`, epoch {epoch}", *row] for row in found]
    lines = [["", "what", "measured", "bar"], ["---"] * 4, *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### Bars\n\n{table}\n"


def _product_bars(networks: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, network in networks.items():
        shares = {
            library: 1.0 / figures["our_products"]["block"]["median"]
            for library, figures in network["libraries"].items()
            if library != "ours" and "our_products" in figures
        }
        if "epochs" in network or not shares:
            continue
        fastest = max(shares, key=shares.get)
        share = shares[fastest]
        what = f"time of a product in a block of 8, in those of {fastest}"
        yield [f"`{name}`", what, f"{share:.2f}", _bar(share <= 1.1, "at most 1.1")]


def _trained_bars(then: Mapping[str, Any]) -> Iterator[list[str]]:
    warm = then["ours"]["warm"]["norm"]
    needed = warm["needed"]["0.01"]
    if needed is None:
        point = min(
            (p for option, p in warm["points"].items() if option != "default"),
            key=lambda p: p["error"],
        )
        measured = f"{point['error']:.2%} at {point['products']:.0f}"
        yield ["warm: products to 1 %", measured, _bar(False, "at most 20")]
    else:
        products, seconds = needed["products"], needed["seconds"]
        yield ["warm: products to 1 %", f"{products:.0f}", _bar(products <= 20, "at most 20")]
        plain = _best(then, "0.01", hutchinson=True)
        others = _best(then, "0.01", hutchinson=False)
        for what, key, own, least in (
            ("products of the best Hutchinson, in ours", "products", products, 50.0),
            ("time of the best Hutchinson, in ours", "seconds", seconds, 30.0),
        ):
            share = plain[key] / own
            yield [what, f"{share:.0f}", _bar(share >= least, f"at least {least:.0f}")]
        what = "products of the best sketch, in ours"
        if others["products"] < math.inf:
            share = others["products"] / products
            yield [what, f"{share:.1f}", _bar(share >= 5, "at least 5")]
        else:
            share = _most_tried(then) / products
            met = _bar(True, "at least 5") if share >= 5 else "at least 5: open"
            yield [what, f"more than {share:.1f}", met]
    cold = then["ours"]["cold"]["norm"]["points"]["40"]
    yield ["cold: error at 40 products", f"{cold['error']:.2%}", _bar(cold["error"] <= 0.02, "2 %")]


def _best(then: Mapping[str, Any], error: str, hutchinson: bool) -> dict[str, float]:
    """The fewest products and the fewest seconds among the peers, of two if need be."""
    found = [
        figures["needed"][error]
        for library, methods in then["peers"].items()
        if library != "ours"
        for method, figures in methods.items()
        if quantity_of(method) == "norm" and method.endswith("/hutchinson") == hutchinson
    ]
    found = [needed for needed in found if needed]
    return {key: min((n[key] for n in found), default=math.inf) for key in ("products", "seconds")}


def _most_tried(then: Mapping[str, Any]) -> float:
    """The products up to which every sketch was run without reaching the error."""
    return min(
        figures["points"][-1]["products"]
        for library, methods in then["peers"].items()
        for method, figures in methods.items()
        if quantity_of(method) == "norm"
        and not method.endswith("/hutchinson")
        and figures["points"]
    )


def _untrained_bars(then: Mapping[str, Any]) -> Iterator[list[str]]:
    """Against the Hutchinson of all libraries together, whose probes have one distribution."""
    points = [
        methods["norm/hutchinson"]["points"][0]
        for methods in then["peers"].values()
        if methods.get("norm/hutchinson", {}).get("points")
    ]
    plain = statistics.fmean(p["error"] ** 2 * p["products"] for p in points)
    for size in _SIZES:
        point = then["ours"]["cold"]["norm"]["points"].get(size)
        if point is None:
            continue
        expected = math.sqrt(plain / point["products"])
        share, spread = point["error"] / expected, point["error_of_error"] / expected
        what = f"error at {size} products, in Hutchinson's"
        yield [what, f"{share:.2f} +- {spread:.2f}", _bar(share <= 1.1, "at most 1.1")]


def peer_wins(networks: Mapping[str, Any]) -> str:
    """Every figure of a peer that is better than ours."""
    lines, rows = [], []
    for name, network in networks.items():
        lines += [f"* `{name}`: {line}" for line in _product_wins(network["libraries"])]
        for epoch, then in network.get("epochs", {}).items():
            rows += [[f"`{name}`, epoch {epoch}", *row] for row in _accuracy_wins(then)]
    head = ["", "quantity, our start", "peer", "to 1 %: theirs", "ours", "to 5 %: theirs", "ours"]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
    return f"""\
### Where a peer wins

Times and memory:

{chr(10).join(lines) or "* nowhere"}

Estimates that take a peer fewer products or less time, to 1 % or to 5 %:

{table}
"""


def _product_wins(libraries: Mapping[str, Any]) -> Iterator[str]:
    own = libraries["ours"]["memory_growth_mb"]["block"]
    for library, figures in libraries.items():
        if library == "ours" or "our_products" not in figures:
            continue
        for kind, what in (
            ("gradient", "a gradient"),
            ("single", "a product alone"),
            ("block", "a product in a block of 8"),
        ):
            share = figures["our_products"][kind]["median"]
            if share < 1.0:
                yield f"{what} of {library} takes {share:.2f} of the time of ours."
        theirs = figures["memory_growth_mb"]["block"]
        if theirs < own:
            yield f"peak memory of {library} grows by {theirs:.0f} MB, ours by {own:.0f} MB."


def _accuracy_wins(then: Mapping[str, Any]) -> Iterator[list[str]]:
    for start, quantities in then["ours"].items():
        for library, methods in then["peers"].items():
            for method, figures in methods.items():
                if library == "ours" or "error" in figures:
                    continue
                quantity, label = method.split("/")
                pairs = [
                    (figures["needed"][error], quantities[quantity]["needed"][error])
                    for error in ("0.01", "0.05")
                ]
                if any(_wins(theirs, own) for theirs, own in pairs):
                    cells = [_needed(needed) for pair in pairs for needed in pair]
                    yield [f"{quantity}, {start}", f"{library}: {label}", *cells]


def _wins(theirs: Mapping[str, float] | None, own: Mapping[str, float] | None) -> bool:
    if theirs is None:
        return False
    return own is None or any(theirs[key] < own[key] for key in ("products", "seconds"))


def _needed(needed: Mapping[str, float] | None) -> str:
    if needed is None:
        return "not reached"
    return f"{needed['products']:.0f}, {needed['seconds'] * 1e3:.0f} ms"


def _bar(met: bool, text: str) -> str:
    return f"{text}: {'met' if met else '**not met**'}"
