"""The stages of cells with layer normalisation: those of one product, whose row functions see whole rows.

Means are over all units of a row, so a thread has whole rows: such cells divide the batch and never the units
(rnnkit/backends/numba/plan.py). x W_ih^T stands in the gates of a chunk, h' W_hh^T in those of a step; both are in the
first-level cache, and so are the passes over them. Saved beside the values of a unit: 1 / sqrt(var + eps) of each
normalisation of a row-step, (N, n_statistics) computed numbers at `SavedAddresses.operand`. Backward leaves the
gradients of what is normalised, scaled and shifted at `Backward.dprojected`, (N, n_norm_gradients * H) computed
numbers; `unit_gradients.py` sums them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.cpu import one_product
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.blocks import block_functions
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.normalised_backward import gru_backward_row, lstm_backward_row
from rnnkit.kernels.cpu.pointwise import extras_reader
from rnnkit.kernels.cpu.rows import caller_row, caller_step
from rnnkit.kernels.cpu.stages import BackwardStages, ForwardStages, cell_states


@cache
def lstm_row(cell: Any, dtype: str) -> Any:
    """row(g, u, b_ih, b_hh, h, c, out, y, saved, c_prev, stats, H, keep, w_unit, constants): c is replaced.

    g and u hold the two sides' products, G blocks of H; c + i g and o overwrite the first two of g.
    """
    form = formats(dtype)
    stored = form.stored
    v = form.computed
    pointwise = pointwise_of(cell, inner, activations(v.dtype))
    gates_of = pointwise.gates
    output = pointwise.output
    lib = block_functions(v.dtype)
    multiply = lib.multiply
    standard = lib.standard
    moments = lib.moments
    add = v.add_blocks
    load_numbers = v.load_numbers
    store_one = v.first.store
    SIZE = v.itemsize
    STORED = stored.itemsize
    OPERAND = form.operand.itemsize
    lanes = v.lanes
    G = cell.n_gates
    CARRIES = cell.options.layer_norm == "torch"

    def units(part):
        load = getattr(v, part).load
        load_blocks = getattr(v, part).load_blocks
        store = getattr(v, part).store
        load_value = getattr(stored, part).load
        load_values = getattr(stored, part).load_blocks
        store_value = getattr(stored, part).store
        store_values = getattr(stored, part).store_blocks
        store_h = getattr(form.operand, part).store

        @inner
        def gates(j, n, g, u, b_ih, b_hh, c, saved, c_prev, H, keep, w_unit, mean_x, scale_x, mean_u, scale_u):
            at = j * SIZE
            row = H * SIZE
            block = H * STORED
            here = j * STORED
            xs = standard(load_blocks(g + at, row, n, G), mean_x, scale_x)
            us = standard(load_blocks(u + at, row, n, G), mean_u, scale_u)
            left = add(multiply(xs, load_values(w_unit + here, block, n, G)), load_values(b_ih + here, block, n, G))
            gains = load_values(w_unit + G * block + here, block, n, G)
            right = add(multiply(us, gains), load_values(b_hh + here, block, n, G))
            before = load(c + at, n)
            values, new = gates_of(add(left, right), before)
            if keep:
                store_values(values, saved + here, block, n)
                store_values(xs, saved + G * block + here, block, n)
                store_values(us, saved + 2 * G * block + here, block, n)
                store(before, c_prev + at, n)
            store(new, g + at, n)
            store(values[3], g + row + at, n)

        @inner
        def outputs(j, n, g, c, out, y, saved, H, keep, w_unit, mean, scale):
            at = j * SIZE
            block = H * STORED
            here = j * STORED
            new = load(g + at, n)
            hat = (new - mean) * scale
            gain = load_value(w_unit + 2 * G * block + here, n)
            shifted = hat * gain + load_value(w_unit + (2 * G + 1) * block + here, n)
            h_value = output(load(g + H * SIZE + at, n), shifted)
            store_h(h_value, out + j * OPERAND, n)
            store_value(h_value, y + here, n)
            store(shifted if CARRIES else new, c + at, n)
            if keep:
                store_value(hat, saved + 3 * G * block + here, n)

        return gates, outputs

    whole_gates, whole_outputs = units("whole")
    last_gates, last_outputs = units("first")

    @inner
    def row(g, u, b_ih, b_hh, h, c, out, y, saved, c_prev, stats, H, keep, w_unit, constants):
        eps = load_numbers(constants, 1)[0]
        mean_x, scale_x = moments(g, G * H, eps)
        mean_u, scale_u = moments(u, G * H, eps)
        end = H // lanes * lanes
        left = H - end
        for j in range(0, end, lanes):
            whole_gates(
                j, lanes, g, u, b_ih, b_hh, c, saved, c_prev, H, keep, w_unit, mean_x, scale_x, mean_u, scale_u
            )  # fmt: skip
        if left:
            last_gates(
                end, left, g, u, b_ih, b_hh, c, saved, c_prev, H, keep, w_unit, mean_x, scale_x, mean_u, scale_u
            )  # fmt: skip
        mean_c, scale_c = moments(g, H, eps)
        for j in range(0, end, lanes):
            whole_outputs(j, lanes, g, c, out, y, saved, H, keep, w_unit, mean_c, scale_c)
        if left:
            last_outputs(end, left, g, c, out, y, saved, H, keep, w_unit, mean_c, scale_c)
        if keep:
            store_one(scale_x, stats, 1)
            store_one(scale_u, stats + SIZE, 1)
            store_one(scale_c, stats + 2 * SIZE, 1)

    return row


@cache
def gru_row(cell: Any, dtype: str) -> Any:
    """The same of a GRU: c and c_prev are not used, nor u where one normalisation is over the sum of both sides."""
    form = formats(dtype)
    stored = form.stored
    v = form.computed
    forward = pointwise_of(cell, inner, activations(v.dtype)).forward
    lib = block_functions(v.dtype)
    multiply = lib.multiply
    standard = lib.standard
    moments = lib.moments
    add = v.add_blocks
    load_numbers = v.load_numbers
    store_one = v.first.store
    SIZE = v.itemsize
    STORED = stored.itemsize
    OPERAND = form.operand.itemsize
    lanes = v.lanes
    G = cell.n_gates
    TWO = cell.splits_sides

    def units(part):
        load_blocks = getattr(v, part).load_blocks
        load_values = getattr(stored, part).load_blocks
        store_value = getattr(stored, part).store
        store_values = getattr(stored, part).store_blocks
        load_h = getattr(form.operand, part).load
        store_h = getattr(form.operand, part).store

        @inner
        def step(j, n, g, u, b_ih, b_hh, h, out, y, saved, H, keep, w_unit, mean_x, scale_x, mean_u, scale_u):
            at = j * SIZE
            row = H * SIZE
            block = H * STORED
            here = j * STORED
            xs = standard(load_blocks(g + at, row, n, G), mean_x, scale_x)
            side = add(multiply(xs, load_values(w_unit + here, block, n, G)), load_values(b_ih + here, block, n, G))
            other = load_values(b_hh + here, block, n, G)
            if TWO:
                us = standard(load_blocks(u + at, row, n, G), mean_u, scale_u)
                other = add(multiply(us, load_values(w_unit + G * block + here, block, n, G)), other)
                if keep:
                    store_values(us, saved + 2 * G * block + here, block, n)
            else:
                side = add(side, other)
            values, h_value = forward(side, other, load_h(h + j * OPERAND, n))
            if keep:
                store_values(values, saved + here, block, n)
                store_values(xs, saved + G * block + here, block, n)
            store_h(h_value, out + j * OPERAND, n)
            store_value(h_value, y + here, n)

        return step

    whole = units("whole")
    last = units("first")

    @inner
    def row(g, u, b_ih, b_hh, h, c, out, y, saved, c_prev, stats, H, keep, w_unit, constants):
        eps = load_numbers(constants, 1)[0]
        mean_x, scale_x = moments(g, G * H, eps)
        mean_u, scale_u = moments(u, G * H, eps) if TWO else (mean_x, scale_x)
        end = H // lanes * lanes
        for j in range(0, end, lanes):
            whole(j, lanes, g, u, b_ih, b_hh, h, out, y, saved, H, keep, w_unit, mean_x, scale_x, mean_u, scale_u)
        if end < H:
            n = H - end
            last(end, n, g, u, b_ih, b_hh, h, out, y, saved, H, keep, w_unit, mean_x, scale_x, mean_u, scale_u)
        if keep:
            store_one(scale_x, stats, 1)
            if TWO:
                store_one(scale_u, stats + SIZE, 1)

    return row


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """One product and one pointwise stage over whole rows."""
    form = formats(dtype)
    product = products(form.operand.dtype, form.packed).product
    row = (lstm_row if cell.has_c else gru_row)(cell, dtype)
    cells_of = cell_states(dtype, True)
    extras_of = extras_reader(cell)
    STORED = form.stored.itemsize
    OPERAND = form.operand.itemsize
    COMPUTED = form.computed.itemsize
    SAVED = cell.n_saved
    STATS = cell.n_statistics
    G = cell.n_gates
    TWO = cell.splits_sides

    @inner
    def first(a, s, p, share, w, step):
        row_h = s.H * OPERAND
        out = step.side if TWO else step.gates
        h = step.h + p.b0 * row_h
        product(h, row_h, w.h, s.H, out, share.row_g, G * s.H, step.rows, 0 if TWO else 1, step.odd)
        cells = cells_of(a, s)
        w_unit, constants = extras_of(a)
        for r in range(p.b0, step.end):
            here = step.at + r
            gates = (r - p.b0) * share.row_g
            row(
                step.gates + gates, step.side + gates, a.weights.b_ih, a.weights.b_hh, step.h + r * row_h,
                cells + caller_row(a.rows, r) * s.H * COMPUTED, step.h_new + r * row_h,
                a.y + caller_step(a.rows, s, step.t, r) * a.y_row, a.saved.values + SAVED * here * s.H * STORED,
                a.saved.c_prev + here * s.H * COMPUTED, a.saved.operand + STATS * here * COMPUTED, s.H, s.keep, w_unit,
                constants,
            )  # fmt: skip

    return one_product.forward_stages(cell, dtype)._replace(first=first)


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """The pointwise stage over whole rows, then the product with W_hh."""
    form = formats(dtype)
    row = (lstm_backward_row if cell.has_c else gru_backward_row)(cell, dtype)
    cells_of = cell_states(dtype, False)
    extras_of = extras_reader(cell)
    STORED = form.stored.itemsize
    OPERAND = form.operand.itemsize
    COMPUTED = form.computed.itemsize
    SAVED = cell.n_saved
    STATS = cell.n_statistics
    GRADIENTS = cell.n_norm_gradients

    @inner
    def first_rows(a, s, p, share, w, step):
        w_unit, _ = extras_of(a)
        for r in range(p.b0, step.end):
            here = step.at + r
            gates = here * share.row_g
            row(
                a.saved.values + SAVED * here * s.H * STORED, a.saved.operand + STATS * here * COMPUTED,
                a.saved.h_prev + here * s.H * OPERAND, a.saved.c_prev + here * s.H * COMPUTED,
                a.dy + caller_step(a.rows, s, step.t, r) * a.y_row, a.dy != 0,
                a.workspace + s.states + r * s.H * COMPUTED, cells_of(a, s) + caller_row(a.rows, r) * s.H * COMPUTED,
                a.dgates_x + gates, a.dgates_h + gates, a.dprojected + GRADIENTS * here * s.H * COMPUTED, s.H, w_unit,
                a.weights.b_ih, a.weights.b_hh,
            )  # fmt: skip

    return one_product.backward_stages(cell, dtype)._replace(first_rows=first_rows)
