"""The stages of cells with one product per step, and of the projection. See kernels/cpu/stages.py."""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.packed_weights import weight_functions
from rnnkit.kernels.cpu.pointwise import backward_row, forward_row
from rnnkit.kernels.cpu.rows import row_functions
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.stages import BackwardStages, ForwardStages, Packed, operands_of


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """One product and one pointwise stage, and the projection where there is one."""
    size = vectors(dtype).itemsize
    product = products(dtype).product
    row = forward_row(cell, dtype)
    rows = row_functions(dtype)
    pack_share = weight_functions(dtype).pack_share
    copy = rows.copy
    caller_row = rows.caller_row
    caller_step = rows.caller_step
    G = cell.n_gates
    SPLITS = cell.splits_sides

    @outer
    def pack(a, s, p):
        w = a.weights
        pack_share(w.w_ih, s.I, False, s.H, G, s, p, a.packed + s.w_x)
        pack_share(w.w_hh, s.R, False, s.H, G, s, p, a.packed + s.w_h)
        if w.w_hr:
            pack_share(w.w_hr, s.H, False, s.R, 1, s, p, a.packed + s.w_p)

    @inner
    def packed(a, s, share):
        x = a.packed + s.w_x + share.unit0 * G * s.I * size
        h = a.packed + s.w_h + share.unit0 * G * s.R * size
        return Packed(x, h, a.packed + s.w_p + share.output0 * s.H * size, 0)

    @inner
    def first(a, s, p, share, w, step):
        h = step.h + p.b0 * share.row_h
        out = step.side if SPLITS else step.gates
        GH = G * share.units
        product(h, share.row_h, w.h, s.R, out, share.row_g, GH, step.rows, 0 if SPLITS else 1, step.odd)
        projected = a.weights.w_hr != 0
        operands = operands_of(a, s)
        b_ih = a.weights.b_ih + share.first
        b_hh = a.weights.b_hh + share.first
        for r in range(p.b0, step.end):
            here = step.at + r
            gates = (r - p.b0) * share.row_g
            c = a.c_n + caller_row(a.rows, r) * share.row_c + share.first
            y = a.y + caller_step(a.rows, s, step.t, r) * a.y_row + share.first
            m = operands + (here if s.keep else r) * share.row_c + share.first
            h_new = step.h_new + r * share.row_h + share.first
            row(
                step.gates + gates, step.side + gates, share.units * size, b_ih, b_hh,
                step.h + r * share.row_h + share.first, c, m if projected else h_new, 0 if projected else y,
                a.saved.values + here * share.row_saved + share.first,
                a.saved.c_prev + here * share.row_c + share.first, c, share.units, s.H, s.keep,
            )  # fmt: skip

    @inner
    def between(a, s, p, share, w, step):
        pass

    @inner
    def second(a, s, p, share, w, step):
        m = operands_of(a, s) + (step.at + p.b0 if s.keep else p.b0) * share.row_c
        out = step.h_new + p.b0 * share.row_h + share.first_out
        product(m, share.row_c, w.second, s.H, out, share.row_h, share.outputs, step.rows, 0, step.odd)
        for r in range(p.b0, step.end):
            y = a.y + caller_step(a.rows, s, step.t, r) * a.y_row + share.first_out
            copy(step.h_new + r * share.row_h + share.first_out, y, share.outputs)

    return ForwardStages(pack, packed, first, between, second)


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """The projection's gradient where there is one, then the pointwise stage, then the product with W_hh."""
    size = vectors(dtype).itemsize
    product = products(dtype).product
    row = backward_row(cell, dtype)
    rows = row_functions(dtype)
    pack_share = weight_functions(dtype).pack_share
    copy = rows.copy
    add_to = rows.add_to
    clear = rows.clear
    caller_row = rows.caller_row
    caller_step = rows.caller_step
    G = cell.n_gates

    @outer
    def pack(a, s, p):
        pack_share(a.weights.w_hh, G * s.H, True, s.R, 1, s, p, a.workspace + s.w_h)
        if a.weights.w_hr:
            pack_share(a.weights.w_hr, s.R, True, s.H, 1, s, p, a.workspace + s.w_p)

    @inner
    def packed(a, s, share):
        h = a.workspace + s.w_h + share.output0 * share.row_g
        return Packed(0, h, a.workspace + s.w_p + share.unit0 * s.R * size, 0)

    @inner
    def second_rows(a, s, p, share, w, step):
        for r in range(p.b0, step.end):
            dh = a.workspace + s.states + r * share.row_h + share.first_out
            dprojected = a.dprojected + (step.at + r) * share.row_h + share.first_out
            copy(dh, dprojected, share.outputs)
            if a.dy:
                dy = a.dy + caller_step(a.rows, s, step.t, r) * a.y_row + share.first_out
                add_to(dy, dprojected, share.outputs)
            clear(dh, share.outputs)

    @inner
    def second_product(a, s, p, share, w, step):
        dprojected = a.dprojected + (step.at + p.b0) * share.row_h
        dm = a.workspace + s.exchanged + p.b0 * share.row_c + share.first
        product(dprojected, share.row_h, w.second, s.R, dm, share.row_c, share.units, step.rows, 0, step.odd)

    @inner
    def first_rows(a, s, p, share, w, step):
        projected = a.weights.w_hr != 0
        has_dy = a.dy != 0 and not projected
        for r in range(p.b0, step.end):
            here = step.at + r
            dh = a.workspace + s.states + r * share.row_h + share.first_out
            dm = a.workspace + s.exchanged + r * share.row_c + share.first
            row(
                a.saved.values + here * share.row_saved + share.first,
                a.saved.h_prev + here * share.row_h + share.first,
                a.saved.c_prev + here * share.row_c + share.first,
                a.dy + caller_step(a.rows, s, step.t, r) * a.y_row + share.first, has_dy, dm if projected else dh,
                a.dc0 + caller_row(a.rows, r) * share.row_c + share.first,
                a.dgates_x + here * share.row_g + share.first, a.dgates_h + here * share.row_g + share.first,
                share.units, s.H,
            )  # fmt: skip

    @inner
    def first_product(a, s, p, share, w, step):
        dgates = a.dgates_h + (step.at + p.b0) * share.row_g
        dh = a.workspace + s.states + p.b0 * share.row_h + share.first_out
        product(dgates, share.row_g, w.h, G * s.H, dh, share.row_h, share.outputs, step.rows, 1, step.odd)

    return BackwardStages(pack, packed, second_rows, second_product, first_rows, first_product)
