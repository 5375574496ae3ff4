"""The weight of each micro-batch in the whole, and the checks that there is one."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch
from keras_hessian_callback.operators.parts import Parts, shares_of
from keras_hessian_callback.operators.portions import check_vector, is_mean
from keras_hessian_callback.operators.traced import TracedProducts


def find_shares(traced: TracedProducts, batches: Sequence[Batch]) -> list[float]:
    """The share of each micro-batch in what the loss is averaged over.

    Args:
        traced: Products of the loss.
        batches: The micro-batches.

    Returns:
        The shares, which add up to 1.

    Raises:
        ValueError: If the loss has no fixed Hessian, or one that is not the mean of those of the
            micro-batches.

    Cost: A product on each micro-batch and on each two neighbours, of which a few are held at a
    time, and a gradient.
    """
    weights = traced.objective.weights()
    vector = check_vector(weights)
    seen: list[Parts] = []

    def parts() -> Iterator[Parts]:
        for batch in batches:
            loss, masses, products = traced(weights, batch, vector)
            seen.append((loss, masses, products[:0]))  # of all, the products would be too many
            yield loss, masses, products

    remaining = parts()
    mean = is_mean(traced, weights, batches, traced.tolerance, remaining)
    for _ in remaining:
        pass
    _check_loss(traced, batches[0], [float(part[0]) for part in seen])
    shares = shares_of(seen)
    if shares is None:
        raise ValueError(
            "The outputs of the model are masked or weighted differently from micro-batch to "
            "micro-batch, so the loss is no mean over them. Use batch_size=None."
        )
    if mean is False:
        raise ValueError(
            "The loss of two micro-batches together is not the mean of theirs, so it is no mean "
            "over examples (but a sum, weighted by hand, or one that compares examples): "
            "micro-batches would give another Hessian. Use batch_size=None, or average over "
            "examples."
        )
    return shares.tolist()


def _check_loss(traced: TracedProducts, batch: Batch, losses: list[float]) -> None:
    """Raises where a `loss_fn` is not finite, or a loss changes between two calls."""
    of_user = traced.objective.loss_fn is not None
    wrong = [loss for loss in losses if not math.isfinite(loss)]
    weights = traced.objective.weights()
    diverged = not all(np.isfinite(weight).all() for weight in weights)
    if of_user and wrong and not diverged:
        raise ValueError(
            f"`loss_fn` returned {wrong[0]} on the held-out data; it must be finite there."
        )
    none = tf.zeros([0, traced.num_parameters], traced.dtype)
    again = float(traced(weights, batch, none)[0])
    # A graph on a GPU may differ by rounding.
    if math.isfinite(losses[0]) and not math.isclose(again, losses[0], rel_tol=1e-5):
        drawn = [name for name, kind in traced.operations() if "Random" in kind]
        raise ValueError(
            f"{'`loss_fn`' if of_user else 'The loss'} changes between two calls with the same "
            f"weights and examples ({losses[0]!r}, {again!r}), so it has no fixed Hessian. "
            f"Random operations: {', '.join(drawn[:3]) or 'none found in the graph'}. Draw "
            "with keras.random and a SeedGenerator, or only where `training` is True."
        )
