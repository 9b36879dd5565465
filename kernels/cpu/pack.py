"""Weights in the layout that the register tiles read: [panel][K][columns * lanes], zero after N.

The last panel may be narrower. A weight matrix W (N, K) is stored by rows and read by columns, so packing transposes
it: blocks of lanes x lanes elements in registers, each cache line read once. If W^T is wanted instead, its columns are
already contiguous and are copied.

Pairs (kernels/cpu/formats.py) have the layout [panel][(K + 1) / 2][columns * lanes] of words. A row of bfloat16 is
packed as a row of words already, and the high half of an odd K's last word is zero.

int8 has the layout [panel][K][columns * lanes] of bytes, and behind each panel's last k the float32 scales of its
columns.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.formats import INT8, SCALE_BYTES, formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.matmul import tile_shape
from rnnkit.kernels.cpu.memory import minimum, stack_bytes, store_word
from rnnkit.kernels.cpu.pairs import pair_copies
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import INT32
from rnnkit.kernels.cpu.vector_memory import pointer


def padded(columns: int, dtype: str) -> int:
    """`columns` rounded up to whole vectors: the elements per k of a packed matrix with that many rows."""
    lanes = formats(dtype).computed.lanes
    return -(-columns // lanes) * lanes


def panel_count(N: int, dtype: str) -> int:
    """The number of panels of N rows."""
    width = tile_shape()[1] * formats(dtype).computed.lanes
    return -(-N // width)


def _make_transpose(v: SimpleNamespace, target_format: SimpleNamespace) -> tuple[Any, Any, Any]:
    """Three intrinsics that transpose a block of lanes x lanes elements. Strides and offsets are in bytes.

    v: how the elements are loaded. target_format: how they are stored.

    transpose(source, source_row, target, target_row)
        a block of contiguous rows
    transpose_rows(rows, valid, at, target, target_row)
        the rows whose `lanes` addresses are at `rows`, from byte `at` of each. Rows from number `valid` on give zeros,
        but their addresses must be valid too: masked loads from invalid addresses are correct and very slow
    transpose_edge(rows, valid, at, count, target, target_row)
        the same where only `count` columns of the block exist
    """
    vec = v.type
    lanes = v.lanes
    emit_store = target_format.emit.store
    store_first = target_format.emit.store_first

    def transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
        """The transposed block, in registers: swaps the off-diagonal halves, then quarters, and so on."""
        distance = lanes // 2
        while distance:
            upper = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
            lower = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
            for n in range(lanes):
                if not n & distance:
                    a = rows[n]
                    b = rows[n + distance]
                    masks = (ir.Constant(ir.VectorType(INT32, lanes), m) for m in (upper, lower))
                    rows[n], rows[n + distance] = (builder.shuffle_vector(a, b, mask) for mask in masks)
            distance //= 2
        return rows

    def at_row(builder: ir.IRBuilder, base: ir.Value, row: ir.Value, n: int) -> ir.Value:
        return builder.add(base, builder.mul(row, ir.Constant(row.type, n)))

    def row_address(builder: ir.IRBuilder, table: ir.Value, n: int) -> ir.Value:
        offset = ir.Constant(table.type, 8 * n)
        return builder.load(pointer(builder, builder.add(table, offset), table.type))

    def store_rows(builder: ir.IRBuilder, rows: list[ir.Value], target: ir.Value, target_row: ir.Value) -> None:
        for n, row in enumerate(transposed(builder, rows)):
            emit_store(builder, vec, row, at_row(builder, target, target_row, n), None)

    @intrinsic
    def transpose(typing, source, source_row, target, target_row):
        def emit(context, builder, sig, args):
            source, source_row, target, target_row = args
            rows = [at_row(builder, source, source_row, n) for n in range(lanes)]
            store_rows(builder, [v.emit.load(builder, vec, row, None) for row in rows], target, target_row)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), emit

    @intrinsic
    def transpose_rows(typing, rows, valid, at, target, target_row):
        def emit(context, builder, sig, args):
            table, valid, at, target, target_row = args
            zeros = ir.Constant(vec.llvm, [0.0] * lanes)
            rows = []
            for n in range(lanes):
                row = v.emit.load(builder, vec, builder.add(row_address(builder, table, n), at), None)
                rows.append(builder.select(builder.icmp_signed("<", ir.Constant(valid.type, n), valid), row, zeros))
            store_rows(builder, rows, target, target_row)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), emit

    @intrinsic
    def transpose_edge(typing, rows, valid, at, count, target, target_row):
        def emit(context, builder, sig, args):
            table, valid, at, count, target, target_row = args
            none = ir.Constant(count.type, 0)
            full = ir.Constant(count.type, lanes)
            rows = []
            for n in range(lanes):
                taken = builder.select(builder.icmp_signed("<", ir.Constant(valid.type, n), valid), count, none)
                rows.append(v.emit.load_first(builder, vec, builder.add(row_address(builder, table, n), at), taken))
            for n, row in enumerate(transposed(builder, rows)):
                stored = builder.select(builder.icmp_signed("<", ir.Constant(count.type, n), count), full, none)
                store_first(builder, vec, row, at_row(builder, target, target_row, n), stored)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), emit

    return transpose, transpose_rows, transpose_edge


@cache
def packer(dtype: str) -> Any:
    """pack(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed): panels [panel0, panel1) of N rows.

    w and packed are addresses, w_row is the stride of w's rows in bytes. Row n of the packed matrix is row
    `first + (n // each) * stride + n % each` of w, which has K columns. If `transposed`, it is column first + n of w,
    which has K rows; `each` is then N. `packed` has padded(N) * depth(K) words and is aligned to 64 bytes.
    """
    form = formats(dtype)
    if form.paired:
        return _pair_packer()
    if form.scaled:
        return _scaled_packer()
    pack_all = _packer(form.stored, form.computed)

    @inner
    def pack(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed):
        pack_all(w, w_row, K, K, transposed, first, each, stride, N, panel0, panel1, packed)

    return pack


@cache
def _pair_packer() -> Any:
    """The whole words of a row are packed like numbers of 32 bits."""
    words = vectors("float32")
    pack_words = _packer(words, words)
    pairs = pair_copies()
    load_one_of_a_pair = pairs.load_first_pairs
    copy_pairs = pairs.copy_pairs
    store_first = words.first.store
    lanes = words.lanes
    width = tile_shape()[1] * lanes

    @inner
    def pack_last(w, w_row, K, first, each, stride, N, panel0, panel1, packed):
        """The last words of an odd K."""
        depth = (K + 1) // 2
        for n in range(panel0 * width, minimum(panel1 * width, (N + lanes - 1) // lanes * lanes)):
            start = n // width * width
            columns = minimum(width, (N + lanes - 1) // lanes * lanes - start)
            to = packed + 4 * (start * depth + (depth - 1) * columns + n - start)
            unit = minimum(n, N - 1)
            at = w + (first + unit // each * stride + unit % each) * w_row + 2 * (K - 1)
            store_first(load_one_of_a_pair(at, at, False, 1 if n < N else 0), to, 1)

    @inner
    def pack(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed):
        depth = (K + 1) // 2
        if transposed:
            total = (N + lanes - 1) // lanes * lanes
            for start in range(panel0 * width, minimum(panel1 * width, total), width):
                columns = minimum(width, total - start)
                to = packed + 4 * start * depth
                copy_pairs(w + 2 * (first + start), w_row, to, 4 * columns, K, minimum(width, N - start))
            return
        pack_words(w, w_row, K // 2, depth, False, first, each, stride, N, panel0, panel1, packed)
        if K % 2 and N > 0:
            pack_last(w, w_row, K, first, each, stride, N, panel0, panel1, packed)

    return pack


@cache
def _scaled_packer() -> Any:
    """The bytes of a row are packed like other numbers, and its scale behind them."""
    numbers = vectors(INT8)
    scales = vectors("float32")
    pack_bytes = _packer(numbers, numbers)
    load_first = scales.first.load
    store_first = scales.first.store
    lanes = scales.lanes
    width = tile_shape()[1] * lanes

    @inner
    def pack(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed):
        depth = K + SCALE_BYTES
        total = (N + lanes - 1) // lanes * lanes
        pack_bytes(w, w_row, K, depth, False, first, each, stride, N, panel0, panel1, packed)
        for start in range(panel0 * width, minimum(panel1 * width, total), width):
            columns = minimum(width, total - start)
            to = packed + start * depth + columns * K
            for n in range(start, start + columns):
                unit = minimum(n, N - 1)
                at = w + (first + unit // each * stride + unit % each) * w_row + K
                store_first(load_first(at, 1 if n < N else 0), to + 4 * (n - start), 1)

    return pack


def _packer(source: SimpleNamespace, v: SimpleNamespace) -> Any:
    """pack of elements that are loaded as `source` says and stored as `v` says, with one more argument after K: the
    rows of a panel, K unless some are left free."""
    load = source.whole.load
    store = v.whole.store
    load_first = source.first.load
    load_blocks = source.whole.load_blocks
    store_blocks = v.whole.store_blocks
    transpose, transpose_rows, transpose_edge = _make_transpose(source, v)
    lanes = v.lanes
    size = v.itemsize
    source_size = source.itemsize
    full = tile_shape()[1]  # vectors per row of a full panel
    vector_size = lanes * size
    width = full * lanes

    @inner
    def copy_panel(source, source_row, K, count, at):
        """Copies K rows of `count` adjacent columns into a panel."""
        whole = count // lanes * lanes
        target_row = (count + lanes - 1) // lanes * vector_size
        for k in range(K):
            row = source + k * source_row
            to = at + k * target_row
            if whole == width:
                store_blocks(load_blocks(row, lanes * source_size, lanes, full), to, vector_size, lanes)
                continue
            for n in range(0, whole, lanes):
                store(load(row + n * source_size, lanes), to + n * size, lanes)
            if whole < count:
                store(load_first(row + whole * source_size, count - whole), to + whole * size, lanes)

    @inner
    def transpose_panel(w, w_row, K, first, each, stride, n, end, at, target_row, table):
        """One vector's width of a panel: `lanes` rows of the packed matrix from n on, but none from `end` on."""
        block = n // each
        inside = n % each
        row = w + (first + block * stride + inside) * w_row
        if n + lanes <= end and inside + lanes <= each and lanes <= K:
            # The last block ends at K and may overlap the one before it, so that no lane needs a mask.
            for column in range(0, K, lanes):
                k = minimum(column, K - lanes)
                transpose(row + k * source_size, w_row, at + k * target_row, target_row)
            return
        valid = minimum(lanes, end - n)
        for lane in range(lanes):
            store_word(table + 8 * lane, row)
            if lane < valid - 1:
                inside += 1
                row += w_row
                if inside == each:
                    inside = 0
                    row += (stride - each) * w_row
        if lanes <= K:
            for column in range(0, K, lanes):
                k = minimum(column, K - lanes)
                transpose_rows(table, valid, k * source_size, at + k * target_row, target_row)
        elif K > 0:
            transpose_edge(table, valid, 0, K, at, target_row)

    @inner
    def pack(w, w_row, K, depth, transposed, first, each, stride, N, panel0, panel1, packed):
        table = stack_bytes(8 * lanes)
        total = (N + lanes - 1) // lanes * lanes
        block_rows = N if each == stride else each  # adjacent blocks are one block
        for start in range(panel0 * width, minimum(panel1 * width, total), width):
            columns = minimum(width, total - start)
            at = packed + start * depth * size
            if transposed:
                copy_panel(w + (first + start) * source_size, w_row, K, minimum(width, N - start), at)
            else:
                for n in range(0, columns, lanes):
                    transpose_panel(
                        w, w_row, K, first, block_rows, stride, start + n, N, at + n * size, columns * size, table
                    )

    return pack
