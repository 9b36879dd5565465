"""The time loops of the CPU path: a whole layer in one direction, packed, walked and differentiated in one job.

    forward     a chunk of steps at a time gates = x W_ih^T; then per step += h W_hh^T, and the cell, a vector of units
                at a time
    backward    per step, last first: the cell, then dh += dgates W_hh; afterwards dx, dW and db, one product each

What differs from cell to cell is in kernels/cpu/one_product.py and reset_before.py; arguments are in
kernels/cpu/arguments.py, the division over threads in kernels/cpu/partition.py.
"""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cpu import one_product, reset_before
from rnnkit.kernels.cpu.arguments import read_backward, read_forward, read_shape
from rnnkit.kernels.cpu.gradients import make_gradients
from rnnkit.kernels.cpu.jit import inner, job, outer
from rnnkit.kernels.cpu.memory import load_word, maximum, minimum
from rnnkit.kernels.cpu.packed_weights import weight_functions
from rnnkit.kernels.cpu.partition import arrive, await_group, part_of, sync_all, sync_group
from rnnkit.kernels.cpu.rows import row_functions
from rnnkit.kernels.cpu.stages import BackwardStages, ForwardStages, Step, share_maker


def forward_stages(cell: Any, dtype: str) -> ForwardStages:
    """The forward stages of a cell."""
    family = reset_before if cell.resets_before else one_product
    return family.forward_stages(cell, dtype)


def backward_stages(cell: Any, dtype: str) -> BackwardStages:
    """The backward stages of a cell."""
    family = reset_before if cell.resets_before else one_product
    return family.backward_stages(cell, dtype)


def _state_starter(cell: Any, dtype: str) -> Any:
    """start(a, s, p, share): h0 into both states and, with c0, into the results, where the loop goes on with them."""
    rows = row_functions(dtype)
    HAS_C = cell.has_c
    copy = rows.copy
    caller_row = rows.caller_row

    @outer
    def start(a, s, p, share):
        states = a.workspace + s.states + share.first_out
        for r in range(p.b0, p.b1):
            row = caller_row(a.rows, r)
            h0 = a.h0 + row * share.row_h + share.first_out
            copy(h0, states + r * share.row_h, share.outputs)
            copy(h0, states + (s.B + r) * share.row_h, share.outputs)
            copy(h0, a.h_n + row * share.row_h + share.first_out, share.outputs)
            if HAS_C:
                at = row * share.row_c + share.first
                copy(a.c0 + at, a.c_n + at, share.units)

    return start


def make_forward(cell: Any, dtype: str) -> Any:
    """The forward job of a cell, a row of CELLS: forward(block, index), block the address of a `Forward`."""
    rows = row_functions(dtype)
    weights = weight_functions(dtype)
    copy = rows.copy
    clear = rows.clear
    caller_row = rows.caller_row
    caller_step = rows.caller_step
    pack_x = rows.pack_x
    are_packed = weights.are_packed
    record = weights.record
    input_product = weights.input_product
    pack, packed, first, between, second = forward_stages(cell, dtype)
    share_of = share_maker(cell, dtype)
    start = _state_starter(cell, dtype)
    G = cell.n_gates
    RESETS = cell.resets_before
    PROJECTS = cell.projects

    @inner
    def end_rows(a, s, p, share, step, lasting):
        """Final states of the rows from `lasting` on, which end with this step."""
        for r in range(maximum(p.b0, lasting), step.end):
            out = a.h_n + caller_row(a.rows, r) * share.row_h + share.first_out
            copy(step.h_new + r * share.row_h + share.first_out, out, share.outputs)

    @job(("forward", cell.name, dtype))
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
        if s.N < s.T * s.B:
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
                    clear(a.y + caller_step(a.rows, s, t, r) * a.y_row + share.first_out, share.outputs)
                if end <= p.b0:
                    continue
                odd = (s0 + k) & 1
                row = (t - low) * stride if stride else at - load_word(a.rows.offsets + 8 * low)
                h = states + odd * s.B * share.row_h
                h_new = states + (1 - odd) * s.B * share.row_h
                step = Step(t, at, end, end - p.b0, odd, gates + row * share.row_g, side, h, h_new)
                if s.keep:
                    for r in range(p.b0, end):
                        saved = a.saved.h_prev + (at + r) * share.row_h + share.first_out
                        copy(h + r * share.row_h + share.first_out, saved, share.outputs)
                first(a, s, p, share, w, step)
                if two:
                    syncs += 1
                    arrive(s, p)
                    between(a, s, p, share, w, step)
                    await_group(s, p, syncs)
                    second(a, s, p, share, w, step)
                last = t == (0 if s.reverse else s.T - 1)
                lasting = 0 if last else (count if s.reverse else load_word(a.rows.counts + 8 * (t + 1)))
                end_rows(a, s, p, share, step, lasting)
                syncs += 1
                sync_group(s, p, syncs)

    return forward


def make_backward(cell: Any, dtype: str) -> Any:
    """The backward job of a cell, a row of CELLS: backward(block, index), block the address of a `Backward`."""
    rows = row_functions(dtype)
    gradients = make_gradients(dtype)
    copy = rows.copy
    caller_row = rows.caller_row
    pack, packed, second_rows, second_product, first_rows, first_product = backward_stages(cell, dtype)
    share_of = share_maker(cell, dtype)
    G = cell.n_gates
    RESETS = cell.resets_before
    PROJECTS = cell.projects
    HAS_C = cell.has_c

    @inner
    def start(a, s, p, share):
        """The gradients of the final states, to go on with."""
        for r in range(p.b0, p.b1):
            row = caller_row(a.rows, r)
            dh = a.workspace + s.states + r * share.row_h + share.first_out
            copy(a.dh_n + row * share.row_h + share.first_out, dh, share.outputs)
            if HAS_C:
                at = row * share.row_c + share.first
                copy(a.dc_n + at, a.dc0 + at, share.units)

    @inner
    def finish(a, s, p, share):
        for r in range(p.b0, p.b1):
            dh = a.workspace + s.states + r * share.row_h + share.first_out
            copy(dh, a.dh0 + caller_row(a.rows, r) * share.row_h + share.first_out, share.outputs)

    @job(("backward", cell.name, dtype))
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
            step = Step(t, at, end, end - p.b0, k & 1, 0, 0, 0, 0)
            if two:
                second_rows(a, s, p, share, w, step)
                syncs += 1
                sync_group(s, p, syncs)
                second_product(a, s, p, share, w, step)
            first_rows(a, s, p, share, w, step)
            syncs += 1
            sync_group(s, p, syncs)
            first_product(a, s, p, share, w, step)
        finish(a, s, p, share)
        gradients(a, s, p, index, G, a.saved.operand if RESETS else 0)

    return backward
