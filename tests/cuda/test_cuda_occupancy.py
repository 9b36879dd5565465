"""Our calls of NVIDIA's occupancy calculator against values by hand, an independent formula and, if present, a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.sources import Build
from tests.required import needs_kernels
from tests.tools.build_report import nvrtc, occupancy, table
from tests.tools.build_report.nvrtc import Usage
from tests.tools.build_report.occupancy import DEVICES, Device, Occupancy

needs_occupancy = needs_kernels(occupancy.unavailable())
# From the CUDA C++ Programming Guide: resident blocks per multiprocessor, and the allocation unit of shared memory.
MOST_BLOCKS = {75: 16, 80: 32, 86: 16, 89: 24, 90: 32, 100: 32, 120: 24}
SHARED_UNIT = {75: 256, 80: 128, 86: 128, 89: 128, 90: 128, 100: 128, 120: 128}


def used(registers: int, shared: int = 0) -> Usage:
    return Usage(registers, 0, 0, 0, shared, 1)


def by_formula(device: Device, usage: Usage, threads: int, dynamic: int) -> int:
    """Blocks per multiprocessor by the guide: the minimum over threads, blocks, registers and shared memory."""

    def up(value: int, unit: int) -> int:
        return -(-value // unit) * unit

    warps = up(threads, 32) // 32
    shared = usage.static_shared + dynamic
    if shared > device.shared_block:
        return 0
    # Registers are allocated in units of 256 per warp, and each of four schedulers has a quarter of the 65536.
    warps_by_registers = 16384 // up(usage.registers * 32, 256) * 4
    limits = [device.threads // 32 // warps, MOST_BLOCKS[device.arch], warps_by_registers // warps]
    taken = up(shared + device.reserved_shared, SHARED_UNIT[device.arch])
    return min(limits + ([device.shared // taken] if taken else []))


@needs_occupancy
@pytest.mark.parametrize(
    ("arch", "usage", "threads", "dynamic", "want"),
    [
        (90, used(32), 256, 0, Occupancy(8, 1.0, 1056)),  # threads: 2048 / 256
        (90, used(64), 256, 0, Occupancy(4, 0.5, 528)),  # registers: 65536 / (64 * 256)
        (90, used(65), 256, 0, Occupancy(3, 0.375, 396)),  # 65 is allocated as 72: 7 warps per scheduler, 28 in total
        (90, used(32), 32, 0, Occupancy(32, 0.5, 4224)),  # blocks: 32
        (90, used(32), 256, 113 * 1024, Occupancy(2, 0.25, 264)),  # shared: 228 / (113 + 1)
        (90, used(32, 1024), 256, 113 * 1024, Occupancy(1, 0.125, 132)),  # also 1 KiB static
        (90, used(32), 256, 227 * 1024 + 1, Occupancy(0, 0.0, 0)),  # above the limit of a block
        (75, used(32), 256, 32 * 1024, Occupancy(2, 0.5, 80)),  # no reserved shared memory: 64 / 32
        (120, used(32), 256, 49 * 1024, Occupancy(2, 0.333, 340)),  # 100 / (49 + 1)
        (80, used(255), 256, 0, Occupancy(1, 0.125, 108)),
        (89, used(40), 96, 0, Occupancy(16, 1.0, 2048)),  # 1536 / 96
    ],
)
def test_occupancy_by_hand(arch: int, usage: Usage, threads: int, dynamic: int, want: Occupancy) -> None:
    assert occupancy.occupancy(DEVICES[arch], usage, threads, dynamic) == want


@needs_occupancy
@pytest.mark.parametrize("arch", DEVICES, ids=lambda arch: f"sm_{arch}")
def test_occupancy_by_an_independent_formula(arch: int) -> None:
    device = DEVICES[arch]
    for threads in (32, 64, 96, 128, 160, 256, 384, 512, 768, 1024):
        for registers in (16, 32, 33, 40, 56, 64, 72, 96, 128, 168, 255):
            if registers * threads > 65536:
                continue
            for static, dynamic in ((0, 0), (100, 0), (2048, 1000), (0, 30_000), (48_000, 10_000), (0, 99_000)):
                got = occupancy.occupancy(device, used(registers, static), threads, dynamic).blocks
                want = by_formula(device, used(registers, static), threads, dynamic)
                assert got == want, (threads, registers, static, dynamic)


@needs_occupancy
def test_invalid_numbers_raise() -> None:
    with pytest.raises(ValueError, match=r"cuda_occupancy\.h returns -"):
        occupancy.occupancy(DEVICES[90], used(32), 0, 0)


def test_every_architecture_has_a_gpu_in_the_table() -> None:
    assert tuple(DEVICES) == nvrtc.ARCHS


# ---- on a GPU


def this_card(cupy: Any) -> Device:
    """The row of the GPU's architecture. Skips the test if there is none."""
    arch = int(cupy.cuda.Device().compute_capability)
    if arch not in DEVICES:
        pytest.skip(f"no row for sm_{arch}")
    return DEVICES[arch]


@pytest.mark.gpu
def test_the_gpu_has_the_published_limits() -> None:
    cupy = pytest.importorskip("cupy")
    device = this_card(cupy)
    card = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    assert card["maxThreadsPerMultiProcessor"] == device.threads
    assert card["sharedMemPerMultiprocessor"] == device.shared
    assert card["sharedMemPerBlockOptin"] == device.shared_block
    assert card["reservedSharedMemPerBlock"] == device.reserved_shared
    if card["name"].decode().removeprefix("NVIDIA ").removeprefix("GeForce ") in device.name.split(", "):
        assert card["multiProcessorCount"] == device.multiprocessors


@pytest.mark.gpu
@pytest.mark.parametrize("build", sources.builds(), ids=lambda build: build.name)
def test_the_driver_reports_the_same_registers_and_blocks(build: Build) -> None:
    """Kernels loaded by CuPy, with values from the driver. Registers are compared only for the same NVRTC."""
    cupy = pytest.importorskip("cupy")
    device = this_card(cupy)
    if device.arch < build.min_arch:
        pytest.skip(f"for sm_{build.min_arch} and later")
    recorded = table.read()
    kernels = recorded["modules"][build.name]["kernels"]
    module = cupy.RawModule(code=sources.source(build), options=sources.options(build))
    for kernel in build.kernels:
        function = module.get_function(kernel.name)
        assert function.local_size_bytes == 0, kernel.name
        row = dict(zip(recorded["columns"], kernels[kernel.name][f"sm_{device.arch}"], strict=True))
        if nvrtc.unavailable() is None and nvrtc.version() == recorded["nvrtc"]:
            assert (function.num_regs, function.shared_size_bytes) == (row["registers"], row["static_shared"])
        if occupancy.unavailable() is None:
            x, y, z = kernel.block
            usage = Usage(function.num_regs, 0, 0, 0, function.shared_size_bytes, row["barriers"])
            shared = table.dynamic_shared(usage, kernel, device.arch)
            want = occupancy.occupancy(device, usage, x * y * z, shared).blocks
            if shared > 48 * 1024:
                function.max_dynamic_shared_size_bytes = shared
            ask = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
            assert ask(function.kernel.ptr, x * y * z, shared) == want, kernel.name
