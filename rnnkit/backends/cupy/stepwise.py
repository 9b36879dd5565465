"""Schedule D, "stepwise": a cuBLAS product and one fused pointwise launch a step, a chunk of steps a CUDA graph.

It serves every shape and dtype on every card, and is what the faster schedules are measured against. Of a chunk
(`problem.Chunk`) the pre-activations x W_ih^T are one product before the steps; on the way back dW_ih, dW_hh, dx and
the biases' gradients follow the steps of each chunk, so that work space does not grow with T. A step reads and writes
buffers of the arena alone, and reaches what is this call's own through a Call in device memory:
kernels/cuda/stepwise.cuh.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.cupy import arena as arenas
from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.modules import over, sums_down
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.stepwise_run import RESET_BEFORE, Kept, Run, address, i32, kept_blocks, sizes_of
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.backends.ragged import packing
from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.dtypes import DType


class Saved(NamedTuple):
    """What backward needs of a forward: x as (N, I), what the steps kept, and where ragged rows are."""

    x: Array
    kept: Kept
    places: Array | None


def forward(p: Problem, call: LayerCall) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs."""
    import cupy

    x, arena, storage = call.x, arenas.current(), p.dtype.storage
    y = (cupy.zeros if p.ragged or not p.N else cupy.empty)((p.T, p.B, p.R), storage)
    state0, weights = _contiguous(call.state0), Weights(*_contiguous(call.weights))
    kept = Kept.empty(p) if call.keep else Kept()
    index = _index(p)
    if not p.N:
        return y, tuple(s.copy() for s in state0), Saved(x, kept, index)
    run = Run(p, arena, sizes_of(p, backward=False), index)
    x = run.packed(x)
    state_n = tuple(cupy.empty_like(s) for s in state0)
    h0, c0 = address(state0[0]), address(state0[1] if p.two_states else None)
    biases = (address(weights.b_ih), address(weights.b_hh))
    states = (run["h"], run["c"])
    run.launch("forward_begin", over(p.B * max(p.H, p.R)), h0, c0, *biases, run.order, *states, run["bias"], *run.sizes)
    for chunk in p.chunks():
        gates, steps = run.computed("gates", p.GH), run.array(x).at(chunk.n0)
        run.products.rows_by_weights(steps, run.array(weights.w_ih), gates, chunk.N, p.GH, p.I)
        run.set_call(chunk, y, kept, None)
        run.forward_steps(chunk, weights)
    ends = (address(state_n[0]), address(state_n[1] if p.two_states else None))
    run.launch("forward_end", over(p.B * max(p.H, p.R)), *states, run.order, *ends, *run.sizes[:3])
    return y, state_n, Saved(x, kept, index)


def backward(p: Problem, call: BackwardCall) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    import cupy

    saved, dy, arena = call.saved, call.dy, arenas.current()
    dstate_n, weights = _contiguous(call.dstate_n), Weights(*_contiguous(call.weights))
    if not p.N:
        dx = cupy.zeros((p.T, p.B, p.I), p.dtype.storage)
        nothing = Weights(*(None if w is None else cupy.zeros_like(w) for w in weights))
        return Gradients(dx, tuple(d.copy() for d in dstate_n), nothing)
    dx = cupy.empty((p.T, p.B, p.I), p.dtype.storage)
    run = Run(p, arena, sizes_of(p, backward=True), saved.places)
    sums = _Sums(run, weights)
    dstates = (run["dh"], run["dc"])
    ends = (address(dstate_n[0]), address(dstate_n[1] if p.two_states else None))
    run.launch("backward_begin", over(p.B * max(p.H, p.R)), *ends, run.order, *dstates, *run.sizes[:3])
    if dy is not None and dy.strides[2] != p.stored:
        dy = cupy.ascontiguousarray(dy)
    dx_packed = cupy.empty((p.N, p.I), p.dtype.storage) if p.ragged else dx
    for chunk in p.chunks(backward=True):
        run.set_call(chunk, None, saved.kept, dy)
        run.backward_steps(chunk, weights)
        sums.add(chunk, saved)
        dgates, w_ih = run.stored("dgates_x", p.GH), run.array(weights.w_ih)
        run.products.rows_through(dgates, w_ih, run.array(dx_packed).at(chunk.n0), chunk.N, p.I, p.GH)
    if p.ragged:
        run.unpack(dx, dx_packed)
    dstate0 = tuple(cupy.empty_like(d) for d in dstate_n)
    begins = (address(dstate0[0]), address(dstate0[1] if p.two_states else None))
    run.launch("backward_end", over(p.B * max(p.H, p.R)), *dstates, run.order, *begins, *run.sizes[:3])
    return Gradients(dx, dstate0, sums.finished())


class _Sums:
    """The weights' gradients, summed chunk by chunk: a long sum in slices, whose sums lose nothing when added."""

    def __init__(self, run: Run, weights: Weights) -> None:
        import cupy

        self.run, self.done = run, 0
        # Of biases whose gradients are equal one is summed.
        self.copies_bias = "dgates_h" not in run and weights.b_ih is not None and weights.b_hh is not None
        summed = weights._replace(b_hh=None) if self.copies_bias else weights
        self.results = Weights(*(None if w is None else cupy.empty_like(w) for w in summed))

    def add(self, chunk: Chunk, saved: Saved) -> None:
        """What the chunk's steps, which have just run, give."""
        run, p, kept = self.run, self.run.p, saved.kept
        N, n0 = chunk.N, chunk.n0
        dgates_x = run.stored("dgates_x", p.GH)
        dgates_h = run.stored("dgates_h", p.GH) if "dgates_h" in run else dgates_x
        self._add_product("w_ih", 0, dgates_x, run.array(saved.x).at(n0), p.GH, N)
        operands = {"h_prev": kept.h_prev, "rh": kept.extra}
        for operand, first, end in p.cell.products:
            a, d = run.array(operands[operand]).at(n0), dgates_h.at(0, first * p.H)
            self._add_product("w_hh", first * p.H, d, a, (end - first) * p.H, N)
        if p.projected:
            self._add_product("w_hr", 0, run.stored("dprojected", p.R), run.array(kept.extra).at(n0), p.R, N)
        for name, d in (("b_ih", dgates_x), ("b_hh", dgates_h)):
            if getattr(self.results, name) is not None:
                self._add_columns(name, d, N)
        self.done += N

    def _add_product(self, name: str, row: int, d: Matrix, a: Matrix, M: int, N: int) -> None:
        """d^T a over N steps to M rows of a weight's gradient, from `row` on."""
        run, p, result = self.run, self.run.p, getattr(self.results, name)
        K = result.shape[1]
        out, total = run.array(result).at(row), run[f"d{name}"] + 2 * p.computed * row * K
        if p.sums_in_place:
            run.products.over_steps(d, a, out, M, K, N, add=self.done > 0)
            return
        if not K:
            return
        slices, at_once = run.computed("slices", K), p.slices_at_once(result.size) * p.slice_rows
        for n in range(0, N, at_once):
            steps = min(at_once, N - n)
            parts = run.products.over_slices(d.at(n), a.at(n), slices, M, K, steps, p.slice_rows)
            first, last = self.done + n == 0, self.done + n + steps == p.N
            sums = (slices.address, i32(parts), M * K, i32(first))
            run.launch("add_parts", over(M * K), out.address if last else 0, 0 if first and last else total, *sums)

    def _add_columns(self, name: str, d: Matrix, N: int) -> None:
        run, GH = self.run, self.run.p.GH
        shape, parts = sums_down(N, GH)
        run.launch("column_sums", shape, run["partials"], d.address, N, GH)
        result = address(getattr(self.results, name)) if self.done + N == run.p.N else 0
        sums = (run["partials"], i32(parts), GH, i32(self.done == 0))
        run.launch("add_parts", over(GH), result, run[f"d{name}"], *sums)

    def finished(self) -> Weights:
        """The gradients, in the storage dtype."""
        if self.copies_bias and self.results.b_ih is not None:
            return self.results._replace(b_hh=self.results.b_ih.copy())
        return self.results


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`. Work space is the stream's arena, for the larger of the two passes."""
    import cupy

    T, B, I, H, R, N = sizes
    p = Problem(cell, dtype, T, B, I, H, R, R != H, False, packing(T, B, None))
    passes = (False, True) if keep else (False,)
    work = max(sum(sizes_of(p, backward=way).values()) for way in passes)
    transient = arenas.bytes_of(work, cupy.cuda.runtime.getDevice())
    extra = H if p.projected or cell.name == RESET_BEFORE else 0
    kept = N * ((kept_blocks(cell) * H + R + extra) * p.stored + (H * p.computed if p.two_states else 0))
    packed = N * I * p.stored + 8 * (B + T + 1) if N != T * B else 0
    return f"{p.chunk_steps} steps a graph", transient + (0 if keep else packed), kept + packed if keep else 0


def _contiguous(arrays: Any) -> tuple[Any, ...]:
    import cupy

    return tuple(None if a is None else cupy.ascontiguousarray(a) for a in arrays)


def _index(p: Problem) -> Array | None:
    """order (B,) and offsets (T+1,) one after the other on the device, or None where no row is shorter than T."""
    import cupy

    if not p.ragged:
        return None
    return cupy.asarray(np.concatenate([p.packing.order, p.packing.offsets]).astype(np.int64))
