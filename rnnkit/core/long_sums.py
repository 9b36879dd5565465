"""Sums of many numbers whose error does not grow with their count: losses, and gradients of Linear and of `by_scan`.

A float32 sum of N equal numbers by sequential additions has a relative error of up to N / 4 * 2^-24. So blocks of rows
are summed first, and then the blocks' sums in float64 or pairwise. 16-bit arrays are summed in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from rnnkit.core.devices import array_module
from rnnkit.core.mixed_precision import compute_dtype, product, wide

Array = Any

# Rows that are summed by sequential additions, per column.
COLUMN_ROWS = 256
# Rows per matrix product on the CPU. BLAS libraries such as OpenBLAS sum products with many elements in blocks of about
# 400 rows, and products with few elements sequentially; those are computed in blocks of FEW_ROWS here. Smaller blocks
# would cost more than 1% of the time.
FEW_ELEMENTS = 2048
FEW_ROWS = 512
MANY_ROWS = 16384
# Rows per matrix product on a CUDA device. cuBLAS may sum sequentially, with a relative error of up to n / 4 * 2^-24
# for n equal terms. Writing and reading the blocks' products is predicted to take 8% of the product's time on an H100.
# 16-bit products are faster and have wider tolerances. (tf32 arrays are float32.)
DEVICE_ROWS = 512
DEVICE_ROWS_16 = 16384
# Largest size of a batch of block products, in bytes.
BATCH_BYTES = 32 << 20


def total(a: Array) -> Array:
    """The sum of all elements, a 0-d array. NumPy sums contiguous arrays pairwise; CuPy sums in float64."""
    return a.sum() if array_module(a) is np else a.sum(dtype=np.float64)


def row_sums(a: Array) -> Array:
    """a (N, K) -> its sums over K (N,)."""
    if array_module(a) is np:
        return np.ascontiguousarray(a).sum(axis=1)  # NumPy sums pairwise along the contiguous axis only
    return a.sum(axis=1, dtype=np.float64).astype(a.dtype, copy=False)


def column_sums(a: Array) -> Array:
    """a (N, K) -> its sums over N, (K,), in the compute dtype of a."""
    N, K = a.shape
    if N <= COLUMN_ROWS:
        return _sum_rows(a)
    full = N - N % COLUMN_ROWS  # rows in full blocks
    blocks = full // COLUMN_ROWS
    sums = _sum_rows(a[:full].reshape(blocks, COLUMN_ROWS, K))
    rest = _sum_rows(a[full:])
    if blocks <= COLUMN_ROWS:
        return _sum_rows(sums) + rest
    return _rounded(sums.sum(axis=0, dtype=np.float64) + rest, sums.dtype)


def _sum_rows(a: Array) -> Array:
    """Sums over the second to last axis. On the CPU, a product with ones is several times faster than a reduction."""
    if array_module(a) is np:
        a = wide(a)
        return _ones(a.shape[-2], a.dtype) @ a
    return a.sum(axis=-2, dtype=compute_dtype(a.dtype))


@cache
def _ones(count: int, dtype: np.dtype) -> Array:
    """At most COLUMN_ROWS ones. The array is cached, so nothing may write to it."""
    return np.ones(count, dtype)


def _rounded(a: Array, dtype: np.dtype) -> Array:
    with np.errstate(over="ignore"):  # an overflow of float32 gives infinity
        return a.astype(dtype, copy=False)


def product_over_rows(d: Array, x: Array) -> Array:
    """d^T x, (M, K), for d (N, M) and x (N, K), in their compute dtype.

    On a CUDA device, the result of a single block has the dtype of d and x.
    """
    N, M = d.shape
    if array_module(d) is np:
        if M * x.shape[1] >= FEW_ELEMENTS:
            return _by_pairs(d, x, MANY_ROWS)
        if N <= 4 * FEW_ROWS:  # for few blocks, setting up a batch takes longer
            return _by_pairs(d, x, FEW_ROWS)
        return _by_batches(wide(d), wide(x), FEW_ROWS)
    rows = DEVICE_ROWS if compute_dtype(d.dtype) == d.dtype else DEVICE_ROWS_16
    return d.T @ x if rows >= N else _by_batches(d, x, rows)


def _by_pairs(d: Array, x: Array, rows: int) -> Array:
    """The products of blocks of rows, added by pairwise summation."""
    N = d.shape[0]
    if rows >= N:
        return product(d.T, x)
    half = -(-N // rows) // 2 * rows
    left = _by_pairs(d[:half], x[:half], rows)
    left += _by_pairs(d[half:], x[half:], rows)
    return left


def _by_batches(d: Array, x: Array, rows: int) -> Array:
    """Computes block products in batches of BATCH_BYTES. The sums of the batches are added in float64."""
    xp: Any = array_module(d)
    N = d.shape[0]
    size = d.shape[1] * x.shape[1] * d.dtype.itemsize
    batch_rows = max(1, BATCH_BYTES // max(1, size)) * rows
    result = _batch(d[:batch_rows], x[:batch_rows], rows)
    dtype = result.dtype
    for n in range(batch_rows, N, batch_rows):
        result = xp.add(result, _batch(d[n : n + batch_rows], x[n : n + batch_rows], rows), dtype=np.float64)
    return _rounded(result, dtype)


def _batch(d: Array, x: Array, rows: int) -> Array:
    """d^T x for d (N, M) and x (N, K), as the sum of the products of blocks of `rows` rows, in one batched product."""
    N, M = d.shape
    K = x.shape[1]
    full = N - N % rows  # rows in full blocks
    blocks = full // rows
    d_blocks = d[:full].reshape(blocks, rows, M)
    x_blocks = x[:full].reshape(blocks, rows, K)
    sums = column_sums((d_blocks.transpose(0, 2, 1) @ x_blocks).reshape(blocks, M * K)).reshape(M, K)
    return sums if full == N else sums + d[full:].T @ x[full:]
