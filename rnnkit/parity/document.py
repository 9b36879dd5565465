"""The JSON document of a run: versions, machine and every outcome. It is written to a temporary file and renamed."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rnnkit
from rnnkit.core.devices import cuda_problem
from rnnkit.parity.checks import Plan
from rnnkit.parity.outcome import Outcome

FORMAT = 1
PACKAGES = ("numpy", "numba", "numba-cuda", "ml_dtypes", "cupy-cuda12x", "cupy-cuda13x")


def document(plan: Plan, outcomes: Sequence[Outcome], status: int, seconds: float) -> dict[str, Any]:
    """The document that `--json` writes.

    Args:
        plan: the plan of the run.
        outcomes: the outcomes of its checks.
        status: the exit status.
        seconds: duration of the run.

    Returns:
        A JSON object.
    """
    counts = {kind: sum(o.status == kind for o in outcomes) for kind in ("ok", "wrong", "failed")}
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "exit_status": status,
        "versions": versions(),
        "machine": machine(plan),
        "counts": {"checks": len(outcomes), **counts},
        "unavailable": plan.unavailable,
        "missing": list(plan.missing),
        "outcomes": [outcome.to_dict() for outcome in outcomes],
    }


def versions() -> dict[str, str]:
    """Versions of rnnkit, Python, the packages that compute, and, with a CUDA device, the CUDA driver and runtime."""
    by_name = {"rnnkit": rnnkit.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cupy = sys.modules.get("cupy")
    if cupy is not None and cuda_problem() is None:
        by_name["cupy"] = cupy.__version__
        by_name["cuda driver"] = _dotted(cupy.cuda.runtime.driverGetVersion())
        by_name["cuda runtime"] = _dotted(cupy.cuda.runtime.runtimeGetVersion())
    return by_name


def _dotted(version: int) -> str:
    """CUDA's version number 13000 as "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def machine(plan: Plan) -> dict[str, Any]:
    """The processor, the number of cores that this process may use, the system, and the plan's CUDA devices by name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = dict.fromkeys(check.device for check in plan.checks if check.device != "cpu")
    return {
        "processor": processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "devices": {device: _device_name(device) for device in devices},
    }


def processor() -> str:
    """The processor's name, from the operating system."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(int(device.removeprefix("cuda:")))["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def save(text: str, path: Path) -> None:
    """Writes text to a temporary file and renames it, so that `path` is never incomplete. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_json(report: dict[str, Any], path: Path) -> None:
    """Writes the document. Raises ValueError for NaN and infinity, which JSON lacks."""
    save(json.dumps(report, indent=1, allow_nan=False) + "\n", path)
