"""Numba CUDA: the forward scan of every cell but those that normalise. scan.py describes it and its arguments."""

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
    computed_tuples,
    constant,
    cuda,
    device,
    dot,
    tuples,
)
from rnnkit.kernels.numba_cuda.options import extras_loaders, zoneout
from rnnkit.kernels.numba_cuda.rows import most_steps, row_ends, rows_of_block, time_of
from rnnkit.kernels.numba_cuda.tiles import TILE, first_gates, mask_of_last, tiled_product


def make_forward(cell: Cell, dtype: str):
    """forward(gates_x, lengths, reverse, keep, projected, …): see scan.py."""
    G = cell.n_gates
    FIRST = first_gates(cell)
    SUMS = FIRST * THREADS
    HAS_C = cell.has_c
    RESETS_BEFORE = cell.resets_before
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    pointwise = pointwise_of(cell, device, activations(dtype))
    prepared = pointwise.prepared
    load_constants, _ = extras_loaders(cell, dtype)
    load = tuples(dtype, FIRST).load
    add = tuples(dtype, FIRST).add
    # gates_x and the sums are in the compute dtype.
    load_computed = computed_tuples(dtype, FIRST).load
    store_computed = computed_tuples(dtype, FIRST).store
    store_saved = tuples(dtype, FIRST if RESETS_BEFORE else cell.n_saved).store
    store_states = cell_states(dtype, cell.n_cell_states).store
    product = _first_product(cell, dtype)
    of_unit = _unit(cell, pointwise, dtype)
    second_product = _second_product(cell, pointwise, dtype)
    end_rows = row_ends(dtype)

    @cuda.jit(launch_bounds=THREADS)
    def forward(
        gates_x, lengths, reverse, keep, projected, bias_x, bias_h, w, w_proj, h, c, y, saved, h_prev, c_prev, m,
        extras, hidden, zone_h, zone_c, shares,
    ):  # fmt: skip
        tile = cuda.shared.array((TILE, ROWS), compute)
        sums = cuda.shared.array((ROWS, SUMS), compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first, end = rows_of_block(h.shape[0])
        H = bias_x.shape[0] // G
        constants = prepared(load_constants(extras))
        for s in range(most_steps(lengths, first, end)):
            for start in range(0, H, threads):
                j = start + thread
                if j < H:
                    for r in range(ROWS):
                        store_computed(load(bias_h, j, H), sums[r], thread, THREADS)
                product(sums, tile, h, y, reverse, hidden, w, j, H, first, end, lengths, s)
                if j < H:
                    for b in range(first, end):
                        if s >= lengths[b]:
                            continue
                        t = time_of(s, lengths[b], reverse)
                        at = t if keep else 0
                        before = h[b] if s == 0 else y[time_of(s - 1, lengths[b], reverse), b]
                        out = m[at, b] if projected or RESETS_BEFORE else y[t, b]
                        x = add(load_computed(gates_x[t, b], j, H), load(bias_x, j, H))
                        u = load_computed(sums[b - first], thread, THREADS)
                        values, new, c_before, c_new = of_unit(
                            x, u, before, c, t, b, j, H, projected, extras, constants, hidden, zone_h, zone_c, shares
                        )
                        out[j] = storage(new)
                        if HAS_C:
                            store_states(c_new, c[b], j, H)
                        if keep or RESETS_BEFORE:
                            store_saved(values, saved[at, b], j, H)
                        if keep and HAS_C:
                            store_states(c_before, c_prev[t, b], j, H)
            cuda.syncthreads()
            for b in range(first, end):
                if s >= lengths[b]:
                    continue
                t = time_of(s, lengths[b], reverse)
                at = t if keep else 0
                before = h[b] if s == 0 else y[time_of(s - 1, lengths[b], reverse), b]
                if keep:
                    for k in range(thread, h.shape[1], threads):
                        h_prev[t, b, k] = before[k]
                second_product(
                    gates_x, projected, bias_x, bias_h, w, w_proj, before, y, saved, m, constants, zone_h, shares,
                    t, at, b,
                )  # fmt: skip
            if RESETS_BEFORE or projected:
                cuda.syncthreads()
        end_rows(h, y, lengths, reverse, first, end)

    return forward


def _first_product(cell: Cell, dtype: str):
    """product(sums, tile, h, y, reverse, hidden, w, j, H, first, end, lengths, s): as `tiled_product`, of h before the
    step. With a mask for each gate, the operand of each is another one."""
    FIRST = first_gates(cell)
    PER_GATE = cell.options.mask_per_gate
    of_gates = tiled_product(dtype, 1 if PER_GATE else FIRST, _operand(cell, dtype))

    @device
    def product(sums, tile, h, y, reverse, hidden, w, j, H, first, end, lengths, s):
        R = h.shape[1]
        if PER_GATE:
            for gate in range(FIRST):
                own = sums[:, gate * THREADS : (gate + 1) * THREADS]
                columns = w[:, gate * H : (gate + 1) * H]
                of_gates(own, tile, (h, y, reverse, hidden[gate]), columns, R, j, H, first, end, lengths, s)
        else:
            of_gates(sums, tile, (h, y, reverse, hidden[0]), w, R, j, H, first, end, lengths, s)

    return product


def _operand(cell: Cell, dtype: str):
    """The operand of the first product: h before the step, and what a mask leaves of it."""
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    DROPS = cell.options.recurrent_dropout

    @device
    def operand(source, s, steps, b, k):
        h, y, reverse, hidden = source
        before = compute(h[b, k]) if s == 0 else compute(y[time_of(s - 1, steps, reverse), b, k])
        return compute(storage(before * hidden[b, k])) if DROPS else before

    return operand


def _first_stage(cell: Cell, pointwise: SimpleNamespace):
    """(x, u, h', c', w, k) -> (values to save, new h or m, new c): the pointwise part after the first product."""
    if not cell.resets_before:
        return pointwise.forward
    gates = pointwise.gates

    @device
    def first(x, u, h_prev, c_prev, w, k):
        r, z, rh = gates(x[0] + u[0], x[1] + u[1], h_prev, k)
        return (r, z), rh, c_prev

    return first


def _unit(cell: Cell, pointwise: SimpleNamespace, dtype: str):
    """of_unit(x, u, …): the values to save of a unit, its new h or m, and its other states before and after."""
    READS_H = cell.reads_h
    HAS_C = cell.has_c
    RESETS_BEFORE = cell.resets_before
    DROPS = cell.options.recurrent_dropout
    ZONES_H = cell.options.zoneout_h
    ZONES_C = cell.options.zoneout_c
    ZONED_OUTPUT = cell.options.zoned_output
    LAST = mask_of_last(cell)
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)
    tanh = activations(dtype).tanh
    first_stage = _first_stage(cell, pointwise)
    load_states = cell_states(dtype, cell.n_cell_states).load
    _, load_units = extras_loaders(cell, dtype)
    zones = zoneout(dtype)
    share_of = zones.share_of
    mixed = zones.mixed

    @device
    def of_unit(x, u, before, c, t, b, j, H, projected, extras, constants, hidden, zone_h, zone_c, shares):
        c_before = load_states(c[b], j, H) if HAS_C else zero
        h_before = compute(before[j]) if READS_H else zero
        if DROPS and RESETS_BEFORE:  # r h' takes the masked h, and all else the unmasked one
            h_before = compute(storage(h_before * hidden[LAST, b, j]))
        values, new, c_new = first_stage(x, u, h_before, c_before, load_units(extras, j, H), constants)
        if ZONES_C:
            c_new = mixed(share_of(zone_c, t, b, j, shares[1]), c_before, c_new)
        if ZONED_OUTPUT:
            new = values[3] * tanh(c_new)
        if ZONES_H and not RESETS_BEFORE and not projected:
            new = mixed(share_of(zone_h, t, b, j, shares[0]), compute(before[j]), new)
        return values, new, c_before, c_new

    return of_unit


def _second_product(cell: Cell, pointwise: SimpleNamespace, dtype: str):
    """second_product(…, t, at, b): h of row b at time t, of a projection or a GRU that resets before; else nothing."""
    FIRST = first_gates(cell)
    RESETS_BEFORE = cell.resets_before
    ZONES_H = cell.options.zoneout_h
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)
    output: Any = getattr(pointwise, "output", None)
    dot_from = dot(dtype)
    zones = zoneout(dtype)
    share_of = zones.share_of
    mixed = zones.mixed

    @device
    def second_product(
        gates_x, projected, bias_x, bias_h, w, w_proj, before, y, saved, m, constants, zone_h, shares, t, at, b
    ):
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        if RESETS_BEFORE:
            H = y.shape[2]
            for j in range(thread, H, threads):
                n_at = FIRST * H + j
                u_n = dot_from(m[at, b], w[:, n_at], compute(bias_h[n_at]))
                a_n = gates_x[t, b, n_at] + compute(bias_x[n_at]) + u_n
                n, new = output(a_n, compute(saved[at, b, H + j]), compute(before[j]), constants)
                saved[at, b, n_at] = storage(n)
                if ZONES_H:
                    new = mixed(share_of(zone_h, t, b, j, shares[0]), compute(before[j]), new)
                y[t, b, j] = storage(new)
        if projected:
            for p in range(thread, y.shape[2], threads):
                new = dot_from(m[at, b], w_proj[:, p], zero)
                if ZONES_H:
                    new = mixed(share_of(zone_h, t, b, p, shares[0]), compute(before[p]), new)
                y[t, b, p] = storage(new)

    return second_product
