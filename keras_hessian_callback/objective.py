"""A Keras model's training loss as a pure function of weights and examples."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from keras_hessian_callback.data import Batch

Model: TypeAlias = keras.Model
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

    def is_current(self, model: keras.Model, loss_fn: LossFn | None) -> bool:
        """Whether this is still the loss of `model`: not compiled or frozen anew since."""
        return (
            self.model is model
            and self.loss_fn is loss_fn
            and self._compiled_loss is getattr(model, "_compile_loss", None)
            and list(map(id, self.variables)) == list(map(id, _trainable_variables(model)))
        )

    def weights(self) -> list[tf.Tensor]:
        """The current weights, one tensor per trainable variable."""
        return [tf.identity(variable.value) for variable in self.variables]

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
            # Models that overrode compute_loss before it took `training` are called without it.
            compute_loss = getattr(self.model, "_compute_loss", self.model.compute_loss)
            takes_training = "training" in inspect.signature(compute_loss).parameters
            loss = compute_loss(
                batch.x,
                batch.y,
                y_pred,
                batch.sample_weight,
                **({"training": False} if takes_training else {}),
            )
            return _scalar(loss), _masses(self.model, batch, y_pred)

    def gradient(
        self, weights: Sequence[tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """The loss, its masses, and its gradient: a dense tensor per trainable variable."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            loss, masses = self(weights, batch)
        return loss, masses, dense(tape.gradient(loss, weights), weights)


def dense(gradients: Sequence[Any], weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients as tensors: sparse ones densified, None (no dependence) as zeros."""
    return [
        tf.zeros_like(weight) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, weight in zip(gradients, weights, strict=True)
    ]


def compute_dtype(model: keras.Model) -> str:
    """The dtype that the model computes in: lower than its weights' under mixed precision."""
    return keras.backend.standardize_dtype(model.compute_dtype)


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
            f"The measurement was set up inside the scope of a strategy of {num_replicas} replicas, "
            "where Keras divides every loss by their number. Make the model inside "
            "`strategy.scope()`, but call `fit` or measure outside it."
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
    except (ValueError, TypeError, LookupError, AttributeError, tf.errors.OpError) as error:
        raise ValueError(
            f"The model {model.name!r} could not be called on the inputs of `data`. Pass examples "
            f"as `fit` takes them. The model's error was {type(error).__name__}: {error}"
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
    losses = keras.tree.flatten(model.loss)
    outputs = keras.tree.flatten(y_pred)
    targets = keras.tree.flatten(batch.y)
    weights = keras.tree.flatten(batch.sample_weight)
    for index, output in enumerate(outputs):
        loss = _for_output(losses, index, len(outputs))
        target = _for_output(targets, index, len(outputs))
        weight = _for_output(weights, index, len(outputs))
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
            mass = weight if mass is None else weight * mass
        masses.append(_num_examples(batch) if mass is None else tf.reduce_sum(mass))
    return tf.stack(masses)


def _for_output(values: list[Any], index: int, num_outputs: int) -> Any:
    """The value that belongs to an output: one for all, or one for each."""
    if len(values) == 1:
        return values[0]
    return values[index] if len(values) == num_outputs else None
