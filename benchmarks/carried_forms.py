"""Forms that a basis may be carried in, for many seeds at a time.

Each takes the rows (s, j, n) that a basis is made of, its rank and the shapes of the variables, and
gives rows (s, rank, n) in float64 and the bytes that are held for a weight.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Layers = tuple[tuple[int, ...], ...]  # the shapes of the variables: a kernel, a bias, and so on
Carried = tuple[np.ndarray, float]
_FLOAT32 = 4  # bytes


def orthonormal(rows: np.ndarray) -> np.ndarray:
    """Rows that span the same, the first few as the first few did: Cholesky QR, twice."""
    for _ in range(2):
        factor = np.linalg.cholesky(rows @ rows.swapaxes(1, 2))
        rows = np.linalg.solve(factor, rows)
    return rows


def leading(rows: np.ndarray, rank: int, layers: Layers) -> Carried:
    """The leading right singular vectors, in float32."""
    return _singular(rows, rank)[0].astype("float32").astype("float64"), rank * _FLOAT32


def rounded(dtype: Any, imitated: float = 0.0) -> Callable[[np.ndarray, int, Layers], Carried]:
    """The same in another floating dtype, scaled to entries about 1.

    Args:
        dtype: Of NumPy.
        imitated: Not scaled: with entries as small as those of vectors of so many.
    """

    def keep(rows: np.ndarray, rank: int, layers: Layers) -> Carried:
        Q, _ = _singular(rows, rank)
        n = Q.shape[2]
        scale = math.sqrt(n / imitated) if imitated else math.sqrt(n)
        stored = (scale * Q).astype(dtype)
        return stored.astype("float64") / scale, float(rank * stored.dtype.itemsize)

    return keep


def whole_numbers(bits: int) -> Callable[[np.ndarray, int, Layers], Carried]:
    """The same in signed whole numbers of so many bits, times a scale for each vector."""

    def keep(rows: np.ndarray, rank: int, layers: Layers) -> Carried:
        Q, _ = _singular(rows, rank)
        scale = np.abs(Q).max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.round(Q / scale) * scale, rank * bits / 8

    return keep


def by_layer(rows: np.ndarray, rank: int, layers: Layers) -> Carried:
    """Leading directions within the layers: those of all layers with the largest values."""
    s, _, n = rows.shape
    found, squares, sizes = [], [], []
    for part in _parts(layers):
        Q, square = _singular(rows[:, :, part], min(rank, part.stop - part.start))
        whole = np.zeros((s, Q.shape[1], n))
        whole[:, :, part] = Q
        found.append(whole)
        squares.append(square)
        sizes += [part.stop - part.start] * Q.shape[1]
    chosen = np.argsort(-np.concatenate(squares, axis=1), axis=1)[:, :rank]
    Q = np.take_along_axis(np.concatenate(found, axis=1), chosen[:, :, None], axis=1)
    return Q, float(np.mean(np.sum(np.array(sizes)[chosen], axis=1)) / n * _FLOAT32)


def low_rank(terms: int) -> Callable[[np.ndarray, int, Layers], Carried]:
    """The leading vectors with each kernel's part as a matrix of few terms (Kronecker products)."""

    def keep(rows: np.ndarray, rank: int, layers: Layers) -> Carried:
        Q, _ = _singular(rows, rank)
        start, numbers = 0, 0
        for shape in layers:
            size = math.prod(shape)
            if len(shape) == 2:
                part = Q[:, :, start : start + size].reshape(*Q.shape[:2], *shape)
                left, values, right = np.linalg.svd(part, full_matrices=False)
                few = left[..., :terms] * values[..., None, :terms] @ right[..., :terms, :]
                Q[:, :, start : start + size] = few.reshape(*Q.shape[:2], size)
            numbers += min(size, terms * sum(shape)) if len(shape) == 2 else size
            start += size
        return Q, rank * _FLOAT32 * numbers / start

    return keep


def _singular(rows: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading right singular vectors (s, rank, n), and the squares of their values (s, rank)."""
    squares, vectors = np.linalg.eigh(rows @ rows.swapaxes(1, 2))
    squares, vectors = squares[:, ::-1][:, :rank], vectors[:, :, ::-1][:, :, :rank]
    scaled = vectors / np.sqrt(np.maximum(squares, np.finfo(float).tiny))[:, None, :]
    return scaled.swapaxes(1, 2) @ rows, squares


def _parts(layers: Layers) -> Iterator[slice]:
    """The entries of each layer: of a kernel and the bias that follows."""
    sizes = [math.prod(shape) for shape in layers]
    ends = np.cumsum([0, *[sum(pair) for pair in zip(sizes[::2], sizes[1::2], strict=True)]])
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield slice(first, last)
