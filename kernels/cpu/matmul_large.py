"""The products outside the time loop, each for one thread's rows of the result.

x W^T       rows of x in blocks that stay in a cache while the panels of W are read
d^T x       K in blocks: each block of x is packed as panels, each block of d copied, and C accumulated per block

The K of d^T x counts all row-steps, which may be millions. So its sums have three levels: blocks of K_BLOCK row-steps,
spans of at most 64 blocks, and stretches of at most 64 spans. Each level is summed separately and added to the one
above, so an element is the end of chains of 256, 64, 64 and K / 2^20 additions, never of one chain of K.

Each block prefetches the operands of the next, which are often in memory rather than in a cache.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from rnnkit.kernels.cpu.formats import PAIRS, depths, formats
from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import LINE, products, tile_shape
from rnnkit.kernels.cpu.memory import maximum, minimum
from rnnkit.kernels.cpu.pairs import pair_copies

# Row-steps, and columns of d, per pass of d^T x. Together with x's panels they stay in the second-level cache.
K_BLOCK = 256
M_BLOCK = 192
# Row-steps of a span and of a stretch.
SPAN = 64 * K_BLOCK
STRETCH = 64 * SPAN
# Rows of A per pass over the panels of W.
ROW_BLOCK = 96


def scratch_elements(K: int, M: int, N: int, dtype: str) -> int:
    """How many computed numbers of scratch memory `over_time` needs for M rows of d^T x, where x is (K, N)."""
    lanes = formats(dtype).computed.lanes
    levels = (K > SPAN) + (K > STRETCH)
    return K_BLOCK * (-(-N // lanes) * lanes + M_BLOCK + lanes) + levels * M * (N + 1)


@cache
def large_products(dtype: str) -> SimpleNamespace:
    """The products of a dtype, for other kernels, in computed numbers. Arrays are addresses, strides are in bytes.

    rows_by_weights(x, x_row, w, K, y, y_row, N, r0, r1)
        rows [r0, r1) of y (M, N) = x (M, K) W^T, w packed
    over_time(d, d_row, x, K, N, out, sums, m0, m1, scratch, adds)
        rows [m0, m1) of out (M, N) = d^T x, or += d^T x if adds is not 0, for d (K, M) and x (K, N); and unless `sums`
        is 0, elements [m0, m1) of sums (M,), the sums of d's columns. x and out are contiguous; scratch has
        scratch_elements(K, m1 - m0, N) numbers
    """
    form = formats(dtype)
    operand = form.operand
    v = form.computed
    by_weights = products(operand.dtype, form.packed).product_prefetching
    by_operands = products(operand.dtype, PAIRS if form.dots else operand.dtype).product_prefetching
    depth = depths(dtype)
    load = v.whole.load
    store = v.whole.store
    load_first = v.first.load
    store_first = v.first.store
    load_blocks = v.whole.load_blocks
    store_blocks = v.whole.store_blocks
    zero = v.zero
    add_blocks = v.add_blocks
    lanes = v.lanes
    size = v.itemsize
    width = tile_shape()[1] * lanes
    operand_size = operand.itemsize
    step_of_k = operand_size * (2 if form.paired else 1)
    # In over_time K counts row-steps, and both sides are operands.
    DOTS = form.dots
    AT_ONCE = 2 if DOTS else 1  # row-steps per word
    word = AT_ONCE * operand_size

    @inner
    def rows_by_weights(x, x_row, w, K, y, y_row, N, r0, r1):
        for r in range(r0, r1, ROW_BLOCK):
            rows = minimum(ROW_BLOCK, r1 - r)
            following = r + ROW_BLOCK
            # Prefetches the rows of the next block, one cache line per k of a tile.
            ahead = depth(K) * LINE
            tiles = minimum(ROW_BLOCK, r1 - following) * x_row // maximum(ahead, 1) + 1 if following < r1 else 0
            by_weights(
                x + r * x_row, 0, x_row, step_of_k, w, K, y + r * y_row, 0, y_row, N, 1, rows, 0, False,
                x + following * x_row, ahead, LINE, tiles,
            )  # fmt: skip

    @inner
    def copy_each(source, source_row, target, target_row, K, count):
        """Copies K rows of `count` values and pads each to whole vectors with zeros."""
        whole = count // lanes * lanes
        for k in range(K):
            a = source + k * source_row
            b = target + k * target_row
            for n in range(0, whole, lanes):
                store(load(a + n * size, lanes), b + n * size, lanes)
            if whole < count:
                store(load_first(a + whole * size, count - whole), b + whole * size, lanes)

    @inner
    def copy_each_and_sum(source, source_row, target, target_row, K, count, sums):
        """copy_each, and sums (count,) += the sums of the columns, which four registers accumulate during the copy."""
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
            total = zero()
            left = minimum(lanes, count - n)
            for k in range(K):
                value = load_first(source + k * source_row + n * size, left)
                store(value, target + k * target_row + n * size, lanes)
                total = total + value
            store_first(load_first(sums + n * size, left) + total, sums + n * size, left)

    if DOTS:
        copy_rows, copy_and_sum = pair_copies().copy_pairs, pair_copies().copy_pairs_and_sum
    else:
        copy_rows, copy_and_sum = copy_each, copy_each_and_sum

    @inner
    def accumulate(source, target, count, adds):
        """target = source, or target += source if `adds`."""
        whole = count // lanes * lanes
        for n in range(0, whole, lanes):
            at = n * size
            value = load(source + at, lanes)
            store(load(target + at, lanes) + value if adds else value, target + at, lanes)
        if whole < count:
            at = whole * size
            left = count - whole
            value = load_first(source + at, left)
            store_first(load_first(target + at, left) + value if adds else value, target + at, left)

    @outer
    def accumulate_span(span, stretch, out, count, k, ends):
        """Adds the span that began at row-step k to its stretch, and a complete stretch to out. ends: the last span."""
        if k < STRETCH:
            accumulate(span, out, count, True)
        else:
            accumulate(span, stretch, count, k % STRETCH > 0)
            if ends or (k + SPAN) % STRETCH == 0:
                accumulate(stretch, out, count, True)

    @inner
    def pack_panels(x, x_row, steps, N, panels):
        for n in range(0, N, width):
            columns = (minimum(width, N - n) + lanes - 1) // lanes * lanes
            copy_rows(x + n * operand_size, x_row, panels, columns * word, steps, minimum(width, N - n))
            panels += (steps + AT_ONCE - 1) // AT_ONCE * columns * word

    @inner
    def over_time(d, d_row, x, K, N, out, sums, m0, m1, scratch, adds):
        x_row = N * operand_size
        out_row = N * size
        M = m1 - m0
        count_out = M * N
        # One more vector per row of the copy: with a power of two as the stride, all rows would share one cache set.
        d_block_row = (M_BLOCK + lanes) * word
        d_block = scratch + K_BLOCK * ((N + lanes - 1) // lanes * lanes) * size
        out += m0 * out_row
        sums = sums + m0 * size if sums else 0
        span = d_block + K_BLOCK * d_block_row
        span_sums = span + count_out * size
        to_stretch = (count_out + M) * size  # from the sums of a span to those of its stretch, in bytes
        for k in range(0, maximum(K, 1), K_BLOCK):  # K = 0 writes zeros
            steps = minimum(K_BLOCK, K - k)
            inside = k % SPAN
            to = out if k < SPAN else span
            sums_to = (sums if k < SPAN else span_sums) if sums else 0
            if sums and inside == 0:
                for m in range(M):
                    store_first(0.0, sums_to + m * size, 1)
            panels = scratch
            if not DOTS and N % lanes == 0 and width >= N:
                panels = x + k * x_row  # x already has the layout of a panel
            else:
                pack_panels(x + k * x_row, x_row, steps, N, scratch)
            for m in range(0, M, M_BLOCK):
                count = minimum(M_BLOCK, M - m)
                source = d + k * d_row + (m0 + m) * operand_size
                if sums:
                    copy_and_sum(source, d_row, d_block, d_block_row, steps, count, sums_to + m * size)
                else:
                    copy_rows(source, d_row, d_block, d_block_row, steps, count)
                # Each tile prefetches one vector of each row of the next block.
                next_k, next_m = (k, m + M_BLOCK) if m + M_BLOCK < M else (k + K_BLOCK, 0)
                vectors_ahead = (minimum(M_BLOCK, M - next_m) + lanes - 1) // lanes if next_k < K else 0
                by_operands(
                    d_block, 0, word, d_block_row, panels, steps, to + m * out_row, 0, out_row, N, 1, count,
                    inside + (adds if k < SPAN else 0), False,
                    d + next_k * d_row + (m0 + next_m) * operand_size, lanes * operand_size, d_row * AT_ONCE,
                    vectors_ahead,
                )  # fmt: skip
            if k >= SPAN and (k + K_BLOCK >= K or inside + K_BLOCK == SPAN):
                ends = k + K_BLOCK >= K
                accumulate_span(span, span + to_stretch, out, count_out, k - inside, ends)
                if sums:
                    accumulate_span(span_sums, span_sums + to_stretch, sums, M, k - inside, ends)

    return SimpleNamespace(rows_by_weights=rows_by_weights, over_time=over_time)
