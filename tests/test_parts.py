"""Means of portions: by their masses, on several devices, and of several workers."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hessian_callback.operators.parts import Mean


def part(loss, masses, size=3):
    """A batch's part; its products follow from its loss."""
    products = tf.constant(np.linspace(1.0, 2.0, 2 * size).reshape(2, size) * loss, tf.float32)
    return tf.constant(loss, tf.float32), tf.constant(np.atleast_1d(masses)), products


def mean_of(parts):
    mean = Mean(len(parts))
    for each in parts:
        mean.add(each)
    return mean


def check(found, loss, masses):
    expected = part(loss, masses)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("losses", "masses", "loss"),
    [
        ([2.0], [3.0], 2.0),
        ([2.0, 4.0], [1.0, 1.0], 3.0),
        ([2.0, 4.0, 9.0], [2.0, 1.0, 1.0], 17.0 / 4.0),
        ([7.0, 2.0, 7.0, 4.0, 7.0], [0.0, 3.0, 0.0, 1.0, 0.0], 2.5),
        ([2.0, 4.0], [0.0, 0.0], 3.0),
    ],
)
def test_each_counts_by_its_mass_and_where_none_has_any_alike(losses, masses, loss):
    parts = [part(*each) for each in zip(losses, masses, strict=True)]
    check(mean_of(parts).of_all(None), loss, sum(masses))


@pytest.mark.parametrize(
    ("first", "second", "loss"),
    [
        ([(2.0, 1.0), (4.0, 1.0)], [(6.0, 1.0), (8.0, 1.0)], 5.0),
        ([(2.0, 2.0), (4.0, 1.0)], [(6.0, 3.0), (8.0, 2.0)], 42.0 / 8.0),
        ([(2.0, 0.0)], [(6.0, 3.0), (8.0, 1.0)], 6.5),
        ([(2.0, 3.0), (6.0, 1.0)], [(8.0, 0.0)], 3.0),
        ([(2.0, 0.0)], [(6.0, 0.0)], 4.0),
    ],
)
def test_means_of_several_devices_are_joined(first, second, loss):
    mean, other = (mean_of([part(*each) for each in parts]) for parts in (first, second))
    mean.join(other)
    check(mean.of_all(None), loss, sum(mass for _, mass in first + second))


class Others:
    """The sums over two workers, of which the other's numbers are given."""

    count = 2

    def __init__(self, *sums):
        self._sums = list(sums)

    def sum(self, tensor):
        return tensor + tf.cast(self._sums.pop(0), tensor.dtype)


@pytest.mark.parametrize(
    ("masses", "others", "loss"), [((1.0, 1.0), 2.0, 2.5), ((0.0, 0.0), 2.0, 4.0)]
)
def test_a_worker_counts_by_its_mass(masses, others, loss):
    """The other one's loss is 4, that of this one 1, if it counts."""
    share = others / (sum(masses) + others)
    theirs = share * np.append(part(4.0, others)[2].numpy().ravel(), [4.0, 0.0])
    workers = Others(np.array([others]), theirs)
    found = mean_of([part(0.5, masses[0]), part(1.5, masses[1])]).of_all(workers)
    check(found, loss, sum(masses) + others)


def test_outputs_that_are_weighted_differently_are_refused():
    with pytest.raises(ValueError, match="differently from portion to portion"):
        mean_of([part(1.0, [1.0, 2.0]), part(1.0, [1.0, 1.0])]).of_all(None)


def test_a_loss_in_half_precision_is_averaged():
    parts = [part(loss, 1.0) for loss in (2.0, 4.0)]
    halves = [(tf.cast(loss, tf.bfloat16), masses, rows) for loss, masses, rows in parts]
    check(mean_of(halves).of_all(None), 3.0, 2.0)
