"""Schedule D, "stepwise": one cuBLAS product and one fused pointwise launch per step, in CUDA graphs.

It serves every shape and dtype on every card, and is the baseline for faster schedules. Per chunk (`problem.Chunk`),
one product computes x W_ih^T before the steps. In backward dW_ih, dW_hh, dx and the biases' gradients follow the steps
of each chunk, so the workspace does not grow with T. A step accesses only buffers of the arena, and reaches the arrays
of its call through a Call in device memory: kernels/cuda/call.cuh.
"""

from __future__ import annotations

from rnnkit.backends.cupy import arena as arenas
from rnnkit.backends.cupy import passes, stepwise_launch
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import address, contiguous, i32
from rnnkit.backends.cupy.modules import over, sums_down
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import Saved
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import STORAGES, Build
from rnnkit.backends.cupy.stepwise_buffers import workspace_sizes
from rnnkit.backends.cupy.stepwise_launch import StepLauncher
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell, State, Weights
from rnnkit.core.dtypes import DType
from rnnkit.kernels.cells import HEADERS


def problem(work: Work, card: CardFacts) -> str | None:
    """None: it serves everything."""
    return None


def builds() -> tuple[Build, ...]:
    """A module per cell and storage dtype."""
    return tuple(stepwise_launch.build(cell, storage) for cell in HEADERS for storage in STORAGES)


def forward(p: Problem, call: LayerCall) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs."""
    sizes = workspace_sizes(p, backward=False)
    return passes.forward(p, call, lambda arena, table: StepLauncher(p, arena, sizes, table))


def backward(p: Problem, call: BackwardCall) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    import cupy

    saved = call.saved
    arena = arenas.current()
    dstate_n = contiguous(call.dstate_n)
    weights = Weights(*contiguous(call.weights))
    if not p.N:
        dx = cupy.zeros((p.T, p.B, p.I), p.dtype.storage)
        nothing = Weights(*(None if w is None else cupy.zeros_like(w) for w in weights))
        return Gradients(dx, tuple(d.copy() for d in dstate_n), nothing)
    dx = cupy.empty((p.T, p.B, p.I), p.dtype.storage)
    launcher = StepLauncher(p, arena, workspace_sizes(p, backward=True), saved.packing_table)
    sums = _WeightSums(launcher, weights)
    launcher.backward_begin(dstate_n)
    dy = call.dy
    if dy is not None and dy.strides[2] != p.storage_bytes:
        dy = cupy.ascontiguousarray(dy)
    dx_packed = cupy.empty((p.N, p.I), p.dtype.storage) if p.ragged else dx
    for chunk in p.chunks(backward=True):
        launcher.set_call(chunk, None, saved.states, dy)
        launcher.backward_steps(chunk, weights)
        sums.add(chunk, saved)
        dgates = launcher.storage_matrix("dgates_x", p.GH)
        rows = launcher.array(dx_packed).at(chunk.n0)
        launcher.products.rows_through(dgates, launcher.array(weights.w_ih), rows, chunk.N, p.I, p.GH)
    if p.ragged:
        launcher.unpack(dx, dx_packed)
    dstate0 = tuple(cupy.empty_like(d) for d in dstate_n)
    launcher.backward_end(dstate0)
    return Gradients(dx, dstate0, sums.finished())


class _WeightSums:
    """The weights' gradients, summed chunk by chunk. A long sum is computed in slices, which are added without loss."""

    def __init__(self, launcher: StepLauncher, weights: Weights) -> None:
        import cupy

        self.launcher = launcher
        self.done = 0  # row-steps summed
        # If both biases have the same gradient, it is summed once.
        splits = launcher.p.cell.splits_sides
        self.copies_bias = not splits and weights.b_ih is not None and weights.b_hh is not None
        summed = weights._replace(b_hh=None) if self.copies_bias else weights
        self.results = Weights(*(None if w is None else cupy.empty_like(w) for w in summed))

    def add(self, chunk: Chunk, saved: Saved) -> None:
        """Adds the gradients of the chunk whose steps have just run."""
        launcher = self.launcher
        p = launcher.p
        states = saved.states
        N = chunk.N
        n0 = chunk.n0
        dgates_x = launcher.storage_matrix("dgates_x", p.GH)
        dgates_h = launcher.storage_matrix("dgates_h", p.GH) if p.cell.splits_sides else dgates_x
        self._add_product("w_ih", 0, dgates_x, launcher.array(saved.x).at(n0), p.GH, N)
        for number, (_, first, end) in enumerate(p.cell.products):
            a = launcher.array(states.operand if number else states.h_prev).at(n0)
            d = dgates_h.at(0, first * p.H)
            self._add_product("w_hh", first * p.H, d, a, (end - first) * p.H, N)
        if p.projected:
            dprojected = launcher.storage_matrix("dprojected", p.R)
            self._add_product("w_hr", 0, dprojected, launcher.array(states.operand).at(n0), p.R, N)
        for name, d in (("b_ih", dgates_x), ("b_hh", dgates_h)):
            if getattr(self.results, name) is not None:
                self._add_columns(name, d, N)
        self.done += N

    def _add_product(self, name: str, row: int, d: Matrix, a: Matrix, M: int, N: int) -> None:
        """Adds d^T a over N row-steps to M rows of a weight's gradient, from `row` on."""
        launcher = self.launcher
        p = launcher.p
        result = getattr(self.results, name)
        K = result.shape[1]
        out = launcher.array(result).at(row)
        if p.sums_in_place:
            launcher.products.over_steps(d, a, out, M, K, N, add=self.done > 0)
            return
        if not K:
            return
        total = launcher[f"d{name}"] + 2 * p.compute_bytes * row * K
        slices = launcher.compute_matrix("slices", K)
        at_once = p.slices_at_once(result.size) * p.slice_rows
        for n in range(0, N, at_once):
            steps = min(at_once, N - n)
            parts = launcher.products.over_slices(d.at(n), a.at(n), slices, M, K, steps, p.slice_rows)
            first = self.done + n == 0
            last = self.done + n + steps == p.N
            ends = (out.address if last else 0, 0 if first and last else total)
            launcher.launch_rows("add_parts", over(M * K), *ends, slices.address, i32(parts), M * K, i32(first))

    def _add_columns(self, name: str, d: Matrix, N: int) -> None:
        """Adds the sums down the columns of d (N, G*H) to a bias's gradient."""
        launcher = self.launcher
        p = launcher.p
        shape, parts = sums_down(N, p.GH)
        partials = launcher["partials"]
        launcher.launch_rows("column_sums", shape, partials, d.address, N, p.GH)
        result = address(getattr(self.results, name)) if self.done + N == p.N else 0
        sums = (partials, i32(parts), p.GH, i32(self.done == 0))
        launcher.launch_rows("add_parts", over(p.GH), result, launcher[f"d{name}"], *sums)

    def finished(self) -> Weights:
        """The gradients, in the storage dtype."""
        if self.copies_bias and self.results.b_ih is not None:
            return self.results._replace(b_hh=self.results.b_ih.copy())
        return self.results


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`. The workspace is the stream's arena, sized for the larger pass."""
    p = Problem.of_sizes(cell, dtype, sizes)
    workspaces = tuple(workspace_sizes(p, backward=way) for way in ((False, True) if keep else (False,)))
    return f"{p.chunk_steps} steps per graph", *passes.memory(p, sizes, keep, workspaces)
