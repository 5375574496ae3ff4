"""The networks in JAX, functions of Keras's arrays as they are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from peers.problem import Problem

Weights = list[Array]
Loss = Callable[[Weights, Weights], Array]


def loss_function(problem: Problem) -> Loss:
    """loss(trainable, frozen), the mean cross-entropy of the problem's data."""
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)

    def loss(weights: Weights, frozen: Weights) -> Array:
        if problem.kind == "mlp":
            logits = _mlp(weights, x, getattr(jax.nn, problem.activation))
        elif problem.kind == "transformer":
            logits = _transformer(weights, x)
        else:
            logits = _resnet(weights, frozen, x)
        log_probabilities = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_probabilities, y[..., None], axis=-1))

    return loss


def _mlp(weights: Weights, hidden: Array, activation: Callable[[Array], Array]) -> Array:
    for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden = activation(hidden @ W + b)
    return hidden @ weights[-2] + weights[-1]


def _transformer(weights: Weights, tokens: Array) -> Array:
    rest = iter(weights)
    hidden = next(rest)[tokens] + next(rest)
    for _ in range((len(weights) - 6) // 16):
        normed = _layer_norm(hidden, next(rest), next(rest))
        query, key, value = (
            jnp.einsum("btd,dhk->bhtk", normed, next(rest)) + next(rest)[:, None] for _ in range(3)
        )
        scores = jnp.einsum("bhtk,bhsk->bhts", query, key) * query.shape[-1] ** -0.5
        past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        attention = jax.nn.softmax(jnp.where(past, scores, -1e9))
        mixed = jnp.einsum("bhts,bhsk->bthk", attention, value)
        hidden = hidden + jnp.einsum("bthk,hkd->btd", mixed, next(rest)) + next(rest)
        normed = _layer_norm(hidden, next(rest), next(rest))
        wide = jax.nn.gelu(normed @ next(rest) + next(rest), approximate=False)
        hidden = hidden + wide @ next(rest) + next(rest)
    normed = _layer_norm(hidden, next(rest), next(rest))
    return normed @ next(rest) + next(rest)


def _layer_norm(hidden: Array, scale: Array, shift: Array) -> Array:
    centred = hidden - hidden.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-3) * scale + shift


def _resnet(weights: Weights, frozen: Weights, images: Array) -> Array:
    rest, statistics = iter(weights), iter(frozen)

    def convolution(hidden: Array, kernel: Array, stride: int) -> Array:
        return lax.conv_general_dilated(
            hidden, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def normed(hidden: Array, stride: int = 1) -> Array:
        hidden = convolution(hidden, next(rest), stride)
        scale, shift, mean, variance = next(rest), next(rest), next(statistics), next(statistics)
        return (hidden - mean) * (lax.rsqrt(variance + 1e-3) * scale) + shift

    hidden = normed(images)
    for block in range((len(weights) - 5 + 1) // 7):
        stride = 2 if block else 1
        inner = normed(jax.nn.relu(normed(hidden, stride)))
        shortcut = convolution(hidden, next(rest), stride) if block else hidden
        hidden = jax.nn.relu(inner + shortcut)
    return hidden.mean((1, 2)) @ next(rest) + next(rest)
