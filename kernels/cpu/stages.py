"""The stages of one time step: what differs from cell to cell inside the time loops of kernels/cpu/scan.py.

A step has one product on the hidden side and a pointwise stage, and may have a second product whose operand the first
stage computes:

    projection          m = o tanh(c), then h = m W_hr^T
    reset before        r h', then n = tanh(x_n + (r h') W_hn^T + b_hn)

`ForwardStages` and `BackwardStages` are compiled functions. They take a (a `Forward` or `Backward`), s (its `Shape`), p
(the thread's `Part`), share (a `Share`), w (the thread's `Packed` weights) and step. The members of a group read each
other's units of h at the next step, from the other of two states that are written in turn, so one barrier per step is
enough; with a second product there is another one between the stages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.packed_weights import weight_functions
from rnnkit.kernels.cpu.pointwise import backward_row, forward_row, reset_rows, reset_rows_back
from rnnkit.kernels.cpu.rows import row_functions
from rnnkit.kernels.cpu.simd import vectors


class Share(NamedTuple):
    """One thread's part of a row: `units` of H from unit0 on, `outputs` of R from output0 on; the rest in bytes.

    first, first_out: offsets of those in a row. row_g, row_h, row_c, row_saved: lengths of rows of gates, of h, of c
    and of saved values.
    """

    units: int
    outputs: int
    unit0: int
    output0: int
    first: int
    first_out: int
    row_g: int
    row_h: int
    row_c: int
    row_saved: int


class Packed(NamedTuple):
    """Addresses of this thread's packed weights: input side, hidden side, second product, and z of a reset-before
    GRU."""

    x: int
    h: int
    second: int
    z: int


class Step(NamedTuple):
    """One step: its time, the offset of its rows in packed arrays, the end of its live rows in this group, their
    number, and whether weights are walked backwards, which alternates.

    Forward only: addresses of the gates (of the thread's first row), of the hidden side where it is kept apart, and of
    row 0 of the state before and after the step.
    """

    t: int
    at: int
    end: int
    rows: int
    odd: int
    gates: int
    side: int
    h: int
    h_new: int


class ForwardStages(NamedTuple):
    """pack(a, s, p); packed(a, s, share) -> Packed; first, between, second(a, s, p, share, w, step).

    `between` computes what depends on neither stage, while members wait for each other.
    """

    pack: Any
    packed: Any
    first: Any
    between: Any
    second: Any


class BackwardStages(NamedTuple):
    """pack(a, s, p); packed(a, s, share) -> Packed; and in the order of a step, each (a, s, p, share, w, step):

    second_rows, second_product where there is a second product, first_rows, first_product.
    """

    pack: Any
    packed: Any
    second_rows: Any
    second_product: Any
    first_rows: Any
    first_product: Any


def share_maker(cell: Any, dtype: str) -> Any:
    """share_of(s, p, whole): the thread's share; rows of gates are of all H units where `whole`, else of the share."""
    size, first_unit = vectors(dtype).itemsize, row_functions(dtype).first_unit
    G, SAVED = cell.n_gates, cell.n_saved

    @inner
    def share_of(s, p, whole):
        unit0 = first_unit(s.H, s.members, p.member)
        output0 = first_unit(s.R, s.members, p.member)
        units = first_unit(s.H, s.members, p.member + 1) - unit0
        outputs = first_unit(s.R, s.members, p.member + 1) - output0
        return Share(
            units,
            outputs,
            unit0,
            output0,
            unit0 * size,
            output0 * size,
            G * (s.H if whole else units) * size,
            s.R * size,
            s.H * size,
            SAVED * s.H * size,
        )

    return share_of


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """The forward stages of a cell."""
    return _reset_before_forward(cell, dtype) if cell.resets_before else _one_stage_forward(cell, dtype)


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """The backward stages of a cell."""
    return _reset_before_backward(cell, dtype) if cell.resets_before else _one_stage_backward(cell, dtype)


@inner
def operands_of(a, s):
    """Address of the operands of a second product: those of every row-step where they are saved, else of one step."""
    return a.saved.operand if s.keep else a.workspace + s.exchanged


def _one_stage_forward(cell: Any, dtype: str) -> ForwardStages:
    """One product and one pointwise stage, and the projection where there is one."""
    size, product, row = vectors(dtype).itemsize, products(dtype).product, forward_row(cell, dtype)
    rows, pack_share = row_functions(dtype), weight_functions(dtype).pack_share
    copy, caller_row, caller_step = rows.copy, rows.caller_row, rows.caller_step
    G, SPLITS = cell.n_gates, cell.splits_sides

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


def _reset_before_forward(cell: Any, dtype: str) -> ForwardStages:
    """r and r h', then n. z may be computed at any time before n: between the stages where members wait there, else
    together with r, as wider tiles are faster."""
    size, lanes, product = vectors(dtype).itemsize, vectors(dtype).lanes, products(dtype).product
    pack_share, caller_step = weight_functions(dtype).pack_share, row_functions(dtype).caller_step
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


def _one_stage_backward(cell: Any, dtype: str) -> BackwardStages:
    """The projection's gradient where there is one, then the pointwise stage, then the product with W_hh."""
    size, product, row = vectors(dtype).itemsize, products(dtype).product, backward_row(cell, dtype)
    rows, pack_share = row_functions(dtype), weight_functions(dtype).pack_share
    copy, add_to, clear = rows.copy, rows.add_to, rows.clear
    caller_row, caller_step, G = rows.caller_row, rows.caller_step, cell.n_gates

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


def _reset_before_backward(cell: Any, dtype: str) -> BackwardStages:
    """z and n, then r h' by the product with W_hn, then r, then the product with W_hr and W_hz."""
    size, product = vectors(dtype).itemsize, products(dtype).product
    pack_share, caller_step = weight_functions(dtype).pack_share, row_functions(dtype).caller_step
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
