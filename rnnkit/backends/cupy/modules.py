"""Compiled modules, CuPy's RawModule a build, and the shapes of the grids that kernels are launched on."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.sources import Build

Shape = tuple[tuple[int, ...], tuple[int, ...]]  # grid and block

THREADS = 256

# A block walks on where its grid ends: more of them than this would gain nothing. Along y the hardware has a limit.
MOST_BLOCKS, MOST_ROWS = 4096, 65535

# A grid of fewer blocks than this leaves parts of a large card idle: its blocks are made smaller, to this at least.
FEW_BLOCKS, FEWEST_THREADS = 256, 64

# Parts that a sum down columns is cut into, so that few columns still fill a card.
MOST_PARTS, ROWS_OF_A_PART = 64, 128


@cache
def kernels(build: Build) -> dict[str, Any]:
    """The kernels of a build by name. NVRTC compiles them here, into CuPy's cache; for a further device at a launch."""
    import cupy

    module = cupy.RawModule(code=sources.source(build), options=sources.options(build), backend="nvrtc")
    return {kernel.name: module.get_function(kernel.name) for kernel in build.kernels}


def over(count: int) -> Shape:
    """For `count` elements in any order."""
    return (max(1, min(MOST_BLOCKS, -(-count // THREADS))),), (THREADS,)


def over_steps(T: int, each: int) -> Shape:
    """For `each` elements in any order at each of T steps, steps along y."""
    (blocks,), block = over(each)
    return (blocks, min(MOST_ROWS, T)), block


@lru_cache(maxsize=4096)
def rows_by_units(rows: int, units: int) -> Shape:
    """For (row, unit) pairs: units along x in whole warps, as many as a block takes; rows along y."""
    threads, widest = THREADS, 32 * -(-units // 32)
    while threads > FEWEST_THREADS and rows * widest < threads * FEW_BLOCKS:
        threads //= 2
    across = 32
    while across < min(units, threads):
        across *= 2
    down = threads // across
    return (-(-units // across), min(MOST_ROWS, -(-rows // down))), (across, down)


def sums_down(rows: int, columns: int) -> tuple[Shape, int]:
    """For sums down columns, and the number of parts they come in."""
    parts = max(1, min(MOST_PARTS, -(-rows // ROWS_OF_A_PART)))
    return ((-(-columns // 32), parts), (32, 8)), parts
