"""The time loops of the CPU path: a whole layer in one direction, weights packed, walked and differentiated in one job.

    forward     a chunk of steps at a time x W_ih^T; then per step += h W_hh^T, and the cell, 4 to 16 units at a time
    backward    per step, last first: the cell, then dh += du W_hh; afterwards dx, dW and db, one product each

Arguments, storage and the parts of threads are those of kernels/cpu/frame.py. The members of a group read each other's
units of h at the next step, from the other of two states that are written in turn, so that one meeting a step is
enough; under projection a second comes between the two products.
"""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cells import gru, lstm, rnn
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.frame import make_frame, meet, meet_all, part_of, read_backward, read_forward, read_shape
from rnnkit.kernels.cpu.gradients import make_gradients
from rnnkit.kernels.cpu.jit import inner, job
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.memory import load_word, maximum, minimum
from rnnkit.kernels.cpu.simd import vectors

# cell: (the module with its constants, its pointwise pair, whether the pair reads h', whether it has c)
_CELLS = {
    "rnn_tanh": (rnn, lambda act: rnn.make(inner, act, "tanh"), False, False),
    "rnn_relu": (rnn, lambda act: rnn.make(inner, act, "relu"), False, False),
    "gru": (gru, lambda act: gru.make(inner, act), True, False),
    "lstm": (lstm, lambda act: lstm.make(inner, act), False, True),
}


def kept_blocks(cell: str) -> int:
    """How many arrays of H values a step of the cell keeps, its states aside."""
    return _CELLS[cell][0].KEPT


def is_split(cell: str) -> bool:
    """Whether the cell takes the input's and the hidden side's pre-activations apart."""
    return _CELLS[cell][0].SPLIT


def parts_of(cell: str) -> tuple[int, bool]:
    """How many gates the cell has, and whether it `is_split`."""
    module = _CELLS[cell][0]
    return module.GATES, module.SPLIT


def make_pointwise(cell: str, dtype: str) -> Any:
    """pointwise(g, u, apart, bias_x, bias_h, h, c, out, y, kept, c_prev, c_new, share, H, keep): one row.

    `share` of its H units; the rest are addresses, of the first unit, and flags. g, and where the sides are apart u,
    hold the gates' blocks `apart` bytes from each other; biases and kept H units. h goes to `out`, and y unless 0.
    """
    module, make_pair, reads_h, has_c = _CELLS[cell]
    pair, v = make_pair(activations(dtype)).forward, vectors(dtype)
    zero, add_blocks, size, lanes, G, SPLIT = v.zero, v.add_blocks, v.itemsize, v.lanes, module.GATES, module.SPLIT

    def units(memory):
        """The cell on one vector of units, the j-th and on."""
        load, store, load_blocks, store_blocks = memory.load, memory.store, memory.load_blocks, memory.store_blocks

        @inner
        def step(j, n, g, u, apart, bias_x, bias_h, h, c, out, y, kept, c_prev, c_new, H, keep):
            at, block = j * size, H * size
            xs = add_blocks(load_blocks(g + at, apart, n, G), load_blocks(bias_x + at, block, n, G))
            us = load_blocks(bias_h + at, block, n, G)
            if SPLIT:
                us = add_blocks(us, load_blocks(u + at, apart, n, G))
            c_before = load(c + at, n) if has_c else zero()
            values, h_value, c_value = pair(xs, us, load(h + at, n) if reads_h else zero(), c_before)
            if keep:
                store_blocks(values, kept + at, block, n)
                if has_c:
                    store(c_before, c_prev + at, n)
            store(h_value, out + at, n)
            if y:
                store(h_value, y + at, n)
            if has_c:
                store(c_value, c_new + at, n)

        return step

    whole, ending = units(v.whole), units(v.first)

    @inner
    def pointwise(g, u, apart, bias_x, bias_h, h, c, out, y, kept, c_prev, c_new, share, H, keep):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(j, lanes, g, u, apart, bias_x, bias_h, h, c, out, y, kept, c_prev, c_new, H, keep)
        if last < share:
            ending(last, share - last, g, u, apart, bias_x, bias_h, h, c, out, y, kept, c_prev, c_new, H, keep)

    return pointwise


def make_forward(cell: str, dtype: str) -> Any:
    """The forward job: forward(block, index), block a `Forward`."""
    module, _, _, has_c = _CELLS[cell]
    v, product, frame = vectors(dtype), products(dtype).product, make_frame(dtype)
    pointwise, bound, copy = make_pointwise(cell, dtype), frame.bound, frame.copy
    pack_share, input_product, clear = frame.pack_share, frame.input_product, frame.clear
    home, place, take_rows = frame.home, frame.place, frame.take_rows
    already_packed, note_packed = frame.already_packed, frame.note_packed
    size, G, KEPT, SPLIT = v.itemsize, module.GATES, module.KEPT, module.SPLIT

    @job(("forward", cell, dtype))
    def forward(block, index):
        a = read_forward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows, a.meeting, index)
        H, R, keep, projected = s.H, s.R, s.keep, a.w_hr != 0
        u0, r0 = bound(H, s.members, p.member), bound(R, s.members, p.member)
        share, own = bound(H, s.members, p.member + 1) - u0, bound(R, s.members, p.member + 1) - r0
        first, first_r, GH = u0 * size, r0 * size, G * share
        row_g, row_h, row_c, row_kept = GH * size, R * size, H * size, KEPT * H * size
        w_x, w_h, w_p = a.packed + s.w_x, a.packed + s.w_h, a.packed + s.w_p
        there = already_packed(a, s, p, index, G)
        if not there:
            pack_share(a.w_ih, s.I, False, H, G, s, p, w_x)
            pack_share(a.w_hh, R, False, H, G, s, p, w_h)
            if projected:
                pack_share(a.w_hr, H, False, R, 1, s, p, w_p)
        w_x, w_h, w_p = w_x + u0 * G * s.I * size, w_h + u0 * G * R * size, w_p + r0 * H * size
        states, m_rows = a.scratch + s.states, a.extra if keep else a.scratch + s.exchanged
        for r in range(p.b0, p.b1):
            h0, h_n = a.h0 + home(a, r) * row_h + first_r, a.h_n + home(a, r) * row_h + first_r
            for target in (states + r * row_h + first_r, states + (s.B + r) * row_h + first_r, h_n):
                copy(h0, target, own)
            if has_c:
                copy(a.c0 + home(a, r) * row_c + first, a.c_n + home(a, r) * row_c + first, share)
        if s.N < s.T * s.B:
            take_rows(a, s, p, index)
        meet_all(p, 2 if a.digest else 1)
        if not there:
            note_packed(a, p, index)
        gates, meetings = a.scratch + s.own + index * s.own_size, 0
        u = gates + s.chunk * (p.b1 - p.b0) * row_g
        for s0 in range(0, s.T, s.chunk):
            steps = minimum(s.chunk, s.T - s0)
            low = s.T - s0 - steps if s.reverse else s0
            stride = input_product(s, p, low, steps, a.x_rows, w_x, a.offsets, a.counts, gates, GH)
            for k in range(steps):
                t = low + steps - 1 - k if s.reverse else low + k
                count, at = load_word(a.counts + 8 * t), load_word(a.offsets + 8 * t)
                end = minimum(p.b1, count)
                for r in range(maximum(p.b0, end), p.b1):
                    clear(a.y + place(a, s, t, r) * a.y_row + first_r, own)
                if end <= p.b0:
                    continue
                rows, odd = end - p.b0, (s0 + k) & 1
                g = gates + ((t - low) * stride if stride else at - load_word(a.offsets + 8 * low)) * row_g
                h, h_new = states + odd * s.B * row_h, states + (1 - odd) * s.B * row_h
                if keep:
                    for r in range(p.b0, end):
                        copy(h + r * row_h + first_r, a.h_prev + (at + r) * row_h + first_r, own)
                product(h + p.b0 * row_h, row_h, w_h, R, u if SPLIT else g, row_g, GH, rows, 0 if SPLIT else 1, odd)
                for r in range(p.b0, end):
                    here, c, y = at + r, a.c_n + home(a, r) * row_c + first, a.y + place(a, s, t, r) * a.y_row + first
                    m = m_rows + (here if keep else r) * row_c + first
                    pointwise(
                        g + (r - p.b0) * row_g, u + (r - p.b0) * row_g, share * size, a.b_ih + first, a.b_hh + first,
                        h + r * row_h + first, c, m if projected else h_new + r * row_h + first,
                        0 if projected else y, a.kept + here * row_kept + first,
                        a.c_prev + here * row_c + first, c, share, H, keep,
                    )  # fmt: skip
                if projected:
                    meetings += 1
                    meet(s, p, meetings)
                    m, out = m_rows + (at + p.b0 if keep else p.b0) * row_c, h_new + p.b0 * row_h + first_r
                    product(m, row_c, w_p, H, out, row_h, own, rows, 0, odd)
                    for r in range(p.b0, end):
                        copy(h_new + r * row_h + first_r, a.y + place(a, s, t, r) * a.y_row + first_r, own)
                over = t == (0 if s.reverse else s.T - 1)
                lasting = 0 if over else (count if s.reverse else load_word(a.counts + 8 * (t + 1)))
                for r in range(maximum(p.b0, lasting), end):
                    copy(h_new + r * row_h + first_r, a.h_n + home(a, r) * row_h + first_r, own)
                meetings += 1
                meet(s, p, meetings)

    return forward


def make_backward(cell: str, dtype: str) -> Any:
    """The backward job: backward(block, index), block a `Backward`."""
    module, make_pair, reads_h, has_c = _CELLS[cell]
    pair, v, product = make_pair(activations(dtype)).backward, vectors(dtype), products(dtype).product
    frame, gradients = make_frame(dtype), make_gradients(dtype)
    zero, bound, copy, add_to, clear, pack_share = (
        v.zero, frame.bound, frame.copy, frame.add_to, frame.clear, frame.pack_share,
    )  # fmt: skip
    home, place = frame.home, frame.place
    size, lanes, G, KEPT, SPLIT = v.itemsize, v.lanes, module.GATES, module.KEPT, module.SPLIT

    def units(memory):
        """The cell's backward on one vector of units, the j-th and on, of one row."""
        load, store, load_blocks, store_blocks = memory.load, memory.store, memory.load_blocks, memory.store_blocks

        @inner
        def step(j, n, kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H):
            at, block = j * size, H * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            dxs, dus, dh_direct, dc_prev = pair(
                load_blocks(kept + at, block, n, KEPT),
                load(h_prev + at, n) if reads_h else zero(),
                load(c_prev + at, n) if has_c else zero(),
                d_h,
                load(dc + at, n) if has_c else zero(),
            )
            store_blocks(dxs, dx + at, block, n)
            if SPLIT:
                store_blocks(dus, du + at, block, n)
            store(dh_direct, dh + at, n)
            if has_c:
                store(dc_prev, dc + at, n)

        return step

    whole, ending = units(v.whole), units(v.first)

    @inner
    def pointwise(kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, share, H):
        """One row: `share` units of H. The rest are addresses, and a flag; dh becomes what goes to h' by no product."""
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(j, lanes, kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H)
        if last < share:
            ending(last, share - last, kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H)

    @job(("backward", cell, dtype))
    def backward(block, index):
        a = read_backward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows, a.meeting, index)
        H, R, projected, has_dy = s.H, s.R, a.w_hr != 0, a.dy != 0
        u0, r0 = bound(H, s.members, p.member), bound(R, s.members, p.member)
        share, own, GH = bound(H, s.members, p.member + 1) - u0, bound(R, s.members, p.member + 1) - r0, G * H
        first, first_r = u0 * size, r0 * size
        row_g, row_h, row_c, row_kept = GH * size, R * size, H * size, KEPT * H * size
        w_h, w_p = a.scratch + s.w_h, a.scratch + s.w_p
        pack_share(a.w_hh, GH, True, R, 1, s, p, w_h)
        if projected:
            pack_share(a.w_hr, R, True, H, 1, s, p, w_p)
        w_h, w_p, dm_rows = w_h + r0 * GH * size, w_p + u0 * R * size, a.scratch + s.exchanged
        dhs = a.scratch + s.states + first_r
        for r in range(p.b0, p.b1):
            copy(a.dh_n + home(a, r) * row_h + first_r, dhs + r * row_h, own)
            if has_c:
                copy(a.dc_n + home(a, r) * row_c + first, a.dc0 + home(a, r) * row_c + first, share)
        meet_all(p, 1)
        meetings = 0
        for k in range(s.T):
            t = k if s.reverse else s.T - 1 - k
            at = load_word(a.offsets + 8 * t)
            end = minimum(p.b1, load_word(a.counts + 8 * t))
            if end <= p.b0:
                continue
            rows, odd = end - p.b0, k & 1
            if projected:
                for r in range(p.b0, end):
                    dh, dp, dy = (
                        dhs + r * row_h, a.dprojected + (at + r) * row_h + first_r,
                        a.dy + place(a, s, t, r) * a.y_row + first_r,
                    )  # fmt: skip
                    copy(dh, dp, own)
                    if has_dy:
                        add_to(dy, dp, own)
                    clear(dh, own)
                meetings += 1
                meet(s, p, meetings)
                dm = dm_rows + p.b0 * row_c + first
                product(a.dprojected + (at + p.b0) * row_h, row_h, w_p, R, dm, row_c, share, rows, 0, odd)
            for r in range(p.b0, end):
                here = at + r
                pointwise(
                    a.kept + here * row_kept + first, a.h_prev + here * row_h + first,
                    a.c_prev + here * row_c + first, a.dy + place(a, s, t, r) * a.y_row + first,
                    has_dy and not projected, dm_rows + r * row_c + first if projected else dhs + r * row_h,
                    a.dc0 + home(a, r) * row_c + first, a.dgates_x + here * row_g + first,
                    a.dgates_h + here * row_g + first, share, H,
                )  # fmt: skip
            meetings += 1
            meet(s, p, meetings)
            product(a.dgates_h + (at + p.b0) * row_g, row_g, w_h, GH, dhs + p.b0 * row_h, row_h, own, rows, 1, odd)
        for r in range(p.b0, p.b1):
            copy(dhs + r * row_h, a.dh0 + home(a, r) * row_h + first_r, own)
        gradients(a, s, p, index, G, a.h_prev, 0)

    return backward
