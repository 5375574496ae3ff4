"""What TensorBoard calls the quantities, says of them, and draws them in."""

import re
from collections.abc import Iterable

from tensorboard.plugins.custom_scalar import layout_pb2

from keras_hessian_callback.spectra import THRESHOLD

_BAND = "The band from lower to upper is the 95 % interval of the random probes."
_BOUNDS = "Lower and upper are bounds that hold with 95 % certainty or more."

# Without what the group says: which Hessian it is.
_ABOUT = {
    "frobenius_norm": (
        "Frobenius norm ||H||_F of the Hessian of the training loss on the held-out examples: the "
        "root of the sum of all squared eigenvalues, in units of loss per weight squared. High: "
        f"the gradient turns quickly as the weights move. {_BAND}"
    ),
    "population_frobenius_norm": (
        "Frobenius norm that a larger held-out set would converge to, found from how much the "
        f"micro-batches differ; in units of loss per weight squared. {_BAND}"
    ),
    "trace": (
        "Trace of the Hessian: the sum of its eigenvalues, in units of loss per weight squared. "
        f"Near zero beside the norm: negative eigenvalues weigh up positive ones. {_BAND}"
    ),
    "spectral_norm": (
        "Largest eigenvalue in absolute value, in units of loss per weight squared, as far as the "
        f"products resolve it: it is at least this. {_BOUNDS}"
    ),
    "stable_rank": (
        "||H||_F^2 / ||H||_2^2: about how many directions share the curvature; 1: one holds all of "
        f"it. {_BOUNDS}"
    ),
    "largest_ritz_value": (
        "Largest eigenvalue that the products resolve, in units of loss per weight squared: the "
        "curvature of the steepest direction (sharpness). An eigenvalue lies between lower and "
        "upper."
    ),
    "smallest_ritz_value": (
        "Smallest curvature among the directions that the products resolve, in units of loss per "
        "weight squared: the smallest eigenvalue of all is at most this, and may be well below "
        "where the method looks for large ones, as the default does; Lanczos resolves both ends. "
        "Negative: there is a direction in which the loss bends down."
    ),
    "stability_threshold": (
        "Largest eigenvalue at which the optimizer's step size is still stable on a quadratic "
        "loss, in units of loss per weight squared. Above it, steps along the steepest direction "
        "overshoot and grow."
    ),
    "overhead": (
        "Time of the measurements so far over the rest of the training's time, without the set-up "
        "before the first step: 0.05 is 5 %."
    ),
}
_BY_LAYER = (
    "Frobenius norm of this layer's rows of the Hessian, in units of loss per weight squared. The "
    "squares of all layers add up to the square of the whole."
)
_COORDINATE = f"sign(x) log10(1 + |x| / {THRESHOLD:g})"
_READ_COORDINATE = (
    f"The coordinate of an eigenvalue x is {_COORDINATE}: 0 is 0, 1 is 0.009, 2 is 0.1, 3 is 1, "
    "4 is 10, 5 is 100, and with a minus the same for negative ones."
)
_WHICH = {"hessian": "", "preconditioned_hessian": "Preconditioned by the optimizer. "}
_TITLES = {
    "hessian": "Curvature of the loss",
    "preconditioned_hessian": "Curvature as the optimizer sees it",
}
# In the order in which they are read.
_NORMS = {
    "frobenius_norm": "Frobenius norm of the Hessian, with its 95 % band",
    "population_frobenius_norm": "Frobenius norm for a larger held-out set, with its 95 % band",
}
_SPECTRUM = {
    "trace": "Trace of the Hessian, with its 95 % band",
    "spectral_norm": "Spectral norm (largest |eigenvalue|), with its bounds",
    "stable_rank": "Stable rank: directions that share the curvature, with its bounds",
}


def description(group: str, name: str) -> str:
    """What a scalar is, its unit and how to read it, in a few sentences.

    Args:
        group: `"hessian"` or `"preconditioned_hessian"`.
        name: Of the quantity, with `/lower` or `/upper` or without.
    """
    quantity, _, end = name.partition("/")
    which = _WHICH.get(group, "")
    if end in ("lower", "upper"):
        return f"{end.capitalize()} end of {group}/{quantity}. {which}{_ABOUT.get(quantity, '')}"
    return which + _ABOUT.get(quantity, "")


def layer_description(group: str) -> str:
    """What the norm of a layer is."""
    return _WHICH.get(group, "") + _BY_LAYER


def spectrum_texts(group: str, whole: bool) -> dict[str, tuple[str, str]]:
    """Display name and description of the pictures of the spectrum, by tag.

    Args:
        group: `"hessian"` or `"preconditioned_hessian"`.
        whole: Whether the density is that of all eigenvalues, or a few are known.
    """
    tag = f"{group}/spectrum"
    which = _WHICH.get(group, "")
    kind = "All eigenvalues" if whole else "The eigenvalues that the carried directions resolve"
    counts = (
        f"{which}{kind}: how many lie where. {_READ_COORDINATE} Distributions shows the extremes "
        "as its outermost lines."
    )
    logs = (
        f"{which}{kind}, with heights log10(1 + how many), so that a single one is seen beside "
        f"thousands. {_READ_COORDINATE}"
    )
    picture = (
        f"{which}{kind} along training: steps to the right, eigenvalues upwards on an axis that is "
        "logarithmic away from 0, and as colour how many lie within the width of a line. At most "
        "128 measurements are shown, of a longer run every second, fourth, ..."
    )
    return {
        tag: (f"{tag}: {_COORDINATE}", counts),
        f"{tag}_log_counts": (f"{tag}: {_COORDINATE}, heights log10(1 + count)", logs),
        f"{tag}_over_time": (f"{tag} over time", picture),
    }


def layout(group: str, names: Iterable[str], *, layers: bool) -> layout_pb2.Layout:
    """The charts of the Custom Scalars tab: those that the names have values for.

    TensorBoard draws categories in their order, and within one first the charts of lines, then
    those with bands, the last first. So the norm has a category of its own, at the top.

    Args:
        group: First part of the tags.
        names: Of the scalars that are drawn.
        layers: Whether there are norms of layers.
    """
    names = set(names)
    norms, spectrum = (
        [_with_band(group, name, title) for name, title in reversed(part.items()) if name in names]
        for part in (_NORMS, _SPECTRUM)
    )
    if "largest_ritz_value" in names:
        title = "Largest and smallest eigenvalue found, and the step size's stability threshold"
        ends = "largest_ritz_value|smallest_ritz_value|stability_threshold"
        spectrum.append(_lines(f"{re.escape(group)}/({ends})", title))
    others = []
    if layers:
        tags = f"{re.escape(group)}_by_layer/frobenius_norm/.*"
        others.append(_lines(tags, "Frobenius norm by layer"))
    if "overhead" in names:
        title = "Overhead: time of the measurements over the rest"
        others.append(_lines(f"{re.escape(group)}/overhead", title))
    title = _TITLES.get(group, group)
    parts = {"norm": norms, "eigenvalues": spectrum, "layers and cost": others}
    return layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=f"{title}: {part}", chart=charts)
            for part, charts in parts.items()
            if charts
        ]
    )


def _with_band(group: str, name: str, title: str) -> layout_pb2.Chart:
    """A chart of one series: TensorBoard warns where a run lacks one of several."""
    tag = f"{group}/{name}"
    series = layout_pb2.MarginChartContent.Series(
        value=tag, lower=f"{tag}/lower", upper=f"{tag}/upper"
    )
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))


def _lines(tags: str, title: str) -> layout_pb2.Chart:
    """A chart of the tags that match; TensorBoard matches their beginnings."""
    content = layout_pb2.MultilineChartContent(tag=[f"^{tags}$"])
    return layout_pb2.Chart(title=title, multiline=content)
