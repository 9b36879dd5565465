"""The pointwise part of one row of a GRU that resets h' before its second product. See kernels/cpu/pointwise.py."""

from __future__ import annotations

from functools import cache
from typing import Any

from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.simd import vectors


@cache
def reset_rows(cell: Any, dtype: str, state: str) -> tuple[Any, Any]:
    """The two forward stages of a GRU that resets before its second product.

    reset_row(g, bias_x, bias_h, h, r, rh, share, keep, constants)
        g holds r's pre-activations. r goes to `r` where keep, r h' to rh.
    output_row(g, apart, bias_x, bias_h, h, z, out, y, share, H, keep, constants)
        g holds those of z, and those of n `apart` bytes on; the biases are z's, with n's H units on. z goes to `z`
        where keep, n H units on; h to out and y.

    `state` is the dtype in memory of h and `out`.
    """
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    v = form.computed
    stages = pointwise_of(cell, inner, activations(v.dtype))
    prepared = stages.prepared
    load_numbers = v.load_numbers
    CONSTANTS = len(cell.constants)
    h_format = vectors(state)
    size = v.itemsize
    stored_size = stored.itemsize
    operand_size = operand.itemsize
    h_size = h_format.itemsize
    lanes = v.lanes
    reset = stages.reset
    update = stages.update
    output = stages.output

    def units(part):
        load = getattr(v, part).load
        load_bias = getattr(stored, part).load
        store_value = getattr(stored, part).store
        store_rh = getattr(operand, part).store
        load_h = getattr(h_format, part).load
        store_h = getattr(h_format, part).store

        @inner
        def with_biases(g, bias_x, bias_h, n):
            return load(g, n) + (load_bias(bias_x, n) + load_bias(bias_h, n))

        @inner
        def reset_step(j, n, g, bx, bh, h, r, rh, keep, k):
            at = j * stored_size
            r_value, rh_value = reset(with_biases(g + j * size, bx + at, bh + at, n), load_h(h + j * h_size, n), k)
            if keep:
                store_value(r_value, r + at, n)
            store_rh(rh_value, rh + j * operand_size, n)

        @inner
        def output_step(j, n, g, apart, bx, bh, h, z, out, y, H, keep, k):
            gate = g + j * size
            at = j * stored_size
            after = (H + j) * stored_size
            h_before = load_h(h + j * h_size, n)
            z_value = update(with_biases(gate, bx + at, bh + at, n), k)
            n_value, h_value = output(with_biases(gate + apart, bx + after, bh + after, n), z_value, h_before, k)
            if keep:
                store_value(z_value, z + at, n)
                store_value(n_value, z + after, n)
            store_h(h_value, out + j * h_size, n)
            store_value(h_value, y + at, n)

        return reset_step, output_step

    (reset_whole, output_whole), (reset_ending, output_ending) = units("whole"), units("first")

    @inner
    def reset_row(g, bx, bh, h, r, rh, share, keep, constants):
        k = prepared(load_numbers(constants, CONSTANTS))
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            reset_whole(j, lanes, g, bx, bh, h, r, rh, keep, k)
        if last < share:
            reset_ending(last, share - last, g, bx, bh, h, r, rh, keep, k)

    @inner
    def output_row(g, apart, bx, bh, h, z, out, y, share, H, keep, constants):
        k = prepared(load_numbers(constants, CONSTANTS))
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            output_whole(j, lanes, g, apart, bx, bh, h, z, out, y, H, keep, k)
        if last < share:
            output_ending(last, share - last, g, apart, bx, bh, h, z, out, y, H, keep, k)

    return reset_row, output_row


@cache
def reset_rows_back(cell: Any, dtype: str) -> tuple[Any, Any]:
    """The two backward stages of a GRU that resets before its second product.

    output_row(saved, h_prev, dy, has_dy, dh, dg, share, H, constants)
        da_z and da_n go into dg, dh + dy into dh
    gates_row(saved, h_prev, drh, dh, dg, share, H, constants)
        da_r goes into dg; into dh what reaches h' without the product of r and z
    """
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    v = form.computed
    stages = pointwise_of(cell, inner, activations(v.dtype))
    prepared = stages.prepared
    load_numbers = v.load_numbers
    CONSTANTS = len(cell.constants)
    size = v.itemsize
    stored_size = stored.itemsize
    operand_size = operand.itemsize
    lanes = v.lanes
    output_backward = stages.output_backward
    gates_backward = stages.gates_backward

    def units(part):
        load = getattr(v, part).load
        store = getattr(v, part).store
        load_value = getattr(stored, part).load
        load_h = getattr(operand, part).load
        store_gate = getattr(operand, part).store

        @inner
        def output_step(j, n, saved, h_prev, dy, has_dy, dh, dg, H, k):
            at = j * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load_value(dy + j * stored_size, n)
            z = load_value(saved + (H + j) * stored_size, n)
            value = load_value(saved + (2 * H + j) * stored_size, n)
            da_z, da_n = output_backward(z, value, load_h(h_prev + j * operand_size, n), d_h, k)
            store_gate(da_z, dg + (H + j) * operand_size, n)
            store_gate(da_n, dg + (2 * H + j) * operand_size, n)
            store(d_h, dh + at, n)

        @inner
        def gates_step(j, n, saved, h_prev, drh, dh, dg, H, k):
            at = j * size
            r = load_value(saved + j * stored_size, n)
            z = load_value(saved + (H + j) * stored_size, n)
            h = load_h(h_prev + j * operand_size, n)
            da_r, dh_prev = gates_backward(r, z, h, load(dh + at, n), load(drh + at, n), k)
            store_gate(da_r, dg + j * operand_size, n)
            store(dh_prev, dh + at, n)

        return output_step, gates_step

    (output_whole, gates_whole), (output_ending, gates_ending) = units("whole"), units("first")

    @inner
    def output_row(saved, h_prev, dy, has_dy, dh, dg, share, H, constants):
        k = prepared(load_numbers(constants, CONSTANTS))
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            output_whole(j, lanes, saved, h_prev, dy, has_dy, dh, dg, H, k)
        if last < share:
            output_ending(last, share - last, saved, h_prev, dy, has_dy, dh, dg, H, k)

    @inner
    def gates_row(saved, h_prev, drh, dh, dg, share, H, constants):
        k = prepared(load_numbers(constants, CONSTANTS))
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            gates_whole(j, lanes, saved, h_prev, drh, dh, dg, H, k)
        if last < share:
            gates_ending(last, share - last, saved, h_prev, drh, dh, dg, H, k)

    return output_row, gates_row
