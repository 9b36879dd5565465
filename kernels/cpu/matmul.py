"""Matrix products in register tiles, for the product of a time step and for the large products outside the time loop.

A tile holds rows x columns accumulators in registers, its columns counted in vectors, and walks K once. Each weight
vector is loaded once and multiplied by one element of each row. The elements of A may have any strides (`a_row` and
`a_k` bytes), so A and A^T are read alike. Weights are packed (kernels/cpu/pack.py), so that the walk reads them in
memory order.

Packed bfloat16 stands in pairs of adjacent k (kernels/cpu/formats.py), and a tile walks half as many steps. Elements of
A are float32, or pairs too where the processor multiplies pairs by pairs. The last k of an odd K is a step by itself.

Packed int8 is widened as it is loaded. Its sums are multiplied by the scales of their columns after the walk.

Every element of C is summed over k in one order, in blocks of at most LONGEST_SUM, whatever tile it is in. So a row's
bits depend neither on the rows beside it nor on the number of threads.

The tile shape follows from the host's registers: accumulators + weights + one broadcast value. AVX-512 has 32
registers, 6 x 4 + 4 + 1. AVX2 has 16, 4 x 3 + 3 + 1: with 6 x 2 tiles of few rows would have too few accumulators to
hide the latency of a multiply-add. SSE2 has 16 registers and NEON 32; both use 6 x 2.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.cpu.conversions import INT16, emit_dot, high_as_float, low_as_float
from rnnkit.kernels.cpu.formats import INT8, PAIRS, SCALE_BYTES
from rnnkit.kernels.cpu.jit import inner, shared
from rnnkit.kernels.cpu.memory import maximum, minimum
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import INT32, llvm_function, splat, vector_bytes
from rnnkit.kernels.cpu.vector_memory import emit_load, emit_load_up_to, emit_store, emit_store_up_to, pointer

_TILES = {64: (6, 4), 32: (4, 3), 16: (6, 2)}  # vector bytes: (rows, columns)


def tile_shape() -> tuple[int, int]:
    """(rows, columns in vectors) of the host's largest tile."""
    return _TILES[vector_bytes()]


# The K loops of tiles with more accumulators than this are not unrolled: each iteration has enough work, and unrolled
# code takes seconds to compile.
UNROLL_LIMIT = 8


def not_unrolled(module: ir.Module) -> Any:
    """Loop metadata that disables LLVM's unrolling. The first operand of such a node must be the node itself."""
    loop = module.add_metadata([module.add_metadata(["llvm.loop.unroll.disable"])])
    loop.operands = (loop, *loop.operands)
    return loop


def emit_prefetch(builder: ir.IRBuilder, address: ir.Value, to_write: int, locality: int) -> None:
    """Prefetches the cache line at `address`, which need not be valid. locality: 0 (none) to 3 (keep in all caches)."""
    byte = ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, byte), *(ir.Constant(INT32, n) for n in (to_write, locality, 1))])


# The most terms added one after the other. A longer sum is a sum of such blocks, which rounds less.
LONGEST_SUM = 256
LINE = 64  # bytes of a cache line on most hosts
# Products with more bytes of weights than this prefetch them. Fewer stay in the second-level cache of a server, where
# the prefetches only cost time (1 to 3% on Zen 4).
PREFETCHED_FROM = 768 << 10


@cache
def products(operand: str, packed: str) -> SimpleNamespace:
    """The products of operands and packed weights, for other kernels. a, w and c are addresses, strides are in bytes.
    Pairs and int8 are summed in float32.

    product(a, a_row, w, K, c, c_row, N, rows, add, backwards)
        C (rows, N) = A (rows, K) W^T, or C += A W^T if add is not 0
    product_steps(a, a_step, a_row, a_k, w, K, c, c_step, c_row, N, steps, rows, add, backwards)
        the same for `steps` matrices A with one W. a_k is from k to k + 1, or from pair to pair

    product_prefetching(…, backwards, ahead, ahead_tile, ahead_k, tiles)
        product_steps, with prefetches: the first `tiles` tiles prefetch a cache line at each of their k, tile t at
        ahead + t * ahead_tile + k * ahead_k, which need not be a valid address

    Every tile with the most rows, or one fewer, contains one prefetch per k. Where the caller has no address for it and
    the weights exceed the second-level cache, the first tiles on each block of a panel prefetch the block that follows,
    of the same panel or of the next, so that it arrives during the arithmetic. Else the first tile on each block waits.

    backwards: walks the panels of W from the last to the first. If W is larger than a cache and the direction
    alternates, the panels read last are still cached at each change of direction. In one direction none would be.
    """
    paired = packed == PAIRS
    dots = operand == "bfloat16"
    scaled = packed == INT8
    v = vectors("float32" if paired or scaled else packed)
    weights = vectors(packed) if scaled else v
    vec = v.type
    itemsize = v.itemsize  # of C
    word = weights.itemsize  # of W
    behind = SCALE_BYTES if scaled else 0  # words behind the last k
    lanes = v.lanes
    at_once = 2 if paired else 1  # elements of K per step
    a_step_of_k = at_once * vectors(operand).itemsize
    words = ir.VectorType(INT32, lanes)
    max_rows, max_columns = tile_shape()
    vector_size = itemsize * lanes
    w_vector = word * lanes
    width = max_columns * lanes  # columns of a panel
    lines = (max_columns * w_vector + LINE - 1) // LINE  # cache lines of a panel per k

    def load_number(builder: ir.IRBuilder, at: ir.Value) -> ir.Value:
        """An element of A in every lane."""
        scalar = builder.load(pointer(builder, at, vec.llvm_scalar))
        scalar.align = itemsize
        return splat(builder, vec.llvm, scalar)

    def load_pair(builder: ir.IRBuilder, at: ir.Value) -> ir.Value:
        """A pair of A in every lane."""
        return splat(builder, words, builder.load(pointer(builder, at, INT32), align=2))

    def load_half(builder: ir.IRBuilder, at: ir.Value) -> ir.Value:
        """A pair of one element of A and 0, in every lane."""
        return splat(builder, words, builder.zext(builder.load(pointer(builder, at, INT16), align=2), INT32))

    def load_words(builder: ir.IRBuilder, at: ir.Value) -> ir.Value:
        return builder.load(pointer(builder, at, words), align=4)

    def emit_steps(
        builder: ir.IRBuilder, sums: list[list[ir.Value]], a_rows: list[ir.Value], w: list[ir.Value], half: bool
    ) -> None:
        """Adds the products of one step of K: one k, or a pair, of which `half` takes the first only.

        a_rows and w: addresses, of each row's elements and of each column's words.
        """
        fma = None if dots else llvm_function(builder, "llvm.fmuladd", vec.llvm, 3)

        def add(weights: list[ir.Value], load_a: Any, offset: int) -> None:
            for row, a in zip(sums, a_rows, strict=True):
                value = load_a(builder, builder.add(a, ir.Constant(a.type, offset)) if offset else a)
                for slot, weight in zip(row, weights, strict=True):
                    total = builder.load(slot)
                    if fma is None:
                        builder.store(emit_dot(builder, total, value, weight), slot)
                    else:
                        builder.store(builder.call(fma, [value, weight, total]), slot)

        if not paired:
            add([weights.emit.load(builder, vec, at, None) for at in w], load_number, 0)
            return
        pairs = [load_words(builder, at) for at in w]
        if dots:
            add(pairs, load_half if half else load_pair, 0)
            return
        add([low_as_float(builder, pair) for pair in pairs], load_number, 0)
        if not half:
            add([high_as_float(builder, pair) for pair in pairs], load_number, itemsize)

    def emit_tile(
        builder: ir.IRBuilder, sums: list[list[ir.Value]], a: ir.Value, a_row: ir.Value, a_k: ir.Value, w: ir.Value,
        K: ir.Value, c: ir.Value, c_row: ir.Value, last: ir.Value, add: ir.Value, ahead: ir.Value, ahead_k: ir.Value,
        scales: ir.Value,
    ) -> None:  # fmt: skip
        """One tile's code. sums[m][n] are stack slots, which LLVM promotes to registers. The last vector of each row of
        C has `last` lanes."""
        left = None
        if paired:
            left = builder.and_(K, ir.Constant(K.type, 1))
            K = builder.lshr(K, ir.Constant(K.type, 1))
        columns = len(sums[0])

        def number(n: int) -> ir.Constant:
            return ir.Constant(a.type, n)

        def c_at(m: int, n: int) -> ir.Value:
            return builder.add(builder.add(c, builder.mul(c_row, number(m))), number(n * vector_size))

        def step(k: ir.Value, half: bool) -> None:
            w_at = builder.add(w, builder.mul(k, number(columns * w_vector)))
            a_at = builder.add(a, builder.mul(k, a_k))
            a_rows = [builder.add(a_at, builder.mul(a_row, number(m))) for m in range(len(sums))]
            emit_steps(builder, sums, a_rows, [builder.add(w_at, number(n * w_vector)) for n in range(columns)], half)

        # C is read and written after the walk over K. Prefetched here, it has arrived by then.
        for m in range(len(sums)):
            for n in range(columns):
                emit_prefetch(builder, c_at(m, n), 1, 3)
        for slot in (slot for row in sums for slot in row):
            builder.store(ir.Constant(vec.llvm, [0.0] * lanes), slot)
        before = builder.block
        body = builder.append_basic_block("k")
        after = builder.append_basic_block("k.end")
        builder.cbranch(builder.icmp_signed(">", K, number(0)), body, after)
        builder.position_at_end(body)
        k = builder.phi(K.type)
        k.add_incoming(number(0), before)
        step(k, False)
        if len(sums) >= max_rows - 1:  # smaller tiles have no time to spare; products of few rows have no next block
            emit_prefetch(builder, builder.add(ahead, builder.mul(k, ahead_k)), 0, 2)
        following = builder.add(k, number(1))
        k.add_incoming(following, body)
        back = builder.cbranch(builder.icmp_signed("<", following, K), body, after)
        if len(sums) * columns > UNROLL_LIMIT:
            back.set_metadata("llvm.loop", not_unrolled(builder.module))
        builder.position_at_end(after)
        if left is not None:
            with builder.if_then(builder.icmp_signed("!=", left, number(0))):
                step(K, True)
        if scaled:
            for n in range(columns):
                scale = emit_load(builder, vec, builder.add(scales, number(n * vector_size)))
                for row in sums:
                    builder.store(builder.fmul(builder.load(row[n]), scale), row[n])
        # C is added after the walk over K, so that a sum over many blocks of K adds short sums, which rounds less.
        with builder.if_then(add):
            for m, row in enumerate(sums):
                for n, slot in enumerate(row):
                    at = c_at(m, n)
                    value = emit_load(builder, vec, at) if n < columns - 1 else emit_load_up_to(builder, vec, at, last)
                    builder.store(builder.fadd(builder.load(slot), value), slot)
        for m, row in enumerate(sums):
            for n, slot in enumerate(row[:-1]):
                emit_store(builder, builder.load(slot), c_at(m, n))
            emit_store_up_to(builder, vec, builder.load(row[-1]), c_at(m, columns - 1), last)

    @intrinsic
    def tile(typing, rows, columns, a, a_row, a_k, w, K, c, c_row, last, add, ahead, ahead_k, scales):
        """A tile of any shape up to the largest: a switch over the shapes."""

        def emit(context, builder, sig, args):
            rows_, columns_, a, a_row, a_k, w, K, c, c_row, last, add, ahead, ahead_k, scales = args
            adding = builder.icmp_signed("!=", add, ir.Constant(add.type, 0))
            slots = [[cgutils.alloca_once(builder, vec.llvm) for _ in range(max_columns)] for _ in range(max_rows)]
            done = builder.append_basic_block("tile.done")
            stride = ir.Constant(rows_.type, max_columns + 1)
            switch = builder.switch(builder.add(builder.mul(rows_, stride), columns_), done)
            for m in range(1, max_rows + 1):
                for n in range(1, max_columns + 1):
                    block = builder.append_basic_block(f"tile.{m}x{n}")
                    switch.add_case(ir.Constant(rows_.type, m * (max_columns + 1) + n), block)
                    builder.position_at_end(block)
                    sums = [row[:n] for row in slots[:m]]
                    emit_tile(builder, sums, a, a_row, a_k, w, K, c, c_row, last, adding, ahead, ahead_k, scales)
                    builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 14), emit

    run_tile: Any = tile  # `Any`, since Numba types this call, and not the Python signature

    # The tiles are most of the machine code of a product, so that all jobs share one copy.
    @shared(("tiles", operand, packed), 14)
    def one_tile(rows, columns, a, a_row, a_k, w, K, c, c_row, last, add, ahead, ahead_k, scales):
        run_tile(rows, columns, a, a_row, a_k, w, K, c, c_row, last, add, ahead, ahead_k, scales)

    @inner
    def product_prefetching(
        a, a_step, a_row, a_k, w, K, c, c_step, c_row, N, steps, rows, add, backwards, ahead, ahead_tile, ahead_k, tiles
    ):
        done = 0
        panels = (N + width - 1) // width
        blocks = (rows + max_rows - 1) // max_rows
        parts = maximum(1, (K + LONGEST_SUM - 1) // LONGEST_SUM)
        depth = (K + at_once - 1) // at_once  # steps of K
        panel_row = (depth + behind) * word  # bytes per column of a panel
        per_block = lines if N * panel_row > PREFETCHED_FROM else 0  # tiles that prefetch the following block
        for k in range(panels):
            panel = panels - 1 - k if backwards else k
            left = N - panel * width
            columns = minimum((left + lanes - 1) // lanes, max_columns)
            last = minimum(left - (columns - 1) * lanes, lanes)
            w_panel = w + panel * width * panel_row
            scales = w_panel + depth * columns * w_vector
            c_panel = c + panel * width * itemsize
            for part in range(parts):
                k0 = depth * part // parts
                k1 = depth * (part + 1) // parts
                terms = minimum(k1 * at_once, K) - k0 * at_once
                w_at = w_panel + k0 * columns * w_vector
                a_part = a + k0 * a_k
                adds = 1 if add or part else 0
                w_next = w_panel + k1 * columns * w_vector
                w_tiles = per_block
                if part == parts - 1:
                    w_next = w + (panel - 1 if backwards else panel + 1) * width * panel_row
                    w_tiles = per_block if k + 1 < panels else 0
                for step in range(steps):
                    for block in range(blocks):
                        first = rows * block // blocks
                        end = rows * (block + 1) // blocks
                        a_at = a_part + step * a_step + first * a_row
                        c_at = c_panel + step * c_step + first * c_row
                        prefetched = c_at
                        prefetched_k = 0
                        if done < tiles:
                            prefetched = ahead + done * ahead_tile
                            prefetched_k = ahead_k
                        elif w_tiles > 0:
                            prefetched = w_next
                            prefetched_k = LINE
                            w_next += (k1 - k0) * LINE
                            w_tiles -= 1
                        one_tile(
                            end - first, columns, a_at, a_row, a_k, w_at, terms, c_at, c_row, last, adds,
                            prefetched, prefetched_k, scales,
                        )  # fmt: skip
                        done += 1

    @inner
    def product_steps(a, a_step, a_row, a_k, w, K, c, c_step, c_row, N, steps, rows, add, backwards):
        product_prefetching(a, a_step, a_row, a_k, w, K, c, c_step, c_row, N, steps, rows, add, backwards, a, 0, 0, 0)

    @inner
    def product(a, a_row, w, K, c, c_row, N, rows, add, backwards):
        product_steps(a, 0, a_row, a_step_of_k, w, K, c, 0, c_row, N, 1, rows, add, backwards)

    return SimpleNamespace(product=product, product_steps=product_steps, product_prefetching=product_prefetching)
