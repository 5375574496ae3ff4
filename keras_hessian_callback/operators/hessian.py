"""The Hessian of a model's loss on held-out data, as a linear operator."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hessian_callback.data import Batch, HeldOutData, concatenate
from keras_hessian_callback.linalg import machine_epsilon, probes
from keras_hessian_callback.objective import LossFn, Model, Objective
from keras_hessian_callback.operators.autodiff import autodiff_products
from keras_hessian_callback.operators.finite_difference import finite_difference_products
from keras_hessian_callback.operators.linear_operator import Vectors, check_products
from keras_hessian_callback.second_order import (
    exact_derivatives,
    operations,
    refuse_dropped_second_derivatives,
)

_PRODUCTS = {"autodiff": autodiff_products, "finite_difference": finite_difference_products}

# Operations that write state which a StatelessScope does not shield.
_WRITES = (
    "Assign",
    "ResourceApply",
    "ResourceScatter",
    "ResourceStridedSliceAssign",
    "LookupTableImport",
    "LookupTableInsert",
    "LookupTableRemove",
    "Rng",
    "StatefulRandom",
    "StatefulStandardNormal",
    "StatefulTruncatedNormal",
    "StatefulUniform",
)


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
            batches, or a `keras.utils.PyDataset`. Read once into memory.
        products: `"autodiff"`, exact up to rounding; or `"finite_difference"`, central
            differences of the gradient: for models whose gradient TensorFlow cannot
            differentiate.
        batch_size: Int of at least 1: examples per micro-batch. None: all at once.
        loss_fn: `loss_fn(model, x, y, sample_weight) -> scalar`, instead of the compiled loss.

    Raises:
        TypeError: If an argument is of a kind that is not accepted.
        ValueError: If the model, the data or the loss cannot be measured, with the reason.
        RuntimeError: If Keras runs on another backend than TensorFlow.

    Cost: A product is 1 to 2 gradients in a block of 8, 2 to 3 alone (benchmarks/README.md).
    Construction traces once and checks with a product and a gradient; with micro-batches also
    with a product on each two neighbours together. Memory beside the model's: the activations
    of the gradient and of two products on a micro-batch (on two, in that check), and 4 blocks
    (n, k).

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
        loss_fn: LossFn | None = None,
    ) -> None:
        check_products(products)
        check_batch_size(batch_size)
        self._objective = Objective(model, loss_fn)
        self._data = data if isinstance(data, HeldOutData) else HeldOutData(data)
        self._batches = self._data.micro_batches(batch_size)
        variables = self._objective.variables
        n = sum(math.prod(variable.shape) for variable in variables)
        self.shape = (n, n)
        self.dtype = np.result_type(
            np.float32,
            *(
                np.dtype(tf.as_dtype(v.dtype).as_numpy_dtype)
                for v in variables
                if v.dtype in ("float32", "float64")
            ),
        )
        self._exact = products == "autodiff"
        self._function = self._trace(products)
        try:
            self._shares = self._check()
        except tf.errors.OpError as error:
            raise ValueError(
                f"A Hessian-vector product failed: {str(error)[:300]}. If memory ran out, use a "
                "smaller `batch_size`; if a derivative is missing, products='finite_difference'."
            ) from error

    @property
    def num_examples(self) -> int:
        """Held-out examples that the loss is averaged over."""
        return self._data.num_examples

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each micro-batch in what the loss is averaged over; they add up to 1."""
        return tuple(self._shares)

    @property
    def layers(self) -> tuple[tuple[str, slice], ...]:
        """The layer of each trainable variable, by its path, and its entries in a vector."""
        ends = np.cumsum([math.prod(v.shape) for v in self._objective.variables]).tolist()
        starts = [0, *ends[:-1]]
        return tuple(
            (variable.path.rpartition("/")[0] or variable.path, slice(start, end))
            for variable, start, end in zip(self._objective.variables, starts, ends, strict=True)
        )

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
        shares = [tf.constant(share, self.dtype) for share in self.shares]
        total = sum(s * part for s, part in zip(shares, self.fold_products(V), strict=True))
        return total if tf.is_tensor(V) else total.numpy()

    def fold_products(self, V: Vectors) -> Iterator[tf.Tensor]:
        """The products with the Hessian of each micro-batch; their mean by `shares` is `matmat`'s.

        Args:
            V: (n, k) array or tensor.

        Yields:
            (n, k) tensors, one a micro-batch.
        """
        rows = tf.transpose(tf.cast(V, self.dtype))
        for batch in self._batches:
            yield tf.transpose(self._run(batch, rows)[2])

    def _run(self, batch: Batch, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return self._function(*_leaves(batch), rows)

    def _trace(self, products: str) -> Any:
        """The one graph: (examples, rows (k, n)) to loss, masses and products (k, n)."""
        # Micro-batches of several sizes share the trace; one batch keeps its static shape.
        static = len(self._batches) == 1
        example = self._batches[0]
        signature = [
            tf.TensorSpec([leaf.shape[0] if static else None, *leaf.shape[1:]], leaf.dtype)
            for leaf in _leaves(example)
        ]
        rows = tf.TensorSpec([None, self.shape[0]], tf.as_dtype(self.dtype))

        def block(*arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            batch = _with_leaves(example, arguments[:-1])
            return _PRODUCTS[products](self._objective, batch, arguments[-1])

        function = tf.function(block, autograph=False, input_signature=[*signature, rows])
        # The model's own summaries are not to be written once more.
        with exact_derivatives(), tf.summary.record_if(False):
            concrete = function.get_concrete_function()
        if self._exact:
            refuse_dropped_second_derivatives(concrete.graph)
        writes = [name for name, kind in operations(concrete.graph) if kind.startswith(_WRITES)]
        if writes:
            raise ValueError(
                f"Computing the loss writes variables of its own ({', '.join(writes[:3])}), so "
                "measuring would change the run. Keep such state in keras variables "
                "(`add_weight`, keras.random.SeedGenerator), which the measurement shields, or "
                "leave it alone where `training` is False."
            )
        return concrete

    def _check(self) -> list[float]:
        """The share of each micro-batch; raises where there is no fixed, additive Hessian."""
        probe = probes("rademacher", size=self.shape[0], block=0, seed=0, dtype=self.dtype)
        row = tf.transpose(probe[:, :1])
        parts = [self._run(batch, row) for batch in self._batches]
        self._check_loss([float(part[0]) for part in parts])
        masses = np.stack([part[1].numpy() for part in parts])
        masses = masses[:, masses.sum(axis=0) > 0]  # Keras' loss is 0 where nothing is valid
        if masses.shape[1] == 0:
            return [1.0 / len(parts)] * len(parts)
        shares = masses / masses.sum(axis=0)
        if np.abs(shares - shares[:, :1]).max() > 1e-9:
            raise ValueError(
                "The outputs of the model are masked or weighted differently from micro-batch to "
                "micro-batch, so the loss is no mean over them. Use batch_size=None."
            )
        self._check_additive(shares[:, 0], [part[2] for part in parts], row)
        return shares[:, 0].tolist()

    def _check_loss(self, losses: list[float]) -> None:
        """Raises where a `loss_fn` is not finite, or a loss changes between two calls."""
        of_user = self._objective.loss_fn is not None
        wrong = [loss for loss in losses if not math.isfinite(loss)]
        diverged = not all(np.isfinite(weight).all() for weight in self._objective.weights())
        if of_user and wrong and not diverged:
            raise ValueError(
                f"`loss_fn` returned {wrong[0]} on the held-out data; it must be finite there."
            )
        none = tf.zeros([0, self.shape[0]], self.dtype)
        again = float(self._run(self._batches[0], none)[0])
        # A graph on a GPU may differ by rounding.
        if math.isfinite(losses[0]) and not math.isclose(again, losses[0], rel_tol=1e-5):
            drawn = [name for name, kind in operations(self._function.graph) if "Random" in kind]
            raise ValueError(
                f"{'`loss_fn`' if of_user else 'The loss'} changes between two calls with the same "
                f"weights and examples ({losses[0]!r}, {again!r}), so it has no fixed Hessian. "
                f"Random operations: {', '.join(drawn[:3]) or 'none found in the graph'}. Draw "
                "with keras.random and a SeedGenerator, or only where `training` is True."
            )

    def _check_additive(
        self, shares: np.ndarray, products: list[tf.Tensor], row: tf.Tensor
    ) -> None:
        """Raises where a product on two micro-batches together is not their weighted mean."""
        # Above the rounding of the products, which for differences is their own error.
        epsilon = machine_epsilon(self._objective.dtypes())
        rounding = 1e3 * epsilon if self._exact else 10.0 * epsilon ** (1 / 3)
        tolerance = min(max(rounding, 1e-6), 0.3)
        for first in range(len(self._batches) - 1):
            pair = slice(first, first + 2)
            if not shares[pair].sum() > 0:
                continue
            together = self._run(concatenate(*self._batches[pair]), row)[2].numpy()
            mean = np.average(products[pair], axis=0, weights=shares[pair])
            scale = max(np.linalg.norm(part) for part in (together, *products[pair]))
            if np.linalg.norm(together - mean) > tolerance * scale:
                raise ValueError(
                    "The loss of two micro-batches together is not the mean of theirs, so it is "
                    "no mean over examples (but a sum, weighted by hand, or one that compares "
                    "examples): micro-batches would give another Hessian. Use batch_size=None, "
                    "or average over examples."
                )


def check_batch_size(batch_size: int | None) -> None:
    """Raises unless `batch_size` is None or an int of at least 1."""
    if batch_size is None:
        return
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
        raise TypeError(f"`batch_size` must be an integer or None; got {batch_size!r}.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")


def _leaves(batch: Batch) -> list[tf.Tensor]:
    return [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]


def _with_leaves(example: Batch, leaves: tuple[tf.Tensor, ...]) -> Batch:
    """A batch of the structure of `example` with other arrays in it."""
    remaining = iter(leaves)
    flat = [None if leaf is None else next(remaining) for leaf in tf.nest.flatten(example)]
    return tf.nest.pack_sequence_as(example, flat)
