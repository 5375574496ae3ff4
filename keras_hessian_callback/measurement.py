"""Measures a model's curvature: the one place where operator and estimator meet."""

import time
import warnings
from typing import Any

from keras_hessian_callback.errors import OUT_OF_MEMORY, summary
from keras_hessian_callback.estimators.deflated import Deflated
from keras_hessian_callback.estimators.estimator import Estimator
from keras_hessian_callback.estimators.exact import Exact
from keras_hessian_callback.linalg import Seed, check_seed
from keras_hessian_callback.objective import LossFn, Model
from keras_hessian_callback.operators.hessian import HessianOperator
from keras_hessian_callback.operators.linear_operator import LinearOperator
from keras_hessian_callback.operators.preconditioned import PreconditionedOperator
from keras_hessian_callback.results import LAYER, CurvatureReport, Estimate, Findings
from keras_hessian_callback.stability import check_has_preconditioner, preconditioner, stability

_METHODS: dict[str, Estimator] = {
    "stochastic": Deflated(),
    "autodiff": Exact(products="autodiff"),
    "finite_difference": Exact(products="finite_difference"),
}


def measure_curvature(
    model: Model,
    data: Any,
    method: str | Estimator = "stochastic",
    *,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    loss_fn: LossFn | None = None,
    training: bool = False,
    preconditioned: bool = False,
    seed: Seed = 0,
    state: Any = None,
) -> CurvatureReport:
    """Measures the Hessian of a model's training loss on held-out data, once.

    Args:
        model: A built `keras.Model`; compiled, unless `loss_fn` is given. Not changed; not to be
            trained by another thread meanwhile.
        data: Held-out examples: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset` of such
            batches, or a `keras.utils.PyDataset`. Or an `importance` of these: examples are drawn
            from them, by `seed`.
        method: `"stochastic"` (`Deflated()`), `"autodiff"` (`Exact(products="autodiff")`),
            `"finite_difference"` (`Exact(products="finite_difference")`), or an estimator with
            its settings.
        batch_size: Int of at least 1: examples per micro-batch, which bounds the memory; the
            result is the same. None: as many at a time as the memory allows.
        memory_limit: Int: bytes that a measurement should take at most, as `HessianOperator` has
            it; None: half of what is free.
        loss_fn: `loss_fn(model, x, y, sample_weight) -> scalar`, instead of the compiled loss:
            for a custom `train_step`, or for the Hessian of something else, such as
            `lambda model, x, y, w: tf.reduce_sum(model(x))`.
        training: True: the loss in training mode, as `HessianOperator` has it.
        preconditioned: True: the Hessian as the model's optimizer sees it after the steps made so
            far, D^-1/2 H D^-1/2 with what Adam, AdamW, Adamax, Nadam, RMSprop, Adagrad and
            Adadelta divide by. Its eigenvalues are those of D^-1 H.
        seed: Int, or a pair (seed, step): `(seed, epoch)` gives the probes that
            `HessianNormCallback(seed=seed)` draws at the end of that epoch.
        state: What an estimator carried over from an earlier measurement; None: a fresh start.
            `estimates, state = Deflated()(operator, seed=(0, 0))` gives one, and this
            measurement needs another seed or step, such as `seed=(0, 1)`: the probes must not
            have shaped the basis. The other estimators carry nothing.

    Returns:
        A `CurvatureReport` with `"frobenius_norm"`, `"trace"`, and what else the method found.

    Raises:
        TypeError, ValueError, RuntimeError: As `HessianOperator` and the estimator do. ValueError
            if `preconditioned` is asked for and the optimizer divides by nothing, or not yet.

    Cost: One trace of the model, the checks of `HessianOperator`, and the products of the
    method. To measure often, use the callback: it traces once.

    Example:

        >>> import keras, numpy as np
        >>> from keras_hessian_callback import measure_curvature
        >>> x = np.array([[1.0], [2.0], [3.0]], "float32")
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile(loss="mse")
        >>> report = measure_curvature(model, (x, x), method="autodiff")
        >>> round(report["frobenius_norm"].value, 4)  # 2 mean(x^2) = 28/3
        9.3333
    """
    estimator = resolve_method(method)
    check_preconditioned(preconditioned)
    if preconditioned:
        optimizer = getattr(model, "optimizer", None)
        check_has_preconditioner(optimizer, getattr(model, "trainable_variables", ()))
    operator = HessianOperator(
        model,
        data,
        products=estimator.products,
        batch_size=batch_size,
        memory_limit=memory_limit,
        loss_fn=loss_fn,
        training=training,
    )
    estimator.check(operator)
    report, _ = measure(operator, estimator, seed=seed, state=state, preconditioned=preconditioned)
    return report


def hessian_frobenius_norm(
    model: Model,
    data: Any,
    method: str | Estimator = "stochastic",
    *,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    loss_fn: LossFn | None = None,
    training: bool = False,
    preconditioned: bool = False,
    seed: Seed = 0,
) -> Estimate:
    """The Frobenius norm of the Hessian of a model's training loss on held-out data.

    Args:
        model: As in `measure_curvature`, and so are the others.
        data: Held-out examples.
        method: A name or an estimator.
        batch_size: Examples per micro-batch; None: as many at a time as the memory allows.
        memory_limit: Int: bytes that the measurement should take; None: half of what is free.
        loss_fn: Instead of the compiled loss.
        training: In training mode.
        preconditioned: Of D^-1/2 H D^-1/2, the Hessian as the optimizer sees it.
        seed: Of the random probes.

    Returns:
        The `Estimate` of ||H||_F = sqrt(sum_ij H_ij^2), in units of loss per weight squared.

    Raises:
        TypeError, ValueError, RuntimeError: As `measure_curvature`.

    Cost: As `measure_curvature`.

    Example:

        >>> import keras, numpy as np
        >>> from keras_hessian_callback import hessian_frobenius_norm
        >>> x = np.array([[1.0], [2.0], [3.0]], "float32")
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile(loss="mse")
        >>> norm = hessian_frobenius_norm(model, (x, x), method="autodiff")
        >>> round(float(norm), 4), norm.standard_error
        (9.3333, 0.0)
    """
    report = measure_curvature(
        model,
        data,
        method,
        batch_size=batch_size,
        memory_limit=memory_limit,
        loss_fn=loss_fn,
        training=training,
        preconditioned=preconditioned,
        seed=seed,
    )
    return report["frobenius_norm"]


def measure(
    operator: HessianOperator,
    estimator: Estimator,
    *,
    seed: Seed,
    state: Any = None,
    preconditioned: bool = False,
) -> tuple[CurvatureReport, Any]:
    """One measurement of an operator: the report, and the estimator's state for the next."""
    check_seed(seed)
    start = time.perf_counter()
    operator = operator.drawn(seed)
    optimizer = getattr(operator.model, "optimizer", None)
    seen: LinearOperator = operator
    if preconditioned:  # by the state that the optimizer has now
        diagonal = preconditioner(optimizer, operator.variables, operator.dtype)
        seen = PreconditionedOperator(operator, diagonal)
    found, state = _estimate(estimator, seen, operator, seed=seed, state=state)
    whole = {name: e for name, e in found.items() if not name.startswith(LAYER)}
    stable = stability(optimizer, operator.variables)
    report = CurvatureReport(
        estimates=whole,
        num_parameters=operator.shape[0],
        num_examples=operator.num_examples,
        pool_size=operator.pool_size,
        num_matvecs=max(estimate.num_matvecs for estimate in whole.values()),
        seconds=time.perf_counter() - start,
        method=repr(estimator),
        products=operator.products,
        num_folds=len(operator.shares),
        carried=found.carried,
        layers={n.removeprefix(LAYER): e for n, e in found.items() if n not in whole},
        spectrum=found.spectrum,
        batch_size=operator.batch_size,
        block_size=operator.block_size,
        preconditioned=preconditioned,
        stability_threshold=stable.threshold if stable.preconditioned == preconditioned else None,
    )
    return report, state


def _estimate(
    estimator: Estimator,
    seen: LinearOperator,
    operator: HessianOperator,
    *,
    seed: Seed,
    state: Any,
) -> tuple[Findings, Any]:
    """What the estimator finds; with fewer vectors in memory, where that ran out."""
    failed = ""
    while True:
        try:
            found = estimator(seen, seed=seed, state=state)
            break
        except OUT_OF_MEMORY as error:
            if not operator.lower_room():
                raise
            failed = summary(error)  # not the error, which holds on to all that was in use
    if failed:
        warnings.warn(
            f"Memory ran out with the vectors of {estimator!r}: the measurement went on with at "
            f"most {operator.room:,.0f} of them, {operator.block_size} at a time. A lower "
            f"`memory_limit` takes less from the start. The error was {failed}",
            stacklevel=2,
        )
    return found


def check_preconditioned(preconditioned: bool) -> None:
    """Raises TypeError unless `preconditioned` is a bool."""
    if not isinstance(preconditioned, bool):
        raise TypeError(f"`preconditioned` must be True or False; got {preconditioned!r}.")


def resolve_method(method: str | Estimator) -> Estimator:
    """The estimator that `method` names, or itself."""
    if isinstance(method, str) and method in _METHODS:
        return _METHODS[method]
    if isinstance(method, str | type) or not hasattr(method, "products"):
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, _METHODS))}, or an estimator such as "
            f"Deflated(max_matvecs=64) or Exact(); got {method!r}."
        )
    return method
