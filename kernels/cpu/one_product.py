"""The stages of cells with one product per step, and of the projection. See kernels/cpu/stages.py.

normalised.py replaces the pointwise stages of cells that normalise rows.
"""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cpu.arguments import read_noise
from rnnkit.kernels.cpu.formats import depths, formats
from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.noise import flags_of, masked_adder, zone_at
from rnnkit.kernels.cpu.noise_rows import load_double
from rnnkit.kernels.cpu.packed_weights import weight_functions
from rnnkit.kernels.cpu.pointwise import backward_row, extras_reader, forward_row
from rnnkit.kernels.cpu.rows import caller_row, caller_step, clearer, copier
from rnnkit.kernels.cpu.stages import BackwardStages, ForwardStages, Packed, cell_states, operands_of


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """One product and one pointwise stage, and the projection where there is one."""
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    product = products(operand.dtype, form.packed).product
    row: Any = None if cell.normalises else forward_row(cell, dtype, operand.dtype, computed.dtype)
    pack_share = weight_functions(dtype).pack_share
    depth = depths(dtype)
    cells_of = cell_states(dtype, True)
    copy_y = copier(computed.dtype, stored.dtype)
    copy_h = copier(computed.dtype, operand.dtype)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    WORD = form.word
    IN_PLACE = OPERAND == COMPUTED  # a product's result may be the next operand
    SAVED = cell.n_saved
    G = cell.n_gates
    CELL_STATES = cell.n_cell_states
    SPLITS = cell.splits_sides
    extras_of = extras_reader(cell)
    ADDS = 0 if SPLITS else 1
    ZONES_C = cell.options.zoneout_c
    MASKS = flags_of(cell).masks
    lanes = computed.lanes

    @inner
    def gate_bytes(s):
        """Of the packed weights of one gate, where gates are packed apart."""
        return (s.H + lanes - 1) // lanes * lanes * depth(s.R) * WORD

    @outer
    def pack(a, s, p):
        w = a.weights
        pack_share(w.w_ih, s.I, False, s.H, G, s, p, a.packed + s.w_x)
        for k in range(MASKS):
            of_gate = w.w_hh + k * s.H * s.R * STORED
            pack_share(of_gate, s.R, False, s.H, G // MASKS, s, p, a.packed + s.w_h + k * gate_bytes(s))
        if w.w_hr:
            pack_share(w.w_hr, s.H, False, s.R, 1, s, p, a.packed + s.w_p)

    @inner
    def packed(a, s, share):
        x = a.packed + s.w_x + share.unit0 * G * depth(s.I) * WORD
        h = a.packed + s.w_h + share.unit0 * (G // MASKS) * depth(s.R) * WORD
        return Packed(x, h, a.packed + s.w_p + share.output0 * depth(s.H) * WORD, 0)

    @inner
    def first(a, s, p, share, w, step):
        row_h = s.R * OPERAND
        out = step.side if SPLITS else step.gates
        N = G // MASKS * share.units
        for k in range(MASKS):
            h = step.operand + (k * s.B + p.b0) * row_h
            gates = out + k * N * COMPUTED
            product(h, row_h, w.h + k * gate_bytes(s), s.R, gates, share.row_g, N, step.rows, ADDS, step.odd)
        noise = a.noise if ZONES_C else 0
        kept = load_double(read_noise(a.noise).shares + 8) if ZONES_C else 0.0
        projected = a.weights.w_hr != 0
        operands = operands_of(a, s)
        b_ih = a.weights.b_ih + share.unit0 * STORED
        b_hh = a.weights.b_hh + share.unit0 * STORED
        cells = cells_of(a, s)
        w_unit, constants = extras_of(a)
        for r in range(p.b0, step.end):
            here = step.at + r
            gates = (r - p.b0) * share.row_g
            c = cells + (caller_row(a.rows, r) * CELL_STATES * s.H + share.unit0) * COMPUTED
            y = a.y + caller_step(a.rows, s, step.t, r) * a.y_row + share.unit0 * STORED
            m = operands + ((here if s.keep else r) * s.H + share.unit0) * OPERAND
            h_new = step.h_new + r * row_h + share.unit0 * OPERAND
            zone = zone_at(noise, step.t, caller_row(a.rows, r)) + share.unit0 if ZONES_C else 0
            row(
                step.gates + gates, step.side + gates, share.units * COMPUTED, b_ih, b_hh,
                step.h + r * row_h + share.unit0 * OPERAND, c, m if projected else h_new, 0 if projected else y,
                a.saved.values + (SAVED * here * s.H + share.unit0) * STORED,
                a.saved.c_prev + (here * CELL_STATES * s.H + share.unit0) * COMPUTED, c, zone, kept, share.units, s.H,
                s.keep, w_unit + share.unit0 * STORED, constants,
            )  # fmt: skip

    @inner
    def between(a, s, p, share, w, step):
        pass

    @inner
    def second(a, s, p, share, w, step):
        row_m = s.H * OPERAND
        m = operands_of(a, s) + (step.at + p.b0 if s.keep else p.b0) * row_m
        h_new = step.h_new + (p.b0 * s.R + share.output0) * OPERAND
        out = h_new if IN_PLACE else step.side
        row_out = (s.R if IN_PLACE else share.outputs) * COMPUTED
        product(m, row_m, w.second, s.H, out, row_out, share.outputs, step.rows, 0, step.odd)
        for r in range(step.rows):
            y = a.y + caller_step(a.rows, s, step.t, p.b0 + r) * a.y_row + share.output0 * STORED
            copy_y(out + r * row_out, y, share.outputs)
            if not IN_PLACE:
                copy_h(out + r * row_out, h_new + r * s.R * OPERAND, share.outputs)

    return ForwardStages(pack, packed, first, between, second)


def _make_sum(dtype: str) -> Any:
    """sum_of(a, b, target, count): stored numbers and computed ones are added into operands."""
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    load_a = stored.whole.load
    load_b = computed.whole.load
    store = operand.whole.store
    load_first_a = stored.first.load
    load_first_b = computed.first.load
    store_first = operand.first.store
    A = stored.itemsize
    B = computed.itemsize
    TARGET = operand.itemsize
    lanes = computed.lanes

    @inner
    def sum_of(a, b, target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(load_a(a + j * A, lanes) + load_b(b + j * B, lanes), target + j * TARGET, lanes)
        if last < count:
            n = count - last
            total = load_first_a(a + last * A, n) + load_first_b(b + last * B, n)
            store_first(total, target + last * TARGET, n)

    return sum_of


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """The projection's gradient where there is one, then the pointwise stage, then the product with W_hh."""
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    product = products(operand.dtype, form.packed).product
    row: Any = None if cell.normalises else backward_row(cell, dtype)
    pack_share = weight_functions(dtype).pack_share
    depth = depths(dtype)
    cells_of = cell_states(dtype, False)
    copy_dh = copier(computed.dtype, operand.dtype)
    sum_of = _make_sum(dtype)
    clear = clearer(computed.dtype)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    WORD = form.word
    SAVED = cell.n_saved
    G = cell.n_gates
    CELL_STATES = cell.n_cell_states
    extras_of = extras_reader(cell)
    ZONES_C = cell.options.zoneout_c
    ZONES_H = cell.options.zoneout_h
    DROPS = cell.options.recurrent_dropout
    MASKS = flags_of(cell).masks
    add_masked = masked_adder(cell, dtype)
    lanes = computed.lanes

    @inner
    def gate_bytes(s):
        """Of the packed weights of one gate, where gates are packed apart."""
        return (s.R + lanes - 1) // lanes * lanes * depth(s.H) * WORD

    @outer
    def pack(a, s, p):
        K = G // MASKS * s.H
        for k in range(MASKS):
            of_gate = a.weights.w_hh + k * K * s.R * STORED
            pack_share(of_gate, K, True, s.R, 1, s, p, a.workspace + s.w_h + k * gate_bytes(s))
        if a.weights.w_hr:
            pack_share(a.weights.w_hr, s.R, True, s.H, 1, s, p, a.workspace + s.w_p)

    @inner
    def packed(a, s, share):
        h = a.workspace + s.w_h + share.output0 * depth(G // MASKS * s.H) * WORD
        return Packed(0, h, a.workspace + s.w_p + share.unit0 * depth(s.R) * WORD, 0)

    @inner
    def second_rows(a, s, p, share, w, step):
        for r in range(p.b0, step.end):
            dh = a.workspace + s.states + (r * s.R + share.output0) * COMPUTED
            dprojected = a.dprojected + ((step.at + r) * s.R + share.output0) * OPERAND
            if a.dy and not ZONES_H:
                dy = a.dy + caller_step(a.rows, s, step.t, r) * a.y_row + share.output0 * STORED
                sum_of(dy, dh, dprojected, share.outputs)
            else:
                copy_dh(dh, dprojected, share.outputs)
            clear(dh, share.outputs)

    @inner
    def second_product(a, s, p, share, w, step):
        row_p = s.R * OPERAND
        row_m = s.H * COMPUTED
        dprojected = a.dprojected + (step.at + p.b0) * row_p
        dm = a.workspace + s.exchanged + p.b0 * row_m + share.unit0 * COMPUTED
        product(dprojected, row_p, w.second, s.R, dm, row_m, share.units, step.rows, 0, step.odd)

    @inner
    def first_rows(a, s, p, share, w, step):
        projected = a.weights.w_hr != 0
        has_dy = a.dy != 0 and not projected and not ZONES_H  # `before` has added dy
        noise = a.noise if ZONES_C else 0
        kept = load_double(read_noise(a.noise).shares + 8) if ZONES_C else 0.0
        w_unit, constants = extras_of(a)
        for r in range(p.b0, step.end):
            here = step.at + r
            gates = here * share.row_g + share.unit0 * OPERAND
            dh = a.workspace + s.states + (r * s.R + share.output0) * COMPUTED
            dm = a.workspace + s.exchanged + (r * s.H + share.unit0) * COMPUTED
            zone = zone_at(noise, step.t, caller_row(a.rows, r)) + share.unit0 if ZONES_C else 0
            row(
                a.saved.values + (SAVED * here * s.H + share.unit0) * STORED,
                a.saved.h_prev + (here * s.R + share.unit0) * OPERAND,
                a.saved.c_prev + (here * CELL_STATES * s.H + share.unit0) * COMPUTED,
                a.dy + caller_step(a.rows, s, step.t, r) * a.y_row + share.unit0 * STORED, has_dy,
                dm if projected else dh,
                cells_of(a, s) + (caller_row(a.rows, r) * CELL_STATES * s.H + share.unit0) * COMPUTED,
                a.dgates_x + gates, a.dgates_h + gates, zone, kept, share.units, s.H, w_unit + share.unit0 * STORED,
                constants,
            )  # fmt: skip

    @inner
    def first_product(a, s, p, share, w, step):
        dgates = a.dgates_h + (step.at + p.b0) * share.row_g
        first = (p.b0 * s.R + share.output0) * COMPUTED
        if not DROPS:
            dh = a.workspace + s.states + first
            product(dgates, share.row_g, w.h, G * s.H, dh, s.R * COMPUTED, share.outputs, step.rows, 1, step.odd)
        else:
            K = G // MASKS * s.H
            out = read_noise(a.noise).product + first
            for k in range(MASKS):
                d = dgates + k * K * OPERAND
                w_k = w.h + k * gate_bytes(s)
                product(d, share.row_g, w_k, K, out, s.R * COMPUTED, share.outputs, step.rows, 0, step.odd)
                add_masked(a, s, p, share, step, k)

    return BackwardStages(pack, packed, second_rows, second_product, first_rows, first_product)
