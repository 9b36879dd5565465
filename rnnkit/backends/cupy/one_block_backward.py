"""The backward pass of schedule A: one launch runs all steps of a chunk, and one block serves a tile of the batch.

The block holds W_hh, transposed, in registers and shared memory: kernels/cuda/resident_backward.cuh. Its product has
one output per unit and G*H columns, so it needs the memory of the forward pass, but other registers. The products over
row-steps are those of every schedule: `backward_pass`.
"""

from __future__ import annotations

from functools import cache

from rnnkit.backends.cupy import resident_launch, sources, tiles
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_launcher import backward_buffers
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.resident_launch import MOST_SHARED, WEIGHTS, ResidentBackwardLauncher
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.backends.cupy.step_products import Step, variants
from rnnkit.backends.cupy.tiles import ARITHMETIC, SLICE_REGISTERS, UNITS, WARP, Config, Division
from rnnkit.core.cells import Array, State, Weights
from rnnkit.core.dtypes import DType

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


def divided(dtype: DType, step: Step) -> Division | None:
    """All weights in one block, in the build with the smallest block that is large enough; None if none is."""
    count = max(1, -(-step.H // UNITS))
    for threads, registers in HELD[dtype.name].items():
        if threads >= WARP * count:
            # Of the largest H for such a block.
            most = tiles.column_blocks(dtype, step.first_gates * (threads // WARP * UNITS))
            config = Config(threads, min(registers // SLICE_REGISTERS // step.stages, most))
            return Division(dtype, config, step.backward, step.cell.n_gates, count)
    return None


def problem(dtype: DType, step: Step, card: CardFacts) -> str | None:
    """Why H is too large for the card, or None."""
    division = divided(dtype, step)
    if division is None:
        return f"backward, H = {step.H} needs more warps than a block has"
    needed = division.backward_bytes
    if needed > card.shared_block:
        return (
            f"backward, H = {step.H} needs {needed >> 10} KiB of shared memory beside the registers, a block has "
            f"{card.shared_block >> 10} KiB"
        )
    return None


@cache
def largest_by_build(dtype: DType, step: Step) -> dict[Config, Division]:
    """The builds that serve any H on any card, each with its largest such division."""
    found = {}
    for H in range(1, max(HELD[dtype.name]) // WARP * UNITS + 1):
        division = divided(dtype, step.sized(H))
        if division is not None and division.backward_bytes <= MOST_SHARED:
            found[division.config] = division
    return found


def builds() -> tuple[Build, ...]:
    """A module per cell, dtype and size of the block, as far as it serves any H."""
    return tuple(
        _build(step, dtype, config)
        for step in variants()
        for dtype in tiles.ALL_DTYPES
        for config in largest_by_build(dtype, step)
    )


def _build(step: Step, dtype: DType, config: Config) -> Build:
    largest = largest_by_build(dtype, step.sized(1))[config]
    kernels = (
        *sources.pointwise_kernels("pack_weights"),
        Kernel("backward_chunk", (largest.threads, 1, 1), largest.backward_bytes, varies=True),
    )
    name = f"one_block_backward_{config.threads}"
    return resident_launch.module(name, step, dtype, FILES, kernels, config.defines)


class BackwardBlockLauncher(ResidentBackwardLauncher):
    """A Launcher with the backward steps of schedule A."""

    def __init__(self, p: Problem, arena: Arena, table: Array | None) -> None:
        division = divided(p.dtype, Step.of(p))
        assert division is not None, "problem() refuses such an H"
        build = _build(Step.of(p), p.dtype, division.config)
        super().__init__(p, arena, workspace_sizes(p), table, build)
        self.division = division

    def backward_begin(self, dstate_n: State, weights: Weights) -> None:
        """Also packs the weights of each product, transposed, into its buffer of WEIGHTS."""
        super().backward_begin(dstate_n, weights)
        d = self.division
        for name, product, w in zip(WEIGHTS, d.products, Step.of(self.p).matrices(weights), strict=False):
            resident_launch.pack(self, d, name, product, w, (0, 1, w.K))

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """See `BackwardLauncher`."""
        d = self.division
        grid = (-(-self.p.B // ARITHMETIC[self.p.dtype.name].rows),)
        args = self.chunk_arguments(chunk, states, dy)
        self.launch("backward_chunk", (grid, (d.threads,)), *args, shared_mem=d.backward_bytes)


def workspace_sizes(p: Problem) -> dict[str, int]:
    """Bytes of each buffer of the workspace."""
    division = divided(p.dtype, Step.of(p))
    assert division is not None
    return backward_buffers(p) | resident_launch.weight_buffers(division)
