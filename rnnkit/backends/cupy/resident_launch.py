"""What the resident schedules share: their modules, and W_hh packed once per call and one launch per chunk of steps."""

from __future__ import annotations

from typing import Any

from rnnkit.backends.cupy import passes, sources, tiles
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_launcher import BackwardLauncher
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.launcher import Launcher, address, i32
from rnnkit.backends.cupy.modules import over
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build, Defines, Kernel
from rnnkit.backends.cupy.step_products import Matrix, Product, Step, cell_problem
from rnnkit.backends.cupy.tiles import ARITHMETIC, Division
from rnnkit.core.cells import Array, State, Weights
from rnnkit.core.dtypes import DType

# The most shared memory of a block on any card.
MOST_SHARED = 227 << 10

# The buffers of the packed weights, by the products of a step.
WEIGHTS = ("weights", "second")

# The files of every module, before those of its schedule.
FILES = (
    "cuda/rows.cuh",
    "cuda/ptx.cuh",
    "cuda/resident_product.cuh",
    "cuda/resident_stage.cuh",
    "cuda/resident.cuh",
    "cuda/resident_forward.cuh",
)


def problem(work: Work, card: CardFacts) -> str | None:
    """Why no resident schedule serves the work on this card, or None."""
    lacking = cell_problem(work.cell)
    if lacking is not None:
        return lacking
    if work.sizes.R > work.sizes.H:
        return f"a projection to {work.sizes.R} units, more than H = {work.sizes.H}"
    return tiles.dtype_problem(work.dtype, card)


def step_of(work: Work) -> Step:
    """The step of some work."""
    return Step(work.cell, work.sizes.H, work.sizes.R, work.projected)


def module(
    name: str,
    step: Step,
    dtype: DType,
    files: tuple[str, ...],
    kernels: tuple[Kernel, ...],
    defines: Defines,
    min_arch: int = 70,
) -> Build:
    """A module with FILES and `files`. defines: beside those of the dtype's arithmetic and of the step."""
    arithmetic = ARITHMETIC[dtype.name]
    name += "" if dtype.name == dtype.stored else f"_{dtype.name}"
    name += "_projected" if step.projected else ""
    projects = (("RK_PROJECTED", "1"),) if step.projected else ()
    return sources.of_cell(
        name,
        step.cell.name,
        dtype.stored,
        (*FILES, *files),
        kernels,
        defines=(*arithmetic.defines, *projects, *defines),
        min_arch=max(min_arch, arithmetic.min_arch),
    )


def build(schedule: str, step: Step, largest: Division, files: tuple[str, ...], cooperative: bool = False) -> Build:
    """A forward module "<schedule>_<largest block>". largest: the division of the largest launch, for its report."""
    kernels = (
        *sources.pointwise_kernels("pack_weights"),
        Kernel("forward_chunk", (largest.threads, 1, 1), largest.shared_bytes, cooperative, varies=True),
    )
    name = f"{schedule}_{largest.config.threads}"
    return module(name, step, largest.dtype, files, kernels, largest.config.defines)


def weight_buffers(division: Division) -> dict[str, int]:
    """Bytes of the packed weights of each product."""
    return {name: division.packed_bytes(product) for name, product in zip(WEIGHTS, division.products, strict=False)}


def workspace_sizes(p: Problem, division: Division) -> dict[str, int]:
    """Bytes of each buffer of the forward workspace."""
    sizes = passes.forward_buffers(p) | weight_buffers(division)
    return sizes | ({"h_out": sizes["h"]} if division.members > 1 else {})


def pack(
    launcher: Launcher, division: Division, name: str, product: Product, w: Matrix, strides: tuple[int, int, int]
) -> None:
    """Packs w into the buffer `name`. strides: from one output, unit and column of the product to the next, in w."""
    size = launcher.p.storage_bytes
    start = address(w.array) + w.first * w.K * size
    blocks = tiles.column_blocks(division.dtype, product.K)
    counts = map(i32, (*product, division.members * division.tiles, blocks))
    shape = over(division.packed_bytes(product) // size)
    launcher.launch("pack_weights", shape, launcher[name], start, *strides, *counts)


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
        """As `Launcher.forward_begin`, and packs the weights of each product into its buffer of WEIGHTS."""
        super().forward_begin(state0, weights)
        for name, product, w in zip(WEIGHTS, self.division.products, Step.of(self.p).matrices(weights), strict=False):
            strides = (w.units * w.K, w.K, 1)  # from one gate, unit and column to the next
            pack(self, self.division, name, product, w, strides)

    def forward_chunk(self, chunk: Chunk, weights: Weights, y: Array, states: SavedStates) -> None:
        """See `passes.ForwardLauncher`."""
        p = self.p
        d = self.division
        inputs = (self["gates"], self["bias"], *(self[name] for name in WEIGHTS))
        h_out = self["h_out"] if d.members > 1 else self["h"]
        outputs = (address(y), *self.row_strides(y), *map(address, states))
        sizes = (i32(p.B), i32(p.H), i32(p.R), chunk.t0, chunk.n0, i32(chunk.T), i32(p.reverse))
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
        gradients = tuple(self[name] for name in ("dgates_x", "dgates_h", "dprojected", "dh", "dc"))
        sizes = (i32(p.B), i32(p.H), i32(p.R), chunk.t0, chunk.n0, i32(chunk.T), i32(not p.reverse))
        weights = (self[name] for name in WEIGHTS)
        return (*weights, *saved, address(dy), *self.row_strides(dy), self.order, self.offsets, *gradients, *sizes)
