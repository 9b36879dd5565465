"""Schedule A, "one_block": one launch runs all steps of a chunk, and one block of threads serves a tile of the batch.

The block holds all of W_hh in its registers and shared memory, so that a step reads no weights from memory and waits
for no other block. It serves H as far as one multiprocessor's memory reaches: kernels/cuda/one_block.cu. What it saves
for backward has the layout that all schedules share. The backward pass: `one_block_backward`.
"""

from __future__ import annotations

from rnnkit.backends.cupy import backward_pass, cost, one_block_backward, passes, resident_launch, tiles
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.one_block_backward import BackwardBlockLauncher
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.resident_launch import MOST_SHARED, ResidentLauncher
from rnnkit.backends.cupy.saved import Saved
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build
from rnnkit.backends.cupy.step_products import Step, variants
from rnnkit.backends.cupy.tiles import ARITHMETIC, Config, Division
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.dtypes import DType

FILES = ("cuda/one_block.cu",)


def problem(work: Work, card: CardFacts) -> str | None:
    """Why it does not serve the work on this card, or None."""
    lacking = resident_launch.problem(work, card)
    if lacking is not None:
        return lacking
    H = work.sizes.H
    step = resident_launch.step_of(work)
    division = tiles.in_one_block(work.dtype, step)
    if division is None:
        return f"H = {H} needs more warps than a block has"
    if division.shared_bytes > card.shared_block:
        return (
            f"H = {H} needs {division.shared_bytes >> 10} KiB of shared memory beside the registers, a block has "
            f"{card.shared_block >> 10} KiB"
        )
    return one_block_backward.problem(work.dtype, step, card) if work.keep else None


def seconds(work: Work, card: CardFacts, rates: Rates) -> float:
    """See `schedules.ScheduleModule`. A multiprocessor runs one block at a time."""
    T, B, _, _, _, _ = work.sizes
    rows = ARITHMETIC[work.dtype.name].rows
    step = resident_launch.step_of(work)
    passes_of = [tiles.in_one_block(work.dtype, step)]
    if work.keep:
        passes_of.append(one_block_backward.divided(work.dtype, step))
    each = 0.0
    begin = 0.0
    for division in passes_of:
        assert division is not None, "problem() refuses such an H"
        begin += cost.resident_begin(card, rates, division.weight_bytes)
        # A chain of the backward product is as long as that of the forward one: it has several at once.
        for product, shared in zip(step.forward, division.shared_of_products, strict=True):
            load = cost.Load(rows, product.units, product.K, shared, outputs=product.outputs)
            each += cost.resident_step(work.cell, work.dtype, card, load)
    return begin + cost.resident_seconds(T, -(-B // rows), card.multiprocessors, each)


def blocks(work: Work, card: CardFacts, backward: bool = False) -> int:
    """See `schedules.ScheduleModule`."""
    return min(card.multiprocessors, -(-work.sizes.B // ARITHMETIC[work.dtype.name].rows))


def builds() -> tuple[Build, ...]:
    """A module per cell, dtype and size of the block, as far as it serves any H."""
    forward = tuple(
        _build(step, dtype, config)
        for step in variants()
        for dtype in tiles.ALL_DTYPES
        for config in tiles.one_block_builds(dtype, step, MOST_SHARED)
    )
    return forward + one_block_backward.builds()


def _build(step: Step, dtype: DType, config: Config) -> Build:
    largest = tiles.one_block_builds(dtype, step.sized(1), MOST_SHARED)[config]
    return resident_launch.build("one_block", step, largest, FILES)


def _division(p: Problem) -> Division:
    division = tiles.in_one_block(p.dtype, Step.of(p))
    assert division is not None, "problem() refuses such an H"
    return division


def launchers(p: Problem) -> passes.Launchers:
    """See `schedules.ScheduleModule`."""
    division = _division(p)
    build = _build(Step.of(p), p.dtype, division.config)
    return lambda arena, table: ResidentLauncher(p, arena, table, build, division)


def forward(p: Problem, call: LayerCall) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs."""
    return passes.forward(p, call, launchers(p))


def backward_launchers(p: Problem) -> backward_pass.Launchers:
    """See `schedules.ScheduleModule`."""
    return lambda arena, table: BackwardBlockLauncher(p, arena, table)


def backward(p: Problem, call: BackwardCall) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    return backward_pass.backward(p, call, backward_launchers(p))


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`. The workspace is the stream's arena, sized for the larger pass."""
    p = Problem.of_sizes(cell, dtype, sizes)
    d = _division(p)
    workspaces = (resident_launch.workspace_sizes(p, d), *((one_block_backward.workspace_sizes(p),) if keep else ()))
    rows = ARITHMETIC[dtype.name].rows
    words = (
        f"{-(-sizes.B // rows)} blocks of {d.threads} threads, {rows} rows each; {p.chunk_steps} steps per launch; "
        f"{d.shared_weights >> 10} of {d.weight_bytes >> 10} KiB of W_hh in shared memory, the rest in registers"
    )
    return words, *passes.memory(p, sizes, keep, workspaces)
