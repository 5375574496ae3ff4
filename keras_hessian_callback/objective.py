"""A Keras model's training loss as a pure function of weights and examples."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from keras_hessian_callback.data import Batch

Model: TypeAlias = keras.Model
# What a model raises that is given data of another kind.
_HOST_ERRORS = (ValueError, TypeError, LookupError, AttributeError, tf.errors.OpError)

LossFn = Callable[[Model, Any, Any, Any], tf.Tensor]


class Objective:
    """loss(weights, batch) of a model: two calls give the same value, and nothing changes.

    The loss is the one that `compile` and the layers define (sample and loss weights, masks,
    regularizers, `add_loss`, an overridden `compute_loss`) in inference mode, or `loss_fn`.
    The weights are mapped in a `keras.StatelessScope`: no variable, metric or seed generator
    of the model is read in place of them or written.

    Args:
        model: A built `keras.Model`; compiled, unless `loss_fn` is given.
        loss_fn: `loss_fn(model, x, y, sample_weight) -> scalar`, instead of the compiled loss.

    Raises:
        TypeError: If `model` is no model of Keras 3 or `loss_fn` cannot be called.
        ValueError: If the model is not built, not compiled, or has no real trainable weights.
        RuntimeError: If Keras runs on another backend than TensorFlow.
    """

    def __init__(self, model: keras.Model, loss_fn: LossFn | None = None) -> None:
        _check_model(model)
        _check_strategy()
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(
                "`loss_fn` must be a function loss_fn(model, x, y, sample_weight) -> scalar; "
                f"got {loss_fn!r}."
            )
        if loss_fn is None:
            _check_compiled(model)
        self.model = model
        self.loss_fn = loss_fn
        self.variables = _trainable_variables(model)
        self._compiled_loss = getattr(model, "_compile_loss", None)

    def is_current(self, model: Model) -> bool:
        """Whether this is still the loss of `model`: not compiled or frozen anew since."""
        return (
            self.model is model
            and self._compiled_loss is getattr(model, "_compile_loss", None)
            and list(map(id, self.variables)) == list(map(id, _trainable_variables(model)))
        )

    def weights(self) -> list[tf.Tensor]:
        """The current weights, one tensor per trainable variable."""
        return [tf.identity(variable.value) for variable in self.variables]

    def dtypes(self) -> list[tf.DType]:
        """The dtypes of the weights and of the model's computations."""
        names = [variable.dtype for variable in self.variables] + [self.model.compute_dtype]
        return [tf.as_dtype(name) for name in names]

    def __call__(self, weights: Sequence[tf.Tensor], batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss, and what it was divided by.

        Args:
            weights: One tensor per trainable variable.
            batch: The examples.

        Returns:
            The loss, a scalar; and its masses (outputs,): for each output the number that the
            loss's sum over the batch is divided by. The loss of two batches together is the
            mean of the two losses weighted by their masses.
        """
        mapping = list(zip(self.variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            if self.loss_fn is not None:
                loss = self.loss_fn(self.model, batch.x, batch.y, batch.sample_weight)
                return _scalar(loss), tf.stack([_num_examples(batch)])
            y_pred = _call(self.model, batch.x)
            loss = _compute_loss(self.model, batch, y_pred)
            return _scalar(loss), _masses(self.model, batch, y_pred)

    def gradient(
        self, weights: Sequence[tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """The loss, its masses, and its gradient: a dense tensor per trainable variable."""
        variables = [variable.value for variable in self.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            tape.watch(variables)
            loss, masses = self(weights, batch)
        gradients, direct = tape.gradient(loss, [list(weights), variables])
        self._check_dependence(gradients, direct)
        return loss, masses, dense(gradients, weights)

    def _check_dependence(self, gradients: Sequence[Any], direct: Sequence[Any]) -> None:
        """Raises where the loss reads variables past the mapping, or no weights at all."""
        for variable, gradient in zip(self.variables, direct, strict=True):
            if gradient is not None:
                raise ValueError(
                    f"The loss reads the variable {variable.path!r} itself, where it should get a "
                    "value in its place (tf.recompute_grad does so, and code that reads the "
                    "underlying tf.Variable): its derivatives would be missed. Leave that out for "
                    "the measurement."
                )
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "The loss does not depend on any trainable weight of the model. A `loss_fn` must "
                "compute it from the `model` that it is given."
            )


def dense(gradients: Sequence[Any], weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients as tensors: sparse ones densified, None (no dependence) as zeros."""
    return [
        tf.zeros_like(weight) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, weight in zip(gradients, weights, strict=True)
    ]


def check_backend() -> None:
    """Raises RuntimeError where Keras runs on another backend than TensorFlow."""
    if keras.config.backend() != "tensorflow":
        raise RuntimeError(
            "keras_hessian_callback needs Keras on the TensorFlow backend; Keras runs on "
            f"{keras.config.backend()!r}. Set the environment variable KERAS_BACKEND=tensorflow "
            "before Keras is imported."
        )


def _check_model(model: Any) -> None:
    check_backend()
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        legacy = any(base.__module__.startswith("tf_keras") for base in type(model).__mro__)
        hint = " (legacy tf_keras: build the model with `import keras`)" if legacy else ""
        raise TypeError(f"`model` must be a keras.Model of Keras 3; got a {kind}{hint}.")
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built, so it has no weights yet. Begin it with "
            "keras.Input(shape), or call it on a batch of the data, before `fit` or a measurement."
        )


def _check_strategy() -> None:
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if num_replicas > 1:
        raise ValueError(
            f"This was set up inside the scope of a strategy of {num_replicas} replicas, "
            "where Keras divides every loss by their number. Make the model in "
            "`strategy.scope()`, but call `fit` or measure outside."
        )


def _check_compiled(model: keras.Model) -> None:
    if not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled, so it has no training loss. Call "
            "`model.compile(loss=...)`, or pass loss_fn=lambda model, x, y, sample_weight: ..."
        )
    if type(model).train_step is not keras.Model.train_step:
        name = type(model).__name__
        loss = getattr(model.loss, "name", getattr(model.loss, "__name__", model.loss))
        warnings.warn(
            f"{name} has a `train_step` of its own. The curvature measured is that of the "
            f"compiled loss ({loss!r}), which may not be the one that {name}.train_step "
            "minimises. If so, pass that one: loss_fn=lambda model, x, y, sample_weight: ...",
            stacklevel=2,
        )


def _trainable_variables(model: keras.Model) -> list[keras.Variable]:
    variables = [
        variable
        for variable in model.trainable_variables
        if not getattr(variable, "overwrite_with_gradient", False)  # float8 scales
    ]
    if not variables:
        raise ValueError(f"The model {model.name!r} has no trainable weights: no curvature.")
    for variable in variables:
        if not tf.as_dtype(variable.dtype).is_floating:
            raise ValueError(
                f"The trainable weight {variable.path!r} is {variable.dtype}; the Hessian is "
                "defined here for real floating-point weights. Split it into real and imaginary "
                "parts, or freeze it."
            )
    return variables


def _call(model: keras.Model, x: Any) -> Any:
    try:
        return model(x, training=False) if model._call_has_training_arg else model(x)
    except _HOST_ERRORS as error:
        raise ValueError(
            f"The model {model.name!r} could not be called on the inputs of `data`. Pass examples "
            f"as `fit` takes them. The model's error was {type(error).__name__}: {error}"
        ) from error


def _compute_loss(model: Model, batch: Batch, y_pred: Any) -> Any:
    # Models that overrode compute_loss before it took `training` are called without it.
    compute_loss = getattr(model, "_compute_loss", model.compute_loss)
    takes_training = "training" in inspect.signature(compute_loss).parameters
    training = {"training": False} if takes_training else {}
    try:
        return compute_loss(batch.x, batch.y, y_pred, batch.sample_weight, **training)
    except _HOST_ERRORS as error:
        raise ValueError(
            f"The loss of the model {model.name!r} could not be computed on `data`. Pass targets "
            "as `fit` takes them, or the loss as loss_fn=lambda model, x, y, sample_weight: ... "
            f"The model's error was {type(error).__name__}: {error}"
        ) from error


def _scalar(loss: Any) -> tf.Tensor:
    loss = None if loss is None else tf.convert_to_tensor(loss)
    if loss is None or loss.shape.rank != 0 or not loss.dtype.is_floating:
        got = "None" if loss is None else f"shape {loss.shape} and dtype {loss.dtype.name}"
        raise ValueError(
            f"The loss must be one real number; got {got}. Reduce it over the batch and the "
            "outputs, as with tf.reduce_mean."
        )
    return loss


def _num_examples(batch: Batch) -> tf.Tensor:
    leaf = next(leaf for leaf in tf.nest.flatten(batch) if leaf is not None)
    return tf.cast(tf.shape(leaf)[0], tf.float64)


def _masses(model: keras.Model, batch: Batch, y_pred: Any) -> tf.Tensor:
    """What the compiled loss divides each output's sum by, as far as it differs by batch.

    Keras averages over all entries, which is the same as over examples; but over the valid
    entries where there is a mask, and over the weights with "mean_with_sample_weight".
    """
    masses = []
    names = getattr(model, "output_names", [])
    for key, output in _by_output(y_pred).items():
        loss, target, weight = (
            _of_output(values, key, names) for values in (model.loss, batch.y, batch.sample_weight)
        )
        if loss is None:  # not part of the sum, or of an overridden compute_loss
            continue
        mask = getattr(output, "_keras_mask", None)
        ignored = getattr(loss, "ignore_class", None)
        if ignored is not None and target is not None:
            valid = tf.not_equal(target, tf.cast(ignored, target.dtype))
            valid = tf.squeeze(valid, -1) if valid.shape.rank == output.shape.rank else valid
            mask = valid if mask is None else tf.logical_and(tf.cast(mask, tf.bool), valid)
        mass = None if mask is None else tf.cast(mask, tf.float64)
        if getattr(loss, "reduction", None) == "mean_with_sample_weight" and weight is not None:
            weight = tf.cast(weight, tf.float64)
            while mass is not None and weight.shape.rank < mass.shape.rank:
                weight = weight[..., None]
            while mass is not None and weight.shape.rank > mass.shape.rank:
                weight = tf.squeeze(weight, -1)
            mass = weight if mass is None else weight * mass
        masses.append(_num_examples(batch) if mass is None else tf.reduce_sum(mass))
    return tf.stack(masses or [_num_examples(batch)])


def _by_output(y_pred: Any) -> dict[Any, tf.Tensor]:
    """The outputs by their key: a dictionary's own, else their place."""
    if isinstance(y_pred, dict):
        return {key: output for key, output in y_pred.items() if tf.is_tensor(output)}
    outputs = y_pred if isinstance(y_pred, list | tuple) else [y_pred]
    return {index: output for index, output in enumerate(outputs) if tf.is_tensor(output)}


def _of_output(values: Any, key: Any, names: Sequence[str]) -> Any:
    """What belongs to an output, of losses, targets or weights as `compile` and `fit` take them."""
    if isinstance(values, dict):
        if isinstance(key, int):
            key = names[key] if key < len(names) else None
        return values.get(key)
    if isinstance(values, list | tuple):
        index = key if isinstance(key, int) else list(names).index(key) if key in names else None
        return values[index] if index is not None and index < len(values) else None
    return values
