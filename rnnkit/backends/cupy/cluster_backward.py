"""The backward pass of schedule B: a cluster of blocks serves a tile of the batch, in one launch per chunk.

Each block of a cluster, a member, holds the rows of W_hh of its units and pushes its part of dh into the shared memory
of the members that own the other units: kernels/cuda/cluster_backward.cu. The products over row-steps are those of
every schedule: `backward_pass`.
"""

from __future__ import annotations

from functools import cache, lru_cache

from rnnkit.backends.cupy import cost, resident_launch, sources
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.clusters import OLDEST_ARCH, PTX, REPORTED, SERVED, at_once, mail_bytes, sizes_on
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.grid_backward import THREADS, Config, Group, PartsLauncher, buffers_of
from rnnkit.backends.cupy.launcher import i32
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.resident_launch import MOST_SHARED, step_of
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.backends.cupy.step_products import Step, variants
from rnnkit.backends.cupy.tiles import ARITHMETIC, UNITS
from rnnkit.core.cells import Array, Weights
from rnnkit.core.dtypes import DTYPES, DType

FILES = ("cuda/resident_backward.cuh", "cuda/parts_backward.cuh", *PTX, "cuda/cluster_backward.cu")

# The builds by the largest H; what fits registers without spills. A block of a tile has 16 units per 256 of H or fewer,
# so a thread has at most two pairs. In float64, whose tiles have four rows, larger H do not fit shared memory.
_TENSOR_CORES = (Config(1, 10, 2), Config(2, 5, 2), Config(3, 3, 2))
CONFIGS = {
    "float16": _TENSOR_CORES,
    "bfloat16": _TENSOR_CORES,
    "tf32": _TENSOR_CORES,
    "float32": (Config(1, 7, 2), Config(2, 3, 2), Config(3, 2, 2)),
    "float64": (Config(1, 7, 1),),
}

# The same for steps of two products, with half as many blocks of the second one; larger H do not fit shared memory.
_TWO_ON_TENSOR_CORES = (Config(2, 2, 2),)
CONFIGS_OF_TWO = {
    "float16": _TWO_ON_TENSOR_CORES,
    "bfloat16": _TWO_ON_TENSOR_CORES,
    "tf32": _TWO_ON_TENSOR_CORES,
    "float32": (Config(2, 1, 2),),
    "float64": (Config(1, 3, 1),),
}


def configs(dtype: DType, step: Step) -> tuple[Config, ...]:
    """The builds for a dtype and a kind of step."""
    return (CONFIGS if step.stages == 1 else CONFIGS_OF_TWO).get(dtype.name, ())


def shared_bytes(group: Group) -> int:
    """Bytes of dynamic shared memory of a block: `Group.shared_bytes`, and two inboxes of parts from all members."""
    rows = ARITHMETIC[group.dtype.name].rows
    return group.shared_bytes + 2 * group.members * rows * group.units * group.dtype.compute.itemsize


def group_with(dtype: DType, step: Step, members: int) -> Group | None:
    """A cluster with this number of members, or None if their threads cannot hold the units."""
    units = UNITS * -(-step.H // (UNITS * members))
    rows = ARITHMETIC[dtype.name].rows
    for config in configs(dtype, step):
        if config.most_units >= step.H and rows * units <= THREADS * config.own:
            return Group(dtype, config, step, members, units)
    return None


@lru_cache(maxsize=4096)
def group_of(dtype: DType, step: Step, B: int, card: CardFacts) -> Group | None:
    """The cluster with the least predicted time for all tiles of rows; None if H is too large for every one."""
    fitting = []
    for members in sizes_on(card):
        group = group_with(dtype, step, members)
        if group is not None and shared_bytes(group) + mail_bytes(step) <= card.shared_block:
            fitting.append(group)
    rates = cost.rates_of(card)
    return min(fitting, key=lambda group: _step_of_batch(group, B, card, rates), default=None)


def _step_of_batch(g: Group, B: int, card: CardFacts, rates: Rates) -> float:
    """Seconds of one step of all rows."""
    rows = ARITHMETIC[g.dtype.name].rows
    each = 0.0
    # A member receives parts of its units from all members; of the second product, from those with units of R.
    senders = (g.members, -(-g.step.R // g.units))
    for product, shared, sending in zip(g.products, g.shared_of_products, senders, strict=False):
        received = min(B, rows) * g.units * sending * g.dtype.compute.itemsize
        # The product has all units, and the columns of the member's units: a chain for each gate.
        load = cost.Load(rows, product.units, g.units, shared, outputs=product.K // g.units)
        each += cost.resident_step(g.step.cell, g.dtype, card, load) + cost.pushed(received, card, rates)
    return cost.resident_seconds(1, -(-B // rows), at_once(card, g.members), each)


def problem(dtype: DType, step: Step, B: int, card: CardFacts) -> str | None:
    """Why the backward pass does not serve the step on the card, or None."""
    if group_of(dtype, step, B, card) is None:
        return f"backward, W_hh for H = {step.H} does not fit a cluster of {max(sizes_on(card))} blocks"
    return None


def seconds(work: Work, card: CardFacts, rates: Rates) -> float:
    """Predicted seconds of the backward steps. See `schedules.ScheduleModule`."""
    group = group_of(work.dtype, step_of(work), work.sizes.B, card)
    assert group is not None, "problem() refuses such sizes"
    begin = cost.resident_begin(card, rates, sum(map(group.packed_bytes, group.products)), group.members)
    return begin + work.sizes.T * _step_of_batch(group, work.sizes.B, card, rates)


def builds() -> tuple[Build, ...]:
    """A module per cell, dtype and configuration, for clusters of REPORTED blocks."""
    return tuple(
        _build(step, DTYPES[dtype], config, REPORTED)
        for step in variants()
        for dtype in SERVED
        for config in configs(DTYPES[dtype], step)
    )


def _build(step: Step, dtype: DType, config: Config, members: int) -> Build:
    most = _most_shared(step.sized(1), dtype, config)
    kernels = (
        *sources.pointwise_kernels("pack_weights", "pack_parts"),
        Kernel("backward_chunk", (THREADS, 1, 1), most, cluster=members, varies=True),
    )
    name = f"cluster_backward_{config.most_units}"
    defines = (("RK_CLUSTER", str(members)), *config.defines)
    return resident_launch.module(name, step, dtype, FILES, kernels, defines, OLDEST_ARCH)


@cache
def _most_shared(step: Step, dtype: DType, config: Config) -> int:
    """The most shared memory that a block of this build is launched with in clusters of REPORTED blocks."""
    groups = (group_with(dtype, step.sized(H), REPORTED) for H in range(UNITS + 1, config.most_units + 1))
    sizes = (shared_bytes(group) for group in groups if group is not None and group.config == config)
    return max((size for size in sizes if size + mail_bytes(step) <= MOST_SHARED), default=0)


def _group(p: Problem, card: CardFacts) -> Group:
    group = group_of(p.dtype, Step.of(p), p.B, card)
    assert group is not None, "problem() refuses such sizes"
    return group


def workspace_sizes(p: Problem, card: CardFacts) -> dict[str, int]:
    """Bytes of each buffer of the workspace."""
    return buffers_of(p, _group(p, card))


def describe(p: Problem, card: CardFacts) -> str:
    """The backward pass in words."""
    return f"backward by clusters of {_group(p, card).members} blocks that exchange parts of dh"


class BackwardClusterLauncher(PartsLauncher):
    """A Launcher with the backward steps of schedule B."""

    def __init__(self, p: Problem, arena: Arena, table: Array | None, card: CardFacts) -> None:
        group = _group(p, card)
        build = _build(Step.of(p), p.dtype, group.config, group.members)
        super().__init__(p, arena, workspace_sizes(p, card), table, build)
        self.group = group

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """See `BackwardLauncher`."""
        g = self.group
        args = self.chunk_arguments(chunk, states, dy)
        grid = (g.members * -(-self.p.B // ARITHMETIC[self.p.dtype.name].rows),)
        self.launch("backward_chunk", (grid, (THREADS,)), *args, i32(g.units), shared_mem=shared_bytes(g))
