"""Blocks per multiprocessor and co-resident blocks per GPU, from NVIDIA's cuda_occupancy.h, compiled by g++."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.tools.build_report import nvrtc
from tests.tools.build_report.nvrtc import Usage

SOURCE = Path(__file__).with_name("occupancy.cpp")


class Device(NamedTuple):
    """One GPU of an architecture. Shared memory in bytes: per multiprocessor, and the most that a block may use."""

    name: str
    arch: int
    multiprocessors: int
    threads: int
    shared: int
    shared_block: int

    @property
    def reserved_shared(self) -> int:
        """Bytes of shared memory that the system reserves per block, from compute capability 8.0 on."""
        return 1024 if self.arch >= 80 else 0


# From the CUDA C++ Programming Guide (technical specifications by compute capability); multiprocessors from NVIDIA's
# white papers. A test marked `gpu` compares the row of the GPU that it runs on.
DEVICES = {
    device.arch: device
    for device in (
        Device("T4", 75, 40, 1024, 64 * 1024, 64 * 1024),
        Device("A100", 80, 108, 2048, 164 * 1024, 163 * 1024),
        Device("RTX 3090", 86, 82, 1536, 100 * 1024, 99 * 1024),
        Device("RTX 4090", 89, 128, 1536, 100 * 1024, 99 * 1024),
        Device("H200, H100 SXM", 90, 132, 2048, 228 * 1024, 227 * 1024),
        Device("B200", 100, 148, 2048, 228 * 1024, 227 * 1024),
        Device("RTX 5090", 120, 170, 1536, 100 * 1024, 99 * 1024),
    )
}


class Occupancy(NamedTuple):
    """Resident blocks of a kernel per multiprocessor, their share of its threads, and resident blocks per GPU."""

    blocks: int
    share: float
    co_resident: int


@cache
def unavailable() -> str | None:
    """Why occupancy cannot be calculated here, or None if it can."""
    if not shutil.which("g++"):
        return "no g++"
    if not any((folder / "cuda_occupancy.h").exists() for folder in nvrtc.include_dirs()):
        return f"NVIDIA's header wheels are not installed ({nvrtc.EXTRA})"
    return None


@cache
def _library() -> Any:
    headers = [folder / "cuda_occupancy.h" for folder in nvrtc.include_dirs()]
    digest = hashlib.sha256(SOURCE.read_bytes())
    for header in headers:
        digest.update(header.read_bytes() if header.exists() else b"")
    path = nvrtc.cache_dir() / f"occupancy-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            options = ["-O1", "-shared", "-fPIC", "-w", *(f"-I{include}" for include in nvrtc.include_dirs())]
            subprocess.run(["g++", *options, str(SOURCE), "-o", str(built)], check=True)
            os.replace(built, path)
    return ctypes.CDLL(str(path))


def occupancy(device: Device, usage: Usage, threads: int, dynamic_shared: int) -> Occupancy:
    """The occupancy of a kernel with blocks of `threads` threads and `dynamic_shared` bytes; 0 blocks if none fits.

    Raises ValueError if the calculator rejects the numbers.
    """
    blocks = _library().blocks_per_multiprocessor(
        device.arch // 10,
        device.arch % 10,
        device.multiprocessors,
        device.shared,
        device.shared_block,
        device.reserved_shared,
        device.threads,
        usage.registers,
        usage.static_shared,
        dynamic_shared,
        usage.barriers,
        threads,
    )
    if blocks < 0:
        raise ValueError(f"cuda_occupancy.h returns {blocks} for {usage}, {threads} threads, {dynamic_shared} bytes")
    warps = blocks * -(-threads // 32)
    return Occupancy(blocks, round(32 * warps / device.threads, 3), blocks * device.multiprocessors)
