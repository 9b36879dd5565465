"""The time loops of the GRU that resets before the product: two products and two pointwise stages a step, each way.

Arguments, storage and the parts of threads are those of kernels/cpu/frame.py. kept (N, 3H) holds r,z,n and extra (N, H)
r h', the operand of dW_hn. r h' needs every unit of r before W_hn can multiply it, so members meet twice a step. While
they wait for each other's r h' they compute what z needs.
"""

from __future__ import annotations

from typing import Any

from rnnkit.kernels.cells import gru
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.frame import (
    arrive,
    await_members,
    make_frame,
    meet,
    meet_all,
    part_of,
    read_backward,
    read_forward,
    read_shape,
)
from rnnkit.kernels.cpu.gradients import make_gradients
from rnnkit.kernels.cpu.jit import inner, job
from rnnkit.kernels.cpu.matmul import products
from rnnkit.kernels.cpu.memory import load_word, maximum, minimum
from rnnkit.kernels.cpu.simd import vectors


def make_stages(dtype: str) -> Any:
    """The two pointwise stages of one row's `share` units; addresses of the first, and strides in bytes.

    reset_row(g, bias_x, bias_h, h, r, rh, share, keep)
        g holds r's pre-activations; r into `r` where keep, r h' into rh
    output_row(g, apart, bias_x, bias_h, h, z, out, y, share, H, keep)
        g holds those of z, and `apart` bytes on those of n; biases those of z, n's H on; z into `z` where keep, and n
        H units on; h into out and y
    """
    stages, v = gru.make_reset_before(inner, activations(dtype)), vectors(dtype)
    size, lanes, reset, update, output = v.itemsize, v.lanes, stages.reset, stages.update, stages.output

    def units(memory):
        load, store = memory.load, memory.store

        @inner
        def with_biases(g, bias_x, bias_h, n):
            return load(g, n) + (load(bias_x, n) + load(bias_h, n))

        @inner
        def reset_step(j, n, g, bx, bh, h, r, rh, keep):
            at = j * size
            r_value, rh_value = reset(with_biases(g + at, bx + at, bh + at, n), load(h + at, n))
            if keep:
                store(r_value, r + at, n)
            store(rh_value, rh + at, n)

        @inner
        def output_step(j, n, g, apart, bx, bh, h, z, out, y, H, keep):
            at, after = j * size, (H + j) * size
            z_value = update(with_biases(g + at, bx + at, bh + at, n))
            n_value, h_value = output(with_biases(g + apart + at, bx + after, bh + after, n), z_value, load(h + at, n))
            if keep:
                store(z_value, z + at, n)
                store(n_value, z + after, n)
            store(h_value, out + at, n)
            store(h_value, y + at, n)

        return reset_step, output_step

    (reset_whole, output_whole), (reset_ending, output_ending) = units(v.whole), units(v.first)

    @inner
    def reset_row(g, bx, bh, h, r, rh, share, keep):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            reset_whole(j, lanes, g, bx, bh, h, r, rh, keep)
        if last < share:
            reset_ending(last, share - last, g, bx, bh, h, r, rh, keep)

    @inner
    def output_row(g, apart, bx, bh, h, z, out, y, share, H, keep):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            output_whole(j, lanes, g, apart, bx, bh, h, z, out, y, H, keep)
        if last < share:
            output_ending(last, share - last, g, apart, bx, bh, h, z, out, y, H, keep)

    return reset_row, output_row


def make_forward(dtype: str) -> Any:
    """The forward job: forward(block, index), block a `Forward`."""
    v, product, frame = vectors(dtype), products(dtype).product, make_frame(dtype)
    reset_row, output_row = make_stages(dtype)
    size, lanes, bound, copy, pack_share, input_product = (
        v.itemsize, v.lanes, frame.bound, frame.copy, frame.pack_share, frame.input_product,
    )  # fmt: skip

    already_packed, note_packed, clear = frame.already_packed, frame.note_packed, frame.clear
    home, place, take_rows = frame.home, frame.place, frame.take_rows

    @job(("forward", "gru_reset_before", dtype))
    def forward(block, index):
        a = read_forward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows, a.meeting, index)
        H, keep, u0 = s.H, s.keep, bound(s.H, s.members, p.member)
        share, first = bound(H, s.members, p.member + 1) - u0, u0 * size
        GH, row = 3 * share, H * size
        row_g, block_g, w_n_at = GH * size, share * size, a.w_hh + 2 * H * row
        w_x, w_rz, w_n = a.packed + s.w_x, a.packed + s.w_h, a.packed + s.w_p
        # Where members wait for each other, r comes first; else r and z together, which fill wider tiles.
        apart, w_z = s.members > 1, w_rz + (H + lanes - 1) // lanes * lanes * row
        there = already_packed(a, s, p, index, 3)
        if not there:
            pack_share(a.w_ih, s.I, False, H, 3, s, p, w_x)
            pack_share(a.w_hh, H, False, H, 1 if apart else 2, s, p, w_rz)
            if apart:
                pack_share(a.w_hh + H * row, H, False, H, 1, s, p, w_z)
            pack_share(w_n_at, H, False, H, 1, s, p, w_n)
        # Not apart u0 is 0.
        w_x, w_rz, w_z, w_n = w_x + u0 * 3 * s.I * size, w_rz + u0 * row, w_z + u0 * row, w_n + u0 * row
        states, rh_rows = a.scratch + s.states, a.extra if keep else a.scratch + s.exchanged
        for r in range(p.b0, p.b1):
            h0, h_n = a.h0 + home(a, r) * row + first, a.h_n + home(a, r) * row + first
            for target in (states + r * row + first, states + (s.B + r) * row + first, h_n):
                copy(h0, target, share)
        if s.N < s.T * s.B:
            take_rows(a, s, p, index)
        meet_all(p, 2 if a.digest else 1)
        if not there:
            note_packed(a, p, index)
        gates, meetings = a.scratch + s.own + index * s.own_size, 0
        for s0 in range(0, s.T, s.chunk):
            steps = minimum(s.chunk, s.T - s0)
            low = s.T - s0 - steps if s.reverse else s0
            stride = input_product(s, p, low, steps, a.x_rows, w_x, a.offsets, a.counts, gates, GH)
            for k in range(steps):
                t = low + steps - 1 - k if s.reverse else low + k
                count, at = load_word(a.counts + 8 * t), load_word(a.offsets + 8 * t)
                end = minimum(p.b1, count)
                for r in range(maximum(p.b0, end), p.b1):
                    clear(a.y + place(a, s, t, r) * a.y_row + first, share)
                if end <= p.b0:
                    continue
                rows, odd = end - p.b0, (s0 + k) & 1
                g = gates + ((t - low) * stride if stride else at - load_word(a.offsets + 8 * low)) * row_g
                h, h_new = states + odd * s.B * row + first, states + (1 - odd) * s.B * row + first
                h_rows = h - first + p.b0 * row
                product(h_rows, row, w_rz, H, g, row_g, share if apart else 2 * share, rows, 1, odd)
                for r in range(p.b0, end):
                    here = at + r
                    reset_row(
                        g + (r - p.b0) * row_g, a.b_ih + first, a.b_hh + first, h + r * row,
                        a.kept + here * 3 * row + first, rh_rows + (here if keep else r) * row + first, share, keep,
                    )  # fmt: skip
                if apart:
                    arrive(s, p)
                    product(h_rows, row, w_z, H, g + block_g, row_g, share, rows, 1, odd)
                if keep:
                    for r in range(p.b0, end):
                        copy(h + r * row, a.h_prev + (at + r) * row + first, share)
                await_members(s, p, meetings + 1)
                rh = rh_rows + (at + p.b0 if keep else p.b0) * row
                product(rh, row, w_n, H, g + 2 * block_g, row_g, share, rows, 1, odd)
                for r in range(p.b0, end):
                    here, z = at + r, row + first
                    output_row(
                        g + (r - p.b0) * row_g + block_g, block_g, a.b_ih + z, a.b_hh + z, h + r * row,
                        a.kept + here * 3 * row + z, h_new + r * row,
                        a.y + place(a, s, t, r) * a.y_row + first, share, H, keep,
                    )  # fmt: skip
                over = t == (0 if s.reverse else s.T - 1)
                lasting = 0 if over else (count if s.reverse else load_word(a.counts + 8 * (t + 1)))
                for r in range(maximum(p.b0, lasting), end):
                    copy(h_new + r * row, a.h_n + home(a, r) * row + first, share)
                meetings += 2
                meet(s, p, meetings)

    return forward


def make_stages_back(dtype: str) -> Any:
    """The two pointwise stages back of one row's `share` units.

    output_row(kept, h_prev, dy, has_dy, dh, dg, share, H): da_z and da_n into dg; dh + dy into dh
    gates_row(kept, h_prev, drh, dh, dg, share, H): da_r into dg; what reaches h' past the r and z products into dh
    """
    stages, v = gru.make_reset_before(inner, activations(dtype)), vectors(dtype)
    size, lanes, output_backward, gates_backward = v.itemsize, v.lanes, stages.output_backward, stages.gates_backward

    def units(memory):
        load, store = memory.load, memory.store

        @inner
        def output_step(j, n, kept, h_prev, dy, has_dy, dh, dg, H):
            at = j * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            z, value = load(kept + (H + j) * size, n), load(kept + (2 * H + j) * size, n)
            da_z, da_n = output_backward(z, value, load(h_prev + at, n), d_h)
            store(da_z, dg + (H + j) * size, n)
            store(da_n, dg + (2 * H + j) * size, n)
            store(d_h, dh + at, n)

        @inner
        def gates_step(j, n, kept, h_prev, drh, dh, dg, H):
            at = j * size
            r, z = load(kept + at, n), load(kept + (H + j) * size, n)
            da_r, dh_prev = gates_backward(r, z, load(h_prev + at, n), load(dh + at, n), load(drh + at, n))
            store(da_r, dg + at, n)
            store(dh_prev, dh + at, n)

        return output_step, gates_step

    (output_whole, gates_whole), (output_ending, gates_ending) = units(v.whole), units(v.first)

    @inner
    def output_row(kept, h_prev, dy, has_dy, dh, dg, share, H):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            output_whole(j, lanes, kept, h_prev, dy, has_dy, dh, dg, H)
        if last < share:
            output_ending(last, share - last, kept, h_prev, dy, has_dy, dh, dg, H)

    @inner
    def gates_row(kept, h_prev, drh, dh, dg, share, H):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            gates_whole(j, lanes, kept, h_prev, drh, dh, dg, H)
        if last < share:
            gates_ending(last, share - last, kept, h_prev, drh, dh, dg, H)

    return output_row, gates_row


def make_backward(dtype: str) -> Any:
    """The backward job: backward(block, index), block a `Backward`."""
    v, product, frame, gradients = vectors(dtype), products(dtype).product, make_frame(dtype), make_gradients(dtype)
    output_row, gates_row = make_stages_back(dtype)
    size, bound, pack_share, copy, home, place = (
        v.itemsize, frame.bound, frame.pack_share, frame.copy, frame.home, frame.place,
    )  # fmt: skip

    @job(("backward", "gru_reset_before", dtype))
    def backward(block, index):
        a = read_backward(block)
        s = read_shape(a.shape)
        p = part_of(s, a.rows, a.meeting, index)
        H, has_dy, u0 = s.H, a.dy != 0, bound(s.H, s.members, p.member)
        share, first, row = bound(H, s.members, p.member + 1) - u0, u0 * size, H * size
        row_g, w_n_at = 3 * row, a.w_hh + 2 * H * row
        w_rz, w_n, drh_rows = a.scratch + s.w_h, a.scratch + s.w_p, a.scratch + s.exchanged
        pack_share(a.w_hh, 2 * H, True, H, 1, s, p, w_rz)
        pack_share(w_n_at, H, True, H, 1, s, p, w_n)
        w_rz, w_n = w_rz + u0 * 2 * row, w_n + u0 * row
        dhs = a.scratch + s.states + first
        for r in range(p.b0, p.b1):
            copy(a.dh_n + home(a, r) * row + first, dhs + r * row, share)
        meet_all(p, 1)
        meetings = 0
        for k in range(s.T):
            t = k if s.reverse else s.T - 1 - k
            at = load_word(a.offsets + 8 * t)
            end = minimum(p.b1, load_word(a.counts + 8 * t))
            if end <= p.b0:
                continue
            rows, odd, dg = end - p.b0, k & 1, a.dgates_x + (at + p.b0) * row_g
            for r in range(p.b0, end):
                here, dy = at + r, a.dy + place(a, s, t, r) * a.y_row + first
                output_row(
                    a.kept + here * row_g + first, a.h_prev + here * row + first, dy, has_dy, dhs + r * row,
                    a.dgates_x + here * row_g + first, share, H,
                )  # fmt: skip
            meet(s, p, meetings + 1)
            product(dg + 2 * row, row_g, w_n, H, drh_rows + p.b0 * row + first, row, share, rows, 0, odd)
            for r in range(p.b0, end):
                here = at + r
                gates_row(
                    a.kept + here * row_g + first, a.h_prev + here * row + first, drh_rows + r * row + first,
                    dhs + r * row, a.dgates_x + here * row_g + first, share, H,
                )  # fmt: skip
            meetings += 2
            meet(s, p, meetings)
            product(dg, row_g, w_rz, 2 * H, dhs + p.b0 * row, row, share, rows, 1, odd)
        for r in range(p.b0, p.b1):
            copy(dhs + r * row, a.dh0 + home(a, r) * row + first, share)
        gradients(a, s, p, index, 3, a.h_prev, a.extra)

    return backward
