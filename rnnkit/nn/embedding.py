"""Embedding: a table of vectors looked up by whole numbers. Its gradient sums over repeated rows, in a fixed order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import array_module, on_own_device
from rnnkit.core.mixed_precision import narrow, wide
from rnnkit.nn.module import Array, Call, Module, grad_enabled, make_rng


class Embedding(Module):
    """Row `index` of a table, for every index given. As torch.nn.Embedding, without padding_idx and renormalisation.

    weight  (num_embeddings, embedding_dim), drawn from N(0, 1): PyTorch's initial distribution
    rng     a numpy Generator or a seed
    Raises TypeError or ValueError naming a bad argument.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        dtype: Any = "float32",
        device: Any = None,
        rng: Any = None,
    ) -> None:
        self.num_embeddings = checks.positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = checks.positive_int("embedding_dim", embedding_dim)
        self.rng = make_rng(rng)
        super().__init__(dtype, device)
        with checks.memory_for(num_embeddings=self.num_embeddings, embedding_dim=self.embedding_dim):
            self._add_param("weight", self.rng.standard_normal((self.num_embeddings, self.embedding_dim)))

    def __repr__(self) -> str:
        return f"Embedding({self.num_embeddings}, {self.embedding_dim}, dtype={self._dtype.name})"

    @on_own_device
    def __call__(self, indices: Array) -> Array:
        """indices: whole numbers in [0, num_embeddings), of any shape and integer dtype -> (*shape, embedding_dim).

        Raises TypeError for anything but an integer array, IndexError naming the range for an index outside it. On a
        CUDA device indices are not read by the host, which would wait for it: one outside the range gives a row of
        NaN, and no gradient.
        """
        N, E = self.num_embeddings, self.embedding_dim
        indices = whole_numbers("indices", indices, self.device)
        if self.device == "cpu":
            check_range("indices", indices, N)
        flat, inside = indices.reshape(-1).astype(np.int64), None  # a copy: the caller may write into indices
        weight = self._params["weight"]
        if self.device == "cpu":
            y = weight.take(flat, axis=0)
        else:
            xp: Any = array_module(weight)
            inside = (flat >= 0) & (flat < N)
            flat = xp.where(inside, flat, 0)
            y = xp.where(inside[:, None], weight.take(flat, axis=0), math.nan).astype(self.dtype, copy=False)
        shape = (*indices.shape, E)
        self._saved = (flat, inside, shape) if grad_enabled() else None
        return y.reshape(shape)

    @on_own_device
    def backward(self, dy: Array, *, call: Call | None = None) -> None:
        """Adds the sums of dy (*shape, embedding_dim) over equal indices into grads["weight"].

        Indices have no gradient: returns None. The sums have one order on every device: no atomic additions. 16-bit
        gradients are summed in float32. Differentiates this thread's last call, or `call` (see `last_call`).
        Raises RuntimeError before any call, after one under `no_grad()`, and without `call` after several since the
        last backward or `zero_grad()`; ValueError or TypeError for a bad dy or `call`.
        """
        flat, inside, shape = self._recalled(call)
        dy = checks.shaped("dy", dy, shape, self.dtype, self.device, "(*indices.shape, embedding_dim)")
        if not flat.size:
            return
        dy, grad = wide(dy.reshape(-1, self.embedding_dim)), self._grads["weight"]
        if inside is None:
            rows, sums = _sums_by_row(flat, dy)
        else:
            xp: Any = array_module(dy)
            rows, sums = _sums_by_row_unread(flat, xp.where(inside[:, None], dy, 0))
        with self._adding:
            grad[rows] = narrow(grad[rows] + sums, self.dtype)


def whole_numbers(name: str, value: Any, device: str) -> Array:
    """`value`, when it is an integer array on `device`."""
    value = checks.located(name, value, device, "NumPy or CuPy array of whole numbers")
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    return value


def check_range(name: str, value: Array, end: int) -> None:
    """Raises IndexError unless every entry is in [0, end). On a CUDA device this waits for it."""
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= end:
            raise IndexError(f"{name} must be in [0, {end}), got {low if low < 0 else high}")


def _sums_by_row(flat: Array, dy: Array) -> tuple[Array, Array]:
    """The distinct entries of flat (M,), M > 0, and for each the sum of its rows of dy (M, E).

    Equal indices are brought side by side and added in pairs, pairs of pairs and so on, in as many rounds as the
    logarithm of the longest run: rounding grows with that logarithm, and the order never varies.
    """
    xp: Any = array_module(flat)
    order = flat.argsort(kind="stable")
    rows, sums = flat[order], dy[order]
    first = xp.ones(rows.size, dtype=bool)
    first[1:] = rows[1:] != rows[:-1]
    starts = xp.flatnonzero(first)
    run = xp.cumsum(first) - 1
    position = xp.arange(rows.size)
    rank = position - starts[run]
    left = xp.concatenate((starts[1:], xp.asarray([rows.size])))[run] - position
    step, heads = 1, position
    while True:
        heads = heads[(left[heads] > step) & (rank[heads] % (2 * step) == 0)]
        if not heads.size:
            return rows[starts], sums[starts]
        sums[heads] += sums[heads + step]
        step *= 2


def _sums_by_row_unread(flat: Array, dy: Array) -> tuple[Array, Array]:
    """As `_sums_by_row`, the same sums in the same order, but no size depends on a value: nothing is read by the host.

    Gives flat's entries sorted (M,), repeats included, and beside each the sum of its row: equal ones have equal sums.
    """
    xp: Any = array_module(flat)
    order = flat.argsort()  # CuPy's is stable
    rows, sums = flat[order], dy[order]
    start, end = (xp.searchsorted(rows, rows, side=side) for side in ("left", "right"))
    position = xp.arange(rows.size)
    rank, left = position - start, end - position
    step = 1
    while step < rows.size:
        adds = (rank % (2 * step) == 0) & (left > step)
        sums = sums + xp.where(adds[:, None], sums[xp.minimum(position + step, rows.size - 1)], 0)
        step *= 2
    return rows, sums[start]
