"""The products outside time, for a share of the rows of their result.

x W^T       the rows of x in blocks that stay in the first-level cache while the panels of W pass by
d^T x       K in blocks; each block of x packed as panels, each of d copied together, and C added to block by block
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.product import products, tile_shape
from rnnkit.kernels.vector import vectors

# Steps of K, and columns of d, that one pass of d^T x covers: with x's panels they stay in the second-level cache.
K_BLOCK, M_BLOCK = 256, 192
# Rows of A that one pass over the panels of W covers.
ROW_BLOCK = 96


def room_of(N: int, dtype: str) -> int:
    """How many elements of scratch `over_time` needs for x (K, N)."""
    lanes = vectors(dtype).lanes
    return K_BLOCK * (-(-N // lanes) * lanes + M_BLOCK + lanes)


@cache
def large_products(dtype: str) -> SimpleNamespace:
    """The entry points of a dtype. Arrays are C-contiguous.

    rows_by_weights(x, w, y, r0, r1)                 rows [r0, r1) of y (M, N) = x (M, K) W^T, w packed
    over_time(d, d0, x, out, sums, m0, m1, room)     rows [m0, m1) of out (M, N) = d[:, d0:]^T x, of d (K, ·), x (K, N),
                                                     and of sums (M,), of d's columns, unless empty; room: room_of(N)
    """
    v, product, product_steps = vectors(dtype), products(dtype).product, products(dtype).product_steps
    load, store, lanes, size = v.whole.load, v.whole.store, v.lanes, v.itemsize
    load_first, store_first = v.first.load, v.first.store
    width = tile_shape()[1] * lanes

    @entry(("rows_by_weights", dtype))
    def rows_by_weights(x, w, y, r0, r1):
        K, N = x.shape[1], y.shape[1]
        row_x, row_y = K * size, N * size
        for r in range(r0, r1, ROW_BLOCK):
            rows = min(ROW_BLOCK, r1 - r)
            x_at, y_at = x.ctypes.data + r * row_x, y.ctypes.data + r * row_y
            product(x_at, row_x, w.ctypes.data, K, y_at, row_y, N, rows, 0)

    @inner
    def copy_rows(source, source_row, target, target_row, K, count):
        """K rows of `count` values; the last vector of each filled up with zeros."""
        whole = count // lanes * lanes
        for k in range(K):
            a, b = source + k * source_row, target + k * target_row
            for n in range(0, whole, lanes):
                store(load(a + n * size, lanes), b + n * size, lanes)
            if whole < count:
                store(load_first(a + whole * size, count - whole), b + whole * size, lanes)

    @inner
    def add_columns(d, row, K, sums, M):
        """sums (M,) += the sums over K rows of d, `row` bytes each."""
        whole = M // lanes * lanes
        for m in range(0, whole, lanes):
            total = load(d + m * size, lanes)
            for k in range(1, K):
                total = total + load(d + k * row + m * size, lanes)
            store(load(sums + m * size, lanes) + total, sums + m * size, lanes)
        if whole < M:
            n, at = M - whole, whole * size
            total = load_first(d + at, n)
            for k in range(1, K):
                total = total + load_first(d + k * row + at, n)
            store_first(load_first(sums + at, n) + total, sums + at, n)

    @entry(("over_time", dtype))
    def over_time(d, d0, x, out, sums, m0, m1, room):
        K, N = x.shape
        d_row, x_row, out_row = d.shape[1] * size, N * size, N * size
        panels = room.ctypes.data
        # A row of the copy is one vector longer than it need be: powers of two would fall into one set of the cache.
        together, together_row = panels + K_BLOCK * ((N + lanes - 1) // lanes * lanes) * size, (M_BLOCK + lanes) * size
        for k in range(0, K, K_BLOCK):
            steps = min(K_BLOCK, K - k)
            at = panels
            for n in range(0, N, width):
                columns = (min(width, N - n) + lanes - 1) // lanes * lanes
                copy_rows(x.ctypes.data + k * x_row + n * size, x_row, at, columns * size, steps, min(width, N - n))
                at += steps * columns * size
            for m in range(m0, m1, M_BLOCK):
                count = min(M_BLOCK, m1 - m)
                copy_rows(d.ctypes.data + k * d_row + (d0 + m) * size, d_row, together, together_row, steps, count)
                c = out.ctypes.data + m * out_row
                product_steps(together, 0, size, together_row, panels, steps, c, 0, out_row, N, 1, count, k)
                if sums.size > 0:
                    add_columns(together, together_row, steps, sums.ctypes.data + m * size, count)

    return SimpleNamespace(rows_by_weights=rows_by_weights, over_time=over_time)
