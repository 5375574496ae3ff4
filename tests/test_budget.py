import dataclasses
import warnings

import pytest

from keras_hessian_callback import Deflated, Estimate, Exact, Hutchinson
from keras_hessian_callback.budget import Budget


class Clock:
    """A clock that is moved by hand."""

    now = 0.0

    def __call__(self):
        return self.now


@dataclasses.dataclass(frozen=True)
class Costly(Hutchinson):
    """An estimator whose call moves the clock by so much, and by so much a product."""

    num_probes: int = 20
    clock: Clock = None
    fixed: float = 0.0
    each: float = 0.0

    def __call__(self, operator, *, seed=0, state=None):
        self.clock.now += self.fixed + self.each * self.num_probes
        return {"frobenius_norm": Estimate(1.0, 0.1, 0.8, 1.2, self.num_probes)}, None


def train(asked, *, steps, estimator, epochs=1, first_epoch=0, step=0.01, traced=1.0, known=True):
    """A fit as the callback accounts for it: the budget, and the products of each measurement."""
    clock = estimator.clock
    budget = Budget(asked, clock)
    with budget.preparing():
        clock.now += 5.0
        budget.try_out(estimator, None)
    products = []

    def measure():
        with budget.measuring():
            chosen, start = budget.affordable(estimator), clock.now
            chosen(None)
            budget.learn(clock.now - start, chosen.num_probes)
        products.append(chosen.num_probes)

    params = {"epochs": epochs, "steps": steps if known else None}
    for epoch in range(first_epoch, epochs):
        for batch in range(steps):
            clock.now += step + (traced if batch == epoch - first_epoch == 0 else 0.0)
            budget.reach(epoch, batch, params)
            if budget.allows_another:
                measure()
        if not products:
            measure()
    return budget, products


@pytest.mark.parametrize("asked", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(
    ("steps", "epochs", "first_epoch"),
    [(400, 1, 0), (40, 10, 0), (2_000, 1, 0), (2_000, 5, 3), (30, 500, 0)],
)
@pytest.mark.parametrize(("fixed", "each"), [(0.0, 0.002), (0.005, 0.001), (0.0, 0.0005)])
def test_a_share_is_kept_within_a_fifth(asked, steps, epochs, first_epoch, fixed, each):
    """Wherever 2.5 of the smallest measurements fit into the share; of steps of 10 ms."""
    estimator = Costly(clock=Clock(), fixed=fixed, each=each)
    budget, products = train(
        asked, steps=steps, epochs=epochs, first_epoch=first_epoch, estimator=estimator
    )
    run = 1.0 + 0.01 * steps * (epochs - first_epoch)
    if asked * run >= 2.5 * (fixed + 2 * each):
        assert budget.overhead == pytest.approx(asked, rel=0.2)
        assert len(products) >= 2
    else:
        assert len(products) <= 2
    full = fixed + 20 * each
    if asked * run > 3.5 * full:  # at the accuracy that was asked for
        assert set(products[1:]) == {20}


def test_the_first_epoch_is_not_waited_for():
    _, products = train(0.05, steps=50_000, estimator=Costly(clock=Clock(), each=0.01))
    assert len(products) == pytest.approx(0.05 * 501.0 / 0.2, abs=1)


def test_fewer_products_grow_to_what_the_share_buys():
    """What does not depend on the number of products is learned from run to run, not assumed."""
    estimator = Costly(clock=Clock(), fixed=0.05, each=0.01)
    _, products = train(0.05, steps=1_000, epochs=1, estimator=estimator)  # 0.55 s: 0.18 s each
    assert products[0] < products[-1]
    assert products[-1] in (11, 12, 13)


def test_a_run_of_unknown_length_measures_in_full():
    estimator = Costly(clock=Clock(), each=0.01)
    budget, products = train(0.05, steps=3_000, estimator=estimator, known=False)
    assert set(products) == {20}
    assert budget.overhead == pytest.approx(0.05, abs=0.1 / 30.0)


def test_an_estimator_that_cannot_do_with_less_is_measured_once_and_then_by_its_cost():
    class All(Costly):
        def smaller(self, products):
            return None

    estimator = All(clock=Clock(), each=0.01)
    budget, products = train(0.05, steps=100, epochs=20, estimator=estimator)
    assert set(products) == {20}
    assert budget.setup_seconds == pytest.approx(5.0)  # no trial of all
    assert budget.overhead == pytest.approx(0.05, rel=0.2 + 0.1 / 0.05 / 21.0)


def test_a_change_of_cost_is_followed():
    """The share holds at any time from the first tenth on, though the cost doubles half-way."""
    clock = Clock()
    budget = Budget(0.05, clock)
    cost = 0.1
    shares = []
    with budget.measuring():
        clock.now += cost
    for step in range(20_000):
        clock.now += 0.01
        budget.reach(0, step, {"epochs": 1, "steps": 20_000})
        if budget.allows_another:
            with budget.measuring():
                clock.now += cost * (2.0 if step > 10_000 else 1.0)
        if step > 2_000:
            shares.append(budget.overhead)
    assert min(shares) > 0.04
    assert max(shares) < 0.06


def test_set_up_is_apart():
    clock = Clock()
    budget = Budget(0.05, clock)
    assert budget.overhead == 0.0
    with budget.preparing():
        clock.now += 3.0
    clock.now += 2.0
    with budget.measuring():
        clock.now += 0.5
        assert budget.overhead == pytest.approx(0.25)  # so far
        clock.now += 0.5
    assert (budget.setup_seconds, budget.overhead) == pytest.approx((3.0, 0.5))
    budget.begin()
    assert (budget.setup_seconds, budget.overhead) == (0.0, 0.0)


def test_a_share_that_was_not_kept_is_told():
    clock = Clock()
    budget = Budget(0.05, clock)
    clock.now += 9.0
    with budget.measuring():
        clock.now += 0.53
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        budget.report_overrun()
        Budget(None, clock).report_overrun()
    with budget.measuring():
        clock.now += 0.2
    with pytest.warns(UserWarning, match=r"within\(overhead=0.05\) could not.*share of 0.081"):
        budget.report_overrun()


def test_a_trial_that_fails_is_left_to_the_first_measurement():
    class Fails(Hutchinson):
        def __call__(self, operator, *, seed=0, state=None):
            raise ValueError("no")

    budget = Budget(0.05, Clock())
    budget.try_out(Fails(), None)
    for batch in range(50):
        budget.reach(0, batch, {"epochs": 1, "steps": 50})
    assert not budget.allows_another


def test_estimators_do_with_fewer_products():
    assert Exact().smaller(5) is None
    assert Hutchinson().smaller(5) == Hutchinson(num_probes=5)
    assert Hutchinson(num_probes=4, distribution="normal").smaller(5).num_probes == 4
    assert Hutchinson(num_probes=1).smaller(0).num_probes == 1
    assert Deflated().smaller(8) == Deflated(max_matvecs=8)
    assert Deflated().smaller(50) == Deflated()
    assert Deflated(max_rank=10).smaller(0) == Deflated(max_matvecs=3, max_rank=1)
