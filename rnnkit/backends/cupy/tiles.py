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
from rnnkit.backends.cupy.step_products import Product, Step
from rnnkit.core.dtypes import DTYPES, DType

UNITS = 16
BLOCK_BYTES = 64
WARP = 32

# Bytes of one block of columns of one gate for one warp: 16 bytes for each of two units per lane.
SLICE_BYTES = 2 * 16 * WARP
SLICE_REGISTERS = SLICE_BYTES // WARP // 4


# Blocks of columns that a warp can hold in registers without spills, of each product, by the largest block of a build,
# then by the numbers that it computes per unit, see `outputs_of`. The build report checks them.
Held = dict[int, dict[int, int]]
_TENSOR_CORES: Held = {
    256: {1: 16, 3: 5, 4: 3, 5: 2},
    384: {1: 12, 3: 3, 4: 1, 5: 0},
    512: {1: 6, 3: 1, 4: 0, 5: 0},
    768: {1: 1},
}
_FMA: Held = {256: {1: 12, 3: 4, 4: 2, 5: 1}, 384: {1: 8, 3: 1, 4: 0, 5: 0}, 512: {1: 3}, 768: {1: 2}}


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
    """The weights of one call, divided among `members` blocks that each hold `tiles` tiles of units.

    products  of a step; each warp holds `config.held` blocks of columns of each in registers
    gates     of the cell
    splits    warps that share a tile of units, each for a part of the columns
    """

    dtype: DType
    config: Config
    products: tuple[Product, ...]
    gates: int
    tiles: int
    splits: int = 1
    members: int = 1

    @property
    def warps(self) -> int:
        return self.tiles * self.splits

    @property
    def threads(self) -> int:
        return WARP * self.warps

    def packed_bytes(self, product: Product) -> int:
        """Bytes of a product's weights as `pack_weights` leaves them."""
        return self.members * self.tiles * column_blocks(self.dtype, product.K) * product.outputs * SLICE_BYTES

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as `pack_weights` leaves them."""
        return sum(map(self.packed_bytes, self.products))

    @property
    def shared_weights(self) -> int:
        """Bytes of a member's weights that are not in registers."""
        return sum(self.shared_of_products)

    @property
    def shared_of_products(self) -> tuple[int, ...]:
        """The same by product: StageProduct of resident_stage.cuh."""
        found = []
        for outputs, units, K in self.products:
            each = -(-column_blocks(self.dtype, K) // self.splits)
            warps = min(self.tiles, -(-units // UNITS)) * self.splits
            found.append(warps * max(0, each - self.config.held) * outputs * SLICE_BYTES)
        return tuple(found)

    @property
    def operand_bytes(self) -> int:
        """Bytes of the operands in shared memory: two tiles that alternate, or one of each product."""
        sizes = [operand_bytes(self.dtype, product.K) for product in self.products]
        return sum(sizes) if len(sizes) > 1 else 2 * sizes[0]

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of the forward kernel: ForwardMemory of resident_forward.cuh."""
        rows = ARITHMETIC[self.dtype.name].rows
        numbers = 2 * self.gates * self.tiles * UNITS
        if self.splits > 1:
            numbers += self.warps * self.products[0].outputs * rows // 2 * WARP
        return self.shared_weights + self.operand_bytes + numbers * self.dtype.compute.itemsize + 4 * rows

    @property
    def backward_bytes(self) -> int:
        """Bytes of dynamic shared memory of the backward kernel: BackwardMemory of resident_backward.cuh."""
        return self.shared_weights + self.operand_bytes


def operand_bytes(dtype: DType, K: int) -> int:
    """Bytes of one operand of K columns in shared memory: rows_size of resident_product.cuh."""
    rows = ARITHMETIC[dtype.name].rows
    return rows * (column_blocks(dtype, K) | 1) * BLOCK_BYTES + rows // 2 * 8 * dtype.storage.itemsize


def outputs_of(step: Step) -> int:
    """The row of `Held`: the gates, and one for a second product, which needs registers of its own."""
    return step.cell.n_gates + step.stages - 1


def in_one_block(dtype: DType, step: Step) -> Division | None:
    """All weights in one block, in the build with the smallest block that is large enough; None if none is."""
    tiles = max(1, -(-step.H // UNITS))
    for threads, held in configs(dtype, outputs_of(step)):
        if threads >= WARP * tiles:
            most = column_blocks(dtype, threads // WARP * UNITS)  # of the largest H for such a block
            return Division(dtype, Config(threads, min(held, most)), step.forward, step.cell.n_gates, tiles)
    return None


# As Held, for the blocks of schedule C.
_GROUP_16_BITS = {1: 12, 3: 4, 4: 4, 5: 3}
_GROUP_TF32 = {1: 12, 3: 4, 4: 3, 5: 3}
_GROUP_FMA = {1: 8, 3: 3, 4: 2, 5: 1}
GROUP_HELD = {
    "float16": _GROUP_16_BITS,
    "bfloat16": _GROUP_16_BITS,
    "tf32": _GROUP_TF32,
    "float32": _GROUP_FMA,
    "float64": _GROUP_FMA,
}

# Warps of a block of schedule C, in all divisions of a tile's columns among them.
GROUP_WARPS = 8


def in_groups(dtype: DType, step: Step, B: int, card: CardFacts) -> Division | None:
    """The weights in the most blocks per tile of rows that the card can hold at once for all tiles; None if none fits.

    More members make the product of a step shorter, and its exchange no longer: every member receives all of h.
    """
    groups = max(1, -(-B // ARITHMETIC[dtype.name].rows))
    units = max(1, -(-step.H // UNITS))
    for tiles in (1, 2):
        division = _member(dtype, step, tiles)._replace(members=-(-units // tiles))
        fits = groups * division.members <= card.multiprocessors
        if fits and division.shared_bytes <= card.shared_block:
            return division
    return None


def _member(dtype: DType, step: Step, tiles: int) -> Division:
    config = group_config(dtype, outputs_of(step))
    return Division(dtype, config, step.forward, step.cell.n_gates, tiles, GROUP_WARPS // tiles)


def group_config(dtype: DType, outputs: int) -> Config:
    """The one build of schedule C."""
    held = GROUP_HELD[dtype.name]
    return Config(WARP * GROUP_WARPS, next(blocks for most, blocks in held.items() if outputs <= most))


@cache
def largest_member(dtype: DType, step: Step, shared: int) -> Division:
    """The division of schedule C whose blocks need the most shared memory, up to `shared` bytes, for any sizes."""
    found = [_member(dtype, step.sized(H), 1) for H in range(UNITS, 1 << 13, UNITS)]
    return max((d for d in found if d.shared_bytes <= shared), key=lambda d: d.shared_bytes)


# As Held, for the blocks of schedule B, by the tiles of units of a block.
_CLUSTER_TENSOR_CORES: Held = {
    1: {1: 12, 3: 6, 4: 4, 5: 2},
    2: {1: 12, 3: 6, 4: 4, 5: 2},
    3: {1: 10, 3: 2, 4: 1},
}
_CLUSTER_FMA: Held = {1: {1: 8, 3: 4, 4: 3, 5: 1}, 2: {1: 8, 3: 4, 4: 3, 5: 1}, 3: {1: 4, 3: 1, 4: 0}}
# Without three tiles of units per block, whose backward pass does not fit.
_CLUSTER_FLOAT64: Held = {1: {1: 8, 3: 4, 4: 2, 5: 1}, 2: {1: 8, 3: 4, 4: 2, 5: 1}}

# Warps of a block of schedule B that share a tile of units, by the tiles of the block.
CLUSTER_SPLITS = {1: 8, 2: 4, 3: 4}


def in_cluster(dtype: DType, step: Step, members: int) -> Division | None:
    """W_hh over the `members` blocks of a cluster; None if H has more tiles of units than their builds have."""
    count = max(1, -(-step.H // UNITS))
    tiles = -(-count // members)
    config = cluster_config(dtype, step, tiles)
    if config is None:
        return None
    return Division(dtype, config, step.forward, step.cell.n_gates, tiles, CLUSTER_SPLITS[tiles], members)


def cluster_config(dtype: DType, step: Step, tiles: int) -> Config | None:
    """The build of schedule B for blocks with this number of tiles of units, or None.

    Steps of two products have none for three tiles, with which their backward pass does not fit.
    """
    held = _CLUSTER_TENSOR_CORES if ARITHMETIC[dtype.name].held is _TENSOR_CORES else _CLUSTER_FMA
    if dtype.name == "float64":
        held = _CLUSTER_FLOAT64
    if tiles not in held or (step.stages > 1 and tiles > 2):
        return None
    blocks = next(blocks for most, blocks in held[tiles].items() if outputs_of(step) <= most)
    return Config(WARP * tiles * CLUSTER_SPLITS[tiles], blocks)


def dtype_problem(dtype: DType, card: CardFacts) -> str | None:
    """Why the card has no products of this dtype for the resident schedules, or None."""
    needs = ARITHMETIC[dtype.name].min_arch
    if card.arch >= needs:
        return None
    return f"dtype {dtype.name} needs compute capability {needs // 10}.{needs % 10}, the card has {card.capability}"


@cache
def one_block_builds(dtype: DType, step: Step, shared: int) -> dict[Config, Division]:
    """The builds that serve any sizes in one block with at most `shared` bytes, each with its largest such division."""
    found = {}
    for threads, _ in configs(dtype, outputs_of(step)):
        for H in range(1, threads // WARP * UNITS + 1):
            division = in_one_block(dtype, step.sized(H))
            if division is not None and division.shared_bytes <= shared:
                found[division.config] = division
    return found


ALL_DTYPES = tuple(DTYPES[name] for name in ARITHMETIC)
