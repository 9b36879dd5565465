"""The pointwise part of one row, vector by vector: what the stages of the time loops call between the products.

Addresses are of the first unit of the thread's share; `share` units are computed. A row's last vector may be partial.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rnnkit.kernels.cells import POINTWISE
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.simd import vectors


@cache
def forward_row(cell: Any, dtype: str) -> Any:
    """row(g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, share, H, keep) for a cell with one stage.

    g, and u where the cell splits its sides, hold the gates' blocks, `apart` bytes from each other; the biases and
    `saved` hold blocks of H units. The new h goes to `out`, and to y unless y is 0.
    """
    pair = POINTWISE[cell.name](inner, activations(dtype)).forward
    v = vectors(dtype)
    zero = v.zero
    add_blocks = v.add_blocks
    size = v.itemsize
    lanes = v.lanes
    G = cell.n_gates
    SPLITS = cell.splits_sides
    READS_H = cell.reads_h
    HAS_C = cell.has_c

    def units(memory):
        """The cell on one vector of units, from unit j on."""
        load = memory.load
        store = memory.store
        load_blocks = memory.load_blocks
        store_blocks = memory.store_blocks

        @inner
        def step(j, n, g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, H, keep):
            at = j * size
            block = H * size
            xs = add_blocks(load_blocks(g + at, apart, n, G), load_blocks(bias_x + at, block, n, G))
            us = load_blocks(bias_h + at, block, n, G)
            if SPLITS:
                us = add_blocks(us, load_blocks(u + at, apart, n, G))
            c_before = load(c + at, n) if HAS_C else zero()
            values, h_value, c_value = pair(xs, us, load(h + at, n) if READS_H else zero(), c_before)
            if keep:
                store_blocks(values, saved + at, block, n)
                if HAS_C:
                    store(c_before, c_prev + at, n)
            store(h_value, out + at, n)
            if y:
                store(h_value, y + at, n)
            if HAS_C:
                store(c_value, c_new + at, n)

        return step

    whole = units(v.whole)
    ending = units(v.first)

    @inner
    def row(g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, share, H, keep):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(j, lanes, g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, H, keep)
        if last < share:
            ending(last, share - last, g, u, apart, bias_x, bias_h, h, c, out, y, saved, c_prev, c_new, H, keep)

    return row


@cache
def backward_row(cell: Any, dtype: str) -> Any:
    """row(saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, share, H) for a cell with one stage.

    dh becomes the part of its gradient that reaches h' without a product; dx and du hold blocks of H units.
    """
    pair = POINTWISE[cell.name](inner, activations(dtype)).backward
    v = vectors(dtype)
    zero = v.zero
    size = v.itemsize
    lanes = v.lanes
    SAVED = cell.n_saved
    SPLITS = cell.splits_sides
    READS_H = cell.reads_h
    HAS_C = cell.has_c

    def units(memory):
        load = memory.load
        store = memory.store
        load_blocks = memory.load_blocks
        store_blocks = memory.store_blocks

        @inner
        def step(j, n, saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H):
            at = j * size
            block = H * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            dxs, dus, dh_direct, dc_prev = pair(
                load_blocks(saved + at, block, n, SAVED),
                load(h_prev + at, n) if READS_H else zero(),
                load(c_prev + at, n) if HAS_C else zero(),
                d_h,
                load(dc + at, n) if HAS_C else zero(),
            )
            store_blocks(dxs, dx + at, block, n)
            if SPLITS:
                store_blocks(dus, du + at, block, n)
            store(dh_direct, dh + at, n)
            if HAS_C:
                store(dc_prev, dc + at, n)

        return step

    whole = units(v.whole)
    ending = units(v.first)

    @inner
    def row(saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, share, H):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(j, lanes, saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H)
        if last < share:
            ending(last, share - last, saved, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H)

    return row


@cache
def reset_rows(cell: Any, dtype: str) -> tuple[Any, Any]:
    """The two forward stages of a GRU that resets before its second product.

    reset_row(g, bias_x, bias_h, h, r, rh, share, keep)
        g holds r's pre-activations. r goes to `r` where keep, r h' to rh.
    output_row(g, apart, bias_x, bias_h, h, z, out, y, share, H, keep)
        g holds those of z, and those of n `apart` bytes on; the biases are z's, with n's H units on. z goes to `z`
        where keep, n H units on; h to out and y.
    """
    stages = POINTWISE[cell.name](inner, activations(dtype))
    v = vectors(dtype)
    size = v.itemsize
    lanes = v.lanes
    reset = stages.reset
    update = stages.update
    output = stages.output

    def units(memory):
        load = memory.load
        store = memory.store

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
            at = j * size
            after = (H + j) * size
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


@cache
def reset_rows_back(cell: Any, dtype: str) -> tuple[Any, Any]:
    """The two backward stages of a GRU that resets before its second product.

    output_row(saved, h_prev, dy, has_dy, dh, dg, share, H)
        da_z and da_n go into dg, dh + dy into dh
    gates_row(saved, h_prev, drh, dh, dg, share, H)
        da_r goes into dg; into dh what reaches h' without the product of r and z
    """
    stages = POINTWISE[cell.name](inner, activations(dtype))
    v = vectors(dtype)
    size = v.itemsize
    lanes = v.lanes
    output_backward = stages.output_backward
    gates_backward = stages.gates_backward

    def units(memory):
        load = memory.load
        store = memory.store

        @inner
        def output_step(j, n, saved, h_prev, dy, has_dy, dh, dg, H):
            at = j * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            z = load(saved + (H + j) * size, n)
            value = load(saved + (2 * H + j) * size, n)
            da_z, da_n = output_backward(z, value, load(h_prev + at, n), d_h)
            store(da_z, dg + (H + j) * size, n)
            store(da_n, dg + (2 * H + j) * size, n)
            store(d_h, dh + at, n)

        @inner
        def gates_step(j, n, saved, h_prev, drh, dh, dg, H):
            at = j * size
            r = load(saved + at, n)
            z = load(saved + (H + j) * size, n)
            da_r, dh_prev = gates_backward(r, z, load(h_prev + at, n), load(dh + at, n), load(drh + at, n))
            store(da_r, dg + at, n)
            store(dh_prev, dh + at, n)

        return output_step, gates_step

    (output_whole, gates_whole), (output_ending, gates_ending) = units(v.whole), units(v.first)

    @inner
    def output_row(saved, h_prev, dy, has_dy, dh, dg, share, H):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            output_whole(j, lanes, saved, h_prev, dy, has_dy, dh, dg, H)
        if last < share:
            output_ending(last, share - last, saved, h_prev, dy, has_dy, dh, dg, H)

    @inner
    def gates_row(saved, h_prev, drh, dh, dg, share, H):
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            gates_whole(j, lanes, saved, h_prev, drh, dh, dg, H)
        if last < share:
            gates_ending(last, share - last, saved, h_prev, drh, dh, dg, H)

    return output_row, gates_row
