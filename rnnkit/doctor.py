"""Reports what works on this machine: backends, versions, processor, cache, threads, GPU, and a call on each backend.

Exit status: 0 everything present works, 1 something is broken. Something absent, such as a GPU, is reported and is not
an error.
"""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnnkit.backends import BACKENDS, needs
from rnnkit.core.cpu_limits import default_threads
from rnnkit.core.devices import cuda_problem
from rnnkit.parity import plan
from rnnkit.parity.document import processor, versions
from rnnkit.parity.measure import error_line, run
from rnnkit.parity.outcome import number
from rnnkit.testing import Case

# Exit statuses; argparse exits with 2.
OK = 0
BROKEN = 1
SMOKE_CASE = Case("lstm", T=5, B=3, I=4, H=18)
# CPU features (LLVM's names) that determine the speed of the kernels.
FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bf16", "amx-tile", "neon", "dotprod", "sve")
# CUDA libraries: NVRTC compiles for CuPy, NVVM for Numba CUDA, and cuBLAS computes matrix products.
LIBRARIES = ("nvrtc", "nvvm", "cublas")


def examine() -> dict[str, Any]:
    """Collects everything that the command prints.

    Returns:
        A JSON object. "broken" lists the faults; it is empty if there are none.
    """
    broken: list[str] = []
    report = {
        "versions": _versions(),
        "cpu": _cpu(),
        "threads": _threads(broken),
        "rates": _rates(broken),
        "cache": _cache(broken),
        "gpu": _gpu(broken),
        "backends": _backends(broken),
        "smoke": _smoke(broken),
        "broken": broken,
    }
    return report


def _versions() -> dict[str, str]:
    by_name = versions()
    for name in ("llvmlite", "cuda-bindings", "nvidia-nvvm"):
        try:
            by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return by_name


def _cpu() -> dict[str, Any]:
    """The processor. "features" and "vector_bytes" are what kernels are compiled for; None if Numba does not work."""
    cpu: dict[str, Any] = {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "target": None,
        "features": None,
        "vector_bytes": None,
    }
    if needs.numba_problem() is None:
        import llvmlite.binding as llvm

        from rnnkit.kernels.cpu.vec_type import vector_bytes

        features = llvm.get_host_cpu_features()
        cpu["target"] = llvm.get_host_cpu_name()
        cpu["features"] = [name for name in FEATURES if features.get(name)]
        cpu["vector_bytes"] = vector_bytes()
    return cpu


def _threads(broken: list[str]) -> dict[str, Any]:
    try:
        threads = default_threads()
    except ValueError as problem:
        broken.append(str(problem))
        return {"number": None, "why": str(problem)}
    return {"number": threads.number, "why": threads.why}


def _rates(broken: list[str]) -> str | None:
    """The rates of the processor from which CPU calls are divided over threads; None if Numba does not work."""
    if needs.numba_problem() is not None:
        return None
    from rnnkit.backends.numba.host import host

    try:
        return host().why
    except ValueError as problem:
        broken.append(str(problem))
        return str(problem)


def _cache(broken: list[str]) -> list[dict[str, Any]]:
    """Each folder that may hold compiled CPU kernels, in order of preference: size in bytes, number of files per
    kind."""
    from rnnkit.kernels.cpu import cache

    stamp = cache.environment_stamp() if needs.numba_problem() is None else None
    folders = []
    for folder in cache.kernel_folders():
        files = cache.survey(folder, stamp)
        sizes = [path.stat().st_size for kind in files.values() for path in kind if path.exists()]
        entry = {"path": str(folder), "exists": folder.is_dir(), "writable": _writable(folder), "bytes": sum(sizes)}
        others = folder.parent.glob("rnnkit-*") if folder.name.startswith("rnnkit-") else ()
        folders.append(
            entry
            | {kind: len(paths) for kind, paths in files.items()}
            | {"other_versions": sorted(str(other) for other in others if other != folder)}
        )
        broken += [f"a cached kernel is damaged (it is compiled again when needed): {p}" for p in files["damaged"]]
    return folders


def _writable(folder: Path) -> bool:
    """Whether a file can be created in the folder, or the folder itself if it does not exist."""
    if folder.is_dir():
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            return False
        return True
    parent = next((path for path in folder.parents if path.exists()), None)
    return parent is not None and parent.is_dir() and not folder.exists() and os.access(parent, os.W_OK | os.X_OK)


def _gpu(broken: list[str]) -> dict[str, Any]:
    """The GPU. problem: why CUDA arrays cannot be created. nodes: device files of NVIDIA's driver, usable or not.

    libraries: CUDA library that the GPU backends load -> why it cannot be loaded, or None.
    """
    problem = cuda_problem()
    nodes = sorted(glob.glob("/dev/nvidia[0-9]*"))
    gpu: dict[str, Any] = {"problem": problem, "nodes": nodes, "devices": {}, "libraries": _libraries()}
    if problem is None:
        import cupy

        for index in range(cupy.cuda.runtime.getDeviceCount()):
            properties = cupy.cuda.runtime.getDeviceProperties(index)
            name = properties["name"]
            text = name.decode() if isinstance(name, bytes) else str(name)
            gpu["devices"][f"cuda:{index}"] = f"{text}, {properties['major']}.{properties['minor']}"
    elif problem.startswith("CuPy is installed and cannot be used"):
        broken.append(problem)
    elif nodes and problem == "CuPy finds no CUDA device":
        broken.append(f"CuPy finds no CUDA device, although the driver shows {', '.join(nodes)}")
    return gpu


def _libraries() -> dict[str, str | None]:
    """CUDA library -> why it cannot be loaded, or None. Empty if CuPy is not installed."""
    problems: dict[str, str | None] = {}
    for name in LIBRARIES if importlib.util.find_spec("cupy") is not None else ():
        try:
            from cuda.pathfinder import load_nvidia_dynamic_lib

            load_nvidia_dynamic_lib(name)
        except Exception as problem:  # pathfinder is missing, finds no library, or cannot load it
            problems[name] = error_line(problem)
        else:
            problems[name] = None
    return problems


def _backends(broken: list[str]) -> dict[str, dict[str, Any]]:
    if needs.numba_broken():
        broken.append(f"numba: {needs.numba_problem()}")
    return {row.name: {"about": row.about, "problem": row.problem()} for row in BACKENDS.values()}


def _smoke(broken: list[str]) -> list[dict[str, Any]]:
    """Runs a small LSTM forward and backward in float32 on every available backend, schedule and device.

    worst: the largest error as a share of its bound; at most 1 passes.
    """
    results = []
    for check in plan(dtypes=["float32"], cells=[SMOKE_CASE.cell], cases=[SMOKE_CASE]).checks:
        try:
            outcome = run(check)
        except Exception as problem:  # raised outside of the check, which reports its own exceptions
            broken.append(f"{check}: {error_line(problem)}")
            continue
        results.append(
            {
                "backend": check.backend,
                "device": check.device,
                "status": outcome.status,
                "worst": number(outcome.worst),
                "seconds": round(outcome.seconds, 3),
                "why": outcome.why,
            }
        )
        if not outcome.ok:
            broken.append(f"{check.backend} on {check.device}: {outcome.status}: {outcome.why}")
    return results


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args(argv)
    report = examine()
    print(json.dumps(report, indent=1, allow_nan=False) if args.json else text(report))
    return BROKEN if report["broken"] else OK


def text(report: dict[str, Any]) -> str:
    """The report of `examine` as text."""
    cpu = report["cpu"]
    threads = report["threads"]
    gpu = report["gpu"]
    rows = [("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items()))]
    rows.append(("cpu", f"{cpu['processor']}, {cpu['system']}"))
    if cpu["vector_bytes"]:
        rows.append(("", f"LLVM: {cpu['target']} with {' '.join(cpu['features'])}; {cpu['vector_bytes']}-byte vectors"))
    rows.append(("threads", threads["why"] if threads["number"] is None else f"{threads['number']} ({threads['why']})"))
    rows += [("rates", report["rates"])] if report["rates"] else []
    rows += [("cache", line) for line in _cache_lines(report["cache"])]
    rows += [("gpu", f"{device}: {name}") for device, name in gpu["devices"].items()]
    rows += [("gpu", gpu["problem"])] if gpu["problem"] else []
    rows += [("gpu", f"{name}: {problem or 'found'}") for name, problem in gpu["libraries"].items()]
    for name, backend in report["backends"].items():
        rows.append(("backend", f"{name} ({backend['about']}): " + (backend["problem"] or "runs here")))
    for call in report["smoke"]:
        error = call["why"] or f"worst error {float(call['worst']):.3g} of its bound, {call['seconds']:.2f} s"
        rows.append(("call", f"{call['backend']} on {call['device']}: {call['status']}, {error}"))
    rows += [("broken", line) for line in report["broken"]] or [("broken", "nothing")]
    # The name of a section is printed in its first row only.
    named = [(name if k == 0 or rows[k - 1][0] != name else "", value) for k, (name, value) in enumerate(rows)]
    return "\n".join(f"{name:10}{value}" for name, value in named)


def _cache_lines(folders: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for folder in folders:
        state = "writable" if folder["writable"] else "not writable"
        kinds = [f"{folder[kind]} {kind}" for kind in ("current", "stale", "damaged", "unfinished") if folder[kind]]
        contents = f"{', '.join(kinds)}, {folder['bytes'] / 1e6:.1f} MB" if kinds else "empty"
        lines.append(f"{folder['path']}: {state}, {contents if folder['exists'] else 'does not exist yet'}")
        lines += [f"of another version: {path}" for path in folder["other_versions"]]
    return lines or ["none: the sources of the kernels are not in files"]


if __name__ == "__main__":
    sys.exit(main())
