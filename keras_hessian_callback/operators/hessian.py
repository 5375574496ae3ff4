"""The Hessian of a model's loss on held-out data, as a linear operator."""

import copy
import functools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from keras_hessian_callback.data import check_batch_size, check_training
from keras_hessian_callback.errors import ran_out_of_memory, summary
from keras_hessian_callback.generators import global_generators_kept
from keras_hessian_callback.linalg import Seed
from keras_hessian_callback.memory import check_memory_limit
from keras_hessian_callback.objective import LossFn, Model, Objective
from keras_hessian_callback.operators.drawn import Draws
from keras_hessian_callback.operators.guard import check_where_possible
from keras_hessian_callback.operators.linear_operator import (
    Vectors,
    check_products,
    columns_by_rows,
)
from keras_hessian_callback.operators.planning import Plan, plan
from keras_hessian_callback.operators.shares import find_shares
from keras_hessian_callback.operators.traced import TracedProducts
from keras_hessian_callback.pool import Importance, check_drawn, held_out
from keras_hessian_callback.replicas import outside_scope, workers_of
from keras_hessian_callback.rows import WeightedSum
from keras_hessian_callback.second_order import SecondDerivativeError, exact_derivatives


class HessianOperator:
    """The n x n Hessian of a model's training loss on held-out data, known by its products.

    H = sum_b s_b H_b over the micro-batches b, s_b the share of b in what the loss is averaged
    over (its examples; its valid entries where there is a mask): the Hessian of the loss on all
    of the data, whatever `batch_size`. It is taken at the weights that the model has when a
    product is asked for, in inference mode (`training=False`). Everything is traced once, at
    construction; a product with any number of vectors then runs the same graph.

    Args:
        model: A built `keras.Model`; compiled, unless `loss_fn` is given.
        data: Held-out examples: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset` of such
            batches, or a `keras.utils.PyDataset`. Read once into memory. Or an `importance` of
            these: examples are drawn once, at construction.
        products: `"autodiff"`, exact up to rounding; refused where TensorFlow's second
            derivatives are missing or wrong. `"finite_difference"`, central differences of the
            gradient. `"auto"`: the first, and with a warning the second where it is refused.
        batch_size: Int of at least 1: examples per micro-batch, the folds of estimators. None: all
            in one; as many at a time as the memory allows.
        memory_limit: Int: bytes that the measurements should take at most, beside the model and the
            data. None: half of what is free now. Examples and vectors are computed on in portions
            that fit, by what a few examples were seen to take (on Linux, on CPUs); where memory
            runs out all the same, the portions are halved.
        loss_fn: `loss_fn(model, x, y, sample_weight) -> scalar`, instead of the compiled loss.
        training: True: the loss in training mode, with batch normalisation by the statistics of
            the examples and the same dropout masks at every product and every measurement. All
            examples at once, as the statistics are theirs.

    Raises:
        TypeError: If an argument is of a kind that is not accepted.
        ValueError: If the model, the data or the loss cannot be measured, with the reason.
        RuntimeError: If Keras runs on another backend than TensorFlow.

    Cost: A product is 0.7 to 3 gradients in a block of 8, 2 to 4 alone (benchmarks/README.md).
    Construction traces once and checks with a product and a gradient; with micro-batches also
    with a product on each two neighbours together, and blocks of them on as many examples as show
    in the memory, to plan it. Memory beside the model's: the activations of the gradient and of two
    products on a micro-batch (on two, in that check), and 3 k + 4 vectors of n floats for a block
    of k, 4 k + 4 where micro-batches are summed: `peak_bytes`.

    Example:

        >>> import keras, numpy as np
        >>> from keras_hessian_callback import HessianOperator
        >>> x = np.array([[1.0], [2.0], [3.0]], "float32")
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.compile(loss="mse")
        >>> operator = HessianOperator(model, (x, x))
        >>> operator.shape
        (1, 1)
        >>> round(float(operator.matvec(np.ones(1))[0]), 4)  # 2 mean(x^2) = 28/3
        9.3333

    References:
        Pearlmutter, "Fast exact multiplication by the Hessian" (1994).
    """

    def __init__(
        self,
        model: Model,
        data: Any,
        *,
        products: str = "autodiff",
        batch_size: int | None = None,
        memory_limit: int | None = None,
        loss_fn: LossFn | None = None,
        training: bool = False,
    ) -> None:
        check_products(products)
        check_batch_size(batch_size)
        check_memory_limit(memory_limit)
        check_training(training, batch_size)
        self._objective = Objective(model, loss_fn, training=training)
        self._data = held_out(data)
        check_drawn(self._data, training=training, loss_fn=loss_fn)
        self._batch_size, self._memory_limit = batch_size, memory_limit
        self._batches = self._data.micro_batches(batch_size)
        self._draws: Draws | None = None
        with global_generators_kept():
            # Keras divides losses by the number of replicas in the scope of a strategy.
            self._traced, self._shares, self._plan = outside_scope(lambda: self._choose(products))
            if isinstance(self._data, Importance):
                pool = self._data
                self._draws = outside_scope(lambda: Draws(self._traced, pool, batch_size))
                self._batches, self._shares = self._draws.batches(seed=0)
        n = self._traced.num_parameters
        self.shape = (n, n)
        self.dtype = self._traced.dtype

    @property
    def products(self) -> str:
        """How the products are made: `"autodiff"` or `"finite_difference"`."""
        return self._traced.products

    @property
    def model(self) -> Model:
        """The model."""
        return self._objective.model

    @property
    def variables(self) -> list[Any]:
        """The trainable variables that a vector goes over, in order."""
        return list(self._objective.variables)

    @property
    def num_examples(self) -> int:
        """Held-out examples that the loss is averaged over; those drawn, by `importance`."""
        return self._data.num_examples

    @property
    def batch_size(self) -> int:
        """Examples that are computed on at a time: fewer than asked for where memory ran out."""
        size = min(self._batch_size or self.num_examples, self.num_examples)
        return self._traced.portions.at_a_time(size)

    @property
    def block_size(self) -> int:
        """Vectors that are multiplied at a time."""
        return min(self._traced.portions.vectors or self._plan.block_size, self._plan.block_size)

    @property
    def peak_bytes(self) -> float:
        """Bytes that a block of products was planned to take at its peak, beside model and data.

        (3 k + 4) n floats for k = `block_size`, k n more where products of several micro-batches
        are summed and where those of portions are, and the activations of `batch_size` examples.
        NaN where memory cannot be seen.
        """
        return self._plan.bytes

    @property
    def room(self) -> float:
        """Vectors of n floats that an estimator may hold beside, within the memory limit."""
        return self._plan.room

    def lower_room(self) -> bool:
        """Halves `room` and `block_size`, where memory ran out on vectors; False: it cannot.

        Workers would have to agree on it: with them nothing is halved.
        """
        return workers_of(self.model) is None and self._plan.lower()

    @property
    def pool_size(self) -> int | None:
        """Examples of the pool that they were drawn from; None: not drawn."""
        return self._data.pool.num_examples if isinstance(self._data, Importance) else None

    def drawn(self, seed: Seed) -> "HessianOperator":
        """This operator on examples drawn anew by `importance`, as a function of the seed.

        Args:
            seed: Int, or a pair (seed, step).

        Returns:
            An operator that shares the trace with this one; itself where nothing is drawn.
        """
        if self._draws is None:
            return self
        other = copy.copy(self)
        other._batches, other._shares = self._draws.batches(seed)
        return other

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each micro-batch in what the loss is averaged over; they add up to 1."""
        return tuple(self._shares)

    @functools.cached_property
    def layers(self) -> tuple[tuple[str, slice], ...]:
        """Layers, by the paths of their trainable variables, and their entries in a vector."""
        # A Sequential model's variables bear its name, unless it was loaded from a file.
        own = f"{self._objective.model.name}/"
        layers: list[tuple[str, slice]] = []
        end = 0
        for variable in self._objective.variables:
            path = variable.path.removeprefix(own)
            name, start, end = path.rpartition("/")[0] or path, end, end + math.prod(variable.shape)
            if layers and layers[-1][0] == name:  # of which the variable before is a part
                start = layers.pop()[1].start
            layers.append((name, slice(start, end)))
        return tuple(layers)

    def is_current(self, model: Model) -> bool:
        """Whether this is still the Hessian of `model`: not compiled or frozen anew since."""
        return self._objective.is_current(model)

    def matvec(self, v: Vectors) -> Vectors:
        """The product with a vector.

        Args:
            v: (n,) array or tensor.

        Returns:
            (n,) of the kind of `v`.
        """
        if v.ndim != 1:
            raise ValueError(f"`matvec` takes a vector {self.shape[:1]}; got shape {v.shape}.")
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, V: Vectors) -> Vectors:
        """The products with the columns of a block, which share one recorded gradient.

        Args:
            V: (n, k) array or tensor.

        Returns:
            (n, k) of the kind of `V`. Not finite where the loss or its derivatives are not.
        """
        if V.ndim != 2 or V.shape[0] != self.shape[0]:
            raise ValueError(f"`matmat` takes a block ({self.shape[0]}, k); got shape {V.shape}.")
        return columns_by_rows(self, V)

    def row_products(self, V: Vectors) -> tf.Tensor:
        """The products with the rows of a block, as rows: vectors lie in one piece each.

        Args:
            V: (k, n) array or tensor.

        Returns:
            (k, n) tensor.
        """
        mean, products = WeightedSum(), self.fold_products(V)
        for share in self.shares:
            mean.add(share, next(products))  # nobody else holds it while the next is made
        return mean.total()

    def fold_products(self, V: Vectors) -> Iterator[tf.Tensor]:
        """The row products with the Hessian of each micro-batch; their mean is `row_products`'s.

        Args:
            V: (k, n) array or tensor.

        Yields:
            (k, n) tensors, one a micro-batch, to be weighted by `shares`.
        """
        vectors = tf.cast(V, self.dtype)
        weights = self._objective.weights()
        for batch in self._batches:
            yield self._traced(weights, batch, vectors)[2]

    def _choose(self, products: str) -> tuple[TracedProducts, list[float], Plan]:
        """The products that can be had, the share of each micro-batch, and what fits."""
        if products != "finite_difference":
            try:
                return self._made_by("autodiff")
            except SecondDerivativeError as error:
                if products == "autodiff":
                    raise SecondDerivativeError(
                        f"{error} Use products='finite_difference'."
                    ) from error
                warnings.warn(
                    f"{error} Finite differences of the gradient are used instead.", stacklevel=2
                )
        return self._made_by("finite_difference")

    def _made_by(self, products: str) -> tuple[TracedProducts, list[float], Plan]:
        traced = None
        try:
            traced = TracedProducts(self._objective, self._batches[0], products)
            several = len(self._batches) > 1
            planned = plan(traced, self._batches[0], self._memory_limit, several=several)
            traced.portions.limit(planned.examples, planned.vectors)
            shares = find_shares(traced, self._batches)
        except tf.errors.OpError as error:
            cure = "Check that the model runs on `data`, as by `model.evaluate`."
            if ran_out_of_memory(error):
                cure = "Use a smaller `batch_size`."
            elif products == "autodiff" and traced is not None and self._has_gradient():
                raise SecondDerivativeError(
                    f"TensorFlow cannot differentiate the gradient of this model: {summary(error)}."
                ) from error
            what = "The gradient" if traced is None else "A Hessian-vector product"
            raise ValueError(f"{what} failed. {cure} {summary(error)}") from error
        if products == "autodiff":
            check_where_possible(traced, self._batches[0], fits=planned.checked)
        return traced, shares, planned

    def _has_gradient(self) -> bool:
        """Whether the gradient runs, which products need."""
        try:
            with exact_derivatives(self._objective.layers()):
                self._objective.gradients_both_ways(self._batches[0])
        except tf.errors.OpError:
            return False
        return True
