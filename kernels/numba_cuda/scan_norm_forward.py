"""Numba CUDA: the forward scan of cells with layer normalisation. scan_norm.py describes it and its arguments."""

from __future__ import annotations

from rnnkit.core.cells import Cell
from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.numba_cuda.block_sums import moments_over
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
    tuples,
)
from rnnkit.kernels.numba_cuda.rows import most_steps, row_ends, rows_of_block, time_of


def make_forward(cell: Cell, dtype: str):
    """forward(gates_x, lengths, reverse, keep, …): see scan_norm.py."""
    G = cell.n_gates
    TWO = cell.splits_sides
    compute = COMPUTE[dtype]
    zero = constant(dtype, 0)
    take_step = (_lstm_step if cell.has_c else _gru_step)(cell, dtype)
    dot_from = dot(dtype)
    end_rows = row_ends(dtype)

    @cuda.jit(launch_bounds=THREADS)
    def forward(
        gates_x, lengths, reverse, keep, bias_x, bias_h, w, h, c, y, saved, stats, h_prev, c_prev, side, extras
    ):
        parts = cuda.shared.array(THREADS, compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first, end = rows_of_block(h.shape[0])
        H = h.shape[1]
        for s in range(most_steps(lengths, first, end)):
            for b in range(first, end):
                if s >= lengths[b]:
                    continue
                t = time_of(s, lengths[b], reverse)
                before = h[b] if s == 0 else y[time_of(s - 1, lengths[b], reverse), b]
                x = gates_x[t, b]
                u = side[b]
                for j in range(thread, H, threads):
                    for g in range(G):
                        at = g * H + j
                        u[at] = dot_from(before, w[:, at], zero if TWO else x[at])
                    if keep:
                        h_prev[t, b, j] = before[j]
                step = t if keep else 0
                row = b if keep else 0
                take_step(
                    parts, x, u, bias_x, bias_h, before, c, b, y[t, b], saved[step, row], stats[step, row], c_prev, t,
                    keep, extras, H,
                )  # fmt: skip
            cuda.syncthreads()
        end_rows(h, y, lengths, reverse, first, end)

    return forward


def _lstm_step(cell: Cell, dtype: str):
    """The pointwise part of a row's step. Afterwards x has c before its normalisation, then o."""
    G = cell.n_gates
    CARRIES = cell.options.layer_norm == "torch"
    storage = STORAGE[dtype]
    pointwise = pointwise_of(cell, device, activations(dtype))
    gates = pointwise.gates
    output = pointwise.output
    moments = moments_over(dtype, G)
    moments_of_c = moments_over(dtype, 1)
    load_gates = computed_tuples(dtype, G).load
    store_saved = tuples(dtype, G).store
    compute = COMPUTE[dtype]

    @device
    def step(parts, x, u, bias_x, bias_h, before, c, b, y, saved, stats, c_prev, t, keep, extras, H):
        GH = G * H
        eps = extras[0]
        mean_x, scale_x = moments(parts, x, H, eps)
        mean_u, scale_u = moments(parts, u, H, eps)
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(G):
                at = g * H + j
                x_hat = (x[at] - mean_x) * scale_x
                u_hat = (u[at] - mean_u) * scale_u
                if keep:
                    saved[GH + at] = storage(x_hat)
                    saved[2 * GH + at] = storage(u_hat)
                left = x_hat * extras[1 + at] + compute(bias_x[at])
                u[at] = left + (u_hat * extras[1 + GH + at] + compute(bias_h[at]))
            c_before = c[b, j]
            values, c_new = gates(load_gates(u, j, H), c_before)
            if keep:
                store_saved(values, saved, j, H)
                c_prev[t, b, j] = c_before
            x[j] = c_new
            x[H + j] = values[3]
        mean_c, scale_c = moments_of_c(parts, x, H, eps)
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            c_hat = (x[j] - mean_c) * scale_c
            shifted = c_hat * extras[1 + 2 * GH + j] + extras[1 + 2 * GH + H + j]
            if keep:
                saved[3 * GH + j] = storage(c_hat)
            y[j] = storage(output(x[H + j], shifted))
            c[b, j] = shifted if CARRIES else x[j]
        if keep and cuda.threadIdx.x == 0:
            stats[0] = scale_x
            stats[1] = scale_u
            stats[2] = scale_c

    return step


def _gru_step(cell: Cell, dtype: str):
    """The pointwise part of a row's step. With one normalisation, u has the sum of both sides before."""
    G = cell.n_gates
    TWO = cell.splits_sides
    storage = STORAGE[dtype]
    compute = COMPUTE[dtype]
    forward = pointwise_of(cell, device, activations(dtype)).forward
    moments = moments_over(dtype, G)
    load_gates = computed_tuples(dtype, G).load
    store_saved = tuples(dtype, G).store

    @device
    def step(parts, x, u, bias_x, bias_h, before, c, b, y, saved, stats, c_prev, t, keep, extras, H):
        GH = G * H
        eps = extras[0]
        mean_u, scale_u = moments(parts, u, H, eps)
        mean_x, scale_x = moments(parts, x, H, eps) if TWO else (mean_u, scale_u)
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(G):
                at = g * H + j
                x_hat = ((x[at] if TWO else u[at]) - mean_x) * scale_x
                x[at] = x_hat * extras[1 + at] + compute(bias_x[at])
                if keep:
                    saved[GH + at] = storage(x_hat)
                if TWO:
                    u_hat = (u[at] - mean_u) * scale_u
                    u[at] = u_hat * extras[1 + GH + at] + compute(bias_h[at])
                    if keep:
                        saved[2 * GH + at] = storage(u_hat)
                else:
                    x[at] += compute(bias_h[at])
            values, new = forward(load_gates(x, j, H), load_gates(u, j, H), compute(before[j]))
            if keep:
                store_saved(values, saved, j, H)
            y[j] = storage(new)
        if keep and cuda.threadIdx.x == 0:
            stats[0] = scale_x
            if TWO:
                stats[1] = scale_u

    return step
