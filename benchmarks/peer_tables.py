"""The section "Against peers" of benchmarks/README.md, from results/against_peers.json."""

from collections.abc import Callable, Mapping
from typing import Any

from layout import circumstances, table
from peer_bars import bars, peer_wins, quantity_of
from peer_results import chosen, judged, networks_of

NAMES = {
    "ours": "ours",
    "pyhessian": "PyHessian",
    "curvlinops": "curvlinops",
    "eigenthings": "hessian-eigenthings",
    "matfree": "matfree",
    "jax": "JAX alone",
}
_ENOUGH = 30  # repetitions; fewer are pointed out
_UNJUDGED = "not judged"
_QUANTITIES = {"norm": "Frobenius norm", "trace": "Trace", "top": "Largest eigenvalue"}


def against_peers(results: Mapping[str, Any]) -> str:
    networks = networks_of(results)
    parts = [_introduction(networks), bars(networks), _products(networks)]
    for name, figures in networks.items():
        for epoch, then in figures.get("epochs", {}).items():
            parts.append(_accuracy(name, epoch, then))
    parts.append(peer_wins(networks))
    return "\n".join(parts)


def _introduction(networks: Mapping[str, Any]) -> str:
    pins = "benchmarks/peers/requirements"
    minutes = sum(figures["minutes"] for figures in networks.values())
    estimated = {name: figures for name, figures in networks.items() if "epochs" in figures}
    return f"""\
## Against peers

The same weights, data, loss and dtype (float32), one process a library, one at work at a time and
in turns, 2 threads each. Every side is compared with Keras before it is timed: its loss to 1e-5,
a product to 1e-3. To run it (these runs took {minutes:.0f} minutes):

    python -m venv .venv-torch && .venv-torch/bin/pip install -r {pins}-torch.txt
    python -m venv .venv-jax && .venv-jax/bin/pip install -r {pins}-jax.txt
    python benchmarks/against_peers.py

(Where only CPUs are used, install the CPU build of torch first.) Beside the three networks above:

* `digits`: the tanh MLP of the exact norm, trained on scikit-learn's digits, 256 held out;
* `text`: the same transformer, 2 blocks of width 48, trained on a Markov chain of second order over
  4 letters, 8 held-out sequences of 24;
* `images`: the same ResNet-like network of 16 and 32 channels, trained on the digits as images,
  128 held out.

{_agreed(networks, circumstances)}

{_versions(networks)}.

{_agreed(estimated, lambda figures: f"{figures['repetitions']} repetitions of each estimate.")}

What the peers have no function for is what their user can make of their products: PyHessian's and
hessian-eigenthings's norm by probes. Hutch++, XTrace and XNysTrace give traces, so for the norm
they get the operator v -> H(Hv), two products each. Hutchinson's probes are independent, so its
error is measured at 8 products and its products for an error follow from their number's root; the
other estimators are run with more and more products, at most 108, until their error is 1 % or they
take too long, with straight lines in logarithms in between; ours with a few numbers, of which the
fewest that reach an error count. Where a line says "not reached", its last column says
how far it was run. PyTorch 2.13 has a wrong forward-mode derivative of
LayerNorm's backward pass, so curvlinops's products are off by 1 to 20 % in the rows of LayerNorm's
scale, in float64 too: for curvlinops alone LayerNorm is written out in elementary operations.
"""


def _agreed(networks: Mapping[str, Any], text_of: Callable[[Mapping[str, Any]], str]) -> str:
    """What all networks have in common once; else a line for those that agree."""
    groups: dict[str, list[str]] = {}
    for name, figures in networks.items():
        groups.setdefault(text_of(figures), []).append(f"`{name}`")
    if len(groups) == 1:
        return next(iter(groups))
    return "\n".join(f"* {', '.join(names)}: {text}" for text, names in groups.items())


def _versions(networks: Mapping[str, Any]) -> str:
    """Each package once, with the networks of each version where there are several."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, network in networks.items():
        versions = dict(network["versions"])
        for figures in network["libraries"].values():
            versions |= figures.get("versions", {})
        for package, number in versions.items():
            found.setdefault(package, {}).setdefault(number, []).append(f"`{name}`")
    return ", ".join(
        f"{package} {number}" + (f" ({', '.join(names)})" if len(numbers) > 1 else "")
        for package, numbers in found.items()
        for number, names in numbers.items()
    )


def _products(networks: Mapping[str, Any]) -> str:
    parts = []
    for name, network in networks.items():
        rows = []
        for library, figures in network["libraries"].items():
            if "seconds" not in figures:
                rows.append([NAMES[library], figures["error"], *[""] * 7])
                continue
            times, growth = figures["seconds"], figures["memory_growth_mb"]
            rows.append(
                [
                    NAMES[library],
                    *(f"{times[kind]['median'] * 1e3:.2f} ms" for kind in times),
                    _range(figures["gradients"]["single"]),
                    _range(figures["gradients"]["block"]),
                    _range(figures.get("our_gradients", {}).get("block")),
                    f"{growth['gradient']:.0f} MB",
                    f"{growth['block']:.0f} MB",
                ]
            )
        head = ["", "gradient", "product alone", "product in a block of 8"]
        head += ["alone, in own gradients", "block, in own gradients", "block, in our gradients"]
        head += ["memory: gradient", "and a block"]
        parts.append(f"`{name}`:\n\n{table(head, rows)}\n")
    return "### Products\n\n" + "\n".join(parts)


def _accuracy(name: str, epoch: str, then: Mapping[str, Any]) -> str:
    reference = then["reference"]
    errors = reference["relative_errors"]
    state = f"after epoch {epoch}" if int(epoch) else "untrained"
    parts = [
        f"### `{name}`, {state}\n\nStable rank {reference['stable_rank']:.1f}. Relative errors of "
        f"the references: norm {errors['norm']:.0e}, trace {errors['trace']:.0e}, largest "
        f"eigenvalue at most {errors['top']:.0e}.\n"
    ]
    for quantity, title in _QUANTITIES.items():
        rows = _our_rows(then, quantity)
        for library, methods in then["peers"].items():
            for method, figures in methods.items():
                if quantity_of(method) == quantity:
                    label = f"{NAMES[library]}: {method.split('/')[1]}"
                    rows.append(_row(label, figures, then, quantity))
        head = [title, "products to 1 %", "to 5 %", "time to 1 %", "to 5 %", "error as run"]
        parts.append(table(head, rows) + "\n")
        if any(_UNJUDGED in row for row in rows):
            parts.append(
                f"{_UNJUDGED.capitalize()}: the reference's own error, {errors[quantity]:.2%}, is "
                "more than a fifth of that, and of the least error as run.\n"
            )
    return "\n".join(parts)


def _our_rows(then: Mapping[str, Any], quantity: str) -> list[list[str]]:
    rows = []
    for start, quantities in then["ours"].items():
        figures = quantities[quantity]
        points = figures["points"]
        as_run = {**figures, "points": chosen(points)}
        rows.append(_row(f"ours: Deflated, {start}", as_run, then, quantity))
        default = points["default"]
        shown = f"{default['error']:.2%} in {default['products']:.0f}"
        time = f"{default['seconds'] * 1e3:.0f} ms"
        rows.append([f"ours: Deflated, {start}, as it comes", "", "", time, "", shown])
    return rows


def _row(
    label: str, figures: Mapping[str, Any], then: Mapping[str, Any], quantity: str
) -> list[str]:
    if "error" in figures:
        return [label, figures["error"], "", "", "", ""]
    last = figures["points"][-1]
    products, times = [], []
    for level in ("0.01", "0.05"):
        is_judged = judged(then, quantity, float(level), figures["points"])
        needed = figures["needed"][level] if is_judged else None
        missed = "not reached" if is_judged else _UNJUDGED
        products.append(f"{needed['products']:,.0f}" if needed else missed)
        times.append(_duration(needed["seconds"]) if needed else "")
    shown = f"{last['error']:.2%} in {last['products']:.0f}"
    if last["repetitions"] < _ENOUGH:
        shown += f" ({last['repetitions']:.0f} repetitions)"
    return [label, *products, *times, shown]


def _duration(value: float) -> str:
    return f"{value:.1f} s" if value >= 1.0 else f"{value * 1e3:.0f} ms"


def _range(values: Mapping[str, float] | None) -> str:
    if values is None:
        return ""
    return f"{values['median']:.2f} ({values['min']:.2f}-{values['max']:.2f})"
