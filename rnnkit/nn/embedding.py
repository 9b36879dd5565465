"""Embedding: a lookup table of vectors. Its gradient sums over repeated indices in a fixed order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnkit.core import checks
from rnnkit.core.devices import array_module, on_own_device
from rnnkit.core.mixed_precision import narrow, wide
from rnnkit.nn.module import Array, Call, Module, grad_enabled, make_rng


class Embedding(Module):
    """Looks up a row of a table for every index; equivalent of torch.nn.Embedding without padding_idx and max_norm.

    The parameter `weight` (num_embeddings, embedding_dim) is drawn from N(0, 1), as in PyTorch.

    Args:
        num_embeddings: number of rows of the table.
        embedding_dim: width of a row.
        dtype: dtype of the table: "float64", "float32", "float16" or "bfloat16".
        device: "cpu", "cuda" or "cuda:<index>"; None for the CPU.
        rng: a numpy Generator, a seed or None, for the initial parameters.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has a bad value.
        RuntimeError: the device cannot be used here.

    Examples:
        >>> import numpy as np, rnnkit
        >>> embedding = rnnkit.Embedding(10, 4, rng=0)
        >>> embedding(np.array([[1, 2, 3], [3, 2, 1]])).shape
        (2, 3, 4)
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
        """Looks up rows of the table.

        On a CUDA device the call does not synchronise, so it cannot raise for an index out of range: such an index
        gives a row of NaN, and its gradient is dropped.

        Args:
            indices: integers in [0, num_embeddings), an array of any shape and integer dtype.

        Returns:
            The rows, (*indices.shape, embedding_dim).

        Raises:
            TypeError: `indices` is not an integer array.
            ValueError: `indices` is on another device.
            IndexError: an index is out of range (on the CPU).

        Examples:
            >>> import numpy as np, rnnkit
            >>> embedding = rnnkit.Embedding(10, 4, rng=0)
            >>> bool((embedding(np.array([7]))[0] == embedding.params["weight"][7]).all())
            True
        """
        N = self.num_embeddings
        E = self.embedding_dim
        indices = integer_array("indices", indices, self.device)
        if self.device == "cpu":
            check_range("indices", indices, N)
        flat = indices.reshape(-1).astype(np.int64)  # a copy: the caller may write into indices
        inside = None
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
        """Adds the sums of `dy` over equal indices to the gradient of `weight`.

        The order of the additions is fixed on every device (no atomic additions). 16-bit gradients are summed in
        float32.

        Args:
            dy: gradient of the output, (*indices.shape, embedding_dim).
            call: the call to differentiate, from `last_call`; None for this thread's most recent call.

        Raises:
            RuntimeError: this thread made no call, its most recent call ran under `no_grad()`, or, without `call`,
                several calls are pending since the last backward or `zero_grad()`.
            TypeError: `dy` or `call` has the wrong type or dtype.
            ValueError: `dy` has a bad shape or device, or `call` is of another module.

        Examples:
            >>> import numpy as np, rnnkit
            >>> embedding = rnnkit.Embedding(3, 2, rng=0)
            >>> y = embedding(np.array([0, 2, 2]))
            >>> embedding.backward(np.ones_like(y))
            >>> embedding.grads["weight"]
            array([[1., 1.],
                   [0., 0.],
                   [2., 2.]], dtype=float32)
        """
        flat, inside, shape = self._recalled(call)
        dy = checks.shaped("dy", dy, shape, self.dtype, self.device, "(*indices.shape, embedding_dim)")
        if not flat.size:
            return
        dy = wide(dy.reshape(-1, self.embedding_dim))
        grad = self._grads["weight"]
        if inside is None:
            rows, sums = _sums_by_row(flat, dy)
        else:
            xp: Any = array_module(dy)
            rows, sums = _sums_by_row_without_sync(flat, xp.where(inside[:, None], dy, 0))
        with self._adding:
            grad[rows] = narrow(grad[rows] + sums, self.dtype)


def integer_array(name: str, value: Any, device: str) -> Array:
    """Returns `value` if it is an integer array on `device`."""
    value = checks.located(name, value, device, "NumPy or CuPy array of whole numbers")
    if value.dtype.kind not in "iu":
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    return value


def check_range(name: str, value: Array, end: int) -> None:
    """Raises IndexError unless every entry is in [0, end). On a CUDA device it synchronises."""
    if value.size:
        low = int(value.min())
        high = int(value.max())
        if low < 0 or high >= end:
            raise IndexError(f"{name} must be in [0, {end}), got {low if low < 0 else high}")


def _sums_by_row(flat: Array, dy: Array) -> tuple[Array, Array]:
    """The distinct entries of `flat` (M,), M > 0, and the sum of the rows of `dy` (M, E) of each.

    Equal indices are sorted next to each other and added by pairwise summation. The number of rounds is the logarithm
    of the longest run, and so is the growth of the rounding error; the order of the additions is fixed.
    """
    xp: Any = array_module(flat)
    order = flat.argsort(kind="stable")
    rows = flat[order]
    sums = dy[order]
    first = xp.ones(rows.size, dtype=bool)
    first[1:] = rows[1:] != rows[:-1]
    starts = xp.flatnonzero(first)
    run = xp.cumsum(first) - 1
    position = xp.arange(rows.size)
    rank = position - starts[run]
    left = xp.concatenate((starts[1:], xp.asarray([rows.size])))[run] - position
    step = 1
    heads = position
    while True:
        heads = heads[(left[heads] > step) & (rank[heads] % (2 * step) == 0)]
        if not heads.size:
            return rows[starts], sums[starts]
        sums[heads] += sums[heads + step]
        step *= 2


def _sums_by_row_without_sync(flat: Array, dy: Array) -> tuple[Array, Array]:
    """The sums of `_sums_by_row`, in the same order, without reading values on the host: no size depends on a value.

    Returns the sorted entries of `flat` (M,), with repetitions, and the sum of each; equal entries have equal sums.
    """
    xp: Any = array_module(flat)
    order = flat.argsort()  # CuPy's is stable
    rows = flat[order]
    sums = dy[order]
    start, end = (xp.searchsorted(rows, rows, side=side) for side in ("left", "right"))
    position = xp.arange(rows.size)
    rank = position - start
    left = end - position
    step = 1
    while step < rows.size:
        adds = (rank % (2 * step) == 0) & (left > step)
        sums = sums + xp.where(adds[:, None], sums[xp.minimum(position + step, rows.size - 1)], 0)
        step *= 2
    return rows, sums[start]
