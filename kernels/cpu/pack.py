"""Weights as the register tiles read them: [panel][K][columns * lanes], zero past N; the last panel may be narrower.

A weight matrix W (N, K) is stored by rows and read by columns, so packing is a transposition: lanes x lanes blocks in
registers, each cache line touched once. Where W^T is wanted instead, its columns are already contiguous and are copied.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.matmul import tile_shape
from rnnkit.kernels.cpu.memory import minimum, stack_bytes, store_word
from rnnkit.kernels.cpu.simd import INT32, emit_load, emit_store, load_first, pointer, store_first, vectors


def padded(columns: int, dtype: str) -> int:
    """`columns` rounded up to whole vectors: what a packed weight matrix of so many rows takes for each k."""
    lanes = vectors(dtype).lanes
    return -(-columns // lanes) * lanes


def panel_count(N: int, dtype: str) -> int:
    """How many panels N rows make."""
    width = tile_shape()[1] * vectors(dtype).lanes
    return -(-N // width)


def _make_transpose(v):
    """transpose(source, source_row, target, target_row): one lanes x lanes block; strides in bytes.

    transpose_rows(rows, there, at, target, target_row): the same from `lanes` rows whose addresses stand at `rows`,
    `at` bytes into each. Rows from `there` on give zeros, though their addresses must be good: masked loads from bad
    ones are right, but take a thousand times as long.
    transpose_edge(rows, there, at, count, target, target_row): where only `count` columns of the block exist.
    """
    vec, lanes = v.type, v.lanes

    def exchange(builder, rows: list) -> list:
        """The transposed block, in registers: off-diagonal halves change places, then quarters, and so on."""
        distance = lanes // 2
        while distance:
            upper = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
            lower = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
            for n in range(lanes):
                if not n & distance:
                    a, b = rows[n], rows[n + distance]
                    masks = (ir.Constant(ir.VectorType(INT32, lanes), m) for m in (upper, lower))
                    rows[n], rows[n + distance] = (builder.shuffle_vector(a, b, mask) for mask in masks)
            distance //= 2
        return rows

    def at_row(builder, base, row, n: int):
        return builder.add(base, builder.mul(row, ir.Constant(row.type, n)))

    def row_of(builder, table, n: int):
        word = ir.Constant(table.type, 8 * n)
        return builder.load(pointer(builder, builder.add(table, word), table.type))

    def store_rows(builder, rows: list, target, target_row) -> None:
        for n, row in enumerate(exchange(builder, rows)):
            emit_store(builder, row, at_row(builder, target, target_row, n))

    @intrinsic
    def transpose(typing, source, source_row, target, target_row):
        def emit(context, builder, sig, args):
            source, source_row, target, target_row = args
            rows = [at_row(builder, source, source_row, n) for n in range(lanes)]
            store_rows(builder, [emit_load(builder, vec, row) for row in rows], target, target_row)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), emit

    @intrinsic
    def transpose_rows(typing, rows, there, at, target, target_row):
        def emit(context, builder, sig, args):
            table, there, at, target, target_row = args
            zeros, rows = ir.Constant(vec.llvm, [0.0] * lanes), []
            for n in range(lanes):
                row = emit_load(builder, vec, builder.add(row_of(builder, table, n), at))
                rows.append(builder.select(builder.icmp_signed("<", ir.Constant(there.type, n), there), row, zeros))
            store_rows(builder, rows, target, target_row)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), emit

    @intrinsic
    def transpose_edge(typing, rows, there, at, count, target, target_row):
        def emit(context, builder, sig, args):
            table, there, at, count, target, target_row = args
            none, full, rows = ir.Constant(count.type, 0), ir.Constant(count.type, lanes), []
            for n in range(lanes):
                taken = builder.select(builder.icmp_signed("<", ir.Constant(there.type, n), there), count, none)
                rows.append(load_first(builder, vec, builder.add(row_of(builder, table, n), at), taken))
            for n, row in enumerate(exchange(builder, rows)):
                stored = builder.select(builder.icmp_signed("<", ir.Constant(count.type, n), count), full, none)
                store_first(builder, vec, row, at_row(builder, target, target_row, n), stored)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), emit

    return transpose, transpose_rows, transpose_edge


@cache
def packer(dtype: str) -> Any:
    """pack(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed): panels [panel0, panel1) of N rows.

    w and packed are addresses, w_row the bytes from one row of w to the next. Row n of the packed matrix is row
    `first + (n // each) * stride + n % each` of w, which has K columns; or with `transposed` column first + n of w,
    which has K rows (each is then N). `packed` takes padded(N) * K elements, 64 bytes aligned.
    """
    v = vectors(dtype)
    load_first, load, store, lanes, size = v.first.load, v.whole.load, v.whole.store, v.lanes, v.itemsize
    load_blocks, store_blocks = v.whole.load_blocks, v.whole.store_blocks
    transpose, transpose_rows, transpose_edge = _make_transpose(v)
    full, vector_size = tile_shape()[1], lanes * size
    width = full * lanes

    @inner
    def copy_panel(source, source_row, K, count, at):
        """A panel from `count` neighbouring columns, down their K rows."""
        whole = count // lanes * lanes
        target_row = (count + lanes - 1) // lanes * vector_size
        for k in range(K):
            row, to = source + k * source_row, at + k * target_row
            if whole == width:
                store_blocks(load_blocks(row, vector_size, lanes, full), to, vector_size, lanes)
                continue
            for n in range(0, whole, lanes):
                store(load(row + n * size, lanes), to + n * size, lanes)
            if whole < count:
                store(load_first(row + whole * size, count - whole), to + whole * size, lanes)

    @inner
    def transpose_panel(w, w_row, K, first, each, stride, n, end, at, target_row, table):
        """One vector's width of a panel: rows n, n + 1, … of the packed matrix, up to `end`."""
        block, inside = n // each, n % each
        row = w + (first + block * stride + inside) * w_row
        if n + lanes <= end and inside + lanes <= each and lanes <= K:
            # The last block ends with K and may take again what the one before it took: no lane needs a mask.
            for column in range(0, K, lanes):
                k = minimum(column, K - lanes)
                transpose(row + k * size, w_row, at + k * target_row, target_row)
            return
        there = minimum(lanes, end - n)
        for lane in range(lanes):
            store_word(table + 8 * lane, row)
            if lane < there - 1:
                inside += 1
                row += w_row
                if inside == each:
                    inside = 0
                    row += (stride - each) * w_row
        if lanes <= K:
            for column in range(0, K, lanes):
                k = minimum(column, K - lanes)
                transpose_rows(table, there, k * size, at + k * target_row, target_row)
        elif K > 0:
            transpose_edge(table, there, 0, K, at, target_row)

    @inner
    def pack(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed):
        table = stack_bytes(8 * lanes)
        total = (N + lanes - 1) // lanes * lanes
        together = N if each == stride else each  # blocks without gaps are one
        for start in range(panel0 * width, minimum(panel1 * width, total), width):
            columns, at = minimum(width, total - start), packed + start * K * size
            if transposed:
                copy_panel(w + (first + start) * size, w_row, K, minimum(width, N - start), at)
            else:
                for n in range(0, columns, lanes):
                    transpose_panel(
                        w, w_row, K, first, together, stride, start + n, N, at + n * size, columns * size, table
                    )

    return pack
