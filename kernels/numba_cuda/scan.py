"""Numba CUDA: a whole sequence in one launch, a block a batch row. The CUDA C++ schedules' legible sibling.

    forward     per step, for every unit: its gates' products h W_hh, then the cell; then, if projected, h W_hr
    backward    per step, last first: if projected, dh W_hr; for every unit the cell; then dh += du W_hh

The threads of a block share its row: thread i has the units i, i + threads, i + 2 threads, …, so any H will do. What
one thread makes and all read (h, du and, under projection, the operands around it) goes through the very arrays that
are the results, y and dgates_h among them: a place a step, so that one barrier between writing and reading is enough.
What only its own thread needs (c, dc, dh) needs none. Nothing is added up between threads: results do not depend on
their order.

A row has its own number of steps, and ends after them: no block waits for another. Blocks past the batch do nothing;
they are there because Numba warns of a small grid.

S stands for the dtype's storage, C for its compute; all arrays are C-contiguous. An array that a cell or a call has no
use for is given as one number, for Numba has no optional arguments: c's under RNN and GRU, those of a projection
without one, what is kept without `keep`.

    lengths (B,) int64                      the steps of each row
    gates_x (T, B, G*H) C                   x W_ih^T
    bias_x, bias_h (G*H) S                  b_ih, b_hh
    w (R, G*H), w_proj (H, P) S             forward: W_hh and W_hr transposed, so that threads read side by side
    w (G*H, R), w_proj (P, H) S             backward: as they are, for the same reason
    h (B, R) S, c (B, H) C                  in the initial, out the final states
    y (T, B, R) S                           zero past a row's end
    kept (T, B, KEPT*H) S, h_prev (T, B, R) S, c_prev (T, B, H) C      as `keep`
    m (T, B, H) S, or (1, B, H)             what the projection multiplies, of every step with `keep`, else of one
    dy (T, B, R) S                          read where has_dy
    dgates_x, dgates_h (T, B, G*H) S        out; one array where the cell's two sides are not apart
    dh (B, R), dc (B, H) C                  in the gradients of the final states, out those of the initial ones
    dprojected (T, B, P) S                  out, under projection
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

from numba import types

from rnnkit.kernels.cells import gru, lstm, rnn
from rnnkit.kernels.numba_cuda import scan_reset_before as cuda_scan_reset_before
from rnnkit.kernels.numba_cuda.launch_shape import THREADS
from rnnkit.kernels.numba_cuda.numbers import COMPUTE, STORAGE, activations, constant, cuda, device, dot, tuples
from rnnkit.kernels.numba_cuda.scan_reset_before import RESET_BEFORE

# cell: (the module with its constants, its pointwise pair, whether the pair reads h', whether it has c)
_CELLS: dict[str, tuple[Any, Any, bool, bool]] = {
    "rnn_tanh": (rnn, lambda act: rnn.make(device, act, "tanh"), False, False),
    "rnn_relu": (rnn, lambda act: rnn.make(device, act, "relu"), False, False),
    "gru": (gru, lambda act: gru.make(device, act), True, False),
    "lstm": (lstm, lambda act: lstm.make(device, act), False, True),
}


def kept_blocks(cell: str) -> int:
    """How many arrays of H values a step of the cell keeps, its states and a projection's operand aside."""
    return cuda_scan_reset_before.KEPT if cell == RESET_BEFORE else _CELLS[cell][0].KEPT


def is_split(cell: str) -> bool:
    """Whether the gradients of the input's and the hidden side's pre-activations differ."""
    return cell != RESET_BEFORE and _CELLS[cell][0].SPLIT


def make_forward(cell: str, dtype: str):
    """forward(gates_x, lengths, reverse, keep, projected, …): see the module's docstring."""
    module, make_pair, READS_H, HAS_C = _CELLS[cell]
    G, KEPT = module.GATES, module.KEPT
    compute, storage, zero = COMPUTE[dtype], STORAGE[dtype], constant(dtype, 0)
    pair, dot_from = make_pair(activations(dtype)).forward, dot(dtype)
    load, add, products = tuples(dtype, G).load, tuples(dtype, G).add, tuples(dtype, G).products
    load_gates = tuples("float64" if compute is types.float64 else "float32", G).load
    store_kept = tuples(dtype, KEPT).store

    @cuda.jit(launch_bounds=THREADS)
    def forward(
        gates_x, lengths, reverse, keep, projected, bias_x, bias_h, w, w_proj, h, c, y, kept, h_prev, c_prev, m
    ):
        b, thread, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        if b >= h.shape[0]:
            return
        H, R, steps = bias_x.shape[0] // G, h.shape[1], lengths[b]
        before = h[b]
        for s in range(steps):
            t = steps - 1 - s if reverse else s
            out = m[t if keep else 0, b] if projected else y[t, b]
            for j in range(thread, H, threads):
                x = add(load_gates(gates_x[t, b], j, H), load(bias_x, j, H))
                u = products(before, w, bias_h, j, H)
                c_before = c[b, j] if HAS_C else zero
                values, new, c_new = pair(x, u, compute(before[j]) if READS_H else zero, c_before)
                out[j] = storage(new)
                if HAS_C:
                    c[b, j] = c_new
                if keep:
                    store_kept(values, kept[t, b], j, H)
                    if HAS_C:
                        c_prev[t, b, j] = c_before
            if keep:
                for k in range(thread, R, threads):
                    h_prev[t, b, k] = before[k]
            cuda.syncthreads()
            if projected:
                for p in range(thread, R, threads):
                    y[t, b, p] = storage(dot_from(out, w_proj[:, p], zero))
                cuda.syncthreads()
            before = y[t, b]
        for k in range(thread, R, threads):
            h[b, k] = before[k]
            for t in range(steps, y.shape[0]):
                y[t, b, k] = storage(zero)

    return forward


def make_backward(cell: str, dtype: str):
    """backward(dy, has_dy, lengths, reverse, projected, …): see the module's docstring."""
    module, make_pair, READS_H, HAS_C = _CELLS[cell]
    G, KEPT, SPLIT = module.GATES, module.KEPT, module.SPLIT
    compute, storage, zero = COMPUTE[dtype], STORAGE[dtype], constant(dtype, 0)
    pair, dot_from = make_pair(activations(dtype)).backward, dot(dtype)
    load_kept, store_gates = tuples(dtype, KEPT).load, tuples(dtype, G).store

    @cuda.jit(launch_bounds=THREADS)
    def backward(
        dy, has_dy, lengths, reverse, projected, w, w_proj, kept, h_prev, c_prev, dgates_x, dgates_h, dh, dc, dprojected
    ):
        b, thread, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        if b >= dh.shape[0]:
            return
        H, R, steps = dgates_x.shape[2] // G, dh.shape[1], lengths[b]
        for s in range(steps):
            t = s if reverse else steps - 1 - s
            if has_dy:
                for k in range(thread, R, threads):
                    dh[b, k] += compute(dy[t, b, k])
            if projected:
                for p in range(thread, R, threads):
                    dprojected[t, b, p] = storage(dh[b, p])
                    dh[b, p] = zero
                cuda.syncthreads()
            for j in range(thread, H, threads):
                dxs, dus, direct, dc_new = pair(
                    load_kept(kept[t, b], j, H),
                    compute(h_prev[t, b, j]) if READS_H else zero,
                    c_prev[t, b, j] if HAS_C else zero,
                    dot_from(dprojected[t, b], w_proj[:, j], zero) if projected else dh[b, j],
                    dc[b, j] if HAS_C else zero,
                )
                store_gates(dxs, dgates_x[t, b], j, H)
                if SPLIT:
                    store_gates(dus, dgates_h[t, b], j, H)
                if HAS_C:
                    dc[b, j] = dc_new
                if not projected:
                    dh[b, j] = compute(direct)
            cuda.syncthreads()
            for k in range(thread, R, threads):
                dh[b, k] = dot_from(dgates_h[t, b], w[:, k], dh[b, k])

    return backward


@cache
def kernels(cell: str, dtype: str) -> SimpleNamespace:
    """The pair of a cell and dtype, each compiled by Numba at its first launch."""
    if cell == RESET_BEFORE:
        return cuda_scan_reset_before.make(dtype)
    return SimpleNamespace(forward=make_forward(cell, dtype), backward=make_backward(cell, dtype))


def signatures(cell: str, dtype: str) -> dict[str, tuple[Any, ...]]:
    """The Numba types that each kernel of a cell and dtype is launched with."""
    if cell == RESET_BEFORE:
        return cuda_scan_reset_before.signatures(dtype)
    S, C, flag, lengths = STORAGE[dtype], COMPUTE[dtype], types.boolean, types.int64[::1]
    S1, S2, S3, C2, C3 = S[::1], S[:, ::1], S[:, :, ::1], C[:, ::1], C[:, :, ::1]
    return {
        "forward": (C3, lengths, flag, flag, flag, S1, S1, S2, S2, S2, C2, S3, S3, S3, C3, S3),
        "backward": (S3, flag, lengths, flag, flag, S2, S2, S3, S3, C3, S3, S3, C2, C2, S3),
    }


def compilable() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Every kernel and dtype: its name, its dispatcher, not compiled yet, and the Numba types it is launched with."""
    for cell in (*_CELLS, RESET_BEFORE):
        for dtype in STORAGE:
            for name, signature in signatures(cell, dtype).items():
                yield f"{name}-{cell}-{dtype}", getattr(kernels(cell, dtype), name), signature
