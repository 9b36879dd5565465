"""Numba CUDA: the backward scan of cells with layer normalisation. scan_norm.py describes it and its arguments."""

from __future__ import annotations

from rnnkit.core.cells import Cell
from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.numba_cuda.block_sums import block_sum
from rnnkit.kernels.numba_cuda.launch_shape import THREADS
from rnnkit.kernels.numba_cuda.numbers import (
    COMPUTE,
    STORAGE,
    activations,
    computed_tuples,
    constant,
    cuda,
    device,
    dot,
)
from rnnkit.kernels.numba_cuda.rows import most_steps, rows_of_block, time_of


def make_backward(cell: Cell, dtype: str):
    """backward(dy, has_dy, lengths, reverse, …): see scan_norm.py."""
    TWO = cell.splits_sides
    STATS = cell.n_statistics
    compute = COMPUTE[dtype]
    into_gates = (_lstm_gradients if cell.has_c else _gru_gradients)(cell, dtype)
    of_side = _side_gradients(cell, dtype)
    dot_from = dot(dtype)

    @cuda.jit(launch_bounds=THREADS)
    def backward(
        dy, has_dy, lengths, reverse, w, saved, stats, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dv, bias_x, bias_h,
        extras,
    ):  # fmt: skip
        parts = cuda.shared.array(THREADS, compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first, end = rows_of_block(dh.shape[0])
        H = dh.shape[1]
        for s in range(most_steps(lengths, first, end)):
            for b in range(first, end):
                if s >= lengths[b]:
                    continue
                t = time_of(s, lengths[b], not reverse)
                if has_dy:
                    for j in range(thread, H, threads):
                        dh[b, j] += compute(dy[t, b, j])
                dv_row = dv[t, b]
                kept = saved[t, b]
                into_gates(
                    parts, kept, stats[t, b, STATS - 1], h_prev[t, b], c_prev, t, b, dh, dc, dv_row, bias_x, bias_h,
                    extras, H,
                )  # fmt: skip
                of_side(parts, dv_row, 0, kept, extras, stats[t, b, 0], dgates_x[t, b], H)
                if TWO:
                    of_side(parts, dv_row, 1, kept, extras, stats[t, b, 1], dgates_h[t, b], H)
            cuda.syncthreads()
            for b in range(first, end):
                if s >= lengths[b]:
                    continue
                t = time_of(s, lengths[b], not reverse)
                for j in range(thread, H, threads):
                    dh[b, j] = dot_from(dgates_h[t, b], w[:, j], dh[b, j])

    return backward


def _side_gradients(cell: Cell, dtype: str):
    """of_side(parts, dv, side, …): the gradients of a side's product, which are those of its normalisation."""
    G = cell.n_gates
    HAS_C = cell.has_c
    LAST = cell.n_norm_gradients - 1
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)

    @device
    def gate_gradient(dv, side, g, j, H):
        """Of gate g on a side: that of n differs between the sides of a GRU."""
        return dv[LAST * H + j] if not HAS_C and side == 1 and g == 2 else dv[g * H + j]

    @device
    def of_side(parts, dv, side, saved, extras, scale, dgates, H):
        count = compute(G * H)
        hats = (1 + side) * G * H
        gains = 1 + side * G * H
        total = zero
        with_hat = zero
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(G):
                at = g * H + j
                scaled = gate_gradient(dv, side, g, j, H) * extras[gains + at]
                total += scaled
                with_hat += scaled * compute(saved[hats + at])
        mean = block_sum(parts, total) / count
        mean_hat = block_sum(parts, with_hat) / count
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(G):
                at = g * H + j
                scaled = gate_gradient(dv, side, g, j, H) * extras[gains + at]
                dgates[at] = storage(scale * (scaled - mean - compute(saved[hats + at]) * mean_hat))

    return of_side


def _lstm_gradients(cell: Cell, dtype: str):
    """Writes dv of a row's step, and the gradients of c and h without the product's part."""
    G = cell.n_gates
    CARRIES = cell.options.layer_norm == "torch"
    compute = COMPUTE[dtype]
    zero = constant(dtype, 0)
    pointwise = pointwise_of(cell, device, activations(dtype))
    output_backward = pointwise.output_backward
    gates_backward = pointwise.gates_backward

    @device
    def into_gates(parts, saved, scale, h_prev, c_prev, t, b, dh, dc, dv, bias_x, bias_h, extras, H):
        gains = 1 + 2 * G * H
        hats = 3 * G * H
        total = zero
        with_hat = zero
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            hat = compute(saved[hats + j])
            shifted = hat * extras[gains + j] + extras[gains + H + j]
            da_o, dshifted = output_backward(compute(saved[3 * H + j]), shifted, dh[b, j])
            if CARRIES:
                dshifted += dc[b, j]
            dv[3 * H + j] = da_o
            dv[4 * H + j] = dshifted
            dh[b, j] = zero
            total += dshifted * extras[gains + j]
            with_hat += dshifted * extras[gains + j] * hat
        mean = block_sum(parts, total) / compute(H)
        mean_hat = block_sum(parts, with_hat) / compute(H)
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            d_c = scale * (dv[4 * H + j] * extras[gains + j] - mean - compute(saved[hats + j]) * mean_hat)
            if not CARRIES:
                d_c += dc[b, j]
            i = compute(saved[j])
            f = compute(saved[H + j])
            g = compute(saved[2 * H + j])
            da_i, da_f, da_g, dc_prev = gates_backward(i, f, g, c_prev[t, b, j], d_c)
            dv[j] = da_i
            dv[H + j] = da_f
            dv[2 * H + j] = da_g
            dc[b, j] = dc_prev

    return into_gates


def _gru_gradients(cell: Cell, dtype: str):
    """Writes dv of a row's step, and the part of dh that bypasses the product."""
    G = cell.n_gates
    TWO = cell.splits_sides
    HATS = cell.n_saved - 1  # of n on the hidden side, or on the one side that there is
    GAINS = len(cell.unit_weights) - 1
    compute = COMPUTE[dtype]
    backward = pointwise_of(cell, device, activations(dtype)).backward
    store_gradients = computed_tuples(dtype, cell.n_norm_gradients).store

    @device
    def into_gates(parts, saved, scale, h_prev, c_prev, t, b, dh, dc, dv, bias_x, bias_h, extras, H):
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            reset = compute(saved[HATS * H + j]) * extras[1 + GAINS * H + j] + compute(bias_h[2 * H + j])
            if not TWO:
                reset += compute(bias_x[2 * H + j])
            r = compute(saved[j])
            z = compute(saved[H + j])
            n = compute(saved[(G - 1) * H + j])
            d, direct = backward(r, z, n, reset, compute(h_prev[j]), dh[b, j])
            store_gradients(d, dv, j, H)
            dh[b, j] = direct

    return into_gates
