"""Compiled modules, one RawModule of CuPy per build, and the grids that kernels are launched on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.sources import Build

Shape = tuple[tuple[int, ...], tuple[int, ...]]  # grid and block

THREADS = 256

# Kernels loop with the grid's stride, so a grid need not cover the data: more blocks than MOST_BLOCKS gain nothing.
MOST_BLOCKS = 4096

# The hardware's limit of a grid along y.
MOST_ROWS = 65535

# A grid of fewer blocks than FEW_BLOCKS leaves parts of a large card idle, so its blocks get fewer threads, down to
# FEWEST_THREADS.
FEW_BLOCKS = 256
FEWEST_THREADS = 64

# A sum down columns is cut into parts, so that few columns still occupy the whole card.
MOST_PARTS = 64
ROWS_PER_PART = 128


@dataclass(frozen=True, eq=False)
class Module:
    """A compiled build: its kernels by name. Modules compare by identity, so one can be part of a cache's key."""

    kernels: dict[str, Any]


@cache
def module(build: Build) -> Module:
    """The module of a build.

    NVRTC compiles it here, into CuPy's cache. For each further device CuPy compiles it at the first launch there.
    """
    import cupy

    raw = cupy.RawModule(code=sources.source(build), options=sources.options(build), backend="nvrtc")
    return Module({kernel.name: raw.get_function(kernel.name) for kernel in build.kernels})


def kernels(build: Build) -> dict[str, Any]:
    """The kernels of a build by name."""
    return module(build).kernels


def over(count: int) -> Shape:
    """The grid for `count` independent elements."""
    return (max(1, min(MOST_BLOCKS, -(-count // THREADS))),), (THREADS,)


def over_steps(T: int, each: int) -> Shape:
    """The grid for `each` independent elements per step, over T steps: elements along x, steps along y."""
    (blocks,), block = over(each)
    return (blocks, min(MOST_ROWS, T)), block


@lru_cache(maxsize=4096)
def rows_by_units(rows: int, units: int) -> Shape:
    """The grid for (row, unit) pairs: units along x, in whole warps and up to a full block; rows along y."""
    threads = THREADS
    widest = 32 * -(-units // 32)
    while threads > FEWEST_THREADS and rows * widest < threads * FEW_BLOCKS:
        threads //= 2
    across = 32
    while across < min(units, threads):
        across *= 2
    down = threads // across
    return (-(-units // across), min(MOST_ROWS, -(-rows // down))), (across, down)


def sums_down(rows: int, columns: int) -> tuple[Shape, int]:
    """The grid for sums down columns, and the number of parts that each sum is cut into."""
    parts = max(1, min(MOST_PARTS, -(-rows // ROWS_PER_PART)))
    return ((-(-columns // 32), parts), (32, 8)), parts
