"""Schedule B, "cluster": one launch runs all steps of a chunk; a cluster of blocks serves a tile of the batch.

The blocks of a cluster hold W_hh together, in registers and shared memory, and push h into each other's shared memory:
kernels/cuda/cluster.cuh. A cluster runs as a whole or not at all, so the batch may have more tiles than the card runs
clusters at once. What it saves for backward has the layout that all schedules share. The backward pass:
`cluster_backward`.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from rnnkit.backends.cupy import backward_pass, cluster_backward, cost, passes, resident_launch, sources, tiles
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.card import CardFacts, card_of
from rnnkit.backends.cupy.cluster_backward import BackwardClusterLauncher
from rnnkit.backends.cupy.clusters import ALL_SIZES, OLDEST_ARCH, PTX, REPORTED, SERVED, at_once, mail_bytes, sizes_on
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.grid_backward import Group
from rnnkit.backends.cupy.launcher import i32
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.resident_launch import MOST_SHARED, ResidentLauncher, step_of
from rnnkit.backends.cupy.saved import Saved
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.backends.cupy.step_products import Step, variants
from rnnkit.backends.cupy.tiles import ARITHMETIC, UNITS, Config, Division
from rnnkit.backends.interface import BackwardCall, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.dtypes import DTYPES, DType

FILES = (*PTX, "cuda/cluster.cu")


def problem(work: Work, card: CardFacts) -> str | None:
    """Why it does not serve the work on this card, or None."""
    lacking = resident_launch.problem(work, card)
    if lacking is not None:
        return lacking
    step = step_of(work)
    if work.dtype.name not in SERVED:
        return f"dtype {work.dtype.name} has no build"
    if not sizes_on(card):
        return "the card has no clusters of blocks"
    if step.H <= UNITS:
        return f"H = {step.H} is too small for two blocks"
    B = work.sizes.B
    if division_of(work.dtype, step, B, card) is None:
        return f"W_hh for H = {step.H} does not fit a cluster of {max(sizes_on(card))} blocks"
    return cluster_backward.problem(work.dtype, step, B, card) if work.keep else None


@lru_cache(maxsize=4096)
def division_of(dtype: DType, step: Step, B: int, card: CardFacts) -> Division | None:
    """W_hh in the cluster with the least predicted time for all tiles of rows; None if it fits none."""
    fitting = []
    for members in sizes_on(card):
        division = tiles.in_cluster(dtype, step, members)
        if division is not None and division.shared_bytes + mail_bytes(step) <= card.shared_block:
            fitting.append(division)
    rates = cost.rates_of(card)
    return min(fitting, key=lambda d: _step_of_batch(d, step, B, card, rates), default=None)


def _step_of_batch(d: Division, step: Step, B: int, card: CardFacts, rates: Rates) -> float:
    """Seconds of one step of all rows."""
    rows = ARITHMETIC[d.dtype.name].rows
    each = 0.0
    # Each product waits for a message of all units that it multiplies.
    for product, shared in zip(d.products, d.shared_of_products, strict=True):
        received = min(B, rows) * product.K * d.dtype.storage.itemsize
        # A warp's columns are one chain of products, so they are K of its load.
        load = cost.Load(rows, d.warps * UNITS, -(-product.K // d.splits), shared, outputs=product.outputs)
        each += cost.resident_step(step.cell, d.dtype, card, load) + cost.pushed(received, card, rates)
    return cost.resident_seconds(1, -(-B // rows), at_once(card, d.members), each)


def seconds(work: Work, card: CardFacts, rates: Rates) -> float:
    """See `schedules.ScheduleModule`."""
    T, B, _, _, _, _ = work.sizes
    step = step_of(work)
    d = division_of(work.dtype, step, B, card)
    assert d is not None, "problem() refuses such sizes"
    forward = cost.resident_begin(card, rates, d.weight_bytes, d.members) + T * _step_of_batch(d, step, B, card, rates)
    return forward + cluster_backward.seconds(work, card, rates) if work.keep else forward


def blocks(work: Work, card: CardFacts, backward: bool = False) -> int:
    """See `schedules.ScheduleModule`."""
    B = work.sizes.B
    step = step_of(work)
    of = cluster_backward.group_of if backward else division_of
    found: Division | Group | None = of(work.dtype, step, B, card)
    assert found is not None, "problem() refuses such sizes"
    clusters = -(-B // ARITHMETIC[work.dtype.name].rows)
    return found.members * min(at_once(card, found.members), clusters)


def builds() -> tuple[Build, ...]:
    """A module per cell, dtype and size of the block, for clusters of REPORTED blocks: those of others differ in
    __cluster_dims__ alone."""
    forward = tuple(
        _build(largest._replace(members=REPORTED), step)
        for step in variants()
        for dtype in SERVED
        for largest in _largest_by_build(DTYPES[dtype], step).values()
    )
    return forward + cluster_backward.builds()


@cache
def _largest_by_build(dtype: DType, step: Step) -> dict[Config, Division]:
    """Of each build, the division whose blocks need the most shared memory, in clusters of any size."""
    found: dict[Config, Division] = {}
    for members in ALL_SIZES:
        for H in range(UNITS, members * UNITS * max(tiles.CLUSTER_SPLITS) + 1, UNITS):
            d = tiles.in_cluster(dtype, step.sized(H), members)
            if d is None or d.shared_bytes + mail_bytes(step) > MOST_SHARED:
                continue
            if d.config not in found or found[d.config].shared_bytes < d.shared_bytes:
                found[d.config] = d
    return found


def _build(d: Division, step: Step) -> Build:
    """The module for clusters of d.members blocks. The report has its largest launch."""
    largest = _largest_by_build(d.dtype, step.sized(1))[d.config]
    kernels = (
        *sources.pointwise_kernels("pack_weights"),
        Kernel("forward_chunk", (d.threads, 1, 1), largest.shared_bytes, cluster=d.members, varies=True),
    )
    name = f"cluster_{d.config.threads}"
    defines = (("RK_CLUSTER", str(d.members)), *d.config.defines)
    return resident_launch.module(name, step, d.dtype, FILES, kernels, defines, OLDEST_ARCH)


class ClusterLauncher(ResidentLauncher):
    """A ResidentLauncher whose blocks form clusters."""

    def exchange(self, chunk: Chunk) -> tuple[Any, ...]:
        """The warps that share a tile of units."""
        return (i32(self.division.splits),)


def _card() -> CardFacts:
    import cupy

    return card_of(cupy.cuda.runtime.getDevice())


def _part(p: Problem) -> CardFacts:
    """The part of the card that the layer has."""
    card = _card()
    return card._replace(multiprocessors=card.multiprocessors // p.share)


def _division(p: Problem) -> Division:
    division = division_of(p.dtype, Step.of(p), p.B, _part(p))
    assert division is not None, "problem() refuses such sizes"
    return division


def launchers(p: Problem) -> passes.Launchers:
    """See `schedules.ScheduleModule`."""
    division = _division(p)
    build = _build(division, Step.of(p))

    def launcher_of(arena: Arena, table: Array | None) -> ClusterLauncher:
        return ClusterLauncher(p, arena, table, build, division)

    return launcher_of


def forward(p: Problem, call: LayerCall) -> tuple[Array, State, Saved]:
    """y (T, B, R), the final states, and what `backward` needs."""
    return passes.forward(p, call, launchers(p))


def backward_launchers(p: Problem) -> backward_pass.Launchers:
    """See `schedules.ScheduleModule`."""
    part = _part(p)
    return lambda arena, table: BackwardClusterLauncher(p, arena, table, part)


def backward(p: Problem, call: BackwardCall) -> Gradients:
    """The gradients of one forward; call.saved is its `Saved`."""
    return backward_pass.backward(p, call, backward_launchers(p))


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`. The workspace is the stream's arena, sized for the larger pass."""
    p = Problem.of_sizes(cell, dtype, sizes)
    d = _division(p)
    rows = ARITHMETIC[dtype.name].rows
    words = (
        f"{-(-sizes.B // rows)} clusters of {d.members} blocks of {d.threads} threads, {rows} rows per cluster; "
        f"{p.chunk_steps} steps per launch; {d.shared_weights >> 10} of {d.weight_bytes // d.members >> 10} KiB of "
        "W_hh per block in shared memory, the rest in registers"
    )
    workspaces = [resident_launch.workspace_sizes(p, d)]
    if keep:
        card = _card()
        words += f"; {cluster_backward.describe(p, card)}"
        workspaces.append(cluster_backward.workspace_sizes(p, card))
    return words, *passes.memory(p, sizes, keep, tuple(workspaces))
