"""What the resident schedules share: their modules, and W_hh packed once per call and one launch per chunk of steps."""

from __future__ import annotations

from typing import Any

from rnnkit.backends.cupy import passes, sources, tiles
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_pass import BackwardLauncher
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.launcher import Launcher, address, i32
from rnnkit.backends.cupy.modules import over
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build, Defines, Kernel
from rnnkit.backends.cupy.tiles import ARITHMETIC, Division
from rnnkit.core.cells import Array, State, Weights
from rnnkit.core.dtypes import DType

# The most shared memory of a block on any card.
MOST_SHARED = 227 << 10

# The files of every module, before those of its schedule.
FILES = (
    "cuda/rows.cuh",
    "cuda/ptx.cuh",
    "cuda/resident_product.cuh",
    "cuda/resident.cuh",
    "cuda/resident_forward.cuh",
)


def problem(work: Work, card: CardFacts) -> str | None:
    """Why no resident schedule serves the work on this card, or None."""
    if work.cell.options:
        return f"cell {work.cell.key}: its kernels have no options"
    if work.projected:
        return "a projection needs a second product per step"
    if work.cell.resets_before:
        return f"cell {work.cell.name} needs a second product per step"
    return tiles.dtype_problem(work.dtype, card)


def module(
    name: str, cell: str, dtype: DType, files: tuple[str, ...], kernels: tuple[Kernel, ...], defines: Defines
) -> Build:
    """A module with FILES and `files`. defines: beside those of the dtype's arithmetic."""
    arithmetic = ARITHMETIC[dtype.name]
    name += "" if dtype.name == dtype.stored else f"_{dtype.name}"
    return sources.of_cell(
        name,
        cell,
        dtype.stored,
        (*FILES, *files),
        kernels,
        defines=(*arithmetic.defines, *defines),
        min_arch=arithmetic.min_arch,
    )


def build(schedule: str, cell: str, largest: Division, files: tuple[str, ...], cooperative: bool = False) -> Build:
    """A forward module "<schedule>_<largest block>". largest: the division of the largest launch, for its report."""
    kernels = (
        *sources.pointwise_kernels("pack_weights"),
        Kernel("forward_chunk", (largest.threads, 1, 1), largest.shared_bytes, cooperative, varies=True),
    )
    name = f"{schedule}_{largest.config.threads}"
    return module(name, cell, largest.dtype, files, kernels, largest.config.defines)


def workspace_sizes(p: Problem, division: Division) -> dict[str, int]:
    """Bytes of each buffer of the forward workspace."""
    sizes = passes.forward_buffers(p) | {"weights": division.weight_bytes}
    return sizes | ({"h_out": sizes["h"]} if division.members > 1 else {})


class ResidentLauncher(Launcher):
    """A Launcher with the forward steps of a resident schedule. `exchange` gives the last arguments of a launch."""

    def __init__(self, p: Problem, arena: Arena, table: Array | None, build: Build, division: Division) -> None:
        super().__init__(p, arena, workspace_sizes(p, division), table, build)
        self.division = division
        self.groups = -(-p.B // ARITHMETIC[p.dtype.name].rows)

    def exchange(self, chunk: Chunk) -> tuple[Any, ...]:
        """The arguments that only this schedule's kernel has."""
        return ()

    def forward_begin(self, state0: State, weights: Weights) -> None:
        """As `Launcher.forward_begin`, and packs W_hh into "weights"."""
        super().forward_begin(state0, weights)
        p = self.p
        d = self.division
        strides = (p.H * p.H, p.H, 1)  # from one gate, unit and column of W_hh to the next
        counts = map(i32, (d.outputs, p.H, p.H, d.members * d.tiles, d.blocks))
        shape = over(d.weight_bytes // p.storage_bytes)
        self.launch("pack_weights", shape, self["weights"], address(weights.w_hh), *strides, *counts)

    def forward_chunk(self, chunk: Chunk, weights: Weights, y: Array, states: SavedStates) -> None:
        """See `passes.ForwardLauncher`."""
        p = self.p
        d = self.division
        inputs = (self["gates"], self["bias"], self["weights"])
        h_out = self["h_out"] if d.members > 1 else self["h"]
        outputs = (address(y), address(states.values), address(states.h_prev), address(states.c_prev))
        sizes = (i32(p.B), i32(p.H), chunk.t0, chunk.n0, i32(chunk.T), i32(p.reverse))
        args = (*inputs, self["h"], h_out, self["c"], *outputs, self.order, self.offsets, *sizes, *self.exchange(chunk))
        shape = ((d.members * self.groups,), (d.threads,))
        self.launch("forward_chunk", shape, *args, shared_mem=d.shared_bytes)
        if d.members > 1:
            self.swap("h", "h_out")


class ResidentBackwardLauncher(BackwardLauncher):
    """A BackwardLauncher of a resident schedule."""

    def chunk_arguments(self, chunk: Chunk, states: SavedStates, dy: Array | None) -> tuple[Any, ...]:
        """The first arguments of a launch of "backward_chunk"."""
        p = self.p
        saved = (address(states.values), address(states.h_prev), address(states.c_prev))
        strides = (0, 0) if dy is None else tuple(stride // p.storage_bytes for stride in dy.strides[:2])
        gradients = (self["dgates_x"], self["dgates_h"], self["dh"], self["dc"])
        sizes = (i32(p.B), i32(p.H), chunk.t0, chunk.n0, i32(chunk.T), i32(not p.reverse))
        return (self["weights"], *saved, address(dy), *strides, self.order, self.offsets, *gradients, *sizes)
