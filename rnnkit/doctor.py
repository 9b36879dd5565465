"""What works on this machine and what does not: backends, versions, processor, cache, threads, GPU, and a call of each.

Exit status: 0 all that is there works, 1 something is broken. What is merely absent, as a GPU, is said and is no error.
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
from rnnkit.parity.measure import run, said
from rnnkit.parity.outcome import number
from rnnkit.testing import Case

OK, BROKEN = 0, 1  # argparse exits with 2
SMOKE = Case("lstm", T=5, B=3, I=4, H=18)
# Of what LLVM names, the instructions that the kernels' speed depends on.
FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bf16", "amx-tile", "neon", "dotprod", "sve")
# Of CUDA: NVRTC compiles for CuPy, NVVM for Numba CUDA, and cuBLAS computes products.
LIBRARIES = ("nvrtc", "nvvm", "cublas")


def examine() -> dict[str, Any]:
    """Everything that the command prints, for JSON. "broken" lists what is wrong; it is empty where nothing is."""
    broken: list[str] = []
    found = {
        "versions": _versions(),
        "cpu": _cpu(),
        "threads": _threads(broken),
        "cache": _cache(broken),
        "gpu": _gpu(broken),
        "backends": _backends(broken),
        "smoke": _smoke(broken),
        "broken": broken,
    }
    return found


def _versions() -> dict[str, str]:
    found = versions()
    for name in ("llvmlite", "cuda-bindings", "nvidia-nvvm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> dict[str, Any]:
    """features and vector_bytes are what the kernels are compiled for; None where Numba does not work."""
    found: dict[str, Any] = {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "target": None,
        "features": None,
        "vector_bytes": None,
    }
    if needs.numba_problem() is None:
        import llvmlite.binding as llvm

        from rnnkit.kernels.cpu.simd import vector_bytes

        features = llvm.get_host_cpu_features()
        found["target"] = llvm.get_host_cpu_name()
        found["features"] = [name for name in FEATURES if features.get(name)]
        found["vector_bytes"] = vector_bytes()
    return found


def _threads(broken: list[str]) -> dict[str, Any]:
    try:
        threads = default_threads()
    except ValueError as problem:
        broken.append(str(problem))
        return {"number": None, "why": str(problem)}
    return {"number": threads.number, "why": threads.why}


def _cache(broken: list[str]) -> list[dict[str, Any]]:
    """Each folder that may hold compiled CPU kernels, best first. Sizes in bytes; the kinds of files by number."""
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
        broken += [f"a cached kernel is damaged (it is compiled anew when needed): {p}" for p in files["damaged"]]
    return folders


def _writable(folder: Path) -> bool:
    """Whether a file can be made there, or else the folder."""
    if folder.is_dir():
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            return False
        return True
    above = next((one for one in folder.parents if one.exists()), None)
    return above is not None and above.is_dir() and not folder.exists() and os.access(above, os.W_OK | os.X_OK)


def _gpu(broken: list[str]) -> dict[str, Any]:
    """problem: why CUDA arrays cannot be made. nodes: devices that NVIDIA's driver shows, whether they work or not.

    libraries: of CUDA's, which the GPU backends load, name -> why it is not found, or None.
    """
    problem = cuda_problem()
    nodes = sorted(glob.glob("/dev/nvidia[0-9]*"))
    found: dict[str, Any] = {"problem": problem, "nodes": nodes, "devices": {}, "libraries": _libraries()}
    if problem is None:
        import cupy

        for index in range(cupy.cuda.runtime.getDeviceCount()):
            properties = cupy.cuda.runtime.getDeviceProperties(index)
            name = properties["name"]
            text = name.decode() if isinstance(name, bytes) else str(name)
            found["devices"][f"cuda:{index}"] = f"{text}, {properties['major']}.{properties['minor']}"
    elif problem.startswith("CuPy is installed and cannot be used"):
        broken.append(problem)
    elif nodes and problem == "CuPy finds no CUDA device":
        broken.append(f"CuPy finds no CUDA device, although the driver shows {', '.join(nodes)}")
    return found


def _libraries() -> dict[str, str | None]:
    """Nothing where CuPy is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES if importlib.util.find_spec("cupy") is not None else ():
        try:
            from cuda.pathfinder import load_nvidia_dynamic_lib

            load_nvidia_dynamic_lib(name)
        except Exception as problem:  # pathfinder is missing, finds nothing, or cannot load what it finds
            found[name] = said(problem)
        else:
            found[name] = None
    return found


def _backends(broken: list[str]) -> dict[str, dict[str, Any]]:
    if needs.numba_broken():
        broken.append(f"numba: {needs.numba_problem()}")
    return {row.name: {"about": row.about, "problem": row.problem()} for row in BACKENDS.values()}


def _smoke(broken: list[str]) -> list[dict[str, Any]]:
    """A small LSTM forward and backward in float32 on every backend, schedule and device that can run, and the oracle.

    worst: the largest error as a share of its bound; at most 1 is right.
    """
    results = []
    for check in plan(dtypes=["float32"], cells=[SMOKE.cell], cases=[SMOKE]).checks:
        try:
            outcome = run(check)
        except Exception as problem:  # outside of the check itself, which reports its own
            broken.append(f"{check}: {said(problem)}")
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
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args(argv)
    found = examine()
    print(json.dumps(found, indent=1, allow_nan=False) if args.json else text(found))
    return BROKEN if found["broken"] else OK


def text(found: dict[str, Any]) -> str:
    """The report of `examine`, for people."""
    cpu, threads, gpu = found["cpu"], found["threads"], found["gpu"]
    rows = [("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items()))]
    rows.append(("cpu", f"{cpu['processor']}, {cpu['system']}"))
    if cpu["vector_bytes"]:
        rows.append(("", f"LLVM: {cpu['target']} with {' '.join(cpu['features'])}; {cpu['vector_bytes']}-byte vectors"))
    rows.append(("threads", threads["why"] if threads["number"] is None else f"{threads['number']} ({threads['why']})"))
    rows += [("cache", line) for line in _cache_lines(found["cache"])]
    rows += [("gpu", f"{device}: {name}") for device, name in gpu["devices"].items()]
    rows += [("gpu", gpu["problem"])] if gpu["problem"] else []
    rows += [("gpu", f"{name}: {problem or 'found'}") for name, problem in gpu["libraries"].items()]
    for name, backend in found["backends"].items():
        rows.append(("backend", f"{name} ({backend['about']}): " + (backend["problem"] or "runs here")))
    for one in found["smoke"]:
        error = one["why"] or f"worst error {float(one['worst']):.3g} of its bound, {one['seconds']:.2f} s"
        rows.append(("call", f"{one['backend']} on {one['device']}: {one['status']}, {error}"))
    rows += [("broken", line) for line in found["broken"]] or [("broken", "nothing")]
    named = [(name if k == 0 or rows[k - 1][0] != name else "", value) for k, (name, value) in enumerate(rows)]
    return "\n".join(f"{name:10}{value}" for name, value in named)


def _cache_lines(folders: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for one in folders:
        state = "writable" if one["writable"] else "not writable"
        kinds = [f"{one[kind]} {kind}" for kind in ("current", "stale", "damaged", "unfinished") if one[kind]]
        held = f"{', '.join(kinds)}, {one['bytes'] / 1e6:.1f} MB" if kinds else "empty"
        lines.append(f"{one['path']}: {state}, {held if one['exists'] else 'not there yet'}")
        lines += [f"of another version: {path}" for path in one["other_versions"]]
    return lines or ["none: the kernels' sources are not in files"]


if __name__ == "__main__":
    sys.exit(main())
