"""Sums of many numbers, whose error does not grow with their count: losses, and gradients of Linear and of `by_scan`.

A float32 sum of N equal numbers in one chain of additions is off by up to N / 4 * 2^-24 of itself. So blocks of rows
are summed, and the blocks' sums in float64 or in pairs. 16-bit arrays are summed in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from rnnkit.core.devices import array_module
from rnnkit.core.mixed_precision import compute_dtype, product, wide

Array = Any

# Rows whose columns one chain of additions sums.
COLUMN_ROWS = 256
# Rows that one matrix product sums. OpenBLAS and its like sum products of many elements in blocks of some 400 rows, and
# few in one chain: those are given to it in blocks. More blocks than these would cost more than a percent.
FEW_ELEMENTS, FEW_ROWS, MANY_ROWS = 2048, 512, 16384
# cuBLAS may sum in one chain, which puts a sum of n equal terms off by up to n / 4 * 2^-24 of itself. The blocks'
# products are written and read once more, which is predicted to take 8% of the product's time on an H100. 16-bit
# products are faster, and less is promised of them. (tf32 arrays are float32.)
DEVICE_ROWS, DEVICE_ROWS_16 = 512, 16384
# The most that the products of blocks take at once.
BATCH_BYTES = 32 << 20


def total(a: Array) -> Array:
    """The sum of all of a, of no dimensions. NumPy adds what lies side by side in pairs; CuPy adds in float64."""
    return a.sum() if array_module(a) is np else a.sum(dtype=np.float64)


def row_sums(a: Array) -> Array:
    """a (N, K) -> its sums over K (N,)."""
    if array_module(a) is np:
        return np.ascontiguousarray(a).sum(axis=1)  # down columns NumPy adds in one chain
    return a.sum(axis=1, dtype=np.float64).astype(a.dtype, copy=False)


def column_sums(a: Array) -> Array:
    """a (N, K) -> its sums over N (K,), in the dtype that a's is computed in."""
    N, K = a.shape
    if N <= COLUMN_ROWS:
        return _down(a)
    whole = N - N % COLUMN_ROWS
    blocks = whole // COLUMN_ROWS
    sums = _down(a[:whole].reshape(blocks, COLUMN_ROWS, K))
    rest = _down(a[whole:])
    if blocks <= COLUMN_ROWS:
        return _down(sums) + rest
    return _rounded(sums.sum(axis=0, dtype=np.float64) + rest, sums.dtype)


def _down(a: Array) -> Array:
    """Sums over the last axis but one. On the CPU a product with ones is several times faster than a reduction."""
    if array_module(a) is np:
        a = wide(a)
        return _ones(a.shape[-2], a.dtype) @ a
    return a.sum(axis=-2, dtype=compute_dtype(a.dtype))


@cache
def _ones(count: int, dtype: np.dtype) -> Array:
    """Of at most COLUMN_ROWS numbers. Never written to."""
    return np.ones(count, dtype)


def _rounded(a: Array, dtype: np.dtype) -> Array:
    with np.errstate(over="ignore"):  # beyond float32: infinite
        return a.astype(dtype, copy=False)


def product_over_rows(d: Array, x: Array) -> Array:
    """d^T x, of d (N, M) and x (N, K), in the dtype that they are computed in; on a device one block's in their own."""
    N, M = d.shape
    if array_module(d) is np:
        if M * x.shape[1] >= FEW_ELEMENTS:
            return _by_pairs(d, x, MANY_ROWS)
        if N <= 4 * FEW_ROWS:  # of so few blocks a batch would take longer to set up
            return _by_pairs(d, x, FEW_ROWS)
        return _by_batches(wide(d), wide(x), FEW_ROWS)
    rows = DEVICE_ROWS if compute_dtype(d.dtype) == d.dtype else DEVICE_ROWS_16
    return d.T @ x if rows >= N else _by_batches(d, x, rows)


def _by_pairs(d: Array, x: Array, rows: int) -> Array:
    """The products of blocks of rows are added in pairs, pairs of pairs and so on."""
    N = d.shape[0]
    if rows >= N:
        return product(d.T, x)
    half = -(-N // rows) // 2 * rows
    left = _by_pairs(d[:half], x[:half], rows)
    left += _by_pairs(d[half:], x[half:], rows)
    return left


def _by_batches(d: Array, x: Array, rows: int) -> Array:
    """As many blocks as BATCH_BYTES hold are one batched product; the sums of batches are added in float64."""
    xp: Any = array_module(d)
    N, size = d.shape[0], d.shape[1] * x.shape[1] * d.dtype.itemsize
    at_once = max(1, BATCH_BYTES // max(1, size)) * rows
    result = _batch(d[:at_once], x[:at_once], rows)
    dtype = result.dtype
    for n in range(at_once, N, at_once):
        result = xp.add(result, _batch(d[n : n + at_once], x[n : n + at_once], rows), dtype=np.float64)
    return _rounded(result, dtype)


def _batch(d: Array, x: Array, rows: int) -> Array:
    (N, M), K = d.shape, x.shape[1]
    whole = N - N % rows
    blocks = whole // rows
    of_d, of_x = d[:whole].reshape(blocks, rows, M), x[:whole].reshape(blocks, rows, K)
    sums = column_sums((of_d.transpose(0, 2, 1) @ of_x).reshape(blocks, M * K)).reshape(M, K)
    return sums if whole == N else sums + d[whole:].T @ x[whole:]
