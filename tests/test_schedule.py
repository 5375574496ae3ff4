import itertools

import pytest

from keras_hessian_callback import every, within
from keras_hessian_callback.schedule import resolve_schedule


def test_epoch_is_every_epoch():
    schedule = resolve_schedule("epoch")
    assert schedule == every(epochs=1)
    assert all(schedule.due_after_epoch(epoch) for epoch in range(5))


def test_every_second_epoch():
    due = [epoch for epoch in range(7) if every(epochs=2).due_after_epoch(epoch)]
    assert due == [0, 2, 4, 6]


@pytest.mark.parametrize("stride", [1, 4, 7, 10, 25])
def test_steps_are_due_once_where_they_are_passed(stride):
    """As under `steps_per_execution`: each call passes `stride` steps."""
    schedule = every(steps=10)
    counts = range(0, 200, stride)
    due = [b for a, b in itertools.pairwise(counts) if schedule.due_after_steps(a, b)]
    expected = sorted({next(b for b in counts if b >= step) for step in range(10, counts[-1], 10)})
    assert due == expected or due == [*expected, counts[-1]]
    assert not any(schedule.due_after_epoch(epoch) for epoch in range(5))


@pytest.mark.parametrize("arguments", [{}, {"epochs": 1, "steps": 1}])
def test_exactly_one_count_is_taken(arguments):
    with pytest.raises(ValueError, match="either `epochs` or `steps`"):
        every(**arguments)


@pytest.mark.parametrize("name", ["epochs", "steps"])
@pytest.mark.parametrize("count", [0, -1])
def test_counts_below_one_are_refused(name, count):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got {name}={count}"):
        every(**{name: count})


@pytest.mark.parametrize("count", [1.5, "2", True])
def test_counts_are_integers(count):
    with pytest.raises(TypeError, match="`epochs` must be an integer"):
        every(epochs=count)


@pytest.mark.parametrize("schedule", ["batch", 3, None])
def test_unknown_schedules_are_refused_with_those_accepted(schedule):
    with pytest.raises(ValueError, match=r"'epoch', every.*within"):
        resolve_schedule(schedule)


@pytest.mark.parametrize("overhead", [0.0, 1.0, -0.1, float("nan")])
def test_an_overhead_outside_of_0_to_1_is_refused(overhead):
    with pytest.raises(ValueError, match=r"`overhead` must lie in \(0, 1\), such as 0.05"):
        within(overhead=overhead)


@pytest.mark.parametrize("overhead", [1, "5%", True, None])
def test_an_overhead_is_a_float(overhead):
    with pytest.raises(TypeError, match="`overhead` must be a float"):
        within(overhead=overhead)
