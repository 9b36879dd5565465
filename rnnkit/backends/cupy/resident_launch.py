"""The forward steps of the resident schedules: W_hh packed once per call, and one launch per chunk of steps."""

from __future__ import annotations

from typing import Any

from rnnkit.backends.cupy import passes, sources
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.launcher import Launcher, address, i32
from rnnkit.backends.cupy.modules import over
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.backends.cupy.tiles import ARITHMETIC, Division
from rnnkit.core.cells import Array, State, Weights

# The files of a forward module, before those of its schedule.
FILES = (
    "cuda/rows.cuh",
    "cuda/ptx.cuh",
    "cuda/resident_product.cuh",
    "cuda/resident.cuh",
    "cuda/resident_forward.cuh",
)


def build(schedule: str, cell: str, largest: Division, files: tuple[str, ...], cooperative: bool = False) -> Build:
    """A forward module "<schedule>_<largest block>". largest: the division of the largest launch, for its report."""
    dtype = largest.dtype
    arithmetic = ARITHMETIC[dtype.name]
    kernels = (
        *sources.pointwise_kernels("pack_weights"),
        Kernel("forward_chunk", (largest.threads, 1, 1), largest.shared_bytes, cooperative, varies=True),
    )
    defines = (*arithmetic.defines, *largest.config.defines)
    name = f"{schedule}_{largest.config.threads}" + ("" if dtype.name == dtype.stored else f"_{dtype.name}")
    files = (*FILES, *files)
    return sources.of_cell(name, cell, dtype.stored, files, kernels, defines=defines, min_arch=arithmetic.min_arch)


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
