"""Writes the tables of docs/scale.md from their formulas.

Run:  python docs/scale_tables.py
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

_PAGE = Path(__file__).parent / "scale.md"
SIZES = {"1e9": 10**9, "1e11": 10**11}  # weights
DEVICES = (8, 64, 1024)
RANKS = (4, 8, 16)
PRODUCTS = 20  # of a measurement
BLOCK = 8  # vectors that share a recorded gradient
DEVICE_GB, ACTIVATIONS_GB = 80.0, 20.0
LINKS = {"100 Gb/s": 12.5e9, "400 Gb/s": 50e9}  # bytes a second of a device
ADAM, GRADIENT, STEP_SHARDED = 16.0, 2.0, 6.0  # bytes a weight: held; of a gradient; gathered
_FLOAT32, _HALF = 4.0, 2.0


def block_vectors(block: int) -> int:
    """Vectors that the package holds while it multiplies a block."""
    return 3 * block + 4


def as_it_is(rank: int, window: int | None = None, block: int = 1) -> float:
    """Bytes a weight while `Deflated` measures, with a window of residuals or all products.

    Rank 0 is `Hutchinson`.
    """
    vectors = block_vectors(block)
    if rank and window is None:
        vectors = rank + PRODUCTS + 2 + max(vectors, rank)
    elif rank:
        width = min(block, window)
        probes = block_vectors(width) + window + width + 2
        vectors = 2 * rank + max(vectors, probes, rank + window + 2)
    return _FLOAT32 * vectors


def lean(rank: int) -> float:
    """Bytes a weight on paper: Q in half precision and HQ, 2 residuals, 2 sums, a product."""
    return (_HALF + _FLOAT32) * rank + _FLOAT32 * (2 + 2 + 1)


def blocks(rank: int) -> int:
    """Blocks of a measurement: of the basis, then of the probes."""
    return -(-rank // BLOCK) - (rank - PRODUCTS) // BLOCK


def moved_replicated(rank: int, form: str) -> float:
    """Bytes a weight that a device sends in a measurement, but for the factor (p - 1) / p."""
    if form == "as it is":
        return 2 * _FLOAT32 * PRODUCTS
    return _FLOAT32 * PRODUCTS + _HALF * rank  # reduce-scatter; all-gather of the basis


def moved_sharded(rank: int, number: float) -> float:
    """The same where weights are sharded; `number`: bytes of a number that is summed."""
    return 4 * GRADIENT * blocks(rank) + _HALF * rank + number * PRODUCTS


def per_weight() -> str:
    rows = [["`Hutchinson`, as it is", "0", f"{as_it_is(0):.0f}", f"{as_it_is(0, block=8):.0f}"]]
    for rank in RANKS:
        rows.append(
            [
                f"`Deflated`, rank {rank}, as it is",
                f"{_FLOAT32 * rank:.0f}",
                f"{as_it_is(rank):.0f}",
                f"{as_it_is(rank, block=8):.0f}",
            ]
        )
    for rank in RANKS:
        rows.append(
            [
                f"`Deflated`, rank {rank}, 2 residuals at a time",
                f"{_FLOAT32 * rank:.0f}",
                f"{as_it_is(rank, 2):.0f}",
                f"{as_it_is(rank, 2, 8):.0f}",
            ]
        )
    for rank in RANKS:
        rows.append([f"on paper, rank {rank}", f"{_HALF * rank:.0f}", f"{lean(rank):.0f}", ""])
    rows.append(["on paper, probes alone, layer by layer", "0", "0", ""])
    return _table(["", "between", "measuring, blocks of 1", "blocks of 8"], rows)


def largest() -> str:
    """The largest n that fits on one device, and sharded over more."""
    left = (DEVICE_GB - ACTIVATIONS_GB) * 1e9
    kinds = {"`Hutchinson`": as_it_is(0)}
    kinds |= {f"`Deflated`, rank {rank}": as_it_is(rank) for rank in RANKS}
    kinds |= {f"on paper, rank {rank}": lean(rank) for rank in RANKS}
    kinds["on paper, probes alone"] = 0.0
    rows = [
        [kind, *(f"{left * count / (ADAM + held):.1e}" for count in (1, *DEVICES))]
        for kind, held in kinds.items()
    ]
    return _table(["", "replicated", *(f"over {count:,}" for count in DEVICES)], rows)


def held() -> str:
    """GB a device, where all of it is sharded over all devices."""
    kinds: dict[str, Callable[[int], float]] = {"Deflated": as_it_is, "on paper": lean}
    head = ["n", "devices", "training", "`Hutchinson`"]
    head += [
        f"`{kind}`, {rank}" if kind == "Deflated" else f"{kind}, {rank}"
        for kind in kinds
        for rank in RANKS
    ]
    rows = []
    for name, n in SIZES.items():
        for count in DEVICES:
            each = n / count / 1e9
            free = DEVICE_GB - ACTIVATIONS_GB - ADAM * each
            needs = [as_it_is(0), *(kind(rank) for kind in kinds.values() for rank in RANKS)]
            cells = [_gigabytes(need * each, need * each <= free) for need in needs]
            training = _gigabytes(ADAM * each, free >= 0.0)
            rows.append([name, f"{count:,}", training, *cells])
    return _table(head, rows)


def replicated() -> str:
    """What crosses the network in data-parallel training, n = 1e9."""
    n = SIZES["1e9"]
    kinds = {
        "a training step, gradients in bfloat16": 2 * GRADIENT,
        "a training step, gradients in float32": 2 * _FLOAT32,
        "measurement as it is, any rank": moved_replicated(0, "as it is"),
    }
    kinds |= {
        f"on paper, rank {rank}": moved_replicated(rank, "sums in shards") for rank in (0, *RANKS)
    }
    rows = []
    for kind, moved in kinds.items():
        row = [kind, f"{moved:.0f} n", f"{moved / (2 * GRADIENT):.0f}"]
        for count in DEVICES:
            sent = moved * n * (count - 1) / count
            row.append(_number(sent / 1e9))
        sent = moved * n * (DEVICES[-1] - 1) / DEVICES[-1]
        rows.append([*row, *(_number(sent / link) for link in LINKS.values())])
    d, m = 10**6, PRODUCTS
    sketch = 2 * _FLOAT32 * d * m
    row = ["on paper, probes alone, sketched to 1e6", "8 d m", f"{sketch / (2 * GRADIENT * n):.2g}"]
    row += [_number(sketch * (count - 1) / count / 1e9) for count in DEVICES]
    rows.append([*row, *(_number(sketch / link) for link in LINKS.values())])
    head = ["", "bytes", "in bfloat16 steps", *(f"GB, {count:,} devices" for count in DEVICES)]
    return _table([*head, *(f"s at {link}" for link in LINKS)], rows)


def sharded() -> str:
    """What crosses the network where weights are sharded over all devices."""
    kinds = {"a training step": STEP_SHARDED}
    for number, text in ((_FLOAT32, "sums in float32"), (_HALF, "in bfloat16")):
        kinds |= {
            f"rank {rank}, {text}" if rank else f"probes alone, {text}": moved_sharded(rank, number)
            for rank in (0, *RANKS)
        }
    kinds["probes alone, sketched"] = 4 * GRADIENT * blocks(0)
    rows = []
    for kind, moved in kinds.items():
        row = [kind, f"{moved:.0f} n", f"{moved / STEP_SHARDED:.1f}"]
        for n in SIZES.values():
            for count in DEVICES[:: len(DEVICES) - 1] if n == SIZES["1e9"] else DEVICES[1:]:
                sent = moved * n * (count - 1) / count
                row.append(" / ".join(_number(sent / link) for link in LINKS.values()))
        rows.append(row)
    places = ["1e9 on 8", "1e9 on 1,024", "1e11 on 64", "1e11 on 1,024"]
    return _table(["", "bytes", "in steps", *(f"s, n = {place}" for place in places)], rows)


def _gigabytes(value: float, fits: bool) -> str:
    return _number(value) if fits else f"**{_number(value)}**"


def _number(value: float) -> str:
    """Two digits, without an exponent."""
    if value >= 100.0:
        rounded = round(value, 1 - math.floor(math.log10(value)))
        return f"{rounded:,.0f}"
    return f"{value:.2g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def page(text: str) -> str:
    """The page with its tables made anew, each between `<!-- name -->` and `<!-- end -->`."""
    makers = {
        "per weight": per_weight,
        "largest": largest,
        "held": held,
        "replicated": replicated,
        "sharded": sharded,
    }
    for name, make in makers.items():
        between = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = make()
        text, count = between.subn(
            lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text
        )
        if count != 1:
            raise ValueError(f"{_PAGE} has {count} places for the table {name!r}.")
    return text


if __name__ == "__main__":
    _PAGE.write_text(page(_PAGE.read_text()))
