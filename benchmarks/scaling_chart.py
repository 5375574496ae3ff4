"""Draws results/scaling.svg from results/scaling.json: seconds and memory against sizes.

Run:  python benchmarks/scaling_chart.py
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scaling_fits import Points, column, law_of, sizes
from timing import RESULTS, load

PATH = RESULTS / "scaling.svg"

_ROWS = {"seconds": "seconds of a product", "memory of a product": "peak memory, MB"}
_COLUMNS = {
    "parameters n": {"parameters": "blocks of 8", "parameters_by_4": "blocks of 4"},
    "examples": {"examples": "convolutional"},
    "vectors in a block": {"vectors": "mlp"},
    "length": {"length": "transformer"},
}


def _draw(axes: Axes, sweep: str, label: str, figure: str, points: Points) -> None:
    x, y = np.array(sizes(sweep, points)), np.array(column(sweep, figure, points))
    law = law_of(sweep, figure, points)
    if law is None:
        axes.plot(x, y, "o", label=label)
        return
    fitted = f"{label}: x^{law.exponent:.2f} ± {law.exponent_error:.2f}"
    (dots,) = axes.plot(x, y, "o", markersize=4, label=fitted)
    between = np.geomspace(x.min(), x.max(), 100)
    axes.plot(between, [law(value) for value in between], color=dots.get_color(), linewidth=1)


def main() -> None:
    sweeps = {name: sweep["points"] for name, sweep in load("scaling")["sweeps"].items()}
    # The same figures give the same file, and its text stays text.
    mpl.rcParams.update({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 8})
    figure, grid = plt.subplots(len(_ROWS), len(_COLUMNS), figsize=(13, 6), squeeze=False)
    for row, (quantity, name) in zip(grid, _ROWS.items(), strict=True):
        for axes, (variable, curves) in zip(row, _COLUMNS.items(), strict=True):
            for sweep, label in curves.items():
                if sweep in sweeps:
                    _draw(axes, sweep, label, quantity, sweeps[sweep])
            whole = (variable, quantity) == ("vectors in a block", "seconds")
            axes.set(xlabel=variable, ylabel="seconds of the block" if whole else name)
            axes.set(xscale="log", yscale="log")
            axes.grid(alpha=0.3)
            axes.margins(y=0.15)  # room for the legend
            if axes.lines:
                axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PATH, metadata={"Date": None})


if __name__ == "__main__":
    main()
