"""How the resident schedules divide W_hh: among blocks, warps, registers and shared memory.

Sizes follow kernels/cuda/resident_product.cuh: a warp computes UNITS units of all gates, over blocks of columns of
BLOCK_BYTES each. It holds its first blocks of columns in registers, as many as its build says, and the others in shared
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from rnnkit.backends.cupy.card import CardFacts
from rnnkit.core.dtypes import DTYPES, DType

UNITS = 16
BLOCK_BYTES = 64
WARP = 32

# Bytes of one block of columns of one gate for one warp: 16 bytes for each of two units per lane.
SLICE_BYTES = 2 * 16 * WARP
SLICE_REGISTERS = SLICE_BYTES // WARP // 4


# Blocks of columns that a warp can hold in registers without spills, by the largest block of a build, then by the
# numbers that it computes per unit (the gates). The build report checks them.
Held = dict[int, dict[int, int]]
_TENSOR_CORES: Held = {256: {1: 16, 3: 5, 4: 4}, 384: {1: 12, 3: 3, 4: 2}, 512: {1: 6, 3: 1, 4: 0}, 768: {1: 2}}
_FMA: Held = {256: {1: 12, 3: 4, 4: 2}, 384: {1: 8, 3: 1, 4: 0}, 512: {1: 3}, 768: {1: 2}}


class Arithmetic(NamedTuple):
    """How products of a row of DTYPES are computed.

    rows      rows of a batch tile
    min_arch  the oldest card that has the instruction
    held      see Held
    defines   macros beside that of the storage dtype
    """

    rows: int
    min_arch: int
    held: Held
    defines: tuple[tuple[str, str], ...] = ()


ARITHMETIC: dict[str, Arithmetic] = {
    "float16": Arithmetic(8, 75, _TENSOR_CORES),
    "bfloat16": Arithmetic(8, 80, _TENSOR_CORES),
    "tf32": Arithmetic(8, 80, _TENSOR_CORES, (("RK_TF32", "1"),)),
    "float32": Arithmetic(8, 70, _FMA),
    "float64": Arithmetic(4, 70, _FMA),
}


class Config(NamedTuple):
    """A build of the kernels: its largest block, and the blocks of columns that a warp holds in registers."""

    threads: int
    held: int

    @property
    def defines(self) -> tuple[tuple[str, str], ...]:
        return ("RK_THREADS", str(self.threads)), ("RK_HELD", str(self.held))


def configs(dtype: DType, outputs: int) -> Iterator[Config]:
    """The builds for warps that compute `outputs` numbers per unit, in order of the block's size."""
    for threads, held in ARITHMETIC[dtype.name].held.items():
        for most, blocks in held.items():
            if outputs <= most:
                yield Config(threads, blocks)
                break


def column_blocks(dtype: DType, K: int) -> int:
    """Blocks of K columns."""
    return -(-K * dtype.storage.itemsize // BLOCK_BYTES)


class Division(NamedTuple):
    """W_hh of one call, divided among `members` blocks that each hold `tiles` tiles of units.

    outputs  numbers per unit: the gates forward, 1 backward
    K        columns
    splits   warps that share a tile of units, each for a part of the columns
    """

    dtype: DType
    config: Config
    outputs: int
    tiles: int
    K: int
    splits: int = 1
    members: int = 1

    @property
    def warps(self) -> int:
        return self.tiles * self.splits

    @property
    def threads(self) -> int:
        return WARP * self.warps

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return column_blocks(self.dtype, self.K)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as `pack_weights` leaves them."""
        return self.members * self.tiles * self.blocks * self.outputs * SLICE_BYTES

    @property
    def shared_weights(self) -> int:
        """Bytes of a member's weights that are not in registers."""
        each = -(-self.blocks // self.splits)
        return self.warps * max(0, each - self.config.held) * self.outputs * SLICE_BYTES

    @property
    def h_bytes(self) -> int:
        """Bytes of one tile of h in shared memory: rows_size of resident_product.cuh."""
        rows = ARITHMETIC[self.dtype.name].rows
        return rows * (self.blocks | 1) * BLOCK_BYTES + rows // 2 * 8 * self.dtype.storage.itemsize

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of the forward kernel: ForwardMemory of resident_forward.cuh."""
        rows = ARITHMETIC[self.dtype.name].rows
        numbers = 2 * self.outputs * self.tiles * UNITS
        if self.splits > 1:
            numbers += self.warps * self.outputs * rows // 2 * WARP
        return self.shared_weights + 2 * self.h_bytes + numbers * self.dtype.compute.itemsize + 4 * rows


def in_one_block(dtype: DType, outputs: int, H: int) -> Division | None:
    """All of W_hh in one block, in the build with the smallest block that is large enough; None if none is."""
    tiles = max(1, -(-H // UNITS))
    for threads, held in configs(dtype, outputs):
        if threads >= WARP * tiles:
            most = column_blocks(dtype, threads // WARP * UNITS)  # of the largest H for such a block
            return Division(dtype, Config(threads, min(held, most)), outputs, tiles, H)
    return None


# As Held, for the blocks of schedule C.
_GROUP_TENSOR_CORES = {1: 12, 3: 4, 4: 4}
_GROUP_FMA = {1: 8, 3: 3, 4: 2}

# Warps of a block of schedule C, in all divisions of a tile's columns among them.
GROUP_WARPS = 8


def in_groups(dtype: DType, outputs: int, H: int, B: int, card: CardFacts) -> Division | None:
    """W_hh in the most blocks per tile of rows that the card can hold at once for all tiles; None if none fits.

    More members make the product of a step shorter, and its exchange no longer: every member receives all of h.
    """
    groups = max(1, -(-B // ARITHMETIC[dtype.name].rows))
    units = max(1, -(-H // UNITS))
    for tiles in (1, 2):
        division = Division(dtype, group_config(dtype, outputs), outputs, tiles, H, GROUP_WARPS // tiles)
        division = division._replace(members=-(-units // tiles))
        fits = groups * division.members <= card.multiprocessors
        if fits and division.shared_bytes <= card.shared_block:
            return division
    return None


def group_config(dtype: DType, outputs: int) -> Config:
    """The one build of schedule C."""
    held = _GROUP_TENSOR_CORES if ARITHMETIC[dtype.name].held is _TENSOR_CORES else _GROUP_FMA
    return Config(WARP * GROUP_WARPS, next(blocks for most, blocks in held.items() if outputs <= most))


@cache
def largest_member(dtype: DType, outputs: int, shared: int) -> Division:
    """The division of schedule C whose blocks need the most shared memory, up to `shared` bytes."""
    config = group_config(dtype, outputs)
    found = [Division(dtype, config, outputs, 1, K, GROUP_WARPS) for K in range(UNITS, 1 << 13, UNITS)]
    return max((d for d in found if d.shared_bytes <= shared), key=lambda d: d.shared_bytes)


def dtype_problem(dtype: DType, card: CardFacts) -> str | None:
    """Why the card has no products of this dtype for the resident schedules, or None."""
    needs = ARITHMETIC[dtype.name].min_arch
    if card.arch >= needs:
        return None
    return f"dtype {dtype.name} needs compute capability {needs // 10}.{needs % 10}, the card has {card.capability}"


@cache
def one_block_builds(dtype: DType, outputs: int, shared: int) -> dict[Config, Division]:
    """The builds that serve any H in one block with at most `shared` bytes, each with its largest such division."""
    found = {}
    for threads, _ in configs(dtype, outputs):
        for H in range(1, threads // WARP * UNITS + 1):
            division = in_one_block(dtype, outputs, H)
            if division is not None and division.shared_bytes <= shared:
                found[division.config] = division
    return found


ALL_DTYPES = tuple(DTYPES[name] for name in ARITHMETIC)
