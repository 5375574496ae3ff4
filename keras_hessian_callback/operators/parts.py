"""Loss, masses and products of parts of the examples, and their mean."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from keras_hessian_callback.replicas import Workers
from keras_hessian_callback.rows import WeightedSum

Parts: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # of one batch; products (k, n)

_SAME_SHARE = 1e-9  # difference of the shares in two outputs that rounding explains


def shares_of(parts: Sequence[Parts]) -> np.ndarray | None:
    """The share of each of some batches in their mean, by their masses; None: outputs differ."""
    masses = np.stack([part[1].numpy() for part in parts])
    total = masses.sum(axis=0)
    valid = total > 0.0  # Keras' loss is 0 where nothing is valid
    if not valid.any():
        return np.full(len(parts), 1.0 / len(parts))
    shares = masses[:, valid] / total[valid]
    return shares[:, 0] if np.abs(shares - shares[:, :1]).max() <= _SAME_SHARE else None


class Mean:
    """Loss, masses and products of batches that may be averaged, summed as they come in.

    Each counts by its mass; where none has any, all count the same.

    Args:
        count: Batches that are expected in all.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._masses: list[np.ndarray] = []
        self._start(1.0)

    def _start(self, mass: float) -> None:
        self._unit = mass * self._count  # of weights, with which equal masses give the mean
        self._loss, self._products = 0.0, WeightedSum()

    @property
    def _mass(self) -> float:
        return float(np.sum(self._masses))

    def add(self, part: Parts) -> None:
        """Takes a batch's part in."""
        loss, masses, products = part
        mass = float(tf.reduce_sum(masses))
        if mass == 0.0 < self._mass:
            return
        if not self._masses or mass > 0.0 == self._mass:  # those before do not count after all
            self._start(mass or 1.0)
        self._add(float(loss), products, (mass or 1.0) / self._unit)
        self._masses.append(masses.numpy())

    def _add(self, loss: float, products: tf.Tensor, weight: float) -> None:
        self._loss += weight * loss
        self._products.add(weight, products)

    def join(self, other: "Mean") -> None:
        """Takes another mean in."""
        if other._mass == 0.0 < self._mass:
            return
        if self._mass == 0.0 < other._mass:
            self._masses, self._unit = other._masses, other._unit
            self._loss, self._products = other._loss, other._products
        else:
            self._add(other._loss, other._products.total(), other._unit / self._unit)
            self._masses += other._masses

    def of_all(self, workers: Workers | None) -> Parts:
        """Loss, masses and products of all batches together, those of all workers."""
        masses = np.sum(self._masses, axis=0)
        if workers is not None:
            masses = workers.sum(tf.constant(masses)).numpy()
        valid = masses > 0.0  # Keras' loss is 0 where nothing is valid
        if valid.any():
            shares = np.stack(self._masses)[:, valid] / masses[valid]
            differ = bool(np.abs(shares - shares[:, :1]).max() > _SAME_SHARE)
            scale = self._unit / float(masses.sum()) if self._mass else 0.0
        else:
            count = len(self._masses) * (workers.count if workers else 1)
            differ, scale = False, self._unit / count
        products = self._products.total(scale)
        loss = tf.constant(scale * self._loss, products.dtype)
        if workers is not None:  # at once: what crosses the network is k n numbers and two
            rest = tf.stack([loss, tf.cast(differ, products.dtype)])
            summed = workers.sum(tf.concat([tf.reshape(products, [-1]), rest], axis=0))
            products, loss = tf.reshape(summed[:-2], products.shape), summed[-2]
            differ = bool(summed[-1] > 0)  # of one of them: all are to hear of it
        if differ:
            raise ValueError(
                "The outputs of the model are masked or weighted differently from portion to "
                "portion of the examples, so the loss is no mean over them. Use fewer examples."
            )
        return loss, tf.constant(masses), products
