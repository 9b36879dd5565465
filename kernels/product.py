"""C (+)= A W^T on packed weights: the product of one time step, in register tiles.

A tile holds `rows` x `columns` accumulators in registers (columns counted in vectors) and walks K once: each
weight vector is loaded once and multiplied by one element of each row. Weights are packed once a call as
[panel][K][columns * lanes], so the walk streams memory. Every row's sum runs over k in the same order, whatever
rows share its tile: a row's bits do not depend on the batch around it, nor on the number of threads.

Tile shapes by the host's registers, accumulators + weights + one broadcast value: AVX-512 has 32 registers, 6 x 4
+ 4 + 1; AVX2 has 16, 6 x 2 + 2 + 1; SSE2 has 16 too, NEON 32, and the smaller shape serves both.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.vector import (
    emit_load,
    emit_store,
    llvm_function,
    pointer,
    splat,
    vector_bytes,
    vectors,
)

_TILES = {64: (6, 4), 32: (6, 2), 16: (6, 2)}  # vector bytes: (rows, columns)


def tile_shape() -> tuple[int, int]:
    """(rows, columns in vectors) of the host's largest tile."""
    return _TILES[vector_bytes()]


def padded(columns: int, dtype: str) -> int:
    """`columns` rounded up to whole vectors: the row stride that a product's C needs."""
    lanes = vectors(dtype).lanes
    return -(-columns // lanes) * lanes


@cache
def packer(dtype: str):
    """pack(w, packed): w (N, K), the rows of a weight matrix or a transposed view of one, into `packed_size` elements.

    The layout is [panel][K][columns * lanes], zero past N; the last panel may be narrower.
    """
    lanes = vectors(dtype).lanes
    width = tile_shape()[1] * lanes

    @entry(("pack", dtype))
    def pack(w, packed):
        N, K = w.shape
        total = (N + lanes - 1) // lanes * lanes
        for start in range(0, total, width):
            columns = min(width, total - start)
            here = min(columns, N - start)
            panel = start * K
            for k0 in range(0, K, 16):  # a cache line of each row at a time
                for n in range(here):
                    for k in range(k0, min(k0 + 16, K)):
                        packed[panel + k * columns + n] = w[start + n, k]
            for k in range(K):
                for n in range(here, columns):
                    packed[panel + k * columns + n] = 0

    return pack


@cache
def products(dtype: str) -> SimpleNamespace:
    """product(a, lda, w, K, c, ldc, N, rows, add): addresses and strides in bytes; C's rows are whole vectors."""
    v = vectors(dtype)
    vec, itemsize, lanes = v.type, v.itemsize, v.lanes
    max_rows, max_columns = tile_shape()
    vector_size = itemsize * lanes

    def emit_tile(builder: ir.IRBuilder, sums: list, a, lda, w, K, c, ldc, add) -> None:
        """One tile's code. sums[m][n] are stack slots, which LLVM keeps in registers."""
        columns = len(sums[0])

        def number(n: int) -> ir.Constant:
            return ir.Constant(a.type, n)

        def c_at(m: int, n: int) -> ir.Value:
            return builder.add(builder.add(c, builder.mul(ldc, number(m))), number(n * vector_size))

        fma = llvm_function(builder, "llvm.fma", vec.llvm, 3)
        with builder.if_else(add) as (then, otherwise):
            with then:
                for m, row in enumerate(sums):
                    for n, slot in enumerate(row):
                        builder.store(emit_load(builder, vec, c_at(m, n)), slot)
            with otherwise:
                for slot in (slot for row in sums for slot in row):
                    builder.store(ir.Constant(vec.llvm, [0.0] * lanes), slot)
        with cgutils.for_range(builder, K) as loop:
            w_k = builder.add(w, builder.mul(loop.index, number(columns * vector_size)))
            weights = [emit_load(builder, vec, builder.add(w_k, number(n * vector_size))) for n in range(columns)]
            a_k = builder.add(a, builder.mul(loop.index, number(itemsize)))
            for m, row in enumerate(sums):
                at = builder.add(a_k, builder.mul(lda, number(m)))
                scalar = builder.load(pointer(builder, at, vec.llvm_scalar))
                scalar.align = itemsize
                value = splat(builder, vec.llvm, scalar)
                for n, slot in enumerate(row):
                    builder.store(builder.call(fma, [value, weights[n], builder.load(slot)]), slot)
        for m, row in enumerate(sums):
            for n, slot in enumerate(row):
                emit_store(builder, builder.load(slot), c_at(m, n))

    @intrinsic
    def tile(typing, rows, columns, a, lda, w, K, c, ldc, add):
        """A tile of any shape up to the largest: a switch to the code of that shape."""

        def emit(context, builder, sig, args):
            rows_, columns_, a, lda, w, K, c, ldc, add = args
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
                    emit_tile(builder, [row[:n] for row in slots[:m]], a, lda, w, K, c, ldc, adding)
                    builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), emit

    run_tile: Any = tile  # typed by Numba, not by its Python signature

    @inner
    def product(a, lda, w, K, c, ldc, N, rows, add):
        """C (rows, N) = A (rows, K) W^T, or C += where add is not 0; w as packed by `packer`."""
        vectors_left = (N + lanes - 1) // lanes
        blocks = (rows + max_rows - 1) // max_rows
        while vectors_left > 0:
            columns = min(vectors_left, max_columns)
            for block in range(blocks):
                first, end = rows * block // blocks, rows * (block + 1) // blocks
                run_tile(end - first, columns, a + first * lda, lda, w, K, c + first * ldc, ldc, add)
            w += K * columns * vector_size
            c += columns * vector_size
            vectors_left -= columns

    return SimpleNamespace(product=product)
