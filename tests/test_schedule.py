import itertools

import pytest

from keras_hessian_callback import every, within
from keras_hessian_callback.schedule import Budget, resolve_schedule


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


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("asked", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("cost", [0.2, 3.0])
def test_a_budget_is_kept_within_half_a_measurement(asked, cost):
    """Steps of 0.1 s; the cost doubles on the way; preparation and a first measurement count."""
    clock = Clock()
    budget = Budget(clock)
    with budget.spending():
        clock.now += 2.0
    measured = 0
    for step in range(20_000):
        clock.now += 0.1
        if step == 100 or (step > 100 and budget.allows(asked)):
            measured += 1
            with budget.spending():
                clock.now += cost * (1.0 + (step > 5_000))
    assert budget.overhead == pytest.approx(asked, abs=cost / 2_000 + 1e-6)
    assert measured >= 3


def test_a_short_run_may_spend_more_and_says_so():
    clock = Clock()
    budget = Budget(clock)
    assert budget.overhead == 0.0
    with budget.spending():
        clock.now += 1.0
    clock.now += 2.0
    assert not budget.allows(0.05)
    assert budget.overhead == pytest.approx(0.5)


@pytest.mark.parametrize("overhead", [0.0, 1.0, -0.1, float("nan")])
def test_an_overhead_outside_of_0_to_1_is_refused(overhead):
    with pytest.raises(ValueError, match=r"`overhead` must lie in \(0, 1\), such as 0.05"):
        within(overhead=overhead)


@pytest.mark.parametrize("overhead", [1, "5%", True, None])
def test_an_overhead_is_a_float(overhead):
    with pytest.raises(TypeError, match="`overhead` must be a float"):
        within(overhead=overhead)
