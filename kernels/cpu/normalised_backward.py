"""The backward of one row of a cell with layer normalisation: see normalised.py.

A normalisation's gradient needs two means over the row, so each takes a pass that sums and a pass that uses the sums.
Lanes past the end of a row are loaded as 0, weights included, so they add 0.

    row(saved, stats, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, dv, H, w_unit, b_ih, b_hh)

dh and dc are replaced; dx and du hold G blocks of H operands, dv n_norm_gradients blocks of H computed numbers.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.blocks import block_functions
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner


def _side_passes(cell: Any, dtype: str, part: str) -> SimpleNamespace:
    """sums(d, hat, gain): (d gain, d gain hat) added over the gates; dside(...): the gradient of a side's product."""
    form = formats(dtype)
    lib = block_functions(form.computed.dtype)
    multiply = lib.multiply
    total = lib.total
    standard_backward = lib.standard_backward
    load_values = getattr(form.stored, part).load_blocks
    store_gates = getattr(form.operand, part).store_blocks
    STORED = form.stored.itemsize
    OPERAND = form.operand.itemsize
    G = cell.n_gates

    @inner
    def sums(j, n, d, hats, gains, H):
        """hats and gains: addresses of G blocks of H."""
        here = j * STORED
        scaled = multiply(d, load_values(gains + here, H * STORED, n, G))
        return total(scaled), total(multiply(scaled, load_values(hats + here, H * STORED, n, G)))

    @inner
    def dside(j, n, d, hats, gains, H, m1, m2, scale, out):
        here = j * STORED
        scaled = multiply(d, load_values(gains + here, H * STORED, n, G))
        found = standard_backward(scaled, load_values(hats + here, H * STORED, n, G), m1, m2, scale)
        store_gates(found, out + j * OPERAND, H * OPERAND, n)

    return SimpleNamespace(sums=sums, dside=dside)


@cache
def lstm_backward_row(cell: Any, dtype: str) -> Any:
    """The row function of an LSTM."""
    form = formats(dtype)
    stored = form.stored
    v = form.computed
    pointwise = pointwise_of(cell, inner, activations(v.dtype))
    output_backward = pointwise.output_backward
    gates_backward = pointwise.gates_backward
    spread = block_functions(v.dtype).spread
    load_numbers = v.load_numbers
    zero = v.zero
    SIZE = v.itemsize
    STORED = stored.itemsize
    lanes = v.lanes
    G = cell.n_gates
    CARRIES = cell.options.layer_norm == "torch"

    def units(part):
        load = getattr(v, part).load
        load_blocks = getattr(v, part).load_blocks
        store = getattr(v, part).store
        store_blocks = getattr(v, part).store_blocks
        load_value = getattr(stored, part).load
        load_values = getattr(stored, part).load_blocks
        passes = _side_passes(cell, dtype, part)
        sums = passes.sums
        dside = passes.dside

        @inner
        def outputs(j, n, saved, dy, has_dy, dh, dc, dv, H, w_unit):
            at = j * SIZE
            block = H * STORED
            here = j * STORED
            gain = load_value(w_unit + 2 * G * block + here, n)
            hat = load_value(saved + 3 * G * block + here, n)
            shifted = hat * gain + load_value(w_unit + (2 * G + 1) * block + here, n)
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load_value(dy + here, n)
            da_o, dshifted = output_backward(load_value(saved + 3 * block + here, n), shifted, d_h)
            if CARRIES:
                dshifted = dshifted + load(dc + at, n)
            store(da_o, dv + 3 * H * SIZE + at, n)
            store(dshifted, dv + 4 * H * SIZE + at, n)
            store(zero(), dh + at, n)
            scaled = dshifted * gain
            return scaled, scaled * hat

        @inner
        def gates(j, n, saved, c_prev, dc, dv, H, w_unit, m1, m2, scale):
            at = j * SIZE
            row = H * SIZE
            block = H * STORED
            here = j * STORED
            gain = load_value(w_unit + 2 * G * block + here, n)
            hat = load_value(saved + 3 * G * block + here, n)
            d_c = scale * (load(dv + 4 * row + at, n) * gain - m1 - hat * m2)
            if not CARRIES:
                d_c = d_c + load(dc + at, n)
            i, f, g = load_values(saved + here, block, n, 3)
            da_i, da_f, da_g, dc_prev = gates_backward(i, f, g, load(c_prev + at, n), d_c)
            store(dc_prev, dc + at, n)
            d = (da_i, da_f, da_g, load(dv + 3 * row + at, n))
            store_blocks(d, dv + at, row, n)
            x1, x2 = sums(j, n, d, saved + G * block, w_unit, H)
            u1, u2 = sums(j, n, d, saved + 2 * G * block, w_unit + G * block, H)
            return x1, x2, u1, u2

        @inner
        def sides(j, n, saved, dv, dx, du, H, w_unit, x1, x2, u1, u2, scale_x, scale_u):
            block = H * STORED
            d = load_blocks(dv + j * SIZE, H * SIZE, n, G)
            dside(j, n, d, saved + G * block, w_unit, H, x1, x2, scale_x, dx)
            dside(j, n, d, saved + 2 * G * block, w_unit + G * block, H, u1, u2, scale_u, du)

        return outputs, gates, sides

    whole_outputs, whole_gates, whole_sides = units("whole")
    last_outputs, last_gates, last_sides = units("first")

    @inner
    def row(saved, stats, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, dv, H, w_unit, b_ih, b_hh):
        scale_x, scale_u, scale_c = load_numbers(stats, 3)
        end = H // lanes * lanes
        n = H - end
        m1, m2 = zero(), zero()
        for j in range(0, end, lanes):
            a, b = whole_outputs(j, lanes, saved, dy, has_dy, dh, dc, dv, H, w_unit)
            m1 = m1 + a
            m2 = m2 + b
        if n:
            a, b = last_outputs(end, n, saved, dy, has_dy, dh, dc, dv, H, w_unit)
            m1 = m1 + a
            m2 = m2 + b
        m1 = spread(m1) / float(H)
        m2 = spread(m2) / float(H)
        x1, x2, u1, u2 = zero(), zero(), zero(), zero()
        for j in range(0, end, lanes):
            a, b, c, d = whole_gates(j, lanes, saved, c_prev, dc, dv, H, w_unit, m1, m2, scale_c)
            x1 = x1 + a
            x2 = x2 + b
            u1 = u1 + c
            u2 = u2 + d
        if n:
            a, b, c, d = last_gates(end, n, saved, c_prev, dc, dv, H, w_unit, m1, m2, scale_c)
            x1 = x1 + a
            x2 = x2 + b
            u1 = u1 + c
            u2 = u2 + d
        width = float(G * H)
        x1 = spread(x1) / width
        x2 = spread(x2) / width
        u1 = spread(u1) / width
        u2 = spread(u2) / width
        for j in range(0, end, lanes):
            whole_sides(j, lanes, saved, dv, dx, du, H, w_unit, x1, x2, u1, u2, scale_x, scale_u)
        if n:
            last_sides(end, n, saved, dv, dx, du, H, w_unit, x1, x2, u1, u2, scale_x, scale_u)

    return row


@cache
def gru_backward_row(cell: Any, dtype: str) -> Any:
    """The row function of a GRU, whose two sides may be normalised together."""
    form = formats(dtype)
    stored = form.stored
    v = form.computed
    backward = pointwise_of(cell, inner, activations(v.dtype)).backward
    spread = block_functions(v.dtype).spread
    load_numbers = v.load_numbers
    zero = v.zero
    SIZE = v.itemsize
    STORED = stored.itemsize
    OPERAND = form.operand.itemsize
    lanes = v.lanes
    G = cell.n_gates
    TWO = cell.splits_sides
    STATS = cell.n_statistics
    GRADIENTS = cell.n_norm_gradients
    LAST_STAT = STATS - 1
    LAST = GRADIENTS - 1  # numbers of tuples' elements must be constants
    LAST_HAT = cell.n_saved - 1  # of n on the hidden side, or on the one side that there is
    LAST_GAIN = len(cell.unit_weights) - 1

    def units(part):
        load = getattr(v, part).load
        load_blocks = getattr(v, part).load_blocks
        store = getattr(v, part).store
        store_blocks = getattr(v, part).store_blocks
        load_value = getattr(stored, part).load
        load_values = getattr(stored, part).load_blocks
        load_h = getattr(form.operand, part).load
        passes = _side_passes(cell, dtype, part)
        sums = passes.sums
        dside = passes.dside

        @inner
        def gates(j, n, saved, h_prev, dy, has_dy, dh, dv, H, w_unit, b_ih, b_hh):
            at = j * SIZE
            block = H * STORED
            here = j * STORED
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load_value(dy + here, n)
            hat = load_value(saved + LAST_HAT * block + here, n)
            reset = hat * load_value(w_unit + LAST_GAIN * block + here, n) + load_value(b_hh + 2 * block + here, n)
            if not TWO:
                reset = reset + load_value(b_ih + 2 * block + here, n)
            r, z, new = load_values(saved + here, block, n, 3)
            d, direct = backward(r, z, new, reset, load_h(h_prev + j * OPERAND, n), d_h)
            store(direct, dh + at, n)
            store_blocks(d, dv + at, H * SIZE, n)
            x1, x2 = sums(j, n, (d[0], d[1], d[2]), saved + G * block, w_unit, H)
            if TWO:
                u1, u2 = sums(j, n, (d[0], d[1], d[LAST]), saved + 2 * G * block, w_unit + G * block, H)
            else:
                u1, u2 = x1, x2
            return x1, x2, u1, u2

        @inner
        def sides(j, n, saved, dv, dx, du, H, w_unit, x1, x2, u1, u2, scale_x, scale_u):
            block = H * STORED
            d = load_blocks(dv + j * SIZE, H * SIZE, n, GRADIENTS)
            dside(j, n, (d[0], d[1], d[2]), saved + G * block, w_unit, H, x1, x2, scale_x, dx)
            if TWO:
                of_u = (d[0], d[1], d[LAST])
                dside(j, n, of_u, saved + 2 * G * block, w_unit + G * block, H, u1, u2, scale_u, du)

        return gates, sides

    whole_gates, whole_sides = units("whole")
    last_gates, last_sides = units("first")

    @inner
    def row(saved, stats, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, dv, H, w_unit, b_ih, b_hh):
        scales = load_numbers(stats, STATS)
        scale_x = scales[0]
        scale_u = scales[LAST_STAT]
        end = H // lanes * lanes
        n = H - end
        x1, x2, u1, u2 = zero(), zero(), zero(), zero()
        for j in range(0, end, lanes):
            a, b, c, d = whole_gates(j, lanes, saved, h_prev, dy, has_dy, dh, dv, H, w_unit, b_ih, b_hh)
            x1 = x1 + a
            x2 = x2 + b
            u1 = u1 + c
            u2 = u2 + d
        if n:
            a, b, c, d = last_gates(end, n, saved, h_prev, dy, has_dy, dh, dv, H, w_unit, b_ih, b_hh)
            x1 = x1 + a
            x2 = x2 + b
            u1 = u1 + c
            u2 = u2 + d
        width = float(G * H)
        x1 = spread(x1) / width
        x2 = spread(x2) / width
        u1 = spread(u1) / width
        u2 = spread(u2) / width
        for j in range(0, end, lanes):
            whole_sides(j, lanes, saved, dv, dx, du, H, w_unit, x1, x2, u1, u2, scale_x, scale_u)
        if n:
            last_sides(end, n, saved, dv, dx, du, H, w_unit, x1, x2, u1, u2, scale_x, scale_u)

    return row
