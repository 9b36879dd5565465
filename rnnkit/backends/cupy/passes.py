"""A forward pass as all schedules run it: products of x by chunks of steps, and around them states in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rnnkit.backends.cupy import arena as arenas
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.cublas import Matrix, Products
from rnnkit.backends.cupy.launcher import contiguous, packing_table
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import Saved, SavedStates, saved_bytes
from rnnkit.backends.interface import LayerCall, Sizes
from rnnkit.core.cells import Array, State, Weights


class ForwardLauncher(Protocol):
    """What a schedule provides for `forward`: a `launcher.Launcher` with the steps of a chunk."""

    products: Products

    def packed(self, x: Array) -> Array: ...

    def compute_matrix(self, name: str, ld: int) -> Matrix: ...

    def array(self, a: Array) -> Matrix: ...

    def forward_begin(self, state0: State, weights: Weights) -> None: ...

    def forward_chunk(self, chunk: Chunk, weights: Weights, y: Array, states: SavedStates) -> None:
        """The steps of a chunk, from the products of x in "gates", and the states in "h" and "c"."""
        ...

    def forward_end(self, state_n: State) -> None: ...


def forward_buffers(p: Problem) -> dict[str, int]:
    """Bytes of the buffers that `forward` and `launcher.Launcher` use."""
    c = p.compute_bytes
    sizes = {"gates": p.chunk_rows * p.GH * c, "bias": 2 * p.GH * c, "h": p.B * p.R * p.storage_bytes}
    return sizes | ({"c": p.B * p.H * c} if p.cell.has_c else {})


def forward(
    p: Problem, call: LayerCall, launcher_of: Callable[[Arena, Array | None], ForwardLauncher]
) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs. launcher_of: of an arena and a `packing_table`."""
    import cupy

    arena = arenas.current()
    y = call.out
    if y is None or y.strides[2] != p.storage_bytes:
        y = cupy.empty((p.T, p.B, p.R), p.dtype.storage)
    if p.ragged or not p.N:
        y.fill(0)
    state0 = contiguous(call.state0)
    weights = Weights(*contiguous(call.weights))
    states = SavedStates.empty(p) if call.keep else SavedStates()
    table = packing_table(p)
    if not p.N:
        return y, tuple(s.copy() for s in state0), Saved(call.x, states, table)
    launcher = launcher_of(arena, table)
    x = launcher.packed(call.x)
    state_n = tuple(cupy.empty_like(s) for s in state0)
    launcher.forward_begin(state0, weights)
    for chunk in p.chunks():
        gates = launcher.compute_matrix("gates", p.GH)
        rows = launcher.array(x).at(chunk.n0)
        launcher.products.rows_by_weights(rows, launcher.array(weights.w_ih), gates, chunk.N, p.GH, p.I)
        launcher.forward_chunk(chunk, weights, y, states)
    launcher.forward_end(state_n)
    return y, state_n, Saved(x, states, table)


def memory(p: Problem, sizes: Sizes, keep: bool, workspaces: tuple[dict[str, Any], ...]) -> tuple[int, int]:
    """The transient and kept bytes of `rnnkit.backends.Description`, from the workspaces of a call's passes."""
    import cupy

    T, B, I, _, _, N = sizes
    work = max(sum(workspace.values()) for workspace in workspaces)
    transient = arenas.bytes_of(work, cupy.cuda.runtime.getDevice())
    packed = N * I * p.storage_bytes + 8 * (B + T + 1) if N != T * B else 0
    kept = saved_bytes(p, N) + packed if keep else 0
    return transient + (0 if keep else packed), kept
