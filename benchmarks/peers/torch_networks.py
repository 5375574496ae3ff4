"""The networks in PyTorch's own modules, with Keras's weights, in inference mode."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from peers.problem import Arrays, Problem

Norm = type[nn.LayerNorm]
# How an array in Keras's shape becomes the parameter, and back.
Layout = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]


class WrittenOutNorm(nn.LayerNorm):
    """LayerNorm in elementary operations.

    PyTorch's own has a wrong forward-mode derivative of its backward pass (seen in 2.13, in
    float64, too): in the rows of `weight`, products by forward over reverse are off by 1 to 20 %.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        centred = hidden - hidden.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias


def module(
    problem: Problem, norm: Norm = nn.LayerNorm
) -> tuple[nn.Module, list[nn.Parameter], list[Layout]]:
    """The network, its parameters in Keras's order, and how their entries are laid out."""
    shapes = [array.shape for array in problem.vector]
    network = _MODULES[problem.kind](shapes, problem, norm)
    pairs = network.in_keras_order()
    return network.eval(), [p for p, _ in pairs], [_layout(kind, p) for p, kind in pairs]


def load(parameters: list[nn.Parameter], layouts: list[Layout], arrays: Arrays) -> None:
    with torch.no_grad():
        for parameter, (there, _), array in zip(parameters, layouts, arrays, strict=True):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(there(array))))


def data(problem: Problem) -> tuple[Tensor, Tensor]:
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y).long()
    if problem.kind == "resnet":
        x = x.permute(0, 3, 1, 2).contiguous()
    if problem.kind == "transformer":
        x, y = x.long(), y.reshape(-1)
    return x, y


class _Mlp(nn.Module):
    def __init__(self, shapes: list[tuple[int, ...]], problem: Problem, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*shape) for shape in shapes[::2])
        self.activation = getattr(torch, problem.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden))
        return self.layers[-1](hidden)

    def in_keras_order(self) -> list[tuple[nn.Parameter, str]]:
        return [pair for layer in self.layers for pair in _linear(layer)]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, norm: Norm) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (norm(width, eps=1e-3) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self._attention(self.norm_1(hidden))
        return hidden + self.narrow(functional.gelu(self.wide(self.norm_2(hidden))))

    def _attention(self, hidden: Tensor) -> Tensor:
        # Written out: the fused attention of CPUs has no second derivative.
        batch, length, width = hidden.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (
            layer(hidden).reshape(shape).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) * shape[-1] ** -0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        attention = scores.masked_fill(future, -1e9).softmax(-1)
        return self.out((attention @ value).transpose(1, 2).reshape(batch, length, width))

    def in_keras_order(self) -> list[tuple[nn.Parameter, str]]:
        pairs = [(self.norm_1.weight, "same"), (self.norm_1.bias, "same")]
        for layer in (self.query, self.key, self.value, self.out):
            pairs += _linear(layer)
        pairs += [(self.norm_2.weight, "same"), (self.norm_2.bias, "same")]
        return pairs + _linear(self.wide) + _linear(self.narrow)


class _Transformer(nn.Module):
    def __init__(self, shapes: list[tuple[int, ...]], problem: Problem, norm: Norm) -> None:
        super().__init__()
        (vocabulary, width), positions = shapes[:2]
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(positions))
        blocks = (len(shapes) - 6) // 16
        self.blocks = nn.ModuleList(_Block(width, problem.heads, norm) for _ in range(blocks))
        self.norm = norm(width, eps=1e-3)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden)).flatten(0, 1)

    def in_keras_order(self) -> list[tuple[nn.Parameter, str]]:
        pairs = [(self.embedding.weight, "same"), (self.positions, "same")]
        pairs += [pair for block in self.blocks for pair in block.in_keras_order()]
        return [*pairs, (self.norm.weight, "same"), (self.norm.bias, "same"), *_linear(self.head)]


class _Convolution(nn.Module):
    """3x3, padded as Keras's "same", and BatchNorm."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        padding = 1 if stride == 1 else 0
        self.convolution = nn.Conv2d(before, after, 3, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, images: Tensor) -> Tensor:
        if self.stride == 2:
            images = functional.pad(images, (0, 1, 0, 1))
        return self.norm(self.convolution(images))

    def in_keras_order(self) -> list[tuple[nn.Parameter, str]]:
        return [
            (self.convolution.weight, "convolution"),
            (self.norm.weight, "same"),
            (self.norm.bias, "same"),
        ]


class _Resnet(nn.Module):
    def __init__(self, shapes: list[tuple[int, ...]], problem: Problem, norm: Norm) -> None:
        super().__init__()
        self.first = _Convolution(*shapes[0][2:])
        width = shapes[0][3]
        widths = [width]
        while widths[-1] < shapes[-2][0]:
            widths.append(2 * widths[-1])
        self.pairs, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for i, after in enumerate(widths):
            stride = 2 if i else 1
            pair = [_Convolution(width, after, stride), _Convolution(after, after)]
            self.pairs.append(nn.ModuleList(pair))
            shortcut = nn.Conv2d(width, after, 1, 2, bias=False) if i else nn.Identity()
            self.shortcuts.append(shortcut)
            width = after
        self.head = nn.Linear(width, shapes[-1][0])

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        for (one, two), shortcut in zip(self.pairs, self.shortcuts, strict=True):
            hidden = torch.relu(two(torch.relu(one(hidden))) + shortcut(hidden))
        return self.head(hidden.mean((2, 3)))

    def in_keras_order(self) -> list[tuple[nn.Parameter, str]]:
        pairs = self.first.in_keras_order()
        for (one, two), shortcut in zip(self.pairs, self.shortcuts, strict=True):
            pairs += one.in_keras_order() + two.in_keras_order()
            pairs += [(weight, "convolution") for weight in shortcut.parameters()]
        return pairs + _linear(self.head)

    def load_statistics(self, arrays: Arrays) -> None:
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm, mean, variance in zip(norms, arrays[::2], arrays[1::2], strict=True):
            norm.running_mean.copy_(torch.from_numpy(mean))
            norm.running_var.copy_(torch.from_numpy(variance))


_MODULES = {"mlp": _Mlp, "transformer": _Transformer, "resnet": _Resnet}


def _linear(layer: nn.Linear) -> list[tuple[nn.Parameter, str]]:
    return [(layer.weight, "linear"), (layer.bias, "same")]


def _layout(kind: str, parameter: nn.Parameter) -> Layout:
    shape = tuple(parameter.shape)
    if kind == "convolution":
        return lambda array: array.transpose(3, 2, 0, 1), lambda array: array.transpose(2, 3, 1, 0)
    if kind == "linear":  # the kernels of attention have their heads on an axis of their own
        return lambda array: array.reshape(shape[::-1]).T, lambda array: array.T
    return lambda array: array.reshape(shape), lambda array: array
