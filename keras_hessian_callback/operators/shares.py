"""The weight of each micro-batch in the whole, and the checks that there is one."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch, concatenate
from keras_hessian_callback.linalg import machine_epsilon, probes
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

    Cost: A product on each micro-batch and on each two neighbours, and a gradient.
    """
    n = traced.num_parameters
    probe = probes("rademacher", size=n, block=0, seed=0, dtype=traced.dtype)
    column = probe[:, :1]
    weights = traced.objective.weights()
    parts = [traced(weights, batch, column) for batch in batches]
    _check_loss(traced, batches[0], [float(part[0]) for part in parts])
    masses = np.stack([part[1].numpy() for part in parts])
    masses = masses[:, masses.sum(axis=0) > 0]  # Keras' loss is 0 where nothing is valid
    if masses.shape[1] == 0:
        return [1.0 / len(parts)] * len(parts)
    shares = masses / masses.sum(axis=0)
    if np.abs(shares - shares[:, :1]).max() > 1e-9:
        raise ValueError(
            "The outputs of the model are masked or weighted differently from micro-batch to "
            "micro-batch, so the loss is no mean over them. Use batch_size=None."
        )
    if len(batches) > 1:
        _check_additive(traced, batches, shares[:, 0], column, [part[2] for part in parts])
    return shares[:, 0].tolist()


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
    none = tf.zeros([traced.num_parameters, 0], traced.dtype)
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


def _check_additive(
    traced: TracedProducts,
    batches: Sequence[Batch],
    shares: np.ndarray,
    column: tf.Tensor,
    products: Sequence[tf.Tensor],
) -> None:
    """Raises where a product on two micro-batches together is not their weighted mean."""
    weights = traced.objective.weights()
    if _is_additive(traced, batches, shares, column, weights, products):
        return
    # Where examples are fitted, next to nothing but rounding is left; with smaller weights not.
    smaller = [0.3 * weight for weight in weights]
    products = [traced(smaller, batch, column)[2] for batch in batches]
    if not _is_additive(traced, batches, shares, column, smaller, products):
        raise ValueError(
            "The loss of two micro-batches together is not the mean of theirs, so it is no mean "
            "over examples (but a sum, weighted by hand, or one that compares examples): "
            "micro-batches would give another Hessian. Use batch_size=None, or average over "
            "examples."
        )


def _is_additive(
    traced: TracedProducts,
    batches: Sequence[Batch],
    shares: np.ndarray,
    column: tf.Tensor,
    weights: Sequence[tf.Tensor],
    products: Sequence[tf.Tensor],
) -> bool:
    # Above the rounding of the products, which for differences is their own error.
    epsilon = machine_epsilon(traced.objective.dtypes())
    rounding = 1e3 * epsilon if traced.products == "autodiff" else 10.0 * epsilon ** (1 / 3)
    tolerance = min(max(rounding, 1e-6), 0.3)
    for first in range(len(batches) - 1):
        pair = slice(first, first + 2)
        if not shares[pair].sum() > 0:
            continue
        together = traced(weights, concatenate(*batches[pair]), column)[2].numpy()
        mean = np.average(products[pair], axis=0, weights=shares[pair])
        scale = max(np.linalg.norm(part) for part in (together, *products[pair]))
        if np.linalg.norm(together - mean) > tolerance * scale:
            return False
    return True
