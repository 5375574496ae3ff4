"""The spectrum along training: measurements so far, as histograms and as a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from keras_hessian_callback.pictures import BOTTOM, LEFT, RIGHT, TOP, heat_map
from keras_hessian_callback.results import Spectrum

MOST_COLUMNS = 128
THRESHOLD = 1e-3  # below it, the coordinate of histograms is linear

_BIN = 0.05  # width of a bin in that coordinate
_DECADES = 4  # of the picture's axis, on either side of 0
_MANY = 2.0  # eigenvalues of a node that cannot all be in one place
_WIDEST = 0.4  # that such a node is spread on either side, in decades
_REACH = 7  # of a line, in pixels on either side
_LINE = np.exp(-0.5 * np.square(np.arange(-_REACH, _REACH + 1) / 1.5))  # across it
_FAINTEST = 0.1  # eigenvalues that are drawn


def symlog(values: np.ndarray | float, threshold: float = THRESHOLD) -> np.ndarray:
    """sign(x) log10(1 + |x| / threshold): linear below the threshold, logarithmic above."""
    return np.sign(values) * np.log10(1.0 + np.abs(values) / threshold)


def histogram(spectrum: Spectrum, size: int) -> np.ndarray:
    """How many eigenvalues lie where, in the coordinate `symlog`.

    Args:
        spectrum: Nodes and weights.
        size: Eigenvalues n of the operator.

    Returns:
        Array (m, 3): left and right edge of each bin and the eigenvalues in it. Bins are the same
        for all spectra, with 0 in the middle of one; the first and the last hold some.
    """
    places = symlog(spectrum.nodes)
    ends = places[0] - _WIDEST, places[-1] + _WIDEST
    numbers = np.arange(math.floor(ends[0] / _BIN), math.ceil(ends[1] / _BIN) + 2)
    edges = _BIN * (numbers - 0.5)
    counts = np.diff(_below(edges, places, size * spectrum.weights))
    some = np.flatnonzero(counts)
    kept = slice(some[0], some[-1] + 1)
    return np.stack([edges[:-1][kept], edges[1:][kept], counts[kept]], axis=1)


def _below(edges: np.ndarray, places: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """How many eigenvalues lie below each edge.

    A node that stands for one is a point. One that stands for many, as those of a quadrature
    within the bulk do, lies somewhere among its neighbours: it is spread half-way to them.

    Args:
        edges: Any places on the axis.
        places: Of the nodes, ascending.
        amounts: Eigenvalues that each stands for.
    """
    gaps = np.diff(places, prepend=-np.inf, append=np.inf)
    half = np.minimum(gaps / 2.0, _WIDEST)
    many = amounts >= _MANY
    knots = np.stack([places - many * half[:-1], places + many * half[1:]], axis=1).ravel()
    reached = np.cumsum(amounts)
    steps = np.stack([np.r_[0.0, reached[:-1]], reached], axis=1).ravel()
    return np.interp(edges, knots, steps)


@dataclass(frozen=True)
class Spectra:
    """The spectra of a run so far, at most `MOST_COLUMNS` and the newest always.

    Where there are more, every second one is left out, again and again.

    Attributes:
        columns: Step and spectrum of each, in order.
        stride: Of so many measurements one is kept; the newest is, in any case.
        seen: Measurements so far.
    """

    columns: tuple[tuple[int, Spectrum], ...] = ()
    stride: int = 1
    seen: int = 0

    def after(self, step: int, spectrum: Spectrum) -> "Spectra":
        """These and another one; those at its step and later ones are of an earlier run."""
        kept = tuple(column for column in self.columns if column[0] < step)
        seen, stride = self.seen, self.stride
        if len(kept) < len(self.columns):
            seen = min(len(kept) * stride, seen - 1)
        elif (seen - 1) % stride:
            kept = kept[:-1]  # it was there as the newest alone
        kept = (*kept, (step, spectrum))
        if len(kept) > MOST_COLUMNS:
            kept, stride = kept[::2], 2 * stride
        return Spectra(kept, stride, seen + 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays, for a file."""
        spectra = [spectrum for _, spectrum in self.columns]
        return {
            "spectra_steps": np.array([step for step, _ in self.columns], np.int64),
            "spectra_sizes": np.array([len(s.nodes) for s in spectra], np.int64),
            "spectra_nodes": np.concatenate([np.zeros(0), *(s.nodes for s in spectra)]),
            "spectra_weights": np.concatenate([np.zeros(0), *(s.weights for s in spectra)]),
            "spectra_counts": np.array([self.stride, self.seen], np.int64),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Spectra":
        """The spectra that `arrays` are of."""
        ends = np.cumsum(arrays["spectra_sizes"])[:-1]
        nodes = np.split(arrays["spectra_nodes"], ends)
        weights = np.split(arrays["spectra_weights"], ends)
        columns = [
            (int(step), Spectrum(*both))
            for step, *both in zip(arrays["spectra_steps"], nodes, weights, strict=False)
        ]
        stride, seen = arrays["spectra_counts"]
        return cls(tuple(columns), int(stride), int(seen))

    def picture(self, size: int, x_name: str) -> np.ndarray:
        """Steps along x, eigenvalues along y in a `symlog` axis, their number as colour.

        Args:
            size: Eigenvalues n of the operator.
            x_name: What the steps are: "epoch" or "step".

        Returns:
            A canvas of `heat_map`.
        """
        spectra = [spectrum for _, spectrum in self.columns]
        axis = _Axis(np.concatenate([spectrum.nodes for spectrum in spectra]))
        counts = axis.lines(spectra, size)
        most = max(10.0, float(counts.max()))
        with np.errstate(divide="ignore"):
            shares = np.log10(counts / _FAINTEST) / math.log10(most / _FAINTEST)
        shares[shares <= 0.0] = np.nan
        steps = np.array([step for step, _ in self.columns], float)
        edges = _edges(steps)
        width = RIGHT - LEFT
        centres = edges[0] + (np.arange(width) + 0.5) * (edges[-1] - edges[0]) / width
        shown = np.clip(np.searchsorted(edges, centres, side="right") - 1, 0, len(steps) - 1)
        powers = range(math.floor(math.log10(most)) + 1)
        return heat_map(
            shares.T[::-1],
            shown,
            names=(x_name, "eigenvalue", "count"),
            x_ticks={
                str(tick): float((tick - edges[0]) / (edges[-1] - edges[0]))
                for tick in _round_steps(int(steps[0]), int(steps[-1]))
            },
            y_ticks=axis.ticks(),
            colour_ticks={
                _power(k): math.log10(10.0**k / _FAINTEST) / math.log10(most / _FAINTEST)
                for k in powers
            },
        )


class _Axis:
    """A `symlog` axis that has 0 and all `nodes` on it."""

    def __init__(self, nodes: np.ndarray) -> None:
        sizes = np.abs(nodes[nodes != 0.0])
        top = math.ceil(math.log10(sizes.max())) if len(sizes) else 0
        bottom = math.floor(math.log10(sizes.min())) if len(sizes) else 0
        self._exponent = max(top - _DECADES, min(bottom, top - 1))
        self._threshold = 10.0**self._exponent
        ends = symlog(np.array([min(nodes.min(), 0.0), max(nodes.max(), 0.0)]), self._threshold)
        margin = 0.04 * max(ends[1] - ends[0], 1.0)
        self._low, self._high = float(ends[0] - margin), float(ends[1] + margin)

    def lines(self, spectra: list[Spectrum], size: int) -> np.ndarray:
        """Eigenvalues at each pixel from the bottom up, (columns, pixels): one is a line."""
        pixels = BOTTOM - TOP
        # All columns lie on one long axis, one after another and out of each other's reach.
        apart = self._high - self._low + 2.0
        offsets = apart * np.arange(len(spectra))
        places = symlog(np.concatenate([s.nodes for s in spectra]), self._threshold)
        places += np.repeat(offsets, [len(s.nodes) for s in spectra])
        amounts = size * np.concatenate([s.weights for s in spectra])
        edges = np.linspace(self._low, self._high, pixels + 1) + offsets[:, None]
        counts = np.zeros((len(spectra), pixels + 2 * _REACH))
        counts[:, _REACH:-_REACH] = np.diff(_below(edges, places, amounts))
        return sum(share * counts[:, i : i + pixels] for i, share in enumerate(_LINE))

    def place(self, values: np.ndarray | float) -> np.ndarray:
        """Where the values are, in [0, 1] from the bottom up."""
        return (symlog(values, self._threshold) - self._low) / (self._high - self._low)

    def ticks(self) -> dict[str, float]:
        """0 and powers of ten with their signs, the outermost first."""
        ticks = {"0": float(self.place(0.0))}
        for power in range(self._exponent + _DECADES, self._exponent - 1, -1):
            for sign, label in ((1.0, ""), (-1.0, "-")):
                place = float(self.place(sign * 10.0**power))
                if 0.0 <= place <= 1.0:
                    ticks[label + _power(power)] = place
        return ticks


def _edges(steps: np.ndarray) -> np.ndarray:
    """Where the columns begin and end: half-way between steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2.0
    return np.r_[2.0 * steps[0] - middles[0], middles, 2.0 * steps[-1] - middles[-1]]


def _round_steps(first: int, last: int) -> range:
    """At most six round numbers from the first step to the last."""
    gap = 1
    while (last // gap) - (-(-first // gap)) + 1 > 6:
        leading = int(str(gap)[0])
        gap = gap * 5 // 2 if leading == 2 else gap * 2
    return range(-(-first // gap) * gap, last + 1, gap)


def _power(exponent: int) -> str:
    """10^exponent, as short as it can be read."""
    return f"{10.0**exponent:g}" if -2 <= exponent <= 3 else f"1e{exponent}"
