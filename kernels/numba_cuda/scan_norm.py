"""Numba CUDA: the scans of cells with layer normalisation. The equations are those of rnnkit/core/norm_steps.py.

As in scan.py one launch runs a whole sequence, a block per ROWS rows, and thread i of a block has the units i,
i + threads, … of every gate. The block takes the step of one row after the other. A mean over a row is a sum over the
threads, added in shared memory in an order that depends on their number alone. All else that a thread reads it wrote
itself, but for h (through y) and the gradients of the gates (through dgates_h), each with a barrier between.

Arguments are named and typed as in scan.py, and these are added:

    gates_x                             is overwritten
    side (B, G*H) C                     room for h' W_hh^T of a step
    stats (T, B, n_statistics) C        1 / sqrt(var + norm_eps) of x, h, then c; with `keep`
    dv (T, B, n_norm_gradients*H) C     out: the gradients of what is normalised, scaled and shifted
    extras (1 + K*H) C                  norm_eps, then the weights per unit
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

from numba import types

from rnnkit.core.cells import Cell
from rnnkit.kernels.cells import pointwise_of
from rnnkit.kernels.numba_cuda.launch_shape import ROWS, THREADS
from rnnkit.kernels.numba_cuda.numbers import COMPUTE, STORAGE, activations, constant, cuda, device, dot, tuples
from rnnkit.kernels.numba_cuda.scan import most_steps, time_of


@device
def block_sum(parts, value):
    """The sum of each thread's value, the same bits in all of them. parts (THREADS,): shared memory."""
    thread = cuda.threadIdx.x
    width = cuda.blockDim.x
    parts[thread] = value
    cuda.syncthreads()
    while width > 1:
        half = (width + 1) // 2
        if thread + half < width:
            parts[thread] += parts[thread + half]
        cuda.syncthreads()
        width = half
    total = parts[0]
    cuda.syncthreads()
    return total


@cache
def moments_over(dtype: str, blocks: int):
    """moments(parts, row, H, eps): the mean of `blocks` blocks of H numbers, and 1 / sqrt(var + eps)."""
    compute = COMPUTE[dtype]
    zero = constant(dtype, 0)
    one = constant(dtype, 1)

    @device
    def moments(parts, row, H, eps):
        count = compute(blocks * H)
        total = zero
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(blocks):
                total += row[g * H + j]
        mean = block_sum(parts, total) / count
        squares = zero
        for j in range(cuda.threadIdx.x, H, cuda.blockDim.x):
            for g in range(blocks):
                centred = row[g * H + j] - mean
                squares += centred * centred
        return mean, one / compute(math.sqrt(block_sum(parts, squares) / count + eps))

    return moments


def _computed(dtype: str, count: int) -> SimpleNamespace:
    """`tuples` of numbers in the compute dtype."""
    return tuples("float64" if COMPUTE[dtype] is types.float64 else "float32", count)


def make_forward(cell: Cell, dtype: str):
    """forward(gates_x, lengths, reverse, keep, …): see the module's docstring."""
    G = cell.n_gates
    TWO = cell.splits_sides
    compute = COMPUTE[dtype]
    zero = constant(dtype, 0)
    take_step = (_lstm_step if cell.has_c else _gru_step)(cell, dtype)
    dot_from = dot(dtype)
    storage = STORAGE[dtype]

    @cuda.jit(launch_bounds=THREADS)
    def forward(
        gates_x, lengths, reverse, keep, bias_x, bias_h, w, h, c, y, saved, stats, h_prev, c_prev, side, extras
    ):
        parts = cuda.shared.array(THREADS, compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first = cuda.blockIdx.x * ROWS
        end = min(first + ROWS, h.shape[0])
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
        for b in range(first, end):
            steps = lengths[b]
            for k in range(thread, H, threads):
                if steps > 0:
                    h[b, k] = y[time_of(steps - 1, steps, reverse), b, k]
                for t in range(steps, y.shape[0]):
                    y[t, b, k] = storage(zero)

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
    load_gates = _computed(dtype, G).load
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
    load_gates = _computed(dtype, G).load
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


def make_backward(cell: Cell, dtype: str):
    """backward(dy, has_dy, lengths, reverse, …): see the module's docstring."""
    G = cell.n_gates
    TWO = cell.splits_sides
    HAS_C = cell.has_c
    STATS = cell.n_statistics
    LAST = cell.n_norm_gradients - 1
    compute = COMPUTE[dtype]
    storage = STORAGE[dtype]
    zero = constant(dtype, 0)
    into_gates = (_lstm_gradients if HAS_C else _gru_gradients)(cell, dtype)
    dot_from = dot(dtype)

    @device
    def gate_gradient(dv, side, g, j, H):
        """Of gate g on a side: that of n differs between the sides of a GRU."""
        return dv[LAST * H + j] if not HAS_C and side == 1 and g == 2 else dv[g * H + j]

    @device
    def of_side(parts, dv, side, saved, extras, scale, dgates, H):
        """The gradients of a side's product: those of its normalisation."""
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

    @cuda.jit(launch_bounds=THREADS)
    def backward(
        dy, has_dy, lengths, reverse, w, saved, stats, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dv, bias_x, bias_h,
        extras,
    ):  # fmt: skip
        parts = cuda.shared.array(THREADS, compute)
        thread = cuda.threadIdx.x
        threads = cuda.blockDim.x
        first = cuda.blockIdx.x * ROWS
        end = min(first + ROWS, dh.shape[0])
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
    store_gradients = _computed(dtype, cell.n_norm_gradients).store

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


@cache
def kernels(cell: Cell, dtype: str) -> SimpleNamespace:
    """forward and backward of a cell and dtype. Numba compiles each at its first launch."""
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
    return {
        "forward": (C3, lengths, flag, flag, S1, S1, S2, S2, C2, S3, S3, C3, S3, C3, C2, C1),
        "backward": (S3, flag, lengths, flag, S2, S3, C3, S3, C3, S3, S3, C2, C2, C3, S1, S1, C1),
    }
