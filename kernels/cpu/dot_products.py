"""Dot products of rows, side by side: the products of a single step, whose weights are not packed.

A vector of gates is `lanes` dot products: as many accumulators, each over the K values of a row of W, then added up
crosswise into one vector.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.cpu.conversions import INT16, emit_dot, has_dot_product, high_as_float, low_as_float
from rnnkit.kernels.cpu.formats import INT8
from rnnkit.kernels.cpu.jit import outer
from rnnkit.kernels.cpu.matmul import LINE, emit_prefetch
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vec_type import INT32, VecType, llvm_function, splat, vector_bytes
from rnnkit.kernels.cpu.vector_memory import emit_load, emit_store, first_words_16, load_first, pointer

# By the bytes of a vector: for how many rows of a batch, and how many units, sums are kept in registers at once. Each
# load then serves several multiply-adds. The rows that remain are taken one at a time.
_BLOCK = {64: (4, 4), 32: (2, 4), 16: (2, 4)}


class _Reading(NamedTuple):
    """How the elements of a dot product are read and multiplied.

    at_once       elements per vector
    loads         of a and of w, each (load, load_first, bytes per vector)
    multiply_add  (builder, a, w, total)
    """

    at_once: int
    loads: tuple[Any, Any]
    multiply_add: Any


def _reading(a_dtype: str, w_dtype: str) -> _Reading:
    """Vectors are of numbers or, with AVX512_BF16, of pairs of bfloat16 as they are in memory.

    bfloat16 weights of float32 elements are pairs too. Two vectors of a are then one of its even and one of its odd
    elements, which takes less than to widen each row of the weights in order.
    """
    vec = vectors(a_dtype).type
    if (a_dtype, w_dtype) == ("float32", "bfloat16"):
        return _reading_of_pairs(vec)
    if a_dtype == w_dtype == "bfloat16" and has_dot_product(vector_bytes()):
        words = ir.VectorType(INT32, vec.lanes)
        halves = VecType(vec.scalar, 2 * vec.lanes)

        def load(builder: ir.IRBuilder, _: VecType, address: ir.Value, n: Any) -> ir.Value:
            value = builder.load(pointer(builder, address, words))
            value.align = INT16.width // 8
            return value

        def load_some(builder: ir.IRBuilder, _: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
            return builder.bitcast(first_words_16(builder, halves, address, n), words)

        reading = (load, load_some, 4 * vec.lanes)
        return _Reading(2 * vec.lanes, (reading, reading), lambda b, a, w, total: emit_dot(b, total, a, w))

    def multiply_add(builder: ir.IRBuilder, a: ir.Value, w: ir.Value, total: ir.Value) -> ir.Value:
        return builder.call(llvm_function(builder, "llvm.fmuladd", vec.llvm, 3), [a, w, total])

    of_a, of_w = (
        (v.emit.load, v.emit.load_first, vec.lanes * v.itemsize) for v in (vectors(a_dtype), vectors(w_dtype))
    )
    return _Reading(vec.lanes, (of_a, of_w), multiply_add)


def _reading_of_pairs(vec: VecType) -> _Reading:
    words = ir.VectorType(INT32, vec.lanes)
    halves = VecType(vec.scalar, 2 * vec.lanes)
    even, odd = (ir.Constant(words, list(range(first, 2 * vec.lanes, 2))) for first in (0, 1))
    behind = ir.Constant(ir.IntType(64), 4 * vec.lanes)  # bytes of a vector

    def apart(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> tuple[ir.Value, ir.Value]:
        return builder.shuffle_vector(low, high, even), builder.shuffle_vector(low, high, odd)

    def load_a(builder: ir.IRBuilder, _: VecType, address: ir.Value, n: Any) -> Any:
        return apart(builder, *(emit_load(builder, vec, at) for at in (address, builder.add(address, behind))))

    def load_first_a(builder: ir.IRBuilder, _: VecType, address: ir.Value, n: ir.Value) -> Any:
        low = load_first(builder, vec, address, n)
        left = builder.sub(n, ir.Constant(n.type, vec.lanes))
        return apart(builder, low, load_first(builder, vec, builder.add(address, behind), left))

    def load_w(builder: ir.IRBuilder, _: VecType, address: ir.Value, n: Any) -> ir.Value:
        value = builder.load(pointer(builder, address, words))
        value.align = INT16.width // 8
        return value

    def load_first_w(builder: ir.IRBuilder, _: VecType, address: ir.Value, n: ir.Value) -> ir.Value:
        return builder.bitcast(first_words_16(builder, halves, address, n), words)

    def multiply_add(builder: ir.IRBuilder, a: Any, w: ir.Value, total: ir.Value) -> ir.Value:
        fma = llvm_function(builder, "llvm.fmuladd", vec.llvm, 3)
        total = builder.call(fma, [a[0], low_as_float(builder, w), total])
        return builder.call(fma, [a[1], high_as_float(builder, w), total])

    of_a = (load_a, load_first_a, 8 * vec.lanes)
    return _Reading(2 * vec.lanes, (of_a, (load_w, load_first_w, 4 * vec.lanes)), multiply_add)


@cache
def dot_products(a_dtype: str, w_dtype: str) -> Any:
    """dots(a, a_row, rows, w, w_row, K, count, out, out_row): out[r] is a vector whose n-th lane is a[r] . w[n].

    Over K elements, for r < rows and n < count; the lanes past `count` hold some number. a, w and out are addresses,
    their rows in bytes. The results are computed numbers. Each row of int8 has its scale behind it.
    """
    vec = vectors(a_dtype).type  # of computed numbers, as all Vecs
    lanes = vec.lanes
    block_rows, block_units = _BLOCK[vector_bytes()]
    at_once, (of_a, of_w), multiply_add = _reading(a_dtype, w_dtype)
    lines = lanes * of_w[2] // LINE  # cache lines of a vector of units that are read per step of K
    # The rows of a vector of units are as many short streams, which a processor is late to prefetch. Of float32, whose
    # rows are longer, a prefetch per line costs more than it gains.
    prefetches = w_dtype != a_dtype

    def number(n: int) -> ir.Constant:
        return ir.Constant(ir.IntType(64), n)

    def load_scale(builder: ir.IRBuilder, at: ir.Value) -> ir.Value:
        """A float32 in every lane."""
        value = builder.load(pointer(builder, at, vec.llvm_scalar))
        value.align = 1
        return splat(builder, vec.llvm, value)

    def emit_sums(builder: ir.IRBuilder, xs: list, units: list, K, ahead: Any) -> list[list]:
        """The accumulators after the walk of K, of each x a list, one a unit; xs and units are addresses.

        ahead: None, or the address of the same gate's next vector of units, whose rows are prefetched.
        """
        slots = [[cgutils.alloca_once(builder, vec.llvm) for _ in units] for _ in xs]
        for slot in (slot for own in slots for slot in own):
            builder.store(ir.Constant(vec.llvm, [0.0] * lanes), slot)

        def multiply(index: ir.Value, part: int, n: ir.Value) -> None:
            """One vector of K. part: 0 for whole vectors, 1 for the first n elements."""
            at_a, at_w = (builder.mul(index, number(reading[2])) for reading in (of_a, of_w))
            values = [of_a[part](builder, vec, builder.add(x, at_a), n) for x in xs]
            for k, unit in enumerate(units):
                weights = of_w[part](builder, vec, builder.add(unit, at_w), n)
                for x, own in zip(values, slots, strict=True):
                    builder.store(multiply_add(builder, x, weights, builder.load(own[k])), own[k])

        whole = builder.sdiv(K, number(at_once))
        with cgutils.for_range(builder, whole) as loop:
            multiply(loop.index, 0, number(at_once))
            for line in range(lines if ahead is not None else 0):
                at = builder.add(builder.mul(loop.index, number(lines * LINE)), number(line * LINE))
                emit_prefetch(builder, builder.add(ahead, at), 0, 2)
        left = builder.sub(K, builder.mul(whole, number(at_once)))
        with builder.if_then(builder.icmp_signed(">", left, number(0))):
            multiply(whole, 1, left)
        sums = [[builder.load(slot) for slot in own] for own in slots]
        if w_dtype != INT8:
            return sums
        scales = [load_scale(builder, builder.add(unit, K)) for unit in units]
        return [[builder.fmul(value, scale) for value, scale in zip(own, scales, strict=True)] for own in sums]

    def emit_crosswise(builder: ir.IRBuilder, sums: list) -> ir.Value:
        """One vector of the sums over the lanes of each: neighbours are added, and the halves put side by side."""
        mask = ir.VectorType(INT32, lanes)
        even, odd = (ir.Constant(mask, list(range(first, 2 * lanes, 2))) for first in (0, 1))
        while len(sums) > 1:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [
                builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd)) for a, b in pairs
            ]
        return sums[0]

    def emit_dots(builder: ir.IRBuilder, xs: list, units: list, K, ahead: Any) -> list:
        """The vector of each x."""
        width = lanes if len(xs) == 1 else min(block_units, lanes)
        parts = [emit_sums(builder, xs, units[k : k + width], K, ahead) for k in range(0, lanes, width)]
        return [emit_crosswise(builder, [value for part in parts for value in part[i]]) for i in range(len(xs))]

    def make_dots(rows: int) -> Any:
        """The vectors of this number of rows, as LLVM code."""

        @intrinsic
        def dots(typing, a, a_row, w, w_row, K, count, out, out_row):
            def emit(context, builder, sig, args):
                a, a_row, w, w_row, K, count, out, out_row = args
                xs = [builder.add(a, builder.mul(a_row, number(r))) for r in range(rows)]

                ahead = builder.add(w, builder.mul(w_row, number(lanes))) if prefetches and rows == 1 else None

                def store_dots(units: list) -> None:
                    for r, value in enumerate(emit_dots(builder, xs, units, K, ahead)):
                        emit_store(builder, value, builder.add(out, builder.mul(out_row, number(r))))

                last = builder.sub(count, number(1))
                with builder.if_else(builder.icmp_signed(">=", count, number(lanes))) as (whole, part):
                    with whole:
                        store_dots([builder.add(w, builder.mul(w_row, number(n))) for n in range(lanes)])
                    with part:
                        # Units past the last are the last again: there may be no memory there.
                        least = [
                            builder.select(builder.icmp_signed("<", number(n), last), number(n), last)
                            for n in range(lanes)
                        ]
                        store_dots([builder.add(w, builder.mul(w_row, n)) for n in least])
                return context.get_dummy_value()

            return types.void(*[types.intp] * 8), emit

        return dots

    several = make_dots(block_rows)
    one = make_dots(1)

    @outer
    def dot_rows(a, a_row, rows, w, w_row, K, count, out, out_row):
        whole = rows // block_rows * block_rows
        for r in range(0, whole, block_rows):
            several(a + r * a_row, a_row, w, w_row, K, count, out + r * out_row, out_row)
        for r in range(whole, rows):
            one(a + r * a_row, a_row, w, w_row, K, count, out + r * out_row, out_row)

    return dot_rows
