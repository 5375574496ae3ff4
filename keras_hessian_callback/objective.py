"""A Keras model's training loss as a pure function of weights and examples."""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from keras_hessian_callback.data import Batch
from keras_hessian_callback.execution import run
from keras_hessian_callback.masses import masses_of, num_examples, reweighted
from keras_hessian_callback.replicas import check_strategy
from keras_hessian_callback.second_order import is_lower_precision

Model: TypeAlias = keras.Model
# What a model raises that is given data of another kind.
_HOST_ERRORS = (ValueError, TypeError, LookupError, AttributeError, tf.errors.OpError)

LossFn = Callable[[Model, Any, Any, Any], tf.Tensor]


class Objective:
    """loss(weights, batch) of a model: two calls give the same value, and nothing changes.

    The loss is the one that `compile` and the layers define (sample and loss weights, masks,
    regularizers, `add_loss`, an overridden `compute_loss`), or `loss_fn`. The weights are mapped
    in a `keras.StatelessScope`: no variable, metric or seed generator of the model is read in
    place of them or written. Seed generators start from fixed seeds at every call, and
    half-precision weights are computed with in float32.

    Args:
        model: A built `keras.Model`; compiled, unless `loss_fn` is given.
        loss_fn: `loss_fn(model, x, y, sample_weight) -> scalar`, instead of the compiled loss.
        training: The mode in which the model is called. A `loss_fn` calls it as it likes.

    Raises:
        TypeError: If `model` is no model of Keras 3 or `loss_fn` cannot be called.
        ValueError: If the model is not built, not compiled, or has no real trainable weights.
        RuntimeError: If Keras runs on another backend than TensorFlow.
    """

    def __init__(
        self, model: keras.Model, loss_fn: LossFn | None = None, *, training: bool = False
    ) -> None:
        _check_model(model)
        check_strategy(model)
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(
                "`loss_fn` must be a function loss_fn(model, x, y, sample_weight) -> scalar; "
                f"got {loss_fn!r}."
            )
        if loss_fn is not None:
            _check_arguments(loss_fn)
        if loss_fn is None:
            _check_compiled(model)
        self.model = model
        self.loss_fn = loss_fn
        self.variables = _trainable_variables(model)
        self.training = training
        self._compiled_loss = getattr(model, "_compile_loss", None)

    def is_current(self, model: Model) -> bool:
        """Whether this is still the loss of `model`: not compiled or frozen anew since."""
        return (
            self.model is model
            and self._compiled_loss is getattr(model, "_compile_loss", None)
            and list(map(id, self.variables)) == list(map(id, _trainable_variables(model)))
        )

    def weights(self) -> list[tf.Tensor]:
        """The current weights, one tensor per trainable variable, in float32 at least."""
        return [_full_precision(variable) for variable in self.variables]

    def dtypes(self) -> list[tf.DType]:
        """The dtypes of weights, layers and losses, as they are computed with."""
        names = [variable.dtype for variable in self.variables]
        names += [layer.compute_dtype for layer in self.layers() if layer.variables]
        if self.loss_fn is None:
            losses = tf.nest.flatten(self.model.loss)
            names += [getattr(loss, "dtype", keras.config.floatx()) for loss in losses]
        return [tf.float32 if is_lower_precision(name) else tf.as_dtype(name) for name in names]

    def layers(self) -> list[keras.layers.Layer]:
        """The model and all layers in it."""
        return list(self.model._flatten_layers())

    def _scope(self, weights: Sequence[tf.Tensor]) -> keras.StatelessScope:
        """Where variables read as the weights, and nothing is written."""
        scope = keras.StatelessScope(collect_losses=True)
        trainable = set(map(id, self.variables))
        for number, variable in enumerate(self.model.variables):
            if variable.name == "seed_generator_state":
                seed = tf.constant([number, 0], variable.dtype)
                scope.add_update((variable, seed))
            elif id(variable) not in trainable and is_lower_precision(variable.dtype):
                scope.add_update((variable, _full_precision(variable)))
        for variable, weight in zip(self.variables, weights, strict=True):
            scope.add_update((variable, weight))
        return scope

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
        return self.with_outputs(weights, batch)[:2]

    def with_outputs(
        self, weights: Sequence[tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor, Any]:
        """The loss, its masses, and the model's outputs; None of a `loss_fn`."""
        with self._scope(weights):
            if self.loss_fn is not None:
                loss = _call_loss_fn(self.loss_fn, self.model, batch)
                return _scalar(loss), tf.stack([num_examples(batch)]), None
            y_pred = _call(self.model, batch.x, self.training)
            names = getattr(self.model, "output_names", [])
            batch = batch._replace(sample_weight=reweighted(batch, y_pred, names))
            loss = _compute_loss(self.model, batch, y_pred, self.training)
            return _scalar(loss), masses_of(self.model, batch, y_pred), y_pred

    def gradient(
        self, weights: Sequence[tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """The loss, its masses, and its gradient: a dense tensor per trainable variable."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            loss, masses = self(weights, batch)
        try:
            gradients = tape.gradient(loss, list(weights))
        except LookupError as error:
            raise ValueError(
                f"TensorFlow cannot differentiate this loss at all, as training would need: {error}"
            ) from error
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "The loss does not depend on any trainable weight of the model. A `loss_fn` must "
                "compute it from the `model` that it is given."
            )
        return loss, masses, dense(gradients, weights)

    def gradients_both_ways(self, batch: Batch) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The gradient by mapped weights, and that of training, for `check_gradient`."""
        weights = self.weights()

        def both() -> list[tf.Tensor]:
            variables = [variable.value for variable in self.variables]
            with tf.GradientTape() as tape:
                loss, _ = self(variables, batch)
            of_training = dense(tape.gradient(loss, variables), weights)
            return [*self.gradient(weights, batch)[2], *of_training]

        # In a graph, as when it is trained: some gradients of the model's own ask for one.
        with tf.summary.record_if(False):
            concrete = tf.function(both, autograph=False).get_concrete_function()
        gradients = run(concrete, [])
        return gradients[: len(weights)], gradients[len(weights) :]

    def check_gradient(self, mapped: list[tf.Tensor], of_training: list[tf.Tensor]) -> None:
        """Raises ValueError where the gradient by mapped weights is not that of training.

        A gradient of the model's own may lose it: that of `tf.recompute_grad` does. Variables in
        half precision, which are mapped in float32, are not checked.
        """
        for variable, one, other in zip(self.variables, mapped, of_training, strict=True):
            scale = float(tf.norm(other))
            if math.isfinite(scale) and float(tf.norm(one - other)) > 1e-2 * scale:
                raise ValueError(
                    f"The gradient by {variable.path!r} is lost when a value is put in place of "
                    "the variable, as by a function wrapped in tf.recompute_grad beforehand: "
                    "its derivatives would be missed. Leave that out for the measurement."
                )


def dense(gradients: Sequence[Any], weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Gradients as tensors: sparse ones densified, None (no dependence) as zeros."""
    return [
        tf.zeros_like(weight) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, weight in zip(gradients, weights, strict=True)
    ]


def check_backend() -> None:
    """Raises RuntimeError where Keras is too old or on another backend than TensorFlow."""
    if keras.config.backend() != "tensorflow":
        raise RuntimeError(
            "keras_hessian_callback needs Keras on the TensorFlow backend; Keras runs on "
            f"{keras.config.backend()!r}. Set the environment variable KERAS_BACKEND=tensorflow "
            "before Keras is imported."
        )
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    if version < (3, 4):
        raise RuntimeError(
            f"keras_hessian_callback needs Keras 3.4 or later; this is {keras.__version__}. Run "
            "pip install -U keras."
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


def _check_arguments(loss_fn: LossFn) -> None:
    try:
        inspect.signature(loss_fn).bind(None, None, None, None)
    except TypeError as error:
        raise TypeError(
            "`loss_fn` is called as loss_fn(model, x, y, sample_weight), which this one does not "
            f"take ({error})."
        ) from error


def _check_compiled(model: keras.Model) -> None:
    if not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled, so it has no training loss. Call "
            "`model.compile(loss=...)`, or pass loss_fn=lambda model, x, y, sample_weight: ..."
        )
    if getattr(model.train_step, "__func__", None) is not keras.Model.train_step:
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


def _full_precision(variable: keras.Variable) -> tf.Tensor:
    value = tf.convert_to_tensor(variable.value)
    return tf.cast(value, "float32") if is_lower_precision(variable.dtype) else value


def _call(model: keras.Model, x: Any, training: bool) -> Any:
    try:
        return model(x, training=training) if model._call_has_training_arg else model(x)
    except _HOST_ERRORS as error:
        raise ValueError(
            f"The model {model.name!r} could not be called on the inputs of `data`. Pass examples "
            f"as `fit` takes them. The model's error was {type(error).__name__}: {error}"
        ) from error


def _call_loss_fn(loss_fn: LossFn, model: keras.Model, batch: Batch) -> Any:
    try:
        return loss_fn(model, batch.x, batch.y, reweighted(batch))
    except (*_HOST_ERRORS, RuntimeError) as error:
        raise ValueError(
            "`loss_fn` could not be computed on `data`. It is traced as a graph, so it is made of "
            "TensorFlow and Keras operations, without .numpy(), get_weights() or predict(). Its "
            f"error was {type(error).__name__}: {error}"
        ) from error


def _compute_loss(model: Model, batch: Batch, y_pred: Any, training: bool) -> Any:
    # Models that overrode compute_loss before it took `training` are called without it.
    compute_loss = getattr(model, "_compute_loss", model.compute_loss)
    takes_training = "training" in inspect.signature(compute_loss).parameters
    mode = {"training": training} if takes_training else {}
    try:
        return compute_loss(batch.x, batch.y, y_pred, batch.sample_weight, **mode)
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
            "outputs: in a `loss_fn` as with tf.reduce_mean, in a keras loss with its default "
            "`reduction`."
        )
    return loss
