"""Embedding: a table of vectors looked up by whole numbers. Its gradient sums over repeated rows, in a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkit import _checks
from rnnkit._device import array_module, device_of
from rnnkit.module import Array, Module, grad_enabled, make_rng


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
        self.num_embeddings = _checks.positive_int("num_embeddings", num_embeddings)
        self.embedding_dim = _checks.positive_int("embedding_dim", embedding_dim)
        self.rng = make_rng(rng)
        super().__init__(dtype, device)
        with _checks.memory_for(num_embeddings=self.num_embeddings, embedding_dim=self.embedding_dim):
            self._add_param("weight", self.rng.standard_normal((self.num_embeddings, self.embedding_dim)))
        self._saved: tuple[Array, tuple[int, ...]] | None = None

    def __repr__(self) -> str:
        return f"Embedding({self.num_embeddings}, {self.embedding_dim}, dtype={self.dtype})"

    def __call__(self, indices: Array) -> Array:
        """indices: whole numbers in [0, num_embeddings), of any shape and integer dtype -> (*shape, embedding_dim).

        Raises TypeError for anything but an integer array, IndexError naming the range for an index outside it.
        """
        N, E = self.num_embeddings, self.embedding_dim
        flat = whole_numbers("indices", indices, N, self.device).reshape(-1)
        shape = (*indices.shape, E)
        self._saved = (flat.copy(), shape) if grad_enabled() else None
        return self._params["weight"].take(flat, axis=0).reshape(shape)

    def backward(self, dy: Array) -> None:
        """Adds the sums of dy (*shape, embedding_dim) over equal indices into grads["weight"].

        Indices have no gradient: returns None. The sums have one order on every device: no atomic additions.
        Raises RuntimeError before any call or after one under `no_grad()`, ValueError or TypeError for a bad dy.
        """
        if self._saved is None:
            raise RuntimeError("backward needs a call of this Embedding first, and one outside rnnkit.no_grad()")
        flat, shape = self._saved
        _checks.shaped("dy", dy, shape, self.dtype, self.device, "(*indices.shape, embedding_dim)")
        if flat.size:
            rows, sums = _sums_by_row(flat, dy.reshape(-1, self.embedding_dim))
            self._grads["weight"][rows] += sums


def whole_numbers(name: str, value: Any, end: int, device: str) -> Array:
    """`value` as an int64 array, when it is an integer array on `device` with every entry in [0, end).

    Reads the smallest and largest entry, which on a CUDA device waits for it.
    """
    _checks.plain_array(name, value, "NumPy or CuPy array of whole numbers")
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    if device_of(value) != device:
        raise ValueError(f"{name} must be on device {device}, got an array on {device_of(value)}")
    if value.size:
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= end:
            raise IndexError(f"{name} must be in [0, {end}), got {low if low < 0 else high}")
    return value.astype(np.int64, copy=False)


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
