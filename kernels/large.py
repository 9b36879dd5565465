"""The products outside time, for a share of the rows of their result.

x W^T       the rows of x in blocks that stay in a cache while the panels of W pass by
d^T x       K in blocks; each block of x packed as panels, each of d copied together, and C added to block by block

What the next block will read is asked for while this one is multiplied: such operands often stand in memory.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from rnnkit.kernels.jit import inner
from rnnkit.kernels.product import products, tile_shape
from rnnkit.kernels.vector import vectors

# Steps of K, and columns of d, that one pass of d^T x covers: with x's panels they stay in the second-level cache.
K_BLOCK, M_BLOCK = 256, 192
# Rows of A that one pass over the panels of W covers.
ROW_BLOCK = 96
LINE = 64  # bytes of a cache line, near enough everywhere


def room_of(N: int, dtype: str) -> int:
    """How many elements of scratch `over_time` needs for x (K, N)."""
    lanes = vectors(dtype).lanes
    return K_BLOCK * (-(-N // lanes) * lanes + M_BLOCK + lanes)


@cache
def large_products(dtype: str) -> SimpleNamespace:
    """The products of a dtype, for other kernels: addresses, and strides in bytes.

    rows_by_weights(x, x_row, w, K, y, y_row, N, r0, r1)
        rows [r0, r1) of y (M, N) = x (M, K) W^T, w packed
    over_time(d, d_row, x, K, N, out, sums, m0, m1, room, adds)
        rows [m0, m1) of out (M, N) = d^T x, or += where adds is not 0, of d (K, M) and x (K, N); and of sums (M,), of
        d's columns, unless 0; x and out without gaps; room: of room_of(N) elements
    """
    v, product_ahead = vectors(dtype), products(dtype).product_ahead
    load, store, lanes, size = v.whole.load, v.whole.store, v.lanes, v.itemsize
    load_first, store_first, zero, add_blocks = v.first.load, v.first.store, v.zero, v.add_blocks
    load_blocks, store_blocks = v.whole.load_blocks, v.whole.store_blocks
    width = tile_shape()[1] * lanes

    @inner
    def rows_by_weights(x, x_row, w, K, y, y_row, N, r0, r1):
        for r in range(r0, r1, ROW_BLOCK):
            rows, following = min(ROW_BLOCK, r1 - r), r + ROW_BLOCK
            # The rows of the next block are fetched meanwhile, a cache line for each k of a tile.
            tiles = min(ROW_BLOCK, r1 - following) * x_row // max(K * LINE, 1) + 1 if following < r1 else 0
            product_ahead(
                x + r * x_row, 0, x_row, size, w, K, y + r * y_row, 0, y_row, N, 1, rows, 0, False,
                x + following * x_row, K * LINE, LINE, tiles,
            )  # fmt: skip

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
    def copy_and_sum(source, source_row, target, target_row, K, count, sums):
        """copy_rows, and sums (count,) += the sums of the columns: on the way, four vectors of them in registers."""
        whole = count // (4 * lanes) * 4 * lanes
        for n in range(0, whole, 4 * lanes):
            totals = (zero(), zero(), zero(), zero())
            for k in range(K):
                block = load_blocks(source + k * source_row + n * size, lanes * size, lanes, 4)
                store_blocks(block, target + k * target_row + n * size, lanes * size, lanes)
                totals = add_blocks(totals, block)
            before = load_blocks(sums + n * size, lanes * size, lanes, 4)
            store_blocks(add_blocks(before, totals), sums + n * size, lanes * size, lanes)
        for n in range(whole, count, lanes):
            total, left = zero(), min(lanes, count - n)
            for k in range(K):
                value = load_first(source + k * source_row + n * size, left)
                store(value, target + k * target_row + n * size, lanes)
                total = total + value
            store_first(load_first(sums + n * size, left) + total, sums + n * size, left)

    @inner
    def over_time(d, d_row, x, K, N, out, sums, m0, m1, room, adds):
        x_row, out_row = N * size, N * size
        # A row of the copy is one vector longer than it need be: powers of two would fall into one set of the cache.
        together, together_row = room + K_BLOCK * ((N + lanes - 1) // lanes * lanes) * size, (M_BLOCK + lanes) * size
        for m in range(m0, m1 if sums else m0):
            store_first(0.0, sums + m * size, 1)
        for k in range(0, max(K, 1), K_BLOCK):  # a sum over no steps is written too
            steps = min(K_BLOCK, K - k)
            panels = room
            if N % lanes == 0 and width >= N:
                panels = x + k * x_row  # x is a panel as it stands
            else:
                at = room
                for n in range(0, N, width):
                    columns = (min(width, N - n) + lanes - 1) // lanes * lanes
                    copy_rows(x + k * x_row + n * size, x_row, at, columns * size, steps, min(width, N - n))
                    at += steps * columns * size
            for m in range(m0, m1, M_BLOCK):
                count, source = min(M_BLOCK, m1 - m), d + k * d_row + m * size
                if sums:
                    copy_and_sum(source, d_row, together, together_row, steps, count, sums + m * size)
                else:
                    copy_rows(source, d_row, together, together_row, steps, count)
                # While one block is multiplied the next is fetched, a vector of each of its rows during each tile.
                next_k, next_m = (k, m + M_BLOCK) if m + M_BLOCK < m1 else (k + K_BLOCK, m0)
                vectors_ahead = (min(M_BLOCK, m1 - next_m) + lanes - 1) // lanes if next_k < K else 0
                product_ahead(
                    together, 0, size, together_row, panels, steps, out + m * out_row, 0, out_row, N, 1,
                    count, k + adds, False, d + next_k * d_row + next_m * size, lanes * size, d_row, vectors_ahead,
                )  # fmt: skip

    return SimpleNamespace(rows_by_weights=rows_by_weights, over_time=over_time)
