"""The time loops of the CPU path: a whole layer in one direction, packed, walked and differentiated in one job.

    forward     a chunk of steps at a time gates = x W_ih^T; then per step += h W_hh^T, and the cell, a vector of units
                at a time
    backward    per step, last first: the cell, then dh += dgates W_hh; afterwards dx, dW and db, one product each

What differs from cell to cell is in kernels/cpu/one_product.py, reset_before.py and normalised.py; arguments are in
kernels/cpu/arguments.py, the division over threads in kernels/cpu/partition.py.
"""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cpu import normalised, one_product, reset_before
from rnnkit.kernels.cpu.arguments import read_backward, read_forward, read_shape
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.gradients import make_gradients
from rnnkit.kernels.cpu.jit import inner, job, outer
from rnnkit.kernels.cpu.memory import load_word, maximum, minimum
from rnnkit.kernels.cpu.noise import backward_passes, flags_of, forward_passes
from rnnkit.kernels.cpu.packed_weights import weight_functions
from rnnkit.kernels.cpu.partition import arrive, await_group, part_of, sync_all, sync_group
from rnnkit.kernels.cpu.rows import caller_row, caller_step, clearer, copier, row_functions
from rnnkit.kernels.cpu.stages import BackwardStages, ForwardStages, Step, cell_states, share_maker
from rnnkit.kernels.cpu.unit_gradients import make_unit_gradients


def _family(cell: Any) -> Any:
    """The module that has the stages of a cell."""
    if cell.normalises:
        return normalised
    return reset_before if cell.resets_before else one_product


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """The forward stages of a cell."""
    family = _family(cell)
    return family.forward_stages(cell, dtype)


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """The backward stages of a cell."""
    family = _family(cell)
    return family.backward_stages(cell, dtype)


def _state_starter(cell: Any, dtype: str) -> Any:
    """start(a, s, p, share): h0 into both states, c0 into the cell states, and both into the results."""
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    MIXED = form.mixed
    CELL_STATES = cell.n_cell_states
    copy_result = copier(stored.dtype, stored.dtype)
    copy_h = copier(stored.dtype, operand.dtype)
    copy_c = copier(stored.dtype, computed.dtype)
    cells_of = cell_states(dtype, True)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize

    @outer
    def start(a, s, p, share):
        states = a.workspace + s.states
        for r in range(p.b0, p.b1):
            row = caller_row(a.rows, r)
            at = row * s.R + share.output0
            h0 = a.h0 + at * STORED
            copy_h(h0, states + (r * s.R + share.output0) * OPERAND, share.outputs)
            copy_h(h0, states + ((s.B + r) * s.R + share.output0) * OPERAND, share.outputs)
            copy_result(h0, a.h_n + at * STORED, share.outputs)
            for k in range(CELL_STATES):
                at_c = (row * CELL_STATES + k) * s.H + share.unit0
                copy_result(a.c0 + at_c * STORED, a.c_n + at_c * STORED, share.units)
                if MIXED:
                    copy_c(a.c0 + at_c * STORED, cells_of(a, s) + at_c * COMPUTED, share.units)

    return start


def make_forward(cell: Any, dtype: str) -> Any:
    """The forward job of a cell, a row of CELLS: forward(block, index), block the address of a `Forward`."""
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    MIXED = form.mixed
    weights = weight_functions(dtype)
    copy_h = copier(operand.dtype, operand.dtype)
    copy_end = copier(operand.dtype, stored.dtype)
    copy_c_end = copier(computed.dtype, stored.dtype)
    clear = clearer(stored.dtype)
    cells_of = cell_states(dtype, True)
    pack_x = row_functions(dtype).pack_x
    are_packed = weights.are_packed
    record = weights.record
    input_product = weights.input_product
    pack, packed, first, between, second = forward_stages(cell, dtype)
    share_of = share_maker(cell, dtype)
    start = _state_starter(cell, dtype)
    start_noise, end_noise, operand_of = forward_passes(cell, dtype)
    G = cell.n_gates
    RESETS = cell.resets_before
    PROJECTS = cell.projects
    CELL_STATES = cell.n_cell_states
    IN_WORKSPACE = CELL_STATES if MIXED else 0
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    CONVERTS_X = OPERAND != STORED

    @inner
    def end_rows(a, s, p, share, step, lasting):
        """Final states of the rows from `lasting` on, which end with this step."""
        for r in range(maximum(p.b0, lasting), step.end):
            row = caller_row(a.rows, r)
            out = a.h_n + (row * s.R + share.output0) * STORED
            copy_end(step.h_new + (r * s.R + share.output0) * OPERAND, out, share.outputs)
            for k in range(IN_WORKSPACE):
                at = (row * CELL_STATES + k) * s.H + share.unit0
                copy_c_end(cells_of(a, s) + at * COMPUTED, a.c_n + at * STORED, share.units)

    @job(("forward", cell.key, dtype))
    def forward(block, index):
        a = read_forward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows.bounds, a.barriers, index)
        share = share_of(s, p, False)
        ready = are_packed(a, s, p, index, G)
        if not ready:
            pack(a, s, p)
        w = packed(a, s, share)
        start(a, s, p, share)
        start_noise(a, s, p, share)
        if CONVERTS_X or s.N < s.T * s.B:
            pack_x(a, s, p, index)
        sync_all(p, 2 if a.digest else 1)
        if not ready:
            record(a, p, index)
        two = RESETS or (PROJECTS and a.weights.w_hr != 0)
        states = a.workspace + s.states
        gates = a.workspace + s.own + index * s.own_size
        side = gates + s.chunk * (p.b1 - p.b0) * share.row_g
        syncs = 0
        for s0 in range(0, s.T, s.chunk):
            steps = minimum(s.chunk, s.T - s0)
            low = s.T - s0 - steps if s.reverse else s0
            stride = input_product(a, s, p, low, steps, w.x, gates, G * share.units)
            for k in range(steps):
                t = low + steps - 1 - k if s.reverse else low + k
                count = load_word(a.rows.counts + 8 * t)
                at = load_word(a.rows.offsets + 8 * t)
                end = minimum(p.b1, count)
                for r in range(maximum(p.b0, end), p.b1):
                    clear(a.y + caller_step(a.rows, s, t, r) * a.y_row + share.output0 * STORED, share.outputs)
                if end <= p.b0:
                    continue
                odd = (s0 + k) & 1
                row = (t - low) * stride if stride else at - load_word(a.rows.offsets + 8 * low)
                h = states + odd * s.B * s.R * OPERAND
                h_new = states + (1 - odd) * s.B * s.R * OPERAND
                operand = operand_of(a, s, odd, h)
                step = Step(t, at, end, end - p.b0, odd, gates + row * share.row_g, side, h, h_new, operand)
                if s.keep:
                    for r in range(p.b0, end):
                        saved = a.saved.h_prev + ((at + r) * s.R + share.output0) * OPERAND
                        copy_h(h + (r * s.R + share.output0) * OPERAND, saved, share.outputs)
                first(a, s, p, share, w, step)
                if two:
                    syncs += 1
                    arrive(s, p)
                    between(a, s, p, share, w, step)
                    await_group(s, p, syncs)
                    second(a, s, p, share, w, step)
                end_noise(a, s, p, share, step)
                last = t == (0 if s.reverse else s.T - 1)
                lasting = 0 if last else (count if s.reverse else load_word(a.rows.counts + 8 * (t + 1)))
                end_rows(a, s, p, share, step, lasting)
                syncs += 1
                sync_group(s, p, syncs)

    return forward


def make_backward(cell: Any, dtype: str) -> Any:
    """The backward job of a cell, a row of CELLS: backward(block, index), block the address of a `Backward`."""
    form = formats(dtype)
    stored = form.stored
    computed = form.computed
    MIXED = form.mixed
    gradients = make_gradients(dtype, flags_of(cell).masks)
    unit_gradients = make_unit_gradients(cell, dtype)
    copy_start = copier(stored.dtype, computed.dtype)
    copy_end = copier(computed.dtype, stored.dtype)
    cells_of = cell_states(dtype, False)
    STORED = stored.itemsize
    COMPUTED = computed.itemsize
    pack, packed, second_rows, second_product, first_rows, first_product = backward_stages(cell, dtype)
    share_of = share_maker(cell, dtype)
    before, between, after, operands = backward_passes(cell, dtype)
    G = cell.n_gates
    RESETS = cell.resets_before
    PROJECTS = cell.projects
    CELL_STATES = cell.n_cell_states
    IN_WORKSPACE = CELL_STATES if MIXED else 0

    @inner
    def start(a, s, p, share):
        """The gradients of the final states, to go on with."""
        for r in range(p.b0, p.b1):
            row = caller_row(a.rows, r)
            dh = a.workspace + s.states + (r * s.R + share.output0) * COMPUTED
            copy_start(a.dh_n + (row * s.R + share.output0) * STORED, dh, share.outputs)
            for k in range(CELL_STATES):
                at = (row * CELL_STATES + k) * s.H + share.unit0
                copy_start(a.dc_n + at * STORED, cells_of(a, s) + at * COMPUTED, share.units)

    @inner
    def finish(a, s, p, share):
        for r in range(p.b0, p.b1):
            row = caller_row(a.rows, r)
            dh = a.workspace + s.states + (r * s.R + share.output0) * COMPUTED
            copy_end(dh, a.dh0 + (row * s.R + share.output0) * STORED, share.outputs)
            for k in range(IN_WORKSPACE):
                at = (row * CELL_STATES + k) * s.H + share.unit0
                copy_end(cells_of(a, s) + at * COMPUTED, a.dc0 + at * STORED, share.units)

    @job(("backward", cell.key, dtype))
    def backward(block, index):
        a = read_backward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows.bounds, a.barriers, index)
        share = share_of(s, p, True)
        pack(a, s, p)
        w = packed(a, s, share)
        start(a, s, p, share)
        sync_all(p, 1)
        two = RESETS or (PROJECTS and a.weights.w_hr != 0)
        syncs = 0
        for k in range(s.T):
            t = k if s.reverse else s.T - 1 - k
            at = load_word(a.rows.offsets + 8 * t)
            end = minimum(p.b1, load_word(a.rows.counts + 8 * t))
            if end <= p.b0:
                continue
            step = Step(t, at, end, end - p.b0, k & 1, 0, 0, 0, 0, 0)
            before(a, s, p, share, step)
            if two:
                second_rows(a, s, p, share, w, step)
                syncs += 1
                sync_group(s, p, syncs)
                second_product(a, s, p, share, w, step)
                between(a, s, p, share, step)
            first_rows(a, s, p, share, w, step)
            syncs += 1
            sync_group(s, p, syncs)
            first_product(a, s, p, share, w, step)
            after(a, s, p, share, step)
        finish(a, s, p, share)
        gradients(a, s, p, index, G, operands(a), a.saved.operand if RESETS else 0)
        unit_gradients(a, s, p, index)

    return backward
