"""Compares products by autodiff with differences of the gradient, variable by variable."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch, spread_out
from keras_hessian_callback.double_precision import in_double_precision, rounds_inside
from keras_hessian_callback.errors import OUT_OF_MEMORY, summary
from keras_hessian_callback.linalg import probes, unpack
from keras_hessian_callback.operators.traced import NUM_EXAMPLES, TracedProducts
from keras_hessian_callback.second_order import SecondDerivativeError, custom_gradients

# ||h v|| relative to 1 + rms(w); the next where one is unsure. Where an operation rounds to
# float32 inside, shorter steps would be steps on a staircase.
_DISTANCES = (1e-7, 1e-5, 1e-3)
_DISTANCES_ROUNDED = (1e-3, 1e-2)
_TOLERANCE = 1e-4  # relative error of a variable's part of a product
_ROUNDING = 1e-14  # relative, of a gradient in float64

Weights = list[tf.Tensor]


def check_where_possible(traced: TracedProducts, batch: Batch, *, fits: bool) -> None:
    """Checks derivatives, or warns that they are used unchecked.

    Args:
        traced: Products by autodiff.
        batch: Examples.
        fits: Whether the memory allows it.

    Raises:
        SecondDerivativeError, ValueError: As `check_derivatives`.
    """
    reason = "the check in float64 takes more memory than there is; see `memory_limit`"
    if fits:
        try:
            check_derivatives(traced, batch)
            return
        except (TypeError, *OUT_OF_MEMORY, tf.errors.OpError) as error:
            reason = f"the model cannot be computed in float64 ({summary(error)})"
    warnings.warn(f"Products by autodiff are used unchecked: {reason}.", stacklevel=2)


def check_derivatives(traced: TracedProducts, batch: Batch) -> None:
    """Raises SecondDerivativeError where products by autodiff are not those of the gradient.

    The traced graph itself is computed in float64, on a few of the examples and at weights moved
    a little off the model's, so that no unit sits on its kink and no derivative vanishes by
    symmetry. Its product with a random vector is compared with (g(w + h v) - g(w - h v)) / (2 h).
    float64 allows an h so small that kinks (ReLU, max-pooling) are next to never crossed; where
    the two disagree, the difference over 2 h tells whether one was. What is found wrong counts if
    it is so at two other places, along other vectors: a kink may lie next to one.

    Differences that are not symmetric, u'(J v) against v'(J u), tell that the gradient is not the
    derivative of any function. Where autodiff is symmetric still, the model stops gradients
    (`tf.stop_gradient`), and its product holds what is stopped constant: that is used, with a
    warning.

    Args:
        traced: Products by autodiff.
        batch: Examples.

    Raises:
        SecondDerivativeError: With the variables and the sizes of their errors; or where a
            gradient of the model's own makes products that are not linear in the vector.
        ValueError: If there is no Hessian to measure.
        TypeError, tf.errors.OpError: If there is no float64 form of the graph.

    Cost: A product and 3 gradients in float64 on 4 examples (on all of `batch`, where the model
    was traced for a fixed number), and as much again for each doubt; two products more where the
    model has gradients of its own.
    """
    gradients = _Gradients(traced, batch)
    distances = _DISTANCES_ROUNDED if rounds_inside(traced.concrete) else _DISTANCES
    place = gradients.nearby
    if custom_gradients(traced.concrete.graph) and not gradients.are_linear():
        raise SecondDerivativeError(
            "Products by autodiff are not linear in the vector: a tf.custom_gradient clips, rounds "
            f"or normalises what is passed back.{_own_gradients(traced)}"
        )
    first = gradients.compare(place(0), distances[0], number=0)
    if not np.isfinite(first.error).all():  # out of the domain of the loss
        place = gradients.own
        first = gradients.compare(place(0), distances[0], number=0)
    for distance in distances:
        if distance != distances[0]:
            first = gradients.compare(place(0), distance, number=0)
        if first.clears():
            return
        wrong = first.wrong()
        for number in (1, 2):
            if wrong.any():
                elsewhere = gradients.compare(place(number), distance, number=number)
                if elsewhere.clears():
                    return
                wrong &= elsewhere.wrong()
        if wrong.any():
            _judge(traced, first, gradients.compare(place(0), distance, number=1), wrong)
            return


@dataclass(frozen=True)
class _Comparison:
    """One product by autodiff and by differences: (n,); norms of each variable's part of it."""

    vector: np.ndarray
    product: np.ndarray
    difference: np.ndarray  # over h
    size: np.ndarray
    error: np.ndarray  # of the product less the difference
    spread: np.ndarray  # of the difference over h less the one over 2 h; 0 where not needed
    rounding: float

    def wrong(self) -> np.ndarray:
        return self.error > _TOLERANCE * self.size + 10.0 * self.spread + self.rounding

    def unsure(self) -> bool:
        seen = self.size > 100.0 * self.rounding
        return bool(np.any(10.0 * self.spread[seen] > 0.03 * self.size[seen]))

    def clears(self) -> bool:
        """Whether nothing is wrong, beyond doubt."""
        return not self.wrong().any() and not self.unsure()

    def relative_error(self) -> np.ndarray:
        return self.error / np.maximum(self.size, np.finfo(np.float64).tiny)


class _Gradients:
    """The gradient and products of a few examples in float64, by weights.

    Weights are lists of tensors: as vectors in one piece they would be held twice.
    """

    def __init__(self, traced: TracedProducts, batch: Batch) -> None:
        self._traced = traced
        try:
            results = [*traced.concrete.outputs, traced.gradient]
            self._double = in_double_precision(traced.concrete, results)
        except ValueError as error:  # shapes that change with the dtype, as by tf.bitcast
            raise TypeError(summary(error)) from error
        self._batch = spread_out(batch, NUM_EXAMPLES) if traced.any_size else batch
        self._ends = np.cumsum([math.prod(w.shape) for w in traced.objective.weights()])

    def own(self, seed: int) -> Weights:
        """The model's weights, whatever the seed."""
        del seed
        return [tf.cast(weight, tf.float64) for weight in self._traced.objective.weights()]

    def nearby(self, seed: int) -> Weights:
        """Weights a little off the model's."""
        moved = []
        for number, weight in enumerate(self.own(seed)):
            scale = 0.02 * max(float(tf.sqrt(tf.reduce_mean(weight**2))), 0.05)
            noise = tf.random.stateless_normal(weight.shape, [seed, number], dtype=tf.float64)
            moved.append(weight + scale * noise)
        return moved

    def compare(self, point: Weights, distance: float, *, number: int) -> _Comparison:
        """One product at `point`, against differences over `distance` and twice that."""
        n = self._traced.num_parameters
        double = np.dtype("float64")
        vector = probes("rademacher", size=n, first=number, count=1, seed=0, dtype=double)
        vector /= math.sqrt(n)
        square = sum(float(tf.reduce_sum(weight**2)) for weight in point)
        h = distance * (1.0 + math.sqrt(square / n))
        product, gradient = self._at(point, vector)
        rounding = _ROUNDING * float(np.linalg.norm(gradient)) / h
        del gradient
        over_h = over_2h = self._difference(point, vector, h)
        size = np.maximum(self._norms(over_h), self._norms(product[0]))
        error = self._norms(product[0] - over_h)
        if not (error <= _TOLERANCE * size + rounding).all():
            over_2h = self._difference(point, vector, 2 * h)
        return _Comparison(
            vector[0].numpy(),
            product[0],
            over_h,
            size,
            error,
            spread=self._norms(over_h - over_2h),
            rounding=rounding,
        )

    def are_linear(self) -> bool:
        """Whether products with a vector and a longer one differ by their length alone.

        Of the vectors that estimators take, those of a basis have length 1 and probes sqrt(n).
        """
        n = self._traced.num_parameters
        probe = probes("rademacher", size=n, count=1, seed=0, dtype=np.dtype("float64"))
        short, long = (self._at(self.own(0), probe / size)[0] for size in (math.sqrt(n), 1.0))
        difference = float(np.linalg.norm(long - math.sqrt(n) * short))
        return not difference > _TOLERANCE * float(np.linalg.norm(long))

    def _difference(self, point: Weights, vector: tf.Tensor, h: float) -> np.ndarray:
        step = unpack(vector[0], point)
        none = tf.zeros([0, vector.shape[1]], tf.float64)
        gradients = (
            self._at([w + s * v for w, v in zip(point, step, strict=True)], none)[1]
            for s in (h, -h)
        )
        return (next(gradients) - next(gradients)) / (2.0 * h)

    def _at(self, weights: Weights, vectors: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        arguments = self._traced.arguments(weights, self._batch, vectors)
        _, _, products, gradient = self._double(*arguments)
        return products.numpy(), gradient.numpy()

    def _norms(self, values: np.ndarray) -> np.ndarray:
        return np.array([np.linalg.norm(part) for part in np.split(values, self._ends[:-1])])


def _judge(
    traced: TracedProducts, first: _Comparison, second: _Comparison, wrong: np.ndarray
) -> None:
    """Raises, or warns, for the reason that autodiff and differences disagree."""

    def is_symmetric(one: np.ndarray, other: np.ndarray, error: float) -> bool:
        tolerance = (1e-3 * np.linalg.norm(one) + error) / math.sqrt(len(one))
        return bool(abs(second.vector @ one - first.vector @ other) < tolerance)

    spread = 10.0 * float(np.linalg.norm(first.spread) + np.linalg.norm(second.spread))
    if is_symmetric(first.difference, second.difference, spread):
        raise SecondDerivativeError(_message(traced, first.relative_error(), wrong))
    if not is_symmetric(first.product, second.product, 0.0):
        raise ValueError(
            "The gradient of this loss is not the derivative of any function, so there is no "
            f"Hessian.{_own_gradients(traced)} products='finite_difference' measures the Jacobian "
            "of the gradient all the same."
        )
    warnings.warn(
        "The gradient of this loss is not its derivative: it stops gradients (tf.stop_gradient), "
        "or has one of its own (a straight-through estimator). The Hessian measured is that with "
        f"what is stopped held constant.{_own_gradients(traced)}",
        stacklevel=2,
    )


def _message(traced: TracedProducts, errors: np.ndarray, wrong: np.ndarray) -> str:
    variables = traced.objective.variables
    worst = [index for index in np.argsort(-errors) if wrong[index]]
    named = [f"{variables[i].path} ({100.0 * errors[i]:.2g} %)" for i in worst[:4]]
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return (
        "Products by autodiff disagree with differences of the gradient, in the weights "
        f"{', '.join(named)}{more}: TensorFlow, or a tf.custom_gradient, has a second derivative "
        f"wrong.{_own_gradients(traced)}"
    )


def _own_gradients(traced: TracedProducts) -> str:
    names = custom_gradients(traced.concrete.graph)
    return f" The graph has gradients of its own at {', '.join(names[:3])}." if names else ""
