"""Numba CUDA: the backward scan of every cell but those that normalise. scan.py describes it and its arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rnnkit.core.cells import Cell
from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.numba_cuda.launch_shape import ROWS, THREADS
from rnnkit.kernels.numba_cuda.numbers import (
    COMPUTE,
    STORAGE,
    activations,
    cell_states,
    constant,
    cuda,
    device,
    dot,
    tuples,
)
from rnnkit.kernels.numba_cuda.options import extras_loaders, zoned_backward, zoneout
from rnnkit.kernels.numba_cuda.rows import most_steps, rows_of_block, time_of
from rnnkit.kernels.numba_cuda.tiles import TILE, first_gates, mask_of_last, tiled_product


def make_backward(cell: Cell, dtype: str):
    """backward(dy, has_dy, lengths, reverse, projected, …): see scan.py."""
    G = cell.n_gates
    RESETS_BEFORE = cell.resets_before
    DROPS = cell.options.recurrent_dropout
    ZONES_H = cell.options.zoneout_h
    compute = COMPUTE[dtype]
    pointwise = pointwise_of(cell, device, activations(dtype))
    prepared = pointwise.prepared
    load_constants, _ = extras_loaders(cell, dtype)
    through_output = _output(cell, pointwise, dtype)
    of_unit = (_reset_unit if RESETS_BEFORE else _unit)(cell, pointwise, dtype)
    add_product = (_masked_product if DROPS else _product)(cell, dtype)

    @cuda.jit(launch_bounds=THREADS)
    def backward(
        dy, has_dy, lengths, reverse, projected, w, w_proj, saved, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dproj,
        extras, hidden, direct_h, zone_h, zone_c, shares,
    ):  # fmt: skip
        tile = cuda.shared.array((TILE, ROWS), compute)
        sums = cuda.shared.array((ROWS, THREADS), compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first, end = rows_of_block(dh.shape[0])
        H = dgates_x.shape[2] // G
        R = dh.shape[1]
        constants = prepared(load_constants(extras))
        for s in range(most_steps(lengths, first, end)):
            for b in range(first, end):
                if s < lengths[b]:
                    t = time_of(s, lengths[b], not reverse)
                    through_output(
                        dy, has_dy, projected, saved, h_prev, dgates_x, dh, dproj, direct_h, zone_h, shares, constants,
                        t, b, H,
                    )  # fmt: skip
            if projected or RESETS_BEFORE:
                cuda.syncthreads()
            for b in range(first, end):
                if s < lengths[b]:
                    t = time_of(s, lengths[b], not reverse)
                    for j in range(thread, H, threads):
                        of_unit(
                            projected, w, w_proj, saved, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dproj, extras,
                            hidden, zone_c, shares, constants, t, b, j, H,
                        )  # fmt: skip
            cuda.syncthreads()
            for start in range(0, R, threads):
                j = start + thread
                add_product(sums, tile, dgates_h, reverse, hidden, w, dh, j, H, first, end, lengths, s)
                if j < R and ZONES_H:
                    for b in range(first, end):
                        if s < lengths[b]:
                            dh[b, j] += direct_h[b, j]

    return backward


def _product(cell: Cell, dtype: str):
    """add_product(sums, tile, dgates, reverse, hidden, w, dh, j, H, first, end, lengths, s): dh += dgates W_hh over the
    gates of the first product. Every thread of the block calls it; nothing is added where j >= R."""
    FIRST = first_gates(cell)
    zero = constant(dtype, 0)
    product = tiled_product(dtype, 1, _operand(dtype))

    @device
    def add_product(sums, tile, dgates, reverse, hidden, w, dh, j, H, first, end, lengths, s):
        thread = cuda.threadIdx.x
        R = dh.shape[1]
        for r in range(ROWS):
            b = first + r
            sums[r, thread] = dh[b, j] if b < end and j < R else zero
        product(sums, tile, (dgates, reverse, 0), w, FIRST * H, j, R, first, end, lengths, s)
        if j < R:
            for b in range(first, end):
                if s < lengths[b]:
                    dh[b, j] = sums[b - first, thread]

    return add_product


def _masked_product(cell: Cell, dtype: str):
    """`_product` with the mask on h, or with that of each gate."""
    FIRST = first_gates(cell)
    GATES = 1 if cell.options.mask_per_gate else FIRST  # of each mask
    zero = constant(dtype, 0)
    product = tiled_product(dtype, 1, _operand(dtype))

    @device
    def add_product(sums, tile, dgates, reverse, hidden, w, dh, j, H, first, end, lengths, s):
        thread = cuda.threadIdx.x
        R = dh.shape[1]
        for mask in range(FIRST // GATES):
            for r in range(ROWS):
                sums[r, thread] = zero
            at = mask * GATES * H
            product(sums, tile, (dgates, reverse, at), w[at:], GATES * H, j, R, first, end, lengths, s)
            if j < R:
                for b in range(first, end):
                    if s < lengths[b]:
                        dh[b, j] += hidden[mask, b, j] * sums[b - first, thread]

    return add_product


def _operand(dtype: str):
    """The operand of the product: the gradients of the gates, from the number `at` on."""
    compute = COMPUTE[dtype]

    @device
    def operand(source, s, steps, b, k):
        dgates, reverse, at = source
        return compute(dgates[time_of(s, steps, not reverse), b, at + k])

    return operand


def _output(cell: Cell, pointwise: SimpleNamespace, dtype: str):
    """through_output(…, t, b, H): adds dy to dh of a row. What is before a second product then goes to its operand:
    dh under projection, the gradients of z and n of a GRU that resets before."""
    RESETS_BEFORE = cell.resets_before
    ZONES_H = cell.options.zoneout_h
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)
    one = constant(dtype, 1)
    # Numba leaves out branches on constants, and with them the stages that the cell lacks.
    output_backward: Any = getattr(pointwise, "output_backward", None)
    load_saved = tuples(dtype, cell.n_saved).load
    share_of = zoneout(dtype).share_of

    @device
    def through_output(
        dy, has_dy, projected, saved, h_prev, dgates_x, dh, dproj, direct_h, zone_h, shares, constants, t, b, H
    ):
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        for k in range(thread, dh.shape[1], threads):
            if has_dy:
                dh[b, k] += compute(dy[t, b, k])
            if ZONES_H:
                z = share_of(zone_h, t, b, k, shares[0])
                direct_h[b, k] = z * dh[b, k]
                dh[b, k] = (one - z) * dh[b, k]
            if projected:
                dproj[t, b, k] = storage(dh[b, k])
                dh[b, k] = zero
        if RESETS_BEFORE:
            for j in range(thread, H, threads):
                _, z, n = load_saved(saved[t, b], j, H)
                da_z, da_n = output_backward(z, n, compute(h_prev[t, b, j]), dh[b, j], constants)
                dgates_x[t, b, H + j] = storage(da_z)
                dgates_x[t, b, 2 * H + j] = storage(da_n)

    return through_output


def _unit(cell: Cell, pointwise: SimpleNamespace, dtype: str):
    """of_unit(…, t, b, j, H): the gradients of a unit's gates and c', and the part of dh that bypasses the product."""
    READS_H = cell.reads_h
    HAS_C = cell.has_c
    SPLITS = cell.splits_sides
    ZONES_C = cell.options.zoneout_c
    compute = COMPUTE[dtype]
    zero = constant(dtype, 0)
    pair = pointwise.backward
    states = cell_states(dtype, cell.n_cell_states)
    load_states = states.load
    store_states = states.store
    zoned = zoned_backward(cell, pair, dtype) if ZONES_C else pair
    _, load_units = extras_loaders(cell, dtype)
    load_saved = tuples(dtype, cell.n_saved).load
    store_gates = tuples(dtype, cell.n_gates).store
    dot_from = dot(dtype)
    share_of = zoneout(dtype).share_of

    @device
    def of_unit(
        projected, w, w_proj, saved, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dproj, extras, hidden, zone_c, shares,
        constants, t, b, j, H,
    ):  # fmt: skip
        values = load_saved(saved[t, b], j, H)
        h_before = compute(h_prev[t, b, j]) if READS_H else zero
        c_before = load_states(c_prev[t, b], j, H) if HAS_C else zero
        d_h = dot_from(dproj[t, b], w_proj[:, j], zero) if projected else dh[b, j]
        d_c = load_states(dc[b], j, H) if HAS_C else zero
        units = load_units(extras, j, H)
        if ZONES_C:
            z = share_of(zone_c, t, b, j, shares[1])
            dxs, dc_new = zoned(values, c_before, d_h, d_c, z, units, constants)
            dus = dxs
            direct = zero
        else:
            dxs, dus, direct, dc_new = pair(values, h_before, c_before, d_h, d_c, units, constants)
        store_gates(dxs, dgates_x[t, b], j, H)
        if SPLITS:
            store_gates(dus, dgates_h[t, b], j, H)
        if HAS_C:
            store_states(dc_new, dc[b], j, H)
        if not projected:
            dh[b, j] = compute(direct)

    return of_unit


def _reset_unit(cell: Cell, pointwise: SimpleNamespace, dtype: str):
    """`_unit` of a GRU that resets before: the gradient of r, from the gradients of n through the second product."""
    FIRST = first_gates(cell)
    DROPS = cell.options.recurrent_dropout
    LAST = mask_of_last(cell)
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)
    gates_backward = pointwise.gates_backward
    load_saved = tuples(dtype, cell.n_saved).load
    dot_from = dot(dtype)

    @device
    def of_unit(
        projected, w, w_proj, saved, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dproj, extras, hidden, zone_c, shares,
        constants, t, b, j, H,
    ):  # fmt: skip
        r, z, _ = load_saved(saved[t, b], j, H)
        drh = dot_from(dgates_x[t, b, FIRST * H :], w[FIRST * H :, j], zero)
        if DROPS:
            drh *= hidden[LAST, b, j]
        da_r, direct = gates_backward(r, z, compute(h_prev[t, b, j]), dh[b, j], drh, constants)
        dgates_x[t, b, j] = storage(da_r)
        dh[b, j] = direct

    return of_unit
