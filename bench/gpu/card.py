"""The card and its software: python -m bench.gpu.card. It reads settings and changes none."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any

from bench import machine
from bench.gpu.items_file import Item, Lines, Unavailable

TOOLS = ("nvidia-smi", "compute-sanitizer", "ncu", "nvcc", "cuobjdump")
TOOL_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/nvidia/bin", "/usr/local/cuda/compute-sanitizer")
CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
LIMITS = "name,driver_version,memory.total,memory.used,power.limit,compute_mode,ecc.mode.current,mig.mode.current"
PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "numba", "numba-cuda", "torch", "numpy", "ml_dtypes", "cuda-bindings")
ATTRIBUTES = (
    *("MultiProcessorCount", "L2CacheSize", "ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth"),
    *("MaxSharedMemoryPerMultiprocessor", "MaxSharedMemoryPerBlockOptin", "MaxThreadsPerMultiProcessor"),
    *("MaxRegistersPerMultiprocessor", "CooperativeLaunch"),
)


def find_tool(name: str) -> str | None:
    """The path of a program of the CUDA toolkit, or None."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(TOOL_FOLDERS))


def smi(fields: str) -> dict[str, str]:
    """The fields of the first card by nvidia-smi; empty where it fails."""
    tool = find_tool("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    return dict(zip(fields.split(","), (value.strip() for value in said.split(",")), strict=False))


def clocks() -> dict[str, float]:
    """The first card's current clocks (MHz), power (W) and temperature (C); empty where neither source works.

    By NVML where its bindings (nvidia-ml-py) are installed, in microseconds; else by nvidia-smi, in about 0.1 s.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "celsius": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        }
    except Exception:  # not installed, or NVML's own errors: not supported on this card, no permission
        said = smi(CLOCKS)
    names = {"clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "power.draw": "power_w", "temperature.gpu": "celsius"}
    numbers = {name: re.match(r"[0-9.]+", said.get(field, "")) for field, name in names.items()}
    return {name: float(number[0]) for name, number in numbers.items() if number}


def problem() -> str | None:
    """Why no card can be used, or None."""
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no CuPy, no driver, a driver too old, a card that fell off the bus
        return f"{type(error).__name__}: {error}"
    return None if count else "the driver is there and sees no device"


def device() -> Item:
    """The current device by CuPy."""
    import cupy

    current = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(current.id)
    name = properties["name"]
    free, total = cupy.cuda.runtime.memGetInfo()
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "arch": int(current.compute_capability),
        "devices": cupy.cuda.runtime.getDeviceCount(),
        "memory_gib": total / 2**30,
        "free_gib": free / 2**30,
    }


def attributes() -> Item:
    import cupy

    found = cupy.cuda.Device().attributes
    return {"attributes": {key: int(found[key]) for key in ATTRIBUTES if key in found}}


def versions() -> Item:
    """The versions of Python, the system, the packages and CUDA."""
    import cupy

    found: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["cuda driver"] = _dotted(cupy.cuda.runtime.driverGetVersion())
    found["cuda runtime"] = _dotted(cupy.cuda.runtime.runtimeGetVersion())
    return {"versions": found}


def nvrtc_version() -> Item:
    from cupy.cuda import nvrtc

    return {"nvrtc": ".".join(map(str, nvrtc.getVersion()))}


def cublas_version() -> Item:
    """The version of the library that computes the matrix products of `rnnkit.backends.cupy`."""
    from rnnkit.backends.cupy.cublas import library

    number = ctypes.c_int()
    parts = []
    for field in range(3):  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL of library_types.h
        status = library().cublasGetProperty(field, ctypes.byref(number))
        if status:
            raise RuntimeError(f"cublasGetProperty failed: status {status}")
        parts.append(str(number.value))
    return {"cublas": ".".join(parts)}


def torch_versions() -> Item:
    """Raises Unavailable without torch."""
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("torch is not installed")
    import torch

    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "sees_the_card": torch.cuda.is_available(),
    }


def tools() -> Item:
    """Where the toolkit's programs are, and which optional packages are installed; nothing is imported."""
    found: dict[str, Any] = {name: find_tool(name) for name in TOOLS}
    for module in ("cuda.bindings", "numba_cuda", "torch", "matplotlib", "pytest", "ml_dtypes", "pynvml"):
        try:
            found[module] = "installed" if importlib.util.find_spec(module) else None
        except ModuleNotFoundError:  # of the package that it is in
            found[module] = None
    return {"tools": found}


def host() -> Item:
    return {"host": machine.describe()}


def _dotted(version: int) -> str:
    """13010 is CUDA 13.1."""
    return f"{version // 1000}.{version % 1000 // 10}"


def main(arguments: list[str] | None = None) -> int:
    lines = Lines.from_arguments(__doc__ or "", arguments)
    why = problem()
    if why is not None:
        lines.write({"item": "device", "status": "failed", "why": why})
        return 0
    for work in (device, attributes, versions, nvrtc_version, cublas_version, tools, host):
        lines.item(work.__name__, work)
    lines.item("limits", lambda: {"smi": smi(LIMITS)})
    lines.item("clocks", lambda: {"clocks": clocks()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
