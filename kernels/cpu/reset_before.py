"""The stages of the GRU that resets h' before its second product. See kernels/cpu/stages.py."""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.packed_weights import weight_functions
from rnnkit.kernels.cpu.pointwise import reset_rows, reset_rows_back
from rnnkit.kernels.cpu.rows import row_functions
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.stages import BackwardStages, ForwardStages, Packed, operands_of


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """r and r h', then n. z may be computed at any time before n: between the stages where members wait there, else
    together with r, as wider tiles are faster."""
    size = vectors(dtype).itemsize
    lanes = vectors(dtype).lanes
    product = products(dtype).product
    pack_share = weight_functions(dtype).pack_share
    caller_step = row_functions(dtype).caller_step
    reset_row, output_row = reset_rows(cell, dtype)

    @inner
    def w_z(a, s):
        """Packed weights of z where they are packed apart from r's."""
        return a.packed + s.w_h + (s.H + lanes - 1) // lanes * lanes * s.H * size

    @outer
    def pack(a, s, p):
        w = a.weights
        H, block = s.H, s.H * s.H * size
        apart = s.members > 1
        pack_share(w.w_ih, s.I, False, H, 3, s, p, a.packed + s.w_x)
        pack_share(w.w_hh, H, False, H, 1 if apart else 2, s, p, a.packed + s.w_h)
        if apart:
            pack_share(w.w_hh + block, H, False, H, 1, s, p, w_z(a, s))
        pack_share(w.w_hh + 2 * block, H, False, H, 1, s, p, a.packed + s.w_p)

    @inner
    def packed(a, s, share):
        x = a.packed + s.w_x + share.unit0 * 3 * s.I * size
        own = share.unit0 * share.row_h  # 0 where r and z are packed together, as there is one member then
        return Packed(x, a.packed + s.w_h + own, a.packed + s.w_p + own, w_z(a, s) + own)

    @inner
    def first(a, s, p, share, w, step):
        h = step.h + p.b0 * share.row_h
        N = share.units if s.members > 1 else 2 * share.units
        product(h, share.row_h, w.h, s.H, step.gates, share.row_g, N, step.rows, 1, step.odd)
        operands = operands_of(a, s)
        b_ih = a.weights.b_ih + share.first
        b_hh = a.weights.b_hh + share.first
        for r in range(p.b0, step.end):
            here = step.at + r
            rh = operands + (here if s.keep else r) * share.row_h + share.first
            reset_row(
                step.gates + (r - p.b0) * share.row_g, b_ih, b_hh, step.h + r * share.row_h + share.first,
                a.saved.values + here * share.row_saved + share.first, rh, share.units, s.keep,
            )  # fmt: skip

    @inner
    def between(a, s, p, share, w, step):
        if s.members > 1:
            h = step.h + p.b0 * share.row_h
            out = step.gates + share.units * size
            product(h, share.row_h, w.z, s.H, out, share.row_g, share.units, step.rows, 1, step.odd)

    @inner
    def second(a, s, p, share, w, step):
        block = share.units * size
        rh = operands_of(a, s) + (step.at + p.b0 if s.keep else p.b0) * share.row_h
        out = step.gates + 2 * block
        product(rh, share.row_h, w.second, s.H, out, share.row_g, share.units, step.rows, 1, step.odd)
        z_at = share.row_h + share.first
        for r in range(p.b0, step.end):
            own = r * share.row_h + share.first
            y = a.y + caller_step(a.rows, s, step.t, r) * a.y_row + share.first
            output_row(
                step.gates + (r - p.b0) * share.row_g + block, block, a.weights.b_ih + z_at, a.weights.b_hh + z_at,
                step.h + own, a.saved.values + (step.at + r) * share.row_saved + z_at, step.h_new + own, y,
                share.units, s.H, s.keep,
            )  # fmt: skip

    return ForwardStages(pack, packed, first, between, second)


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """z and n, then r h' by the product with W_hn, then r, then the product with W_hr and W_hz."""
    size = vectors(dtype).itemsize
    product = products(dtype).product
    pack_share = weight_functions(dtype).pack_share
    caller_step = row_functions(dtype).caller_step
    output_row, gates_row = reset_rows_back(cell, dtype)

    @outer
    def pack(a, s, p):
        w_hh, H = a.weights.w_hh, s.H
        pack_share(w_hh, 2 * H, True, H, 1, s, p, a.workspace + s.w_h)
        pack_share(w_hh + 2 * H * H * size, H, True, H, 1, s, p, a.workspace + s.w_p)

    @inner
    def packed(a, s, share):
        own = share.unit0 * share.row_h
        return Packed(0, a.workspace + s.w_h + 2 * own, a.workspace + s.w_p + own, 0)

    @inner
    def second_rows(a, s, p, share, w, step):
        has_dy = a.dy != 0
        for r in range(p.b0, step.end):
            here = step.at + r
            output_row(
                a.saved.values + here * share.row_saved + share.first,
                a.saved.h_prev + here * share.row_h + share.first,
                a.dy + caller_step(a.rows, s, step.t, r) * a.y_row + share.first, has_dy,
                a.workspace + s.states + r * share.row_h + share.first,
                a.dgates_x + here * share.row_g + share.first, share.units, s.H,
            )  # fmt: skip

    @inner
    def second_product(a, s, p, share, w, step):
        dgates_n = a.dgates_x + (step.at + p.b0) * share.row_g + 2 * share.row_h
        drh = a.workspace + s.exchanged + p.b0 * share.row_h + share.first
        product(dgates_n, share.row_g, w.second, s.H, drh, share.row_h, share.units, step.rows, 0, step.odd)

    @inner
    def first_rows(a, s, p, share, w, step):
        for r in range(p.b0, step.end):
            here = step.at + r
            own = r * share.row_h + share.first
            gates_row(
                a.saved.values + here * share.row_saved + share.first,
                a.saved.h_prev + here * share.row_h + share.first, a.workspace + s.exchanged + own,
                a.workspace + s.states + own, a.dgates_x + here * share.row_g + share.first, share.units, s.H,
            )  # fmt: skip

    @inner
    def first_product(a, s, p, share, w, step):
        dgates = a.dgates_x + (step.at + p.b0) * share.row_g
        dh = a.workspace + s.states + p.b0 * share.row_h + share.first
        product(dgates, share.row_g, w.h, 2 * s.H, dh, share.row_h, share.units, step.rows, 1, step.odd)

    return BackwardStages(pack, packed, second_rows, second_product, first_rows, first_product)
