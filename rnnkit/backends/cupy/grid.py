"""Schedule C, "grid": one cooperative launch runs all steps of a chunk; a group of blocks serves a tile of the batch.

The blocks of a group hold W_hh together, in registers and shared memory, and hand each other h through the L2 cache, in
words with a tag that tells the step: kernels/cuda/grid.cuh. All blocks must run at once, so the batch is limited by the
card's multiprocessors. What it saves for backward has the layout that all schedules share. The backward pass:
`grid_backward`, or that of schedule D where that one does not serve H or the dtype.
"""

from __future__ import annotations

from typing import Any

from rnnkit.backends.cupy import backward_pass, cost, grid_backward, passes, resident_launch, stepwise, tiles
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.card import CardFacts, card_of
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.grid_backward import WORD_BYTES, BackwardGridLauncher
from rnnkit.backends.cupy.launcher import i32
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.resident_launch import MOST_SHARED, ResidentLauncher
from rnnkit.backends.cupy.saved import Saved
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build
from rnnkit.backends.cupy.step_products import Step, variants
from rnnkit.backends.cupy.stepwise_buffers import workspace_sizes
from rnnkit.backends.cupy.tiles import ARITHMETIC, Division
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.dtypes import DTYPES, DType

FILES = ("cuda/grid.cuh", "cuda/grid.cu")

# Rows of DTYPES of which one number travels in half a word or less.
SERVED = tuple(name for name in ARITHMETIC if name != "float64")


def problem(work: Work, card: CardFacts) -> str | None:
    """Why it does not serve the work on this card, or None."""
    lacking = resident_launch.problem(work, card)
    if lacking is not None:
        return lacking
    if work.dtype.name not in SERVED:
        return f"dtype {work.dtype.name} does not fit the words that blocks exchange"
    if not card.cooperative:
        return "the card has no cooperative launches"
    _, B, _, H, _, _ = work.sizes
    if tiles.in_groups(work.dtype, resident_launch.step_of(work), B, card) is None:
        return f"W_hh for H = {H}, once per {ARITHMETIC[work.dtype.name].rows} of B = {B} rows, does not fit the card"
    return None


def seconds(work: Work, card: CardFacts, rates: Rates) -> float:
    """See `schedules.ScheduleModule`. All groups run at once."""
    T, B, _, _, _, _ = work.sizes
    step = resident_launch.step_of(work)
    d = tiles.in_groups(work.dtype, step, B, card)
    assert d is not None, "problem() refuses such sizes"
    rows = min(B, ARITHMETIC[work.dtype.name].rows)
    waits = rates.hop if d.members > 1 else 0.0
    forward = cost.resident_begin(card, rates, d.weight_bytes, d.members)
    # Each product waits for a message of all units that it multiplies: one hop per stage.
    for product, shared in zip(d.products, d.shared_of_products, strict=True):
        received = rows * _width(product.K, work.dtype) * WORD_BYTES if d.members > 1 else 0
        # A warp's columns are one chain of products, so they are K of its load.
        columns = -(-product.K // d.splits)
        load = cost.Load(rows, d.warps * tiles.UNITS, columns, shared, received, waits, product.outputs)
        forward += T * cost.resident_step(work.cell, work.dtype, card, load)
    if not work.keep:
        return forward
    if grid_backward.problem(work.dtype, step, card) is not None:
        return forward + stepwise.seconds(work._replace(keep=False), card, rates)
    return forward + grid_backward.seconds(work, card, rates)


def _width(H: int, dtype: DType) -> int:
    """Words of a row: GridExchange.width of kernels/cuda/grid.cuh."""
    return -(-H * dtype.storage.itemsize // 8) * 2


def blocks(work: Work, card: CardFacts, backward: bool = False) -> int:
    """See `schedules.ScheduleModule`."""
    B = work.sizes.B
    step = resident_launch.step_of(work)
    groups = max(1, -(-B // ARITHMETIC[work.dtype.name].rows))
    if not backward:
        d = tiles.in_groups(work.dtype, step, B, card)
        assert d is not None, "problem() refuses such sizes"
        return d.members * groups
    return 0 if grid_backward.problem(work.dtype, step, card) else grid_backward.blocks(work, card)


def builds() -> tuple[Build, ...]:
    """A module per kind of step and dtype."""
    forward = tuple(_build(step, DTYPES[dtype]) for step in variants() for dtype in SERVED)
    return forward + grid_backward.builds()


def _build(step: Step, dtype: DType) -> Build:
    largest = tiles.largest_member(dtype, step.sized(1), MOST_SHARED)
    return resident_launch.build("grid", step, largest, FILES, cooperative=True)


class GroupLauncher(ResidentLauncher):
    """A ResidentLauncher whose blocks exchange the operands of products."""

    def exchange(self, chunk: Chunk) -> tuple[Any, ...]:
        """The words, the tag of the first message, the members of a group, and the warps that share a tile of units."""
        p = self.p
        d = self.division
        rows = ARITHMETIC[p.dtype.name].rows
        size = self.groups * 2 * rows * _width(p.H, p.dtype) * WORD_BYTES
        words = self.arena.counters("grid", size)
        return words.address, i32(words.epochs(chunk.T * len(d.products))), i32(d.members), i32(d.splits)


def _card() -> CardFacts:
    import cupy

    return card_of(cupy.cuda.runtime.getDevice())


def _division(p: Problem) -> Division:
    card = _card()
    part = card._replace(multiprocessors=card.multiprocessors // p.share)
    division = tiles.in_groups(p.dtype, Step.of(p), p.B, part)
    assert division is not None, "problem() refuses such sizes"
    return division


def launchers(p: Problem) -> passes.Launchers:
    """See `schedules.ScheduleModule`."""

    def launcher_of(arena: Arena, table: Array | None) -> GroupLauncher:
        return GroupLauncher(p, arena, table, _build(Step.of(p), p.dtype), _division(p))

    return launcher_of


def forward(p: Problem, call: LayerCall) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs."""
    return passes.forward(p, call, launchers(p))


def backward_launchers(p: Problem) -> backward_pass.Launchers:
    """See `schedules.ScheduleModule`."""
    card = _card()
    return lambda arena, table: BackwardGridLauncher(p, arena, table, card)


def backward(p: Problem, call: BackwardCall) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    if grid_backward.problem(p.dtype, Step.of(p), _card()) is not None:
        return stepwise.backward(p, call)
    return backward_pass.backward(p, call, backward_launchers(p))


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`. The workspace is the stream's arena, sized for the larger pass."""
    p = Problem.of_sizes(cell, dtype, sizes)
    d = _division(p)
    rows = ARITHMETIC[dtype.name].rows
    words = (
        f"{-(-sizes.B // rows)} groups of {d.members} blocks of {d.threads} threads, {rows} rows per group; "
        f"{p.chunk_steps} steps per launch; {d.shared_weights >> 10} of {d.weight_bytes // d.members >> 10} KiB of "
        "W_hh per block in shared memory, the rest in registers"
    )
    workspaces = [resident_launch.workspace_sizes(p, d)]
    if keep:
        card = _card()
        refused = grid_backward.problem(dtype, Step.of(p), card)
        if refused is None:
            words += f"; {grid_backward.describe(p, card)}"
            workspaces.append(grid_backward.workspace_sizes(p, card))
        else:
            words += f"; backward by stepwise: {refused}"
            workspaces.append(workspace_sizes(p, backward=True))
    return words, *passes.memory(p, sizes, keep, tuple(workspaces))
