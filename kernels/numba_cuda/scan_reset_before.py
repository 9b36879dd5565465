"""Numba CUDA: the scan of the GRU that resets before the product: two products and two pointwise stages a step.

Arrays, threads and barriers are those of kernels/numba_cuda/scan.py. Its own are kept (T, B, 3H) S holding r,z,n, and
rh (T, B, H) S, the operand of dW_hn; without `keep` these two hold one step, (1, B, ·), hence the second barrier. The
two sides' gradients are the same: dgates.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from numba import types

from rnnkit.kernels.cells import gru
from rnnkit.kernels.numba_cuda.launch_shape import THREADS
from rnnkit.kernels.numba_cuda.numbers import COMPUTE, STORAGE, activations, constant, cuda, device, dot, tuples

RESET_BEFORE, KEPT = "gru_reset_before", 3


def make_forward(dtype: str):
    """forward(gates_x, lengths, reverse, keep, bias_x, bias_h, w, h, y, kept, h_prev, rh)."""
    compute, storage, zero = COMPUTE[dtype], STORAGE[dtype], constant(dtype, 0)
    stages, dot_from, products = (
        gru.make_reset_before(device, activations(dtype)),
        dot(dtype),
        tuples(dtype, 2).products,
    )
    gates_of, output_of = stages.gates, stages.output

    @device
    def x_side(gates, bias_x, at):
        return gates[at] + compute(bias_x[at])

    @cuda.jit(launch_bounds=THREADS)
    def forward(gates_x, lengths, reverse, keep, bias_x, bias_h, w, h, y, kept, h_prev, rh):
        b, thread, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        if b >= h.shape[0]:
            return
        H, steps = h.shape[1], lengths[b]
        before = h[b]
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            at = t if keep else 0
            for j in range(thread, H, threads):
                u_r, u_z = products(before, w, bias_h, j, H)
                a_r = x_side(gates_x[t, b], bias_x, j) + u_r
                a_z = x_side(gates_x[t, b], bias_x, j + H) + u_z
                r, z, reset = gates_of(a_r, a_z, compute(before[j]))
                kept[at, b, j] = storage(r)
                kept[at, b, H + j] = storage(z)
                rh[at, b, j] = storage(reset)
            cuda.syncthreads()
            for j in range(thread, H, threads):
                u_n = dot_from(rh[at, b], w[:, 2 * H + j], compute(bias_h[2 * H + j]))
                a_n = x_side(gates_x[t, b], bias_x, 2 * H + j) + u_n
                n, new = output_of(a_n, compute(kept[at, b, H + j]), compute(before[j]))
                kept[at, b, 2 * H + j] = storage(n)
                y[t, b, j] = storage(new)
                if keep:
                    h_prev[t, b, j] = before[j]
            cuda.syncthreads()
            before = y[t, b]
        for j in range(thread, H, threads):
            h[b, j] = before[j]
            for t in range(steps, y.shape[0]):
                y[t, b, j] = storage(zero)

    return forward


def make_backward(dtype: str):
    """backward(dy, has_dy, lengths, reverse, w, kept, h_prev, dgates, dh)."""
    compute, storage, zero = COMPUTE[dtype], STORAGE[dtype], constant(dtype, 0)
    stages, dot_from = gru.make_reset_before(device, activations(dtype)), dot(dtype)
    gates_backward, output_backward, load = stages.gates_backward, stages.output_backward, tuples(dtype, KEPT).load

    @cuda.jit(launch_bounds=THREADS)
    def backward(dy, has_dy, lengths, reverse, w, kept, h_prev, dgates, dh):
        b, thread, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        if b >= dh.shape[0]:
            return
        H, steps = dh.shape[1], lengths[b]
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            for j in range(thread, H, threads):
                if has_dy:
                    dh[b, j] += compute(dy[t, b, j])
                _, z, n = load(kept[t, b], j, H)
                da_z, da_n = output_backward(z, n, compute(h_prev[t, b, j]), dh[b, j])
                dgates[t, b, H + j] = storage(da_z)
                dgates[t, b, 2 * H + j] = storage(da_n)
            cuda.syncthreads()
            for j in range(thread, H, threads):
                drh = dot_from(dgates[t, b, 2 * H :], w[2 * H :, j], zero)
                r, z, _ = load(kept[t, b], j, H)
                da_r, direct = gates_backward(r, z, compute(h_prev[t, b, j]), dh[b, j], drh)
                dgates[t, b, j] = storage(da_r)
                dh[b, j] = direct
            cuda.syncthreads()
            for j in range(thread, H, threads):
                dh[b, j] = dot_from(dgates[t, b, : 2 * H], w[: 2 * H, j], dh[b, j])

    return backward


def make(dtype: str) -> SimpleNamespace:
    """The pair of a dtype, each compiled by Numba at its first launch."""
    return SimpleNamespace(forward=make_forward(dtype), backward=make_backward(dtype))


def signatures(dtype: str) -> dict[str, tuple[Any, ...]]:
    """The Numba types that the pair is launched with."""
    S, C, flag, lengths = STORAGE[dtype], COMPUTE[dtype], types.boolean, types.int64[::1]
    S1, S2, S3 = S[::1], S[:, ::1], S[:, :, ::1]
    return {
        "forward": (C[:, :, ::1], lengths, flag, flag, S1, S1, S2, S2, S3, S3, S3, S3),
        "backward": (S3, flag, lengths, flag, S2, S3, S3, S3, C[:, ::1]),
    }
