"""Schedule A, "one_block": one launch runs all steps of a chunk, and one block of threads serves a tile of the batch.

The block holds all of W_hh in its registers and shared memory, so that a step reads no weights from memory and waits
for no other block. It serves H as far as one multiprocessor's memory reaches: kernels/cuda/one_block.cu. What it saves
for backward has the layout that all schedules share. The backward pass: `one_block_backward`.
"""

from __future__ import annotations

from rnnkit.backends.cupy import backward_pass, cost, one_block_backward, passes, sources, tiles
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.launcher import Launcher, address, i32
from rnnkit.backends.cupy.modules import over
from rnnkit.backends.cupy.one_block_backward import BackwardBlockLauncher
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import Saved, SavedStates
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.backends.cupy.tiles import ARITHMETIC, Config, Division
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import CELLS, Array, Cell, State, Weights
from rnnkit.core.dtypes import DType
from rnnkit.kernels.cells import HEADERS

FILES = (
    "cuda/rows.cuh",
    "cuda/ptx.cuh",
    "cuda/resident_product.cuh",
    "cuda/resident.cuh",
    "cuda/resident_forward.cuh",
    "cuda/one_block.cu",
)

# The most shared memory of a block on any card.
MOST_SHARED = 227 << 10


def problem(work: Work, card: CardFacts) -> str | None:
    """Why it does not serve the work on this card, or None."""
    if work.projected:
        return "a projection needs a second product per step"
    if work.cell.resets_before:
        return f"cell {work.cell.name} needs a second product per step"
    lacking = tiles.dtype_problem(work.dtype, card)
    if lacking is not None:
        return lacking
    H = work.sizes.H
    division = tiles.in_one_block(work.dtype, work.cell.n_gates, H)
    if division is None:
        return f"H = {H} needs more warps than a block has"
    if division.shared_bytes > card.shared_block:
        return (
            f"H = {H} needs {division.shared_bytes >> 10} KiB of shared memory beside the registers, a block has "
            f"{card.shared_block >> 10} KiB"
        )
    return one_block_backward.problem(work.dtype, work.cell.n_gates, H, card) if work.keep else None


def seconds(work: Work, card: CardFacts, rates: Rates) -> float:
    """See `schedules.ScheduleModule`. A multiprocessor runs one block at a time."""
    T, B, _, H, _, _ = work.sizes
    rows = ARITHMETIC[work.dtype.name].rows
    forward = tiles.in_one_block(work.dtype, work.cell.n_gates, H)
    divisions = [forward] + ([one_block_backward.divided(work.dtype, work.cell.n_gates, H)] if work.keep else [])
    total = 0.0
    for division in divisions:
        assert division is not None, "problem() refuses such an H"
        load = cost.Load(rows, H, H, division.shared_weights)
        step = cost.resident_step(work.cell, work.dtype, card, load)
        total += cost.resident_seconds(T, -(-B // rows), card.multiprocessors, step)
    return total


def builds() -> tuple[Build, ...]:
    """A module per cell, dtype and size of the block, as far as it serves any H."""
    forward = tuple(
        _build(cell, dtype, config)
        for cell in HEADERS
        if not CELLS[cell].resets_before
        for dtype in tiles.ALL_DTYPES
        for config in tiles.one_block_builds(dtype, CELLS[cell].n_gates, MOST_SHARED)
    )
    return forward + one_block_backward.builds(MOST_SHARED)


def _build(cell: str, dtype: DType, config: Config) -> Build:
    arithmetic = ARITHMETIC[dtype.name]
    largest = tiles.one_block_builds(dtype, CELLS[cell].n_gates, MOST_SHARED)[config]
    kernels = (
        *sources.pointwise_kernels("pack_weights"),
        Kernel("forward_chunk", (largest.threads, 1, 1), largest.shared_bytes, varies=True),
    )
    defines = (*arithmetic.defines, *config.defines)
    name = f"one_block_{config.threads}" + ("" if dtype.name == dtype.stored else f"_{dtype.name}")
    return sources.of_cell(name, cell, dtype.stored, FILES, kernels, defines=defines, min_arch=arithmetic.min_arch)


class BlockLauncher(Launcher):
    """A Launcher with the steps of schedule A."""

    def __init__(self, p: Problem, arena: Arena, table: Array | None, division: Division) -> None:
        build = _build(p.cell.name, p.dtype, division.config)
        super().__init__(p, arena, _sizes(p, division), table, build)
        self.division = division

    def forward_begin(self, state0: State, weights: Weights) -> None:
        """As `Launcher.forward_begin`, and packs W_hh into "weights"."""
        super().forward_begin(state0, weights)
        p = self.p
        d = self.division
        strides = (p.H * p.H, p.H, 1)  # from one gate, unit and column of W_hh to the next
        counts = map(i32, (d.outputs, p.H, p.H, d.tiles, d.blocks))
        shape = over(d.weight_bytes // p.storage_bytes)
        self.launch("pack_weights", shape, self["weights"], address(weights.w_hh), *strides, *counts)

    def forward_chunk(self, chunk: Chunk, weights: Weights, y: Array, states: SavedStates) -> None:
        """See `passes.ForwardLauncher`."""
        p = self.p
        d = self.division
        offsets = self.offsets
        inputs = (self["gates"], self["bias"], self["weights"], self["h"], self["c"])
        outputs = (address(y), address(states.values), address(states.h_prev), address(states.c_prev))
        sizes = (i32(p.B), i32(p.H), chunk.t0, chunk.n0, i32(chunk.T), i32(p.reverse))
        grid = (-(-p.B // ARITHMETIC[p.dtype.name].rows),)
        args = (*inputs, *outputs, self.order, offsets, *sizes)
        self.launch("forward_chunk", (grid, (d.threads,)), *args, shared_mem=d.shared_bytes)


def _sizes(p: Problem, division: Division) -> dict[str, int]:
    """Bytes of each buffer of the forward workspace."""
    return passes.forward_buffers(p) | {"weights": division.weight_bytes}


def _division(p: Problem) -> Division:
    division = tiles.in_one_block(p.dtype, p.cell.n_gates, p.H)
    assert division is not None, "problem() refuses such an H"
    return division


def forward(p: Problem, call: LayerCall) -> tuple[Array, State, Saved]:
    """y (T, B, H), the final states, and what `backward` needs."""
    return passes.forward(p, call, lambda arena, table: BlockLauncher(p, arena, table, _division(p)))


def backward(p: Problem, call: BackwardCall) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    return backward_pass.backward(p, call, lambda arena, table: BackwardBlockLauncher(p, arena, table, MOST_SHARED))


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`. The workspace is the stream's arena, sized for the larger pass."""
    p = Problem.of_sizes(cell, dtype, sizes)
    d = _division(p)
    workspaces = (_sizes(p, d), *((one_block_backward.workspace_sizes(p),) if keep else ()))
    rows = ARITHMETIC[dtype.name].rows
    words = (
        f"{-(-sizes.B // rows)} blocks of {d.threads} threads, {rows} rows each; {p.chunk_steps} steps per launch; "
        f"{d.shared_weights >> 10} of {d.weight_bytes >> 10} KiB of W_hh in shared memory, the rest in registers"
    )
    return words, *passes.memory(p, sizes, keep, workspaces)
