"""What a schedule provides for its backward pass, `backward_pass`: its buffers, and the steps of a chunk."""

from __future__ import annotations

from collections.abc import Iterator

from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import Launcher
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.recompute_buffers import recompute_buffers
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.weight_sums import weight_sum_buffers
from rnnkit.core.cells import Array, State, Weights

# The buffers that the steps of a chunk write for its products.
GRADIENTS = ("dgates_x", "dgates_h", "dprojected")


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
    """Bytes of the buffers that `backward_pass.BackwardPass` and `launcher.Launcher` use."""
    s = p.storage_bytes
    c = p.compute_bytes
    sizes = {"dgates_x": p.chunk_rows * p.GH * s, "dh": p.B * p.R * c}
    if p.cell.splits_sides:
        sizes["dgates_h"] = p.chunk_rows * p.GH * s
    if p.projected:
        sizes["dprojected"] = p.chunk_rows * p.R * s
    if p.ahead_steps is not None:
        sizes |= {next_of(name): sizes[name] for name in GRADIENTS if name in sizes}
    if p.cell.n_cell_states:
        sizes["dc"] = p.cell.n_cell_states * p.B * p.H * c
    return sizes | weight_sum_buffers(p) | recompute_buffers(p)


def next_of(name: str) -> str:
    """The second of two buffers that alternate."""
    return f"{name}_next"
