"""The backward pass of schedule A: one launch runs all steps of a chunk, and one block serves a tile of the batch.

The block holds W_hh, transposed, in registers and shared memory: kernels/cuda/resident_backward.cuh. Its product has
one output per unit and G*H columns, so it needs the memory of the forward pass, but other registers. The products over
row-steps are those of every schedule: `backward_pass`.
"""

from __future__ import annotations

from functools import cache

from rnnkit.backends.cupy import resident_launch, sources, tiles
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_pass import backward_buffers
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.launcher import address, i32
from rnnkit.backends.cupy.modules import over
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.resident_launch import MOST_SHARED, ResidentBackwardLauncher
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.backends.cupy.tiles import ARITHMETIC, SLICE_REGISTERS, UNITS, WARP, Config, Division
from rnnkit.core.cells import CELLS, Array, State, Weights
from rnnkit.core.dtypes import DType
from rnnkit.kernels.cells import HEADERS

FILES = ("cuda/resident_backward.cuh", "cuda/one_block_backward.cu")

# Registers of weights per thread, by the largest block of a build; what fits without spills.
_TENSOR_CORES = {256: 128, 384: 64, 512: 24}
HELD = {
    "float16": _TENSOR_CORES,
    "bfloat16": _TENSOR_CORES,
    "tf32": _TENSOR_CORES,
    "float32": {256: 96, 384: 24, 512: 0},
    "float64": {256: 128, 384: 40, 512: 16},
}


def divided(dtype: DType, gates: int, H: int) -> Division | None:
    """All of W_hh in one block, in the build with the smallest block that is large enough; None if none is."""
    count = max(1, -(-H // UNITS))
    for threads, registers in HELD[dtype.name].items():
        if threads >= WARP * count:
            most = tiles.column_blocks(dtype, gates * (threads // WARP * UNITS))  # of the largest H for such a block
            config = Config(threads, min(registers // SLICE_REGISTERS, most))
            return Division(dtype, config, 1, count, gates * H)
    return None


def shared_bytes(division: Division) -> int:
    """Bytes of dynamic shared memory of a block: BackwardMemory of resident_backward.cuh."""
    return division.shared_weights + 2 * division.h_bytes


def problem(dtype: DType, gates: int, H: int, card: CardFacts) -> str | None:
    """Why H is too large for the card, or None."""
    division = divided(dtype, gates, H)
    if division is None:
        return f"backward, H = {H} needs more warps than a block has"
    needed = shared_bytes(division)
    if needed > card.shared_block:
        return (
            f"backward, H = {H} needs {needed >> 10} KiB of shared memory beside the registers, a block has "
            f"{card.shared_block >> 10} KiB"
        )
    return None


@cache
def largest_by_build(dtype: DType, gates: int) -> dict[Config, Division]:
    """The builds that serve any H on any card, each with its largest such division."""
    found = {}
    for H in range(1, max(HELD[dtype.name]) // WARP * UNITS + 1):
        division = divided(dtype, gates, H)
        if division is not None and shared_bytes(division) <= MOST_SHARED:
            found[division.config] = division
    return found


def builds() -> tuple[Build, ...]:
    """A module per cell, dtype and size of the block, as far as it serves any H."""
    return tuple(
        _build(cell, dtype, config)
        for cell in HEADERS
        if not CELLS[cell].resets_before
        for dtype in tiles.ALL_DTYPES
        for config in largest_by_build(dtype, CELLS[cell].n_gates)
    )


def _build(cell: str, dtype: DType, config: Config) -> Build:
    largest = largest_by_build(dtype, CELLS[cell].n_gates)[config]
    kernels = (
        *sources.pointwise_kernels("pack_weights"),
        Kernel("backward_chunk", (largest.threads, 1, 1), shared_bytes(largest), varies=True),
    )
    name = f"one_block_backward_{config.threads}"
    return resident_launch.module(name, cell, dtype, FILES, kernels, config.defines)


class BackwardBlockLauncher(ResidentBackwardLauncher):
    """A Launcher with the backward steps of schedule A."""

    def __init__(self, p: Problem, arena: Arena, table: Array | None) -> None:
        division = divided(p.dtype, p.cell.n_gates, p.H)
        assert division is not None, "problem() refuses such an H"
        build = _build(p.cell.name, p.dtype, division.config)
        super().__init__(p, arena, workspace_sizes(p), table, build)
        self.division = division

    def backward_begin(self, dstate_n: State, weights: Weights) -> None:
        """Also packs W_hh, transposed, into "weights"."""
        super().backward_begin(dstate_n, weights)
        p = self.p
        d = self.division
        strides = (0, 1, p.H)  # from one output, unit and column to the next
        counts = map(i32, (d.outputs, p.H, d.K, d.tiles, d.blocks))
        shape = over(d.weight_bytes // p.storage_bytes)
        self.launch("pack_weights", shape, self["weights"], address(weights.w_hh), *strides, *counts)

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """See `BackwardLauncher`."""
        d = self.division
        grid = (-(-self.p.B // ARITHMETIC[self.p.dtype.name].rows),)
        args = self.chunk_arguments(chunk, states, dy)
        self.launch("backward_chunk", (grid, (d.threads,)), *args, shared_mem=shared_bytes(d))


def workspace_sizes(p: Problem) -> dict[str, int]:
    """Bytes of each buffer of the workspace."""
    division = divided(p.dtype, p.cell.n_gates, p.H)
    assert division is not None
    return backward_buffers(p) | {"weights": division.weight_bytes}
