"""The section "Against peers" of benchmarks/README.md, from results/against_peers.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from peer_bars import bars, peer_wins, quantity_of

NAMES = {
    "ours": "ours",
    "pyhessian": "PyHessian",
    "curvlinops": "curvlinops",
    "eigenthings": "hessian-eigenthings",
    "matfree": "matfree",
    "jax": "JAX alone",
}
_ENOUGH = 30  # repetitions; fewer are pointed out
_QUANTITIES = {"norm": "Frobenius norm", "trace": "Trace", "top": "Largest eigenvalue"}


def against_peers(results: Mapping[str, Any], conditions: str) -> str:
    networks = results["networks"]
    parts = [_introduction(results, conditions), bars(networks), _products(networks)]
    for name, figures in networks.items():
        for epoch, then in figures.get("epochs", {}).items():
            parts.append(_accuracy(name, epoch, then))
    parts.append(peer_wins(networks))
    return "\n".join(parts)


def _introduction(results: Mapping[str, Any], conditions: str) -> str:
    pins = "benchmarks/peers/requirements"
    versions: dict[str, str] = {}
    for network in results["networks"].values():
        for figures in network["libraries"].values():
            versions |= figures.get("versions", {})
    peers = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"""\
## Against peers

The same weights, data, loss and dtype (float32), one process a library, one at work at a time and
in turns, 2 threads each. Every side is compared with Keras before it is timed: its loss to 1e-5,
a product to 1e-3. To run it (about 25 minutes):

    python -m venv .venv-torch && .venv-torch/bin/pip install -r {pins}-torch.txt
    python -m venv .venv-jax && .venv-jax/bin/pip install -r {pins}-jax.txt
    python benchmarks/against_peers.py

(Where only CPUs are used, install the CPU build of torch first.) Beside the three networks above:

* `digits`: the tanh MLP of the exact norm, trained on scikit-learn's digits, 256 held out;
* `text`: the same transformer, 2 blocks of width 48, trained on a Markov chain of second order over
  4 letters, 8 held-out sequences of 24;
* `images`: the same ResNet-like network of 16 and 32 channels, trained on the digits as images,
  128 held out.

{conditions}
{peers}.
{results["repetitions"]} repetitions.

What the peers have no function for is what their user can make of their products: PyHessian's and
hessian-eigenthings's norm by probes. Hutch++, XTrace and XNysTrace give traces, so for the norm
they get the operator v -> H(Hv), two products each. Hutchinson's probes are independent, so its
error is measured at 8 products and its products for an error follow from their number's root; the
other estimators are run with 12, 24, ... products, at most 108, until their error is 1 % or they
take too long, and ours with a few numbers. Where a line says "not reached", its last column says
how far it was run. PyTorch 2.13 has a wrong forward-mode derivative of
LayerNorm's backward pass, so curvlinops's products are off by 1 to 20 % in the rows of LayerNorm's
scale, in float64 too: for curvlinops alone LayerNorm is written out in elementary operations.
"""


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
        parts.append(f"`{name}`:\n\n{_table(head, rows)}\n")
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
                    rows.append(_row(f"{NAMES[library]}: {method.split('/')[1]}", figures))
        head = [title, "products to 1 %", "to 5 %", "time to 1 %", "to 5 %", "error as run"]
        parts.append(_table(head, rows) + "\n")
    return "\n".join(parts)


def _our_rows(then: Mapping[str, Any], quantity: str) -> list[list[str]]:
    rows = []
    for start, quantities in then["ours"].items():
        figures = quantities[quantity]
        points = figures["points"]
        as_run = [point for option, point in points.items() if option != "default"]
        rows.append(_row(f"ours: Deflated, {start}", {**figures, "points": as_run}))
        default = points["default"]
        shown = f"{default['error']:.2%} in {default['products']:.0f}"
        time = f"{default['seconds'] * 1e3:.0f} ms"
        rows.append([f"ours: Deflated, {start}, as it comes", "", "", time, "", shown])
    return rows


def _row(label: str, figures: Mapping[str, Any]) -> list[str]:
    if "error" in figures:
        return [label, figures["error"], "", "", "", ""]
    needed = [figures["needed"][error] for error in ("0.01", "0.05")]
    last = figures["points"][-1]
    products = [f"{n['products']:,.0f}" if n else "not reached" for n in needed]
    times = [_duration(n["seconds"]) if n else "" for n in needed]
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
