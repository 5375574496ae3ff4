"""The bars of the comparison with peers, and every figure that a peer has better."""

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from layout import table
from peer_results import Point, chosen, judged

_TRAINED = 4  # the first epoch that the bars call trained
_KINDS = {"gradient": "gradient", "single": "product alone", "block": "product in a block of 8"}
_SIZES = ("20", "40")  # products at which an untrained network is compared with Hutchinson


def quantity_of(method: str) -> str:
    return method.split("/")[0]


def bars(networks: Mapping[str, Any]) -> str:
    rows = [*_product_bars(networks)]
    for name, figures in networks.items():
        for epoch, then in figures.get("epochs", {}).items():
            found = _trained_bars(then) if int(epoch) >= _TRAINED else _untrained_bars(then)
            rows += [[f"`{name}`, epoch {epoch}", *row] for row in found]
    return f"### Bars\n\n{table(['', 'what', 'measured', 'bar'], rows)}\n"


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
        point = min(chosen(warm["points"]), key=lambda p: p["error"])
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
    products, estimates = [], []
    for name, network in networks.items():
        products += [[f"`{name}`", *row] for row in _product_wins(network["libraries"])]
        for epoch, then in network.get("epochs", {}).items():
            estimates += [[f"`{name}`, epoch {epoch}", *row] for row in _accuracy_wins(then)]
    head = ["", "quantity, our start", "peer", "to 1 %: theirs", "ours", "to 5 %: theirs", "ours"]
    head += ["as run: theirs", "ours"]
    return f"""\
### Where a peer wins

Times and memory, by the medians of the tables; *by rounds* is the median of the rounds' ratios:

{table(["", "what", "peer", "theirs", "ours"], products)}

Estimates that take a peer fewer products or less time, to 1 % or to 5 %, or that as they were run
are closer in no more products than ours, the last run or as it comes:

{table(head, estimates)}
"""


def _product_wins(libraries: Mapping[str, Any]) -> Iterator[list[str]]:
    """By the medians of the tables, and of times also by the median of the rounds' ratios."""
    ours = libraries["ours"]
    for library, figures in libraries.items():
        if library == "ours" or "our_products" not in figures:
            continue
        for kind, what in _KINDS.items():
            theirs, own = (side["seconds"][kind]["median"] for side in (figures, ours))
            share = figures["our_products"][kind]["median"]
            if theirs < own or share < 1.0:
                cell = f"{theirs * 1e3:.2f} ms, {share:.2f} of ours by rounds"
                yield [f"time of a {what}", library, cell, f"{own * 1e3:.2f} ms"]
        for column, kind, what in (
            ("gradients", "single", "product alone, in own gradients"),
            ("gradients", "block", "product in a block of 8, in own gradients"),
            ("our_gradients", "block", "product in a block of 8, in our gradients"),
        ):
            theirs, own = (side[column][kind]["median"] for side in (figures, ours))
            if theirs < own:
                yield [what, library, f"{theirs:.2f}", f"{own:.2f}"]
        for kind, what in (("gradient", "memory: gradient"), ("block", "memory: and a block")):
            theirs, own = (side["memory_growth_mb"][kind] for side in (figures, ours))
            if theirs < own:
                yield [what, library, f"{theirs:.0f} MB", f"{own:.0f} MB"]


def _accuracy_wins(then: Mapping[str, Any]) -> Iterator[list[str]]:
    for start, quantities in then["ours"].items():
        for library, methods in then["peers"].items():
            for method, figures in methods.items():
                if library == "ours" or "error" in figures:
                    continue
                quantity, label = method.split("/")
                cells = _estimate_wins(then, quantity, figures, quantities[quantity])
                if cells:
                    yield [f"{quantity}, {start}", f"{library}: {label}", *cells]


def _estimate_wins(
    then: Mapping[str, Any], quantity: str, theirs: Mapping[str, Any], own: Mapping[str, Any]
) -> list[str]:
    """What both need, and how they were run, where a peer is better; else nothing.

    What is not judged of a peer does not win; of ours it loses against what is.
    """
    cells, won = [], False
    runs = (theirs["points"], chosen(own["points"]))
    for level in ("0.01", "0.05"):
        pair = []
        for side, points in zip((theirs, own), runs, strict=True):
            is_judged = judged(then, quantity, float(level), points)
            pair.append(side["needed"][level] if is_judged else None)
            cells.append(_needed(pair[-1]) if is_judged else "not judged")
        won |= _wins(*pair)
    last, ours = runs[0][-1], (runs[1][-1], own["points"]["default"])
    beaten = [point for point in ours if _is_closer(last, point)]
    cells += [_run(last), "; ".join(map(_run, beaten))] if beaten else ["", ""]
    return cells if won or beaten else []


def _is_closer(theirs: Point, own: Point) -> bool:
    return theirs["error"] < own["error"] and theirs["products"] <= own["products"]


def _run(point: Point) -> str:
    return f"{point['error']:.2%} in {point['products']:.0f}"


def _wins(theirs: Point | None, own: Point | None) -> bool:
    if theirs is None:
        return False
    return own is None or any(theirs[key] < own[key] for key in ("products", "seconds"))


def _needed(needed: Point | None) -> str:
    if needed is None:
        return "not reached"
    return f"{needed['products']:.0f}, {needed['seconds'] * 1e3:.0f} ms"


def _bar(met: bool, text: str) -> str:
    return f"{text}: {'met' if met else '**not met**'}"
