"""A backward pass as all schedules run it: steps by chunks, then the products over the row-steps of each chunk.

Per chunk, dx, dW_ih, dW_hh and the biases' gradients follow its steps, so the workspace does not grow with T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rnnkit.backends.cupy import arena as arenas
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import Launcher, contiguous, units_aligned
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.weight_sums import WeightSums, weight_sum_buffers
from rnnkit.backends.interface import BackwardCall, Gradients
from rnnkit.core.cells import Array, State, Weights


class BackwardLauncher(Launcher):
    """A Launcher with the steps of a chunk, which a schedule provides for `backward`."""

    def backward_begin(self, dstate_n: State, weights: Weights) -> None:
        """Copies the gradients of the final states to "dh" and "dc"."""
        self.gradients_begin(dstate_n)

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """The steps of a chunk, last first, from "dh" and "dc", which they update. dy (T, B, R): None for zeros.

        Their gradients end in "dgates_x" (row-steps, G*H), in "dgates_h" if the cell splits the sides, and under
        projection in "dprojected" (row-steps, R).
        """
        raise NotImplementedError

    def hidden_operands(self, chunk: Chunk, states: SavedStates) -> Iterator[tuple[Matrix, int, int]]:
        """What W_hh was multiplied by in a chunk whose steps have just run, (N, R), each for the gates [first, end)."""
        for number, (_, first, end) in enumerate(self.p.cell.products):
            yield self.array(states.operand if number else states.h_prev).at(chunk.n0), first, end


def backward_buffers(p: Problem) -> dict[str, int]:
    """Bytes of the buffers that `backward` and `launcher.Launcher` use."""
    s = p.storage_bytes
    c = p.compute_bytes
    sizes = {"dgates_x": p.chunk_rows * p.GH * s, "dh": p.B * p.R * c}
    if p.cell.splits_sides:
        sizes["dgates_h"] = p.chunk_rows * p.GH * s
    if p.projected:
        sizes["dprojected"] = p.chunk_rows * p.R * s
    if p.cell.has_c:
        sizes["dc"] = p.B * p.H * c
    return sizes | weight_sum_buffers(p)


def backward(
    p: Problem, call: BackwardCall, launcher_of: Callable[[Arena, Array | None], BackwardLauncher]
) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`. launcher_of: of an arena and a `packing_table`."""
    import cupy

    saved = call.saved
    arena = arenas.current()
    dstate_n = contiguous(call.dstate_n)
    weights = Weights(*contiguous(call.weights))
    into = None if call.cache is None else call.cache.grads
    dx = cupy.empty((p.T, p.B, p.I), p.dtype.storage)
    if not p.N:
        dx.fill(0)
        nothing = Weights(*(None if w is None or into is not None else cupy.zeros_like(w) for w in weights))
        return Gradients(dx, tuple(d.copy() for d in dstate_n), nothing)
    launcher = launcher_of(arena, saved.packing_table)
    sums = WeightSums(launcher, weights, into)
    launcher.backward_begin(dstate_n, weights)
    dy = units_aligned(call.dy)
    dx_packed = cupy.empty((p.N, p.I), p.dtype.storage) if p.ragged else dx
    for chunk in p.chunks(backward=True):
        launcher.backward_chunk(chunk, weights, saved.states, dy)
        sums.add(chunk, saved)
        dgates = launcher.storage_matrix("dgates_x", p.GH)
        rows = launcher.array(dx_packed).at(chunk.n0)
        launcher.products.rows_through(dgates, launcher.array(weights.w_ih), rows, chunk.N, p.I, p.GH)
    if p.ragged:
        launcher.unpack(dx, dx_packed)
    dstate0 = tuple(cupy.empty_like(d) for d in dstate_n)
    launcher.backward_end(dstate0)
    return Gradients(dx, dstate0, sums.finished())
