"""The products outside time, for a share of the rows of their result.

x W^T       the rows of x in blocks that stay in a cache while the panels of W pass by
d^T x       K in blocks; each block of x packed as panels, each of d copied together, and C added to block by block

K of d^T x is every step of every row, millions of them. So its sums have three levels: blocks of K_BLOCK steps, spans
of SPAN, which are at most 64 blocks, and stretches of STRETCH, at most 64 spans. Each level is summed by itself and
added to the one above, so an element is the end of chains of 256, 64, 64 and K / 2^20 additions, never of one of K.

What the next block will read is asked for while this one is multiplied: such operands often stand in memory.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products, tile_shape
from rnnkit.kernels.cpu.memory import maximum, minimum
from rnnkit.kernels.cpu.simd import vectors

# Steps of K, and columns of d, that one pass of d^T x covers: with x's panels they stay in the second-level cache.
K_BLOCK, M_BLOCK = 256, 192
# Steps whose blocks are added up by themselves, and steps whose spans are.
SPAN = 64 * K_BLOCK
STRETCH = 64 * SPAN
# Rows of A that one pass over the panels of W covers.
ROW_BLOCK = 96
LINE = 64  # bytes of a cache line, near enough everywhere


def scratch_elements(K: int, M: int, N: int, dtype: str) -> int:
    """How many elements of scratch `over_time` needs for M rows of d^T x, x (K, N)."""
    lanes, levels = vectors(dtype).lanes, (K > SPAN) + (K > STRETCH)
    return K_BLOCK * (-(-N // lanes) * lanes + M_BLOCK + lanes) + levels * M * (N + 1)


@cache
def large_products(dtype: str) -> SimpleNamespace:
    """The products of a dtype, for other kernels: addresses, and strides in bytes.

    rows_by_weights(x, x_row, w, K, y, y_row, N, r0, r1)
        rows [r0, r1) of y (M, N) = x (M, K) W^T, w packed
    over_time(d, d_row, x, K, N, out, sums, m0, m1, room, adds)
        rows [m0, m1) of out (M, N) = d^T x, or += where adds is not 0, of d (K, M) and x (K, N); and of sums (M,), of
        d's columns, unless 0; x and out without gaps; room: of scratch_elements(K, m1 - m0, N) elements
    """
    v, product_prefetching = vectors(dtype), products(dtype).product_prefetching
    load, store, lanes, size = v.whole.load, v.whole.store, v.lanes, v.itemsize
    load_first, store_first, zero, add_blocks = v.first.load, v.first.store, v.zero, v.add_blocks
    load_blocks, store_blocks = v.whole.load_blocks, v.whole.store_blocks
    width = tile_shape()[1] * lanes

    @inner
    def rows_by_weights(x, x_row, w, K, y, y_row, N, r0, r1):
        for r in range(r0, r1, ROW_BLOCK):
            rows, following = minimum(ROW_BLOCK, r1 - r), r + ROW_BLOCK
            # The rows of the next block are fetched meanwhile, a cache line for each k of a tile.
            tiles = minimum(ROW_BLOCK, r1 - following) * x_row // maximum(K * LINE, 1) + 1 if following < r1 else 0
            product_prefetching(
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
            total, left = zero(), minimum(lanes, count - n)
            for k in range(K):
                value = load_first(source + k * source_row + n * size, left)
                store(value, target + k * target_row + n * size, lanes)
                total = total + value
            store_first(load_first(sums + n * size, left) + total, sums + n * size, left)

    @inner
    def join(source, target, count, adds):
        """target = source, or += where `adds`."""
        whole = count // lanes * lanes
        for n in range(0, whole, lanes):
            at = n * size
            value = load(source + at, lanes)
            store(load(target + at, lanes) + value if adds else value, target + at, lanes)
        if whole < count:
            at, left = whole * size, count - whole
            value = load_first(source + at, left)
            store_first(load_first(target + at, left) + value if adds else value, target + at, left)

    @outer
    def join_span(span, stretch, out, count, k, ends):
        """Adds the sum of the span that began with step k to its stretch, and that, where it `ends`, to out."""
        if k < STRETCH:
            join(span, out, count, True)
        else:
            join(span, stretch, count, k % STRETCH > 0)
            if ends or (k + SPAN) % STRETCH == 0:
                join(stretch, out, count, True)

    @inner
    def pack_panels(x, x_row, steps, N, panels):
        for n in range(0, N, width):
            columns = (minimum(width, N - n) + lanes - 1) // lanes * lanes
            copy_rows(x + n * size, x_row, panels, columns * size, steps, minimum(width, N - n))
            panels += steps * columns * size

    @inner
    def over_time(d, d_row, x, K, N, out, sums, m0, m1, room, adds):
        x_row, M, count_out = N * size, m1 - m0, (m1 - m0) * N
        # A row of the copy is one vector longer than it need be: powers of two would fall into one set of the cache.
        together, together_row = room + K_BLOCK * ((N + lanes - 1) // lanes * lanes) * size, (M_BLOCK + lanes) * size
        out, sums = out + m0 * x_row, sums + m0 * size if sums else 0
        span, span_sums = together + K_BLOCK * together_row, together + K_BLOCK * together_row + count_out * size
        above = span_sums + M * size - span  # from a span's sum to its stretch's
        for k in range(0, maximum(K, 1), K_BLOCK):  # a sum over no steps is written too
            steps, inside = minimum(K_BLOCK, K - k), k % SPAN
            to, sums_to = (out, sums) if k < SPAN else (span, span_sums if sums else 0)
            if sums and inside == 0:
                for m in range(M):
                    store_first(0.0, sums_to + m * size, 1)
            panels = room
            if N % lanes == 0 and width >= N:
                panels = x + k * x_row  # x is a panel as it stands
            else:
                pack_panels(x + k * x_row, x_row, steps, N, room)
            for m in range(0, M, M_BLOCK):
                count, source = minimum(M_BLOCK, M - m), d + k * d_row + (m0 + m) * size
                if sums:
                    copy_and_sum(source, d_row, together, together_row, steps, count, sums_to + m * size)
                else:
                    copy_rows(source, d_row, together, together_row, steps, count)
                # While one block is multiplied the next is fetched, a vector of each of its rows during each tile.
                next_k, next_m = (k, m + M_BLOCK) if m + M_BLOCK < M else (k + K_BLOCK, 0)
                vectors_ahead = (minimum(M_BLOCK, M - next_m) + lanes - 1) // lanes if next_k < K else 0
                product_prefetching(
                    together, 0, size, together_row, panels, steps, to + m * x_row, 0, x_row, N, 1, count,
                    inside + (adds if k < SPAN else 0), False,
                    d + next_k * d_row + (m0 + next_m) * size, lanes * size, d_row, vectors_ahead,
                )  # fmt: skip
            if k >= SPAN and (k + K_BLOCK >= K or inside + K_BLOCK == SPAN):
                ends = k + K_BLOCK >= K
                join_span(span, span + above, out, count_out, k - inside, ends)
                if sums:
                    join_span(span_sums, span_sums + above, sums, M, k - inside, ends)

    return SimpleNamespace(rows_by_weights=rows_by_weights, over_time=over_time)
