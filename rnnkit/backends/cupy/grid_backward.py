"""The backward pass of schedule C: a group of blocks serves a tile of the batch, in one cooperative launch per chunk.

Each block of a group, a member, holds the rows of W_hh of its units and sends its part of dh to the members that own
the other units: kernels/cuda/grid_backward.cu. The products over row-steps are those of every schedule:
`backward_pass`.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from rnnkit.backends.cupy import cost, resident_launch, sources
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_launcher import backward_buffers
from rnnkit.backends.cupy.card import CardFacts
from rnnkit.backends.cupy.cost import Rates
from rnnkit.backends.cupy.launcher import address, i32
from rnnkit.backends.cupy.modules import over
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.resident_launch import MOST_SHARED, WEIGHTS, ResidentBackwardLauncher
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.schedules import Work
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.backends.cupy.step_products import Product, Step, variants
from rnnkit.backends.cupy.tiles import ARITHMETIC, SLICE_BYTES, UNITS, WARP, column_blocks, operand_bytes
from rnnkit.core.cells import Array, State, Weights
from rnnkit.core.dtypes import DTYPES, DType

FILES = ("cuda/resident_backward.cuh", "cuda/parts_backward.cuh", "cuda/grid.cuh", "cuda/grid_backward.cu")
WARPS = 8
THREADS = WARP * WARPS
WORD_BYTES = 8


class Config(NamedTuple):
    """A build. tiles: pairs of tiles of units per warp. held: blocks of columns in registers. own: pairs per thread."""

    tiles: int
    held: int
    own: int

    @property
    def held_second(self) -> int:
        """Blocks of columns of a second product in registers: as in kernels/cuda/grid_backward.cu."""
        return self.held // 2

    @property
    def most_units(self) -> int:
        """The largest H."""
        return 2 * UNITS * WARPS * self.tiles

    @property
    def defines(self) -> sources.Defines:
        values = {"RK_THREADS": THREADS, "RK_HELD": self.held, "RK_TILES": self.tiles, "RK_OWN": self.own}
        return tuple((name, str(value)) for name, value in values.items())


# The builds by the largest H; what fits registers without spills. Parts of dh travel in 32 bits, so not for float64.
_TENSOR_CORES = (Config(1, 6, 4), Config(2, 3, 4), Config(8, 1, 2))
CONFIGS = {
    "float16": _TENSOR_CORES,
    "bfloat16": _TENSOR_CORES,
    "tf32": _TENSOR_CORES,
    "float32": (Config(1, 3, 4), Config(2, 1, 4), Config(4, 1, 2)),
}

# The same for steps of two products, whose members have at most 64 units: few enough modules matter more here.
_TWO_ON_TENSOR_CORES = (Config(4, 1, 2),)
CONFIGS_OF_TWO = {
    "float16": _TWO_ON_TENSOR_CORES,
    "bfloat16": _TWO_ON_TENSOR_CORES,
    "tf32": _TWO_ON_TENSOR_CORES,
    "float32": (Config(4, 1, 2),),
}


def configs(dtype: DType, step: Step) -> tuple[Config, ...]:
    """The builds for a dtype, none for one that the words do not hold."""
    return (CONFIGS if step.stages == 1 else CONFIGS_OF_TWO).get(dtype.name, ())


class Group(NamedTuple):
    """The members that serve a tile of rows, each with `units` of the H units and of the R units, all gates of them."""

    dtype: DType
    config: Config
    step: Step
    members: int
    units: int

    @property
    def products(self) -> tuple[Product, ...]:
        """Of a member: all units of `Step.backward`, over the columns of the member's units."""
        return tuple(
            Product(1, product.units, gates * self.units)
            for product, gates in zip(self.step.backward, (self.step.first_gates, 1), strict=False)
        )

    def blocks(self, product: Product) -> int:
        """Blocks of columns."""
        return column_blocks(self.dtype, product.K)

    def tiles(self, product: Product) -> int:
        """Pairs of tiles of all units, the same number for every warp."""
        return WARPS * -(-product.units // (2 * UNITS * WARPS))

    def packed_bytes(self, product: Product) -> int:
        """Bytes of the weights as `pack_parts` leaves them."""
        return self.members * self.tiles(product) * self.blocks(product) * 2 * SLICE_BYTES

    @property
    def shared_of_products(self) -> tuple[int, ...]:
        """Bytes of a member's weights that are not in registers, by product."""
        held = (self.config.held, self.config.held_second)
        return tuple(
            self.tiles(product) * max(0, self.blocks(product) - in_registers) * 2 * SLICE_BYTES
            for product, in_registers in zip(self.products, held, strict=False)
        )

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of a block: weights, and two operands."""
        operands = [operand_bytes(self.dtype, product.K) for product in self.products]
        return sum(self.shared_of_products) + (sum(operands) if len(operands) > 1 else 2 * operands[0])

    @property
    def word_bytes(self) -> int:
        """Bytes of the parts in flight of one tile of rows."""
        return 2 * self.members**2 * ARITHMETIC[self.dtype.name].rows * self.units * WORD_BYTES


@lru_cache(maxsize=4096)
def group_of(dtype: DType, step: Step, shared: int) -> Group | None:
    """The group with the fewest members whose blocks need at most `shared` bytes; None if H is too large."""
    rows = ARITHMETIC[dtype.name].rows
    H = step.H
    for config in configs(dtype, step):
        if config.most_units < H:
            continue
        for members in range(2, -(-H // UNITS) + 1):
            units = UNITS * -(-H // (UNITS * members))
            group = Group(dtype, config, step, -(-H // units), units)
            if rows * units <= THREADS * config.own and group.shared_bytes <= shared:
                return group
    return None


def problem(dtype: DType, step: Step, card: CardFacts) -> str | None:
    """Why the backward pass does not serve this H on the card, or None."""
    if not configs(dtype, step):
        return f"dtype {dtype.name} does not fit the words that blocks exchange"
    if step.H <= UNITS:
        return f"H = {step.H} is too small for two blocks"
    group = group_of(dtype, step, card.shared_block)
    if group is None:
        return f"H = {step.H} needs more memory than its blocks have"
    if group.members > card.multiprocessors:
        return f"a group has {group.members} blocks, the card runs {card.multiprocessors} at once"
    return None


def seconds(work: Work, card: CardFacts, rates: Rates) -> float:
    """Predicted seconds of the backward steps. See `schedules.ScheduleModule`."""
    T, B, _, _, _, _ = work.sizes
    g = group_of(work.dtype, resident_launch.step_of(work), card.shared_block)
    assert g is not None, "problem() refuses such an H"
    rows = ARITHMETIC[work.dtype.name].rows
    received = rows * g.units * g.members * WORD_BYTES
    each = 0.0
    for product, shared in zip(g.products, g.shared_of_products, strict=True):
        # The product has all units, and the columns of the member's units: a chain for each gate.
        gates = product.K // g.units
        load = cost.Load(rows, product.units, g.units, shared, received, rates.hop, gates)
        each += cost.resident_step(work.cell, work.dtype, card, load)
    begin = cost.resident_begin(card, rates, sum(map(g.packed_bytes, g.products)), g.members)
    return begin + cost.resident_seconds(T, -(-B // rows), card.multiprocessors // g.members, each)


def blocks(work: Work, card: CardFacts) -> int:
    """The most blocks of a launch of steps: tiles of rows that do not fit the card at once follow in further ones."""
    g = group_of(work.dtype, resident_launch.step_of(work), card.shared_block)
    assert g is not None, "problem() refuses such an H"
    rows = -(-work.sizes.B // ARITHMETIC[work.dtype.name].rows)
    return g.members * max(1, min(rows, card.multiprocessors // g.members))


def builds() -> tuple[Build, ...]:
    """A module per kind of step, dtype and configuration."""
    return tuple(
        _build(step, DTYPES[dtype], config)
        for step in variants()
        for dtype in CONFIGS
        for config in configs(DTYPES[dtype], step)
    )


def _build(step: Step, dtype: DType, config: Config) -> Build:
    most = _most_shared(step.sized(1), dtype, config)
    kernels = (
        *sources.pointwise_kernels("pack_weights", "pack_parts"),
        Kernel("backward_chunk", (THREADS, 1, 1), most, True, varies=True),
    )
    return resident_launch.module(f"grid_backward_{config.most_units}", step, dtype, FILES, kernels, config.defines)


@cache
def _most_shared(step: Step, dtype: DType, config: Config) -> int:
    """The most shared memory that a block of this build is launched with, for any sizes."""
    # A group depends on the number of tiles of units alone.
    groups = (group_of(dtype, step.sized(H), MOST_SHARED) for H in range(2 * UNITS, config.most_units + 1, UNITS))
    return max((group.shared_bytes for group in groups if group is not None and group.config == config), default=0)


def _group(p: Problem, card: CardFacts) -> Group:
    group = group_of(p.dtype, Step.of(p), card.shared_block)
    assert group is not None, "problem() refuses such an H"
    return group


def workspace_sizes(p: Problem, card: CardFacts) -> dict[str, int]:
    """Bytes of each buffer of the workspace."""
    return buffers_of(p, _group(p, card))


def buffers_of(p: Problem, group: Group) -> dict[str, int]:
    """Bytes of each buffer of the workspace of a group."""
    packed = {name: group.packed_bytes(product) for name, product in zip(WEIGHTS, group.products, strict=False)}
    return backward_buffers(p) | packed


def describe(p: Problem, card: CardFacts) -> str:
    """The backward pass in words."""
    return f"backward by groups of {_group(p, card).members} blocks that exchange parts of dh"


class PartsLauncher(ResidentBackwardLauncher):
    """A Launcher with the backward steps of kernels/cuda/parts_backward.cuh."""

    group: Group

    def backward_begin(self, dstate_n: State, weights: Weights) -> None:
        """Also packs the weights of each product, by members, into its buffer of WEIGHTS."""
        super().backward_begin(dstate_n, weights)
        g = self.group
        size = self.p.storage_bytes
        for name, product, w in zip(WEIGHTS, g.products, g.step.matrices(weights), strict=False):
            start = address(w.array) + w.first * w.K * size
            counts = map(i32, (w.gates, w.units, w.K, g.members, g.units, g.tiles(product), g.blocks(product)))
            self.launch("pack_parts", over(g.packed_bytes(product) // size), self[name], start, *counts)


class BackwardGridLauncher(PartsLauncher):
    """A Launcher with the backward steps of schedule C."""

    def __init__(self, p: Problem, arena: Arena, table: Array | None, card: CardFacts) -> None:
        group = _group(p, card)
        build = _build(Step.of(p), p.dtype, group.config)
        super().__init__(p, arena, workspace_sizes(p, card), table, build)
        self.group = group
        rows = -(-p.B // ARITHMETIC[p.dtype.name].rows)
        resident = self.module.kernels["backward_chunk"].resident_blocks(THREADS, group.shared_bytes)
        most = resident if p.share == 1 else min(resident, card.multiprocessors) // p.share
        self.at_once = max(1, min(rows, most // group.members))
        self.counters = arena.counters("grid_backward", self.at_once * group.word_bytes)

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """See `BackwardLauncher`. Tiles of rows that do not fit the card at once follow in further launches."""
        p = self.p
        g = self.group
        args = self.chunk_arguments(chunk, states, dy)
        count = -(-p.B // ARITHMETIC[p.dtype.name].rows)
        for first in range(0, count, self.at_once):
            tag = np.uint32(self.counters.epochs(chunk.T * len(g.products)))
            parts = (self.counters.address, tag, i32(g.members), i32(g.units), i32(first))
            grid = (g.members * min(self.at_once, count - first),)
            self.launch("backward_chunk", (grid, (THREADS,)), *args, *parts, shared_mem=g.shared_bytes)
