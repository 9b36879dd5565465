"""Compiled modules, one per build and device, their kernels, and the grids that kernels are launched on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.arena import refuse_capture
from rnnkit.backends.cupy.card import card_of
from rnnkit.backends.cupy.sources import Build, Kernel
from rnnkit.errors import DeviceError

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

# Static and dynamic shared memory of a block, without opting in to more.
SHARED_BYTES = 48 << 10

# Clusters of more blocks need CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED (cuda.h).
PORTABLE_CLUSTER = 8
NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14


class LoadedKernel:
    """A kernel of a module on the device that was current when the module was loaded.

    kernel(grid, block, args, shared_mem) launches it on the current stream, with its `Kernel.shared_bytes` of dynamic
    shared memory unless `shared_mem` says otherwise.
    """

    def __init__(self, kernel: Kernel, raw: Any, device: int) -> None:
        import cupy

        self.kernel = kernel
        self.device = device
        self._raw = raw
        # CuPy compiles a module with enable_cooperative_groups as relocatable code, which needs libcudadevrt. These
        # kernels call no function of that library, so the launch alone is cooperative.
        self._function = raw.kernel
        self._most_shared = SHARED_BYTES - int(raw.shared_size_bytes)
        self._resident: dict[tuple[int, int], int] = {}
        if kernel.cluster > PORTABLE_CLUSTER:
            cupy.cuda.driver.funcSetAttribute(self._function.ptr, NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int | None = None
    ) -> None:
        """Raises DeviceError if a cooperative launch, or a cluster, has more blocks than the card can run at once."""
        shared = self.kernel.shared_bytes if shared_mem is None else shared_mem
        self._allow(shared)
        cluster = self.kernel.cluster
        if cluster > 1 and self.resident_blocks(prod(block), shared) < cluster:
            raise DeviceError(
                f"{self.kernel.name} has clusters of {cluster} blocks, and the card holds "
                f"{self.resident_blocks(prod(block), shared)} of {prod(block)} threads and {shared} bytes of dynamic "
                "shared memory at once"
            )
        if not self.kernel.cooperative:
            self._function(grid, block, args, shared_mem=shared)
            return
        # CuPy reduces a grid that does not fit, with a warning.
        most = self.resident_blocks(prod(block), shared)
        if prod(grid) > most:
            raise DeviceError(
                f"{self.kernel.name} needs {prod(grid)} blocks at once, and the card holds {most} of {prod(block)} "
                f"threads and {shared} bytes of dynamic shared memory"
            )
        self._function(grid, block, args, shared_mem=shared, enable_cooperative_groups=True)

    @property
    def registers(self) -> int:
        """Registers per thread, of the compiled kernel."""
        return int(self._raw.num_regs)

    def resident_blocks(self, threads: int, shared_mem: int) -> int:
        """How many blocks of these sizes the card holds at once, by the driver."""
        import cupy

        key = (threads, shared_mem)
        if key not in self._resident:
            self._allow(shared_mem)
            each = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(self._function.ptr, threads, shared_mem)
            self._resident[key] = int(each) * card_of(self.device).multiprocessors
        return self._resident[key]

    def _allow(self, shared: int) -> None:
        """Opts in to more shared memory. The attribute is per device, and stays for later launches."""
        if shared > self._most_shared:
            self._raw.max_dynamic_shared_size_bytes = shared
            self._most_shared = shared


@dataclass(frozen=True, eq=False)
class Module:
    """A compiled build: its kernels by name. Modules compare by identity, so one can be part of a cache's key."""

    kernels: dict[str, LoadedKernel]


def module(build: Build) -> Module:
    """The module of a build on the current device. NVRTC compiles it at the first request, into CuPy's cache."""
    import cupy

    return _loaded(build, cupy.cuda.runtime.getDevice())


@cache
def _loaded(build: Build, device: int) -> Module:
    import cupy

    refuse_capture(cupy.cuda.get_current_stream(), "make the same call before, which loads the kernels")
    templates = tuple(kernel.name for kernel in build.kernels if "<" in kernel.name)
    raw = cupy.RawModule(
        code=sources.source(build),
        options=sources.options(build),
        backend="nvrtc",
        name_expressions=templates or None,
    )
    return Module(
        {kernel.name: LoadedKernel(kernel, raw.get_function(kernel.name), device) for kernel in build.kernels}
    )


def kernels(build: Build) -> dict[str, LoadedKernel]:
    """The kernels of a build by name, on the current device."""
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
