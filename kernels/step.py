"""One step by itself, forward: the weights are read where they are, since packing them would cost more than one use.

A vector of gates is `lanes` dot products side by side: as many accumulators, each over the K values of a row of W, then
added up crosswise into one vector. Sums run in another order than in the loops of many steps, and in the same one
for every row, batch and number of threads. Arguments are those of kernels/frame.py, for T = 1 and no projection.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnnkit.kernels.frame import make_frame, meet, part_of, read_forward, read_shape
from rnnkit.kernels.jit import job, outer
from rnnkit.kernels.scan import kept_blocks, make_pointwise, parts_of
from rnnkit.kernels.scan_reset_before import make_stages
from rnnkit.kernels.team import word
from rnnkit.kernels.vector import INT32, emit_load, llvm_function, load_first, vectors


@cache
def dot_products(dtype: str) -> Any:
    """dots(a, w, w_row, K, count): a Vec whose n-th lane is a . w[n] over K elements, for n < count.

    a and w are addresses, w_row bytes. Lanes past `count` hold some number.
    """
    v = vectors(dtype)
    vec, lanes, size = v.type, v.lanes, v.itemsize

    def number(n: int) -> ir.Constant:
        return ir.Constant(ir.IntType(64), n)

    def emit_sums(builder: ir.IRBuilder, a, rows: list, K) -> list:
        """The accumulators after the walk of K, one a row; rows are addresses."""
        fma = llvm_function(builder, "llvm.fmuladd", vec.llvm, 3)
        slots = [cgutils.alloca_once(builder, vec.llvm) for _ in rows]
        for slot in slots:
            builder.store(ir.Constant(vec.llvm, [0.0] * lanes), slot)

        def multiply(at, load: Any) -> None:
            x = load(builder.add(a, at))
            for row, slot in zip(rows, slots, strict=True):
                builder.store(builder.call(fma, [x, load(builder.add(row, at)), builder.load(slot)]), slot)

        whole = builder.sdiv(K, number(lanes))
        with cgutils.for_range(builder, whole) as loop:
            multiply(builder.mul(loop.index, number(lanes * size)), lambda at: emit_load(builder, vec, at))
        left = builder.sub(K, builder.mul(whole, number(lanes)))
        with builder.if_then(builder.icmp_signed(">", left, number(0))):
            at = builder.mul(whole, number(lanes * size))
            multiply(at, lambda address: load_first(builder, vec, address, left))
        return [builder.load(slot) for slot in slots]

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

    @intrinsic
    def dots(typing, a, w, w_row, K, count):
        def emit(context, builder, sig, args):
            a, w, w_row, K, count = args
            result = cgutils.alloca_once(builder, vec.llvm)
            last = builder.sub(count, number(1))
            with builder.if_else(builder.icmp_signed(">=", count, number(lanes))) as (whole, part):
                with whole:
                    rows = [builder.add(w, builder.mul(w_row, number(n))) for n in range(lanes)]
                    builder.store(emit_crosswise(builder, emit_sums(builder, a, rows, K)), result)
                with part:
                    # Rows past the last are the last again: there may be no memory there.
                    least = [
                        builder.select(builder.icmp_signed("<", number(n), last), number(n), last) for n in range(lanes)
                    ]
                    rows = [builder.add(w, builder.mul(w_row, n)) for n in least]
                    builder.store(emit_crosswise(builder, emit_sums(builder, a, rows, K)), result)
            return builder.load(result)

        return vec(*[types.intp] * 5), emit

    run_dots: Any = dots

    @outer
    def dot_rows(a, w, w_row, K, count):
        return run_dots(a, w, w_row, K, count)

    return dot_rows


def make_step(cell: str, dtype: str) -> Any:
    """The forward job of one step: step(block, index), block a `Forward`."""
    v, dots, frame, pointwise = vectors(dtype), dot_products(dtype), make_frame(dtype), make_pointwise(cell, dtype)
    G, SPLIT, has_c = parts_of(cell)
    size, lanes, store, bound, copy = v.itemsize, v.lanes, v.whole.store, frame.bound, frame.copy
    KEPT = kept_blocks(cell)

    @job(("step", cell, dtype))
    def step(block, index):
        a = read_forward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows, a.meeting, index)
        H, I, keep, live = s.H, s.I, s.keep, min(p.b1, word(a.counts))
        u0, u1 = bound(H, s.members, p.member), bound(H, s.members, p.member + 1)
        row_h, row_x, vector = H * size, I * size, lanes * size
        g = a.scratch + s.own + index * s.own_size
        u = g + G * vector
        for j in range(u0, u1, lanes):
            n, at = min(lanes, u1 - j), j * size
            for r in range(p.b0, live):
                x, h = a.x + r * row_x, a.h0 + r * row_h
                for gate in range(G):
                    unit, place = gate * H + j, gate * vector
                    x_side = dots(x, a.w_ih + unit * row_x, row_x, I, n)
                    h_side = dots(h, a.w_hh + unit * row_h, row_h, H, n)
                    if SPLIT:
                        store(x_side, g + place, lanes)
                        store(h_side, u + place, lanes)
                    else:
                        store(x_side + h_side, g + place, lanes)
                own = r * row_h + at
                if keep:
                    copy(h + at, a.h_prev + own, n)
                pointwise(
                    g, u, vector, a.b_ih + at, a.b_hh + at, h + at, a.c0 + own, a.h_n + own, a.y + own,
                    a.kept + KEPT * r * row_h + at, a.c_prev + own, a.c_n + own, n, H, keep,
                )  # fmt: skip
        for r in range(max(p.b0, live), p.b1):
            copy(a.h0 + r * row_h + u0 * size, a.h_n + r * row_h + u0 * size, u1 - u0)
            if has_c:
                copy(a.c0 + r * row_h + u0 * size, a.c_n + r * row_h + u0 * size, u1 - u0)

    return step


def make_step_reset_before(dtype: str) -> Any:
    """The forward job of one step of the GRU that resets before."""
    v, dots, frame, (reset_row, output_row) = vectors(dtype), dot_products(dtype), make_frame(dtype), make_stages(dtype)
    size, lanes, store, bound, copy = v.itemsize, v.lanes, v.whole.store, frame.bound, frame.copy

    @job(("step", "gru_reset_before", dtype))
    def step(block, index):
        a = read_forward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows, a.meeting, index)
        H, I, keep, live = s.H, s.I, s.keep, min(p.b1, word(a.counts))
        u0, u1 = bound(H, s.members, p.member), bound(H, s.members, p.member + 1)
        row_h, row_x, vector = H * size, I * size, lanes * size
        g = a.scratch + s.own + index * s.own_size
        rh_rows = a.extra if keep else a.scratch + s.exchanged
        for j in range(u0, u1, lanes):
            n, at = min(lanes, u1 - j), j * size
            for r in range(p.b0, live):
                h, x_side = a.h0 + r * row_h, dots(a.x + r * row_x, a.w_ih + j * row_x, row_x, I, n)
                store(x_side + dots(h, a.w_hh + j * row_h, row_h, H, n), g, lanes)
                reset_row(
                    g, a.b_ih + at, a.b_hh + at, h + at, a.kept + 3 * r * row_h + at, rh_rows + r * row_h + at, n, keep
                )  # fmt: skip
                if keep:
                    copy(h + at, a.h_prev + r * row_h + at, n)
        meet(s, p, 1)
        for j in range(u0, u1, lanes):
            n, at, z = min(lanes, u1 - j), j * size, row_h + j * size
            for r in range(p.b0, live):
                for gate in range(1, 3):
                    unit, operand = gate * H + j, (a.h0 if gate == 1 else rh_rows) + r * row_h
                    x_side = dots(a.x + r * row_x, a.w_ih + unit * row_x, row_x, I, n)
                    h_side = dots(operand, a.w_hh + unit * row_h, row_h, H, n)
                    store(x_side + h_side, g + (gate - 1) * vector, lanes)
                own = r * row_h + at
                output_row(
                    g, vector, a.b_ih + z, a.b_hh + z, a.h0 + own, a.kept + 3 * r * row_h + z, a.h_n + own,
                    a.y + own, n, H, keep,
                )  # fmt: skip
        for r in range(max(p.b0, live), p.b1):
            copy(a.h0 + r * row_h + u0 * size, a.h_n + r * row_h + u0 * size, u1 - u0)

    return step
