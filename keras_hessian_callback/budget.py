"""Where the time of a run goes, and what a share of it buys."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from keras_hessian_callback.estimators.estimator import Estimator
from keras_hessian_callback.operators.linear_operator import LinearOperator

_FEWEST_MEASUREMENTS = 3  # in a run: half of one is then within a fifth of them
_ENOUGH_STEPS = 16  # to tell from how long the run will take
_MUCH_MORE = 1.2  # of the share that was asked for, which is worth a warning


class Budget:
    """Time of a `fit` in three parts: set-up, measurements, and the rest.

    What a product takes is learned from all measurements, those of earlier runs included.

    Args:
        share: Of the rest, that measurements may take; None: no limit is asked for.
        clock: A function that gives seconds.
    """

    def __init__(
        self, share: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._share = share
        self._clock = clock
        self._seconds = self._products = 0.0  # of measurements; the last counts half of all
        self._trial: float | None = None
        self.begin()

    def begin(self) -> None:
        """Starts the clock of a `fit`."""
        self._start = self._clock()
        self._setup = self._measured = 0.0
        self._since: float | None = None  # when the measurement began that goes on
        self._last: float | None = None
        self._steps = 0
        self._first_epoch: int | None = None
        self._reached: list[tuple[float, float]] = []  # part of the run, and the rest by then

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """Counts what happens inside as set-up."""
        start = self._clock()
        try:
            yield
        finally:
            self._setup += self._clock() - start

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Counts what happens inside as a measurement."""
        self._since = self._clock()
        try:
            yield
        finally:
            self._last = self._clock() - self._since
            self._measured, self._since = self._measured + self._last, None

    def try_out(self, estimator: Estimator, operator: LinearOperator) -> None:
        """Learns what the smallest measurement takes, where there is a share to keep.

        The first one warms up, the second is timed. What was known is forgotten.
        """
        self._seconds = self._products = 0.0
        self._trial = None
        smallest = None if self._share is None else estimator.smaller(1)
        if smallest is None:
            return
        with contextlib.suppress(Exception):  # the first measurement will say so
            smallest(operator, seed=0)
            start = self._clock()
            estimates, _ = smallest(operator, seed=0)
            self._trial = self._clock() - start
            self.learn(self._trial, estimates["frobenius_norm"].num_matvecs)

    def learn(self, seconds: float, products: int) -> None:
        """Takes note of what a measurement took."""
        self._seconds = self._seconds / 2.0 + seconds
        self._products = self._products / 2.0 + products

    def reach(self, epoch: int, batch: int, params: Mapping[str, Any]) -> None:
        """Takes note that a step is over; `params` has the number of epochs, and may of steps."""
        self._steps += 1
        self._first_epoch = epoch if self._first_epoch is None else self._first_epoch
        epochs = (params.get("epochs") or 0) - self._first_epoch
        if epochs > 0 and params.get("steps"):
            part = epoch - self._first_epoch + (batch + 1) / params["steps"]
            part /= epochs
            self._reached = [*self._reached[:1], (part, self._rest)]

    def affordable(self, estimator: Estimator) -> Estimator:
        """The estimator, with fewer products where too few such measurements fit into the run."""
        most = self._most_seconds
        if most is None or self._seconds <= 0.0:
            return estimator
        return estimator.smaller(int(most * self._products / self._seconds)) or estimator

    def report_overrun(self) -> None:
        """Warns where much more was spent than the share."""
        if self._share is None or self._last is None or self.overhead <= _MUCH_MORE * self._share:
            return
        warnings.warn(
            f"within(overhead={self._share:g}) could not be kept: the measurements of this fit "
            f"took {self._measured:.2g} s, the last of them {self._last:.2g} s, and the rest "
            f"{self._rest:.2g} s, a share of {self.overhead:.2g}. Longer runs keep it, and fewer "
            "held-out examples make a measurement cheaper.",
            stacklevel=3,
        )

    @property
    def setup_seconds(self) -> float:
        """Time of the set-up."""
        return self._setup

    @property
    def overhead(self) -> float:
        """Time of the measurements over the rest; 0.0 at the start."""
        return self._spent / self._rest if self._rest > 0.0 else 0.0

    @property
    def allows_another(self) -> bool:
        """Whether another measurement keeps nearest to the share."""
        cost = self._last
        if cost is None and self._trial is not None:
            cost = min(self._trial, self._most_seconds or self._trial)
        if self._share is None or cost is None or self._steps < _ENOUGH_STEPS:
            return False
        return self._measured + cost / 2.0 <= self._share * self._rest

    @property
    def _spent(self) -> float:
        return self._measured + (0.0 if self._since is None else self._clock() - self._since)

    @property
    def _rest(self) -> float:
        return self._clock() - self._start - self._setup - self._spent

    @property
    def _most_seconds(self) -> float | None:
        """What a measurement may take, by the rest of the whole run; None where unknown."""
        if self._share is None or len(self._reached) < 2:
            return None
        # From the first step's end on: that step traced.
        (part, rest), (part_now, rest_now) = self._reached
        if not part_now > part:  # a loop of one's own that counts otherwise
            return None
        whole = rest + (rest_now - rest) * (1.0 - part) / (part_now - part)
        return self._share * whole / _FEWEST_MEASUREMENTS
