"""One step by itself, forward: the weights are read where they are, since packing them would cost more than one use.

Sums run in another order than in the loops of many steps, and in the same one for every row, batch and number of
threads. Arguments are those of kernels/cpu/arguments.py, for T = 1, no projection and no row without a step.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from rnnkit.kernels.cpu.arguments import Forward, Shape, read_forward, read_shape
from rnnkit.kernels.cpu.dot_products import dot_products
from rnnkit.kernels.cpu.formats import formats, row_sizes
from rnnkit.kernels.cpu.jit import inner, job
from rnnkit.kernels.cpu.memory import minimum
from rnnkit.kernels.cpu.partition import Part, part_of, sync_group
from rnnkit.kernels.cpu.pointwise import extras_reader, forward_row
from rnnkit.kernels.cpu.reset_before_rows import reset_rows
from rnnkit.kernels.cpu.rows import copier, row_functions

# Rows of a batch that a vector of units' gates are computed for before the cell is.
AT_ONCE = 16


class Share(NamedTuple):
    """One thread's share of a step: its part of the rows, its units [u0, u1), and the address of its gates.

    row_x, row_h: bytes of a row of x and of h.
    """

    a: Forward
    s: Shape
    p: Part
    u0: int
    u1: int
    row_x: int
    row_h: int
    sides: int


@cache
def gate_products(dtype: str) -> tuple[Any, Any, Any]:
    """share_of(block, index): a thread's `Share`; gate_dots; and operand_dots, for which h has operands.

    gate_dots(share, h, first, count, unit, n, out, apart, row): the two sides of a gate's pre-activation, of `count`
    rows from `first` on and n units from row `unit` of the weights on. x W_ih^T goes to `out`, h W_hh^T `apart` bytes
    on; `row` bytes are from one row's to the next row's.
    """
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    weight_dtype = form.weights.dtype
    dots = dot_products(stored.dtype, weight_dtype)
    row_bytes = row_sizes(dtype)
    size = stored.itemsize
    operand_size = operand.itemsize
    first_unit = row_functions(dtype).first_unit

    @inner
    def share_of(block, index):
        a = read_forward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows.bounds, a.barriers, index)
        u0 = first_unit(s.H, s.members, p.member)
        u1 = first_unit(s.H, s.members, p.member + 1)
        return Share(a, s, p, u0, u1, s.I * size, s.H * size, a.workspace + s.own + index * s.own_size)

    def make_gate_dots(dots_of_h: Any, h_size: int) -> Any:
        @inner
        def gate_dots(share, h, first, count, unit, n, out, apart, row):
            weights = share.a.weights
            row_x = share.row_x
            row_h = share.s.H * h_size
            w_row_x = row_bytes(share.s.I)
            w_row_h = row_bytes(share.s.H)
            w_ih = weights.w_ih + unit * w_row_x
            w_hh = weights.w_hh + unit * w_row_h
            dots(share.a.x + first * row_x, row_x, count, w_ih, w_row_x, share.s.I, n, out, row)
            dots_of_h(h + first * row_h, row_h, count, w_hh, w_row_h, share.s.H, n, out + apart, row)

        return gate_dots

    gate_dots = make_gate_dots(dots, size)
    if operand.dtype == stored.dtype:
        return share_of, gate_dots, gate_dots
    return share_of, gate_dots, make_gate_dots(dot_products(operand.dtype, weight_dtype), operand_size)


def make_step(cell: Any, dtype: str) -> Any:
    """The forward job of one step of a cell, a row of CELLS: step(block, index), block the address of a `Forward`."""
    return _make_reset_before(cell, dtype) if cell.resets_before else _make_one_stage(cell, dtype)


def _make_one_stage(cell: Any, dtype: str) -> Any:
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    share_of, gate_dots, _ = gate_products(dtype)
    row = forward_row(cell, dtype, stored.dtype, stored.dtype)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    lanes = computed.lanes
    copy_h = copier(stored.dtype, operand.dtype)
    add_to = row_functions(dtype).add_to
    G = cell.n_gates
    CELL_STATES = cell.n_cell_states
    SAVED = cell.n_saved
    SPLITS = cell.splits_sides
    extras_of = extras_reader(cell)

    @job(("step", cell.key, dtype))
    def step(block, index):
        share = share_of(block, index)
        a, p, u1, row_h, sides = share.a, share.p, share.u1, share.row_h, share.sides
        H, keep, weights, saved = share.s.H, share.s.keep, a.weights, a.saved
        w_unit, constants = extras_of(a)
        vector = lanes * COMPUTED
        row_g = 2 * G * vector
        for j in range(share.u0, u1, lanes):
            n = minimum(lanes, u1 - j)
            at = j * STORED
            for first in range(p.b0, p.b1, AT_ONCE):
                count = minimum(AT_ONCE, p.b1 - first)
                for gate in range(G):
                    gate_dots(share, a.h0, first, count, gate * H + j, n, sides + gate * vector, G * vector, row_g)
                for r in range(first, first + count):
                    own = r * row_h + at
                    of_c = r * CELL_STATES * row_h + at
                    h = a.h0 + own
                    g = sides + (r - first) * row_g
                    if not SPLITS:
                        add_to(g + G * vector, g, G * lanes)
                    unit = r * H + j
                    if keep:
                        copy_h(h, saved.h_prev + unit * OPERAND, n)
                    row(
                        g, g + G * vector, vector, weights.b_ih + at, weights.b_hh + at, h, a.c0 + of_c, a.h_n + own,
                        a.y + r * a.y_row + at, saved.values + SAVED * r * row_h + at,
                        saved.c_prev + (r * CELL_STATES * H + j) * COMPUTED, a.c_n + of_c, 0, 0.0, n, H, keep,
                        w_unit + at, constants,
                    )  # fmt: skip

    return step


def _make_reset_before(cell: Any, dtype: str) -> Any:
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    share_of, gate_dots, operand_dots = gate_products(dtype)
    reset_row, output_row = reset_rows(cell, dtype, stored.dtype)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    lanes = computed.lanes
    copy_h = copier(stored.dtype, operand.dtype)
    add_to = row_functions(dtype).add_to
    SAVED = cell.n_saved
    extras_of = extras_reader(cell)

    @job(("step", cell.key, dtype))
    def step(block, index):
        share = share_of(block, index)
        a, s, p, u0, u1, row_h, sides = share.a, share.s, share.p, share.u0, share.u1, share.row_h, share.sides
        H, keep, weights, saved = s.H, s.keep, a.weights, a.saved
        _, constants = extras_of(a)
        vector = lanes * COMPUTED
        row_g = 4 * vector
        rh_rows = saved.operand if keep else a.workspace + s.exchanged
        for j in range(u0, u1, lanes):
            n = minimum(lanes, u1 - j)
            at = j * STORED
            for first in range(p.b0, p.b1, AT_ONCE):
                count = minimum(AT_ONCE, p.b1 - first)
                gate_dots(share, a.h0, first, count, j, n, sides, vector, row_g)
                for r in range(first, first + count):
                    own = r * row_h + at
                    h = a.h0 + own
                    g = sides + (r - first) * row_g
                    add_to(g + vector, g, lanes)
                    values = saved.values + SAVED * r * row_h + at
                    unit = (r * H + j) * OPERAND
                    reset_row(g, weights.b_ih + at, weights.b_hh + at, h, values, rh_rows + unit, n, keep, constants)
                    if keep:
                        copy_h(h, saved.h_prev + unit, n)
        sync_group(s, p, 1)
        for j in range(u0, u1, lanes):
            n = minimum(lanes, u1 - j)
            z = row_h + j * STORED
            for first in range(p.b0, p.b1, AT_ONCE):
                count = minimum(AT_ONCE, p.b1 - first)
                gate_dots(share, a.h0, first, count, H + j, n, sides, 2 * vector, row_g)
                operand_dots(share, rh_rows, first, count, 2 * H + j, n, sides + vector, 2 * vector, row_g)
                for r in range(first, first + count):
                    own = r * row_h + j * STORED
                    g = sides + (r - first) * row_g
                    add_to(g + 2 * vector, g, 2 * lanes)
                    output_row(
                        g, vector, weights.b_ih + z, weights.b_hh + z, a.h0 + own,
                        saved.values + SAVED * r * row_h + z, a.h_n + own, a.y + r * a.y_row + j * STORED, n, H, keep,
                        constants,
                    )  # fmt: skip

    return step
