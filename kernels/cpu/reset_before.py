"""The stages of the GRU that resets h' before its second product. See kernels/cpu/stages.py."""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cpu.arguments import read_noise
from rnnkit.kernels.cpu.formats import depths, formats, row_sizes
from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.noise import flags_of, masked_adder
from rnnkit.kernels.cpu.packed_weights import weight_functions
from rnnkit.kernels.cpu.pointwise import extras_reader
from rnnkit.kernels.cpu.reset_before_rows import reset_rows, reset_rows_back
from rnnkit.kernels.cpu.rows import caller_step
from rnnkit.kernels.cpu.stages import BackwardStages, ForwardStages, Packed, operands_of


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """r and r h', then n. z may be computed at any time before n: between the stages where members wait there, else
    together with r, as wider tiles are faster."""
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    lanes = computed.lanes
    product = products(operand.dtype, form.packed).product
    pack_share = weight_functions(dtype).pack_share
    depth = depths(dtype)
    row_bytes = row_sizes(dtype)
    reset_row, output_row = reset_rows(cell, dtype, operand.dtype)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    WORD = form.word
    SAVED = cell.n_saved
    extras_of = extras_reader(cell)
    MASKS = flags_of(cell).masks
    APART = MASKS > 1  # r and z have operands of their own
    LAST = MASKS - 1
    Z = 1 if APART else 0

    @inner
    def w_z(a, s):
        """Packed weights of z where they are packed apart from r's."""
        return a.packed + s.w_h + (s.H + lanes - 1) // lanes * lanes * depth(s.H) * WORD

    @outer
    def pack(a, s, p):
        w = a.weights
        H, block = s.H, s.H * row_bytes(s.H)
        apart = APART or s.members > 1
        pack_share(w.w_ih, s.I, False, H, 3, s, p, a.packed + s.w_x)
        pack_share(w.w_hh, H, False, H, 1 if apart else 2, s, p, a.packed + s.w_h)
        if apart:
            pack_share(w.w_hh + block, H, False, H, 1, s, p, w_z(a, s))
        pack_share(w.w_hh + 2 * block, H, False, H, 1, s, p, a.packed + s.w_p)

    @inner
    def packed(a, s, share):
        x = a.packed + s.w_x + share.unit0 * 3 * depth(s.I) * WORD
        own = share.unit0 * depth(s.H) * WORD  # 0 where r and z are packed together, as there is one member then
        return Packed(x, a.packed + s.w_h + own, a.packed + s.w_p + own, w_z(a, s) + own)

    @inner
    def first(a, s, p, share, w, step):
        row_h = s.H * OPERAND
        N = share.units if APART or s.members > 1 else 2 * share.units
        product(step.operand + p.b0 * row_h, row_h, w.h, s.H, step.gates, share.row_g, N, step.rows, 1, step.odd)
        operands = operands_of(a, s)
        b_ih = a.weights.b_ih + share.unit0 * STORED
        b_hh = a.weights.b_hh + share.unit0 * STORED
        _, constants = extras_of(a)
        for r in range(p.b0, step.end):
            here = step.at + r
            rh = operands + (here if s.keep else r) * row_h + share.unit0 * OPERAND
            reset_row(
                step.gates + (r - p.b0) * share.row_g, b_ih, b_hh,
                step.operand + (LAST * s.B + r) * row_h + share.unit0 * OPERAND,
                a.saved.values + (SAVED * here * s.H + share.unit0) * STORED, rh, share.units, s.keep, constants,
            )  # fmt: skip

    @inner
    def between(a, s, p, share, w, step):
        if APART or s.members > 1:
            row_h = s.H * OPERAND
            out = step.gates + share.units * COMPUTED
            product(
                step.operand + (Z * s.B + p.b0) * row_h,
                row_h,
                w.z,
                s.H,
                out,
                share.row_g,
                share.units,
                step.rows,
                1,
                step.odd,
            )

    @inner
    def second(a, s, p, share, w, step):
        block = share.units * COMPUTED
        row_h = s.H * OPERAND
        rh = operands_of(a, s) + (step.at + p.b0 if s.keep else p.b0) * row_h
        out = step.gates + 2 * block
        product(rh, row_h, w.second, s.H, out, share.row_g, share.units, step.rows, 1, step.odd)
        z_at = s.H + share.unit0
        b_ih = a.weights.b_ih + z_at * STORED
        b_hh = a.weights.b_hh + z_at * STORED
        _, constants = extras_of(a)
        for r in range(p.b0, step.end):
            own = r * row_h + share.unit0 * OPERAND
            y = a.y + caller_step(a.rows, s, step.t, r) * a.y_row + share.unit0 * STORED
            output_row(
                step.gates + (r - p.b0) * share.row_g + block, block, b_ih, b_hh, step.h + own,
                a.saved.values + (SAVED * (step.at + r) * s.H + z_at) * STORED, step.h_new + own, y, share.units, s.H,
                s.keep, constants,
            )  # fmt: skip

    return ForwardStages(pack, packed, first, between, second)


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """z and n, then r h' by the product with W_hn, then r, then the product with W_hr and W_hz."""
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    product = products(operand.dtype, form.packed).product
    pack_share = weight_functions(dtype).pack_share
    depth = depths(dtype)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    WORD = form.word
    SAVED = cell.n_saved
    output_row, gates_row = reset_rows_back(cell, dtype)
    extras_of = extras_reader(cell)
    ZONES_H = cell.options.zoneout_h
    DROPS = cell.options.recurrent_dropout
    PARTS = 2 if flags_of(cell).masks > 1 else 1  # of the product of r and z
    add_masked = masked_adder(cell, dtype)
    lanes = computed.lanes

    @inner
    def gate_bytes(s):
        """Of the packed weights of one gate, where r and z are packed apart."""
        return (s.H + lanes - 1) // lanes * lanes * depth(s.H) * WORD

    @outer
    def pack(a, s, p):
        w_hh, H = a.weights.w_hh, s.H
        K = 2 * H // PARTS
        for k in range(PARTS):
            pack_share(w_hh + k * K * H * STORED, K, True, H, 1, s, p, a.workspace + s.w_h + k * gate_bytes(s))
        pack_share(w_hh + 2 * H * H * STORED, H, True, H, 1, s, p, a.workspace + s.w_p)

    @inner
    def packed(a, s, share):
        h = a.workspace + s.w_h + share.unit0 * depth(2 * s.H // PARTS) * WORD
        return Packed(0, h, a.workspace + s.w_p + share.unit0 * depth(s.H) * WORD, 0)

    @inner
    def second_rows(a, s, p, share, w, step):
        has_dy = a.dy != 0 and not ZONES_H  # `before` has added dy
        _, constants = extras_of(a)
        for r in range(p.b0, step.end):
            here = step.at + r
            output_row(
                a.saved.values + (SAVED * here * s.H + share.unit0) * STORED,
                a.saved.h_prev + (here * s.H + share.unit0) * OPERAND,
                a.dy + caller_step(a.rows, s, step.t, r) * a.y_row + share.unit0 * STORED, has_dy,
                a.workspace + s.states + (r * s.H + share.unit0) * COMPUTED,
                a.dgates_x + here * share.row_g + share.unit0 * OPERAND, share.units, s.H, constants,
            )  # fmt: skip

    @inner
    def second_product(a, s, p, share, w, step):
        dgates_n = a.dgates_x + (step.at + p.b0) * share.row_g + 2 * s.H * OPERAND
        drh = a.workspace + s.exchanged + (p.b0 * s.H + share.unit0) * COMPUTED
        product(dgates_n, share.row_g, w.second, s.H, drh, s.H * COMPUTED, share.units, step.rows, 0, step.odd)

    @inner
    def first_rows(a, s, p, share, w, step):
        _, constants = extras_of(a)
        for r in range(p.b0, step.end):
            here = step.at + r
            own = (r * s.H + share.unit0) * COMPUTED
            gates_row(
                a.saved.values + (SAVED * here * s.H + share.unit0) * STORED,
                a.saved.h_prev + (here * s.H + share.unit0) * OPERAND, a.workspace + s.exchanged + own,
                a.workspace + s.states + own, a.dgates_x + here * share.row_g + share.unit0 * OPERAND, share.units, s.H,
                constants,
            )  # fmt: skip

    @inner
    def first_product(a, s, p, share, w, step):
        dgates = a.dgates_x + (step.at + p.b0) * share.row_g
        first = (p.b0 * s.H + share.unit0) * COMPUTED
        if not DROPS:
            dh = a.workspace + s.states + first
            product(dgates, share.row_g, w.h, 2 * s.H, dh, s.H * COMPUTED, share.units, step.rows, 1, step.odd)
        else:
            K = 2 * s.H // PARTS
            out = read_noise(a.noise).product + first
            for k in range(PARTS):
                d = dgates + k * K * OPERAND
                w_k = w.h + k * gate_bytes(s)
                product(d, share.row_g, w_k, K, out, s.H * COMPUTED, share.units, step.rows, 0, step.odd)
                add_masked(a, s, p, share, step, k)

    return BackwardStages(pack, packed, second_rows, second_product, first_rows, first_product)
