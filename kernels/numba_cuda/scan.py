"""Numba CUDA: a whole sequence in one launch, a block per four batch rows. The readable counterpart of the CUDA C++.

A step has one product, or two. The second one is the projection, or the product that r h' waits for in a GRU that
resets before; FIRST is the number of gates of the first one.

    forward     for every unit: its gates' products h W_hh, then the cell, or the gates r and z and r h'
                second product: (o tanh(c)) W_hr, or (r h') W_hn, then n and h
    backward    last step first. Second product: dh W_hr, or the gradients of z and n, then those of n times W_hn
                for every unit the cell, or the gradient of r; then dh += du W_hh over the gates of the first product

Thread i of a block has the units i, i + threads, i + 2 threads, … of all its rows, so H is arbitrary. The product of
the first stage is tiled: the block copies a tile of h (backward: of du) of its ROWS rows to shared memory, and each
weight that a thread reads is multiplied by a number of every row. A thread's sums wait in shared memory, where no other
thread reads them, for a loop over the rows. What one thread writes and all read (h, du, and the operands and gradients
of a second product) is in arrays with one entry per step, mostly the results themselves (y, dgates_h), so one barrier
between writing and reading is enough. Without `keep` the arrays of a second product have one entry for all steps, and
the barrier after it protects them. What only its own thread accesses (c, dc, dh) needs no barrier. No sum runs across
threads, so the results do not depend on the order of threads.

A row has its own number of steps, and its own t in each of them. It ends after them: the block goes on with the others,
and no block waits for another. Blocks past the batch do nothing; they exist because Numba warns about small grids.

S is the dtype's storage, C its compute; all arrays are C-contiguous. Numba has no optional arguments, so an array that
a cell or a call does not use is passed with one element: c's arrays under RNN and GRU, those of a projection without
one, what is saved without `keep`.

    lengths (B,) int64                      the steps of each row
    gates_x (T, B, G*H) C                   x W_ih^T
    bias_x, bias_h (G*H) S                  b_ih, b_hh
    w (R, G*H), w_proj (H, P) S             forward: W_hh and W_hr transposed, so that neighbouring threads read
                                            neighbouring elements
    w (G*H, R), w_proj (P, H) S             backward: untransposed, for the same reason
    h (B, R) S, c (B, H) C                  in: the initial states; out: the final ones
    y (T, B, R) S                           zero past a row's end
    saved (T, B, n_saved*H) S               the values that the row of CELLS names, with `keep`
    h_prev (T, B, R) S, c_prev (T, B, H) C  the states before each step, with `keep`
    m (T, B, H) S                           operand of the second product: o tanh(c) or r h'
    saved, m                                without `keep` (1, B, ·): one step, for cells that have a second product
    dy (T, B, R) S                          read if has_dy
    dgates_x, dgates_h (T, B, G*H) S        out; one array unless the cell splits its sides
    dh (B, R), dc (B, H) C                  in: gradients of the final states; out: of the initial ones
    dproj (T, B, P) S                       out, under projection: the gradient of its output

Of cells with zoneout or dropout on h (rnnkit/core/noise_steps.py), with the rows of the batch:

    hidden (B, R) C                         the mask on h in the first product, and in r h'
    zone_h (T, B, R), zone_c (T, B, H)      uint8, 1 where old values are kept; or (1, 1, ·) for every step and row
    shares (2,) C                           the share of h and of c that is kept there
    direct (B, R) C                         backward: what zoneout passes by
    extras (n + K*H) C                      the n constants of a cell with options, then its weights per unit
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

from numba import types

from rnnkit.core.cells import CELLS, Cell
from rnnkit.kernels.cells import POINTWISE, Make, pointwise_of
from rnnkit.kernels.numba_cuda.launch_shape import ROWS, THREADS
from rnnkit.kernels.numba_cuda.numbers import (
    COMPUTE,
    STORAGE,
    activations,
    constant,
    cuda,
    device,
    dot,
    tile_products,
    tuples,
)


def first_gates(cell: Cell) -> int:
    """How many gates the first product of a step computes: all of them, or r and z of a GRU that resets before."""
    _, _, end = cell.products[0]
    return end


def first_stage(cell: Cell, pointwise: SimpleNamespace):
    """(x, u, h', c', w, k) -> (values to save, new h or m, new c): the pointwise part after the first product."""
    if not cell.resets_before:
        return pointwise.forward
    gates = pointwise.gates

    @device
    def first(x, u, h_prev, c_prev, w, k):
        r, z, rh = gates(x[0] + u[0], x[1] + u[1], h_prev, k)
        return (r, z), rh, c_prev

    return first


# Numbers of each row in a tile of shared memory.
TILE = 128


@device
def most_steps(lengths, first, end):
    """The steps of the longest of the rows [first, end); 0 if there are none."""
    most = 0
    for b in range(first, end):
        most = max(most, lengths[b])
    return most


@device
def time_of(s, steps, descending):
    """The time of step s of a row with this number of steps."""
    return steps - 1 - s if descending else s


def extras_loaders(cell: Cell, dtype: str):
    """load_constants(extras), and load_units(extras, j, H), the weights of unit j: tuples, or 0 if there are none."""
    compute = "float64" if COMPUTE[dtype] is types.float64 else "float32"
    zero = constant(dtype, 0)
    N = len(cell.constants)
    K = len(cell.unit_weights)
    if N:
        load_numbers = tuples(compute, N).load

        @device
        def load_constants(extras):
            return load_numbers(extras, 0, 1)

    else:

        @device
        def load_constants(extras):
            return zero

    if K:
        load_all = tuples(compute, K).load

        @device
        def load_units(extras, j, H):
            return load_all(extras, N + j, H)

    else:

        @device
        def load_units(extras, j, H):
            return zero

    return load_constants, load_units


def share_reader(dtype: str):
    """share_of(zone, t, b, j, share): the share of an old value that zoneout keeps."""
    compute = COMPUTE[dtype]

    @device
    def share_of(zone, t, b, j, share):
        at = t if zone.shape[0] > 1 else 0
        row = b if zone.shape[1] > 1 else 0
        return compute(zone[at, row, j]) * share

    return share_of


def zoned_backward(cell: Cell, pair: Any, dtype: str):
    """zoned(values, c', dh, dc, z, w, k): the gates' gradients and that of c', of an LSTM with zoneout of c."""
    zero = constant(dtype, 0)
    one = constant(dtype, 1)
    tanh = activations(dtype).tanh

    @device
    def raw(values, c_before, d_h, d_c, z, w, k):
        dxs, _, _, dc_prev = pair(values, zero, c_before, d_h, (one - z) * d_c, w, k)
        return dxs, dc_prev + z * d_c

    @device
    def from_zoned(values, c_before, d_h, d_c, z, w, k):
        i, f, g, o = values
        t = tanh(z * c_before + (one - z) * (f * c_before + i * g))
        d_c = d_c + d_h * o * (one - t * t)
        dxs, _, _, dc_prev = pair(values, zero, c_before, zero, (one - z) * d_c, w, k)
        return (dxs[0], dxs[1], dxs[2], d_h * t * o * (one - o)), dc_prev + z * d_c

    return from_zoned if cell.options.zoned_output else raw


def make_forward(cell: Cell, dtype: str):
    """forward(gates_x, lengths, reverse, keep, projected, …): see the module's docstring."""
    G = cell.n_gates
    FIRST = first_gates(cell)
    SUMS = FIRST * THREADS
    READS_H = cell.reads_h
    HAS_C = cell.has_c
    RESETS_BEFORE = cell.resets_before
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)
    pointwise = pointwise_of(cell, device, activations(dtype))
    load_constants, load_units = extras_loaders(cell, dtype)
    prepared = pointwise.prepared
    pointwise_first = first_stage(cell, pointwise)
    output: Any = getattr(pointwise, "output", None)
    dot_from = dot(dtype)
    load = tuples(dtype, FIRST).load
    add = tuples(dtype, FIRST).add
    # gates_x and the sums are in the compute dtype.
    load_computed = tuples("float64" if compute is types.float64 else "float32", FIRST).load
    store_computed = tuples("float64" if compute is types.float64 else "float32", FIRST).store
    add_products = tile_products(dtype, FIRST)
    store_saved = tuples(dtype, FIRST if RESETS_BEFORE else cell.n_saved).store
    DROPS = cell.options.recurrent_dropout
    ZONES_H = cell.options.zoneout_h
    ZONES_C = cell.options.zoneout_c
    ZONED_OUTPUT = cell.options.zoned_output
    one = constant(dtype, 1)
    tanh = activations(dtype).tanh
    share_of = share_reader(dtype)

    @cuda.jit(launch_bounds=THREADS)
    def forward(
        gates_x, lengths, reverse, keep, projected, bias_x, bias_h, w, w_proj, h, c, y, saved, h_prev, c_prev, m,
        extras, hidden, zone_h, zone_c, shares,
    ):  # fmt: skip
        tile = cuda.shared.array((TILE, ROWS), compute)
        sums = cuda.shared.array((ROWS, SUMS), compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first = cuda.blockIdx.x * ROWS
        end = min(first + ROWS, h.shape[0])
        H = bias_x.shape[0] // G
        R = h.shape[1]
        constants = prepared(load_constants(extras))
        for s in range(most_steps(lengths, first, end)):
            for start in range(0, H, threads):
                j = start + thread
                if j < H:
                    for r in range(ROWS):
                        store_computed(load(bias_h, j, H), sums[r], thread, THREADS)
                for k in range(0, R, TILE):
                    steps = min(TILE, R - k)
                    for r in range(ROWS):
                        b = first + r
                        live = b < end and s < lengths[b]
                        for i in range(thread, steps, threads):
                            if not live:
                                tile[i, r] = zero
                            elif s == 0:
                                tile[i, r] = compute(h[b, k + i])
                            else:
                                tile[i, r] = compute(y[time_of(s - 1, lengths[b], reverse), b, k + i])
                            if DROPS and live:
                                tile[i, r] = compute(storage(tile[i, r] * hidden[b, k + i]))
                    cuda.syncthreads()
                    if j < H:
                        add_products(sums, thread, tile, steps, w, k, j, H)
                    cuda.syncthreads()
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
                        c_before = c[b, j] if HAS_C else zero
                        h_before = compute(before[j]) if READS_H else zero
                        if DROPS and RESETS_BEFORE:  # r h' takes the masked h, and all else the unmasked one
                            h_before = compute(storage(h_before * hidden[b, j]))
                        units = load_units(extras, j, H)
                        values, new, c_new = pointwise_first(x, u, h_before, c_before, units, constants)
                        if ZONES_C:
                            z = share_of(zone_c, t, b, j, shares[1])
                            c_new = z * c_before + (one - z) * c_new
                        if ZONED_OUTPUT:
                            new = values[3] * tanh(c_new)
                        if ZONES_H and not RESETS_BEFORE and not projected:
                            z = share_of(zone_h, t, b, j, shares[0])
                            new = z * compute(before[j]) + (one - z) * new
                        out[j] = storage(new)
                        if HAS_C:
                            c[b, j] = c_new
                        if keep or RESETS_BEFORE:
                            store_saved(values, saved[at, b], j, H)
                        if keep and HAS_C:
                            c_prev[t, b, j] = c_before
            cuda.syncthreads()
            for b in range(first, end):
                if s >= lengths[b]:
                    continue
                t = time_of(s, lengths[b], reverse)
                at = t if keep else 0
                before = h[b] if s == 0 else y[time_of(s - 1, lengths[b], reverse), b]
                if keep:
                    for k in range(thread, R, threads):
                        h_prev[t, b, k] = before[k]
                if RESETS_BEFORE:
                    for j in range(thread, H, threads):
                        n_at = FIRST * H + j
                        u_n = dot_from(m[at, b], w[:, n_at], compute(bias_h[n_at]))
                        a_n = gates_x[t, b, n_at] + compute(bias_x[n_at]) + u_n
                        n, new = output(a_n, compute(saved[at, b, H + j]), compute(before[j]), constants)
                        saved[at, b, n_at] = storage(n)
                        if ZONES_H:
                            z = share_of(zone_h, t, b, j, shares[0])
                            new = z * compute(before[j]) + (one - z) * new
                        y[t, b, j] = storage(new)
                if projected:
                    for p in range(thread, R, threads):
                        new = dot_from(m[at, b], w_proj[:, p], zero)
                        if ZONES_H:
                            z = share_of(zone_h, t, b, p, shares[0])
                            new = z * compute(before[p]) + (one - z) * new
                        y[t, b, p] = storage(new)
            if RESETS_BEFORE or projected:
                cuda.syncthreads()
        for b in range(first, end):
            steps = lengths[b]
            for k in range(thread, R, threads):
                if steps > 0:
                    h[b, k] = y[time_of(steps - 1, steps, reverse), b, k]
                for t in range(steps, y.shape[0]):
                    y[t, b, k] = storage(zero)

    return forward


def make_backward(cell: Cell, dtype: str):
    """backward(dy, has_dy, lengths, reverse, projected, …): see the module's docstring."""
    G = cell.n_gates
    FIRST = first_gates(cell)
    READS_H = cell.reads_h
    HAS_C = cell.has_c
    SPLITS = cell.splits_sides
    RESETS_BEFORE = cell.resets_before
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)
    pointwise = pointwise_of(cell, device, activations(dtype))
    load_constants, load_units = extras_loaders(cell, dtype)
    prepared = pointwise.prepared
    # Numba leaves out branches on constants, and with them the stages that the cell lacks.
    pair: Any = getattr(pointwise, "backward", None)
    output_backward: Any = getattr(pointwise, "output_backward", None)
    gates_backward: Any = getattr(pointwise, "gates_backward", None)
    dot_from = dot(dtype)
    load_saved = tuples(dtype, cell.n_saved).load
    store_gates = tuples(dtype, G).store
    add_products = tile_products(dtype, 1)
    DROPS = cell.options.recurrent_dropout
    ZONES_H = cell.options.zoneout_h
    ZONES_C = cell.options.zoneout_c
    one = constant(dtype, 1)
    share_of = share_reader(dtype)
    zoned = zoned_backward(cell, pair, dtype) if ZONES_C else pair

    @cuda.jit(launch_bounds=THREADS)
    def backward(
        dy, has_dy, lengths, reverse, projected, w, w_proj, saved, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dproj,
        extras, hidden, direct_h, zone_h, zone_c, shares,
    ):  # fmt: skip
        tile = cuda.shared.array((TILE, ROWS), compute)
        sums = cuda.shared.array((ROWS, THREADS), compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first = cuda.blockIdx.x * ROWS
        end = min(first + ROWS, dh.shape[0])
        H = dgates_x.shape[2] // G
        R = dh.shape[1]
        constants = prepared(load_constants(extras))
        for s in range(most_steps(lengths, first, end)):
            for b in range(first, end):
                if s >= lengths[b]:
                    continue
                t = time_of(s, lengths[b], not reverse)
                for k in range(thread, R, threads):
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
            if projected or RESETS_BEFORE:
                cuda.syncthreads()
            for b in range(first, end):
                if s >= lengths[b]:
                    continue
                t = time_of(s, lengths[b], not reverse)
                for j in range(thread, H, threads):
                    values = load_saved(saved[t, b], j, H)
                    h_before = compute(h_prev[t, b, j]) if READS_H else zero
                    if RESETS_BEFORE:
                        drh = dot_from(dgates_x[t, b, FIRST * H :], w[FIRST * H :, j], zero)
                        if DROPS:
                            drh *= hidden[b, j]
                        da_r, direct = gates_backward(values[0], values[1], h_before, dh[b, j], drh, constants)
                        dgates_x[t, b, j] = storage(da_r)
                        dh[b, j] = direct
                    else:
                        c_before = c_prev[t, b, j] if HAS_C else zero
                        d_h = dot_from(dproj[t, b], w_proj[:, j], zero) if projected else dh[b, j]
                        d_c = dc[b, j] if HAS_C else zero
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
                            dc[b, j] = dc_new
                        if not projected:
                            dh[b, j] = compute(direct)
            cuda.syncthreads()
            for start in range(0, R, threads):
                j = start + thread
                for r in range(ROWS):
                    b = first + r
                    sums[r, thread] = dh[b, j] if b < end and j < R and not DROPS else zero
                for k in range(0, FIRST * H, TILE):
                    steps = min(TILE, FIRST * H - k)
                    for r in range(ROWS):
                        b = first + r
                        live = b < end and s < lengths[b]
                        for i in range(thread, steps, threads):
                            tile[i, r] = zero
                            if live:
                                tile[i, r] = compute(dgates_h[time_of(s, lengths[b], not reverse), b, k + i])
                    cuda.syncthreads()
                    if j < R:
                        add_products(sums, thread, tile, steps, w, k, j, R)
                    cuda.syncthreads()
                if j < R:
                    for b in range(first, end):
                        if s < lengths[b]:
                            if DROPS:
                                dh[b, j] += hidden[b, j] * sums[b - first, thread]
                            else:
                                dh[b, j] = sums[b - first, thread]
                            if ZONES_H:
                                dh[b, j] += direct_h[b, j]

    return backward


def kernels(cell: Cell, dtype: str) -> SimpleNamespace:
    """forward and backward of a cell and dtype. Numba compiles each at its first launch."""
    return _kernels(cell, POINTWISE[cell.name], dtype)


@cache
def _kernels(cell: Cell, make: Make, dtype: str) -> SimpleNamespace:
    """make: the row of POINTWISE, in the key of the cache."""
    return SimpleNamespace(forward=make_forward(cell, dtype), backward=make_backward(cell, dtype))


def signatures(dtype: str) -> dict[str, tuple[Any, ...]]:
    """The Numba types of each kernel's arguments, the same for every cell."""
    S = STORAGE[dtype]
    C = COMPUTE[dtype]
    flag = types.boolean
    lengths = types.int64[::1]
    S1 = S[::1]
    S2 = S[:, ::1]
    S3 = S[:, :, ::1]
    C1 = C[::1]
    C2 = C[:, ::1]
    C3 = C[:, :, ::1]
    U3 = types.uint8[:, :, ::1]
    return {
        "forward": (C3, lengths, flag, flag, flag, S1, S1, S2, S2, S2, C2, S3, S3, S3, C3, S3, C1, C2, U3, U3, C1),
        "backward": (S3, flag, lengths, flag, flag, S2, S2, S3, S3, C3, S3, S3, C2, C2, S3, C1, C2, C2, U3, U3, C1),
    }


def compilable() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Every kernel and dtype: its name, its dispatcher, not compiled yet, and the Numba types of its arguments."""
    for cell in (CELLS[name] for name in POINTWISE if CELLS[name].n_cell_states <= 1):
        for dtype in STORAGE:
            for name, signature in signatures(dtype).items():
                yield f"{name}-{cell.name}-{dtype}", getattr(kernels(cell, dtype), name), signature
