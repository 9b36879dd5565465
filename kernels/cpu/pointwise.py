"""The pointwise part of one row, vector by vector: what the stages of the time loops call between the products.

Addresses are of the first unit of the thread's share; `share` units are computed. A row's last vector may be partial.
What each array's numbers are in memory: kernels/cpu/formats.py.

Each row function ends in w_unit, of the first unit, where the cell has one stage, and constants: addresses from
`extras_reader`. They are read for cells with options alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.arguments import read_extras
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.noise_rows import shares
from rnnkit.kernels.cpu.simd import vectors


def cell_state_memory(form: Any, part: str, count: int) -> tuple[Any, Any]:
    """load(address, apart, n) and store(value, address, apart, n) of the `count` states beside h of a vector of units.

    A value is one vector; a tuple of vectors, `apart` bytes from each other, if there are several.
    """
    memory = getattr(form, part)
    if count > 1:
        load_blocks = memory.load_blocks
        return inner(lambda address, apart, n: load_blocks(address, apart, n, count)), memory.store_blocks
    load = memory.load
    store = memory.store
    return inner(lambda at, apart, n: load(at, n)), inner(lambda value, at, apart, n: store(value, at, n))


def extras_reader(cell: Any) -> Any:
    """extras_of(a): the addresses of w_unit and the constants of a call, 0 for a plain cell."""
    if not cell.options.changes_formulas:

        @inner
        def nothing(a):
            return 0, 0

        return nothing

    @inner
    def extras_of(a):
        extras = read_extras(a.extras)
        return extras.w_unit, extras.constants

    return extras_of


@cache
def forward_row(cell: Any, dtype: str, state: str, cell_state: str) -> Any:
    """row(g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, zone, kept, share, H, keep, w_unit,
    constants) of a cell with one stage.

    g, and u where the cell splits its sides, hold the gates' blocks, `apart` bytes from each other; the biases and
    `saved` hold blocks of H units, and c, c_prev and c_new one per state beside h. The new h goes to `out`, and to y
    unless y is 0. `state` is the dtype in memory of h and `out`, `cell_state` that of c and c_new.
    """
    form = formats(dtype)
    stored = form.stored
    v = form.computed
    pointwise = pointwise_of(cell, inner, activations(v.dtype))
    pair = pointwise.forward
    prepared = pointwise.prepared
    load_numbers = v.load_numbers
    tanh = activations(v.dtype).tanh
    load_shares = shares(v.dtype)
    ZONES_C = cell.options.zoneout_c
    ZONED_OUTPUT = cell.options.zoned_output
    h_format = vectors(state)
    c_format = vectors(cell_state)
    zero = v.zero
    add_blocks = v.add_blocks
    size = v.itemsize
    stored_size = stored.itemsize
    h_size = h_format.itemsize
    c_size = c_format.itemsize
    lanes = v.lanes
    G = cell.n_gates
    SPLITS = cell.splits_sides
    READS_H = cell.reads_h
    HAS_C = cell.has_c
    CELL_STATES = cell.n_cell_states
    UNIT = len(cell.unit_weights)
    CONSTANTS = len(cell.constants)

    def units(part):
        """The cell on one vector of units, from unit j on. part: "whole", or "first" for the first n units."""
        load_blocks = getattr(v, part).load_blocks
        load_biases = getattr(stored, part).load_blocks
        store_values = getattr(stored, part).store_blocks
        store_y = getattr(stored, part).store
        load_h = getattr(h_format, part).load
        store_h = getattr(h_format, part).store
        load_c, store_c = cell_state_memory(c_format, part, CELL_STATES)
        _, save_c = cell_state_memory(v, part, CELL_STATES)

        @inner
        def step(
            j, n, g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, zone, kept, H, keep, w_unit, k
        ):  # fmt: skip
            at = j * size
            at_stored = j * stored_size
            block = H * stored_size
            xs = add_blocks(load_blocks(g + at, apart, n, G), load_biases(bias_x + at_stored, block, n, G))
            us = load_biases(bias_h + at_stored, block, n, G)
            if SPLITS:
                us = add_blocks(us, load_blocks(u + at, apart, n, G))
            c_before = load_c(c + j * c_size, H * c_size, n) if HAS_C else zero()
            h_before = load_h(h + j * h_size, n) if READS_H else zero()
            w = load_biases(w_unit + at_stored, block, n, UNIT)
            values, h_value, c_value = pair(xs, us, h_before, c_before, w, k)
            if ZONES_C:
                z = load_shares(zone + j, kept)
                c_value = z * c_before + (1.0 - z) * c_value
            if ZONED_OUTPUT:
                h_value = values[3] * tanh(c_value)
            if keep:
                store_values(values, saved + at_stored, block, n)
                if HAS_C:
                    save_c(c_before, c_prev + at, H * size, n)
            store_h(h_value, out + j * h_size, n)
            if y:
                store_y(h_value, y + at_stored, n)
            if HAS_C:
                store_c(c_value, c_new + j * c_size, H * c_size, n)

        return step

    whole = units("whole")
    ending = units("first")

    @inner
    def row(
        g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, zone, kept, share, H, keep, w_unit, constants
    ):  # fmt: skip
        k = prepared(load_numbers(constants, CONSTANTS))
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(
                j, lanes, g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, zone, kept, H, keep,
                w_unit, k,
            )  # fmt: skip
        if last < share:
            n = share - last
            ending(
                last, n, g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, zone, kept, H, keep,
                w_unit, k,
            )  # fmt: skip

    return row


def _zoned_backward(cell: Any, pair: Any, v: Any) -> Any:
    """zoned(values, c_before, dh, dc, z, w, k): the gates' gradients and that of c', of an LSTM with zoneout of c."""
    tanh = activations(v.dtype).tanh
    zero = v.zero

    @inner
    def raw(values, c_before, d_h, d_c, z, w, k):
        dxs, _, _, dc_prev = pair(values, zero(), c_before, d_h, (1.0 - z) * d_c, w, k)
        return dxs, dc_prev + z * d_c

    @inner
    def from_zoned(values, c_before, d_h, d_c, z, w, k):
        i, f, g, o = values
        t = tanh(z * c_before + (1.0 - z) * (f * c_before + i * g))
        d_c = d_c + d_h * o * (1.0 - t * t)
        dxs, _, _, dc_prev = pair(values, zero(), c_before, zero(), (1.0 - z) * d_c, w, k)
        return (dxs[0], dxs[1], dxs[2], d_h * t * o * (1.0 - o)), dc_prev + z * d_c

    return from_zoned if cell.options.zoned_output else raw


@cache
def backward_row(cell: Any, dtype: str) -> Any:
    """row(saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, zone, kept, share, H, w_unit, constants).

    Of a cell with one stage.

    dh becomes the part of its gradient that reaches h' without a product; dx and du hold blocks of H units, and dc and
    c_prev one per state beside h.
    """
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    v = form.computed
    pointwise = pointwise_of(cell, inner, activations(v.dtype))
    pair = pointwise.backward
    prepared = pointwise.prepared
    load_numbers = v.load_numbers
    zoned = _zoned_backward(cell, pair, v)
    load_shares = shares(v.dtype)
    ZONES_C = cell.options.zoneout_c
    zero = v.zero
    size = v.itemsize
    stored_size = stored.itemsize
    operand_size = operand.itemsize
    lanes = v.lanes
    SAVED = cell.n_saved
    SPLITS = cell.splits_sides
    READS_H = cell.reads_h
    HAS_C = cell.has_c
    CELL_STATES = cell.n_cell_states
    UNIT = len(cell.unit_weights)
    CONSTANTS = len(cell.constants)

    def units(part):
        load = getattr(v, part).load
        store = getattr(v, part).store
        load_values = getattr(stored, part).load_blocks
        load_y = getattr(stored, part).load
        load_h = getattr(operand, part).load
        store_gates = getattr(operand, part).store_blocks
        load_c, store_c = cell_state_memory(v, part, CELL_STATES)

        @inner
        def step(j, n, saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, zone, kept, H, w_unit, k):
            at = j * size
            at_stored = j * stored_size
            at_operand = j * operand_size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load_y(dy + at_stored, n)
            values = load_values(saved + at_stored, H * stored_size, n, SAVED)
            h_before = load_h(h_prev + at_operand, n) if READS_H else zero()
            c_before = load_c(c_prev + at, H * size, n) if HAS_C else zero()
            d_c = load_c(dc + at, H * size, n) if HAS_C else zero()
            w = load_values(w_unit + at_stored, H * stored_size, n, UNIT)
            if ZONES_C:
                dxs, dc_prev = zoned(values, c_before, d_h, d_c, load_shares(zone + j, kept), w, k)
                dus = dxs
                dh_direct = zero()
            else:
                dxs, dus, dh_direct, dc_prev = pair(values, h_before, c_before, d_h, d_c, w, k)
            store_gates(dxs, dx + at_operand, H * operand_size, n)
            if SPLITS:
                store_gates(dus, du + at_operand, H * operand_size, n)
            store(dh_direct, dh + at, n)
            if HAS_C:
                store_c(dc_prev, dc + at, H * size, n)

        return step

    whole = units("whole")
    ending = units("first")

    @inner
    def row(saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, zone, kept, share, H, w_unit, constants):
        k = prepared(load_numbers(constants, CONSTANTS))
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(j, lanes, saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, zone, kept, H, w_unit, k)
        if last < share:
            n = share - last
            ending(last, n, saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, zone, kept, H, w_unit, k)

    return row
