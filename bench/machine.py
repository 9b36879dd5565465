"""Describes the machine of a run: the processor, its caches and vector flags, the commit, and measured ceilings.

The ceilings are the multiply-add peak and the read bandwidths of bench.cpu_peaks, and the best rate of a large square
np.matmul. That is the share of the peak that a good BLAS reaches. A kernel written for thin products may exceed it.

    python -m bench.machine DTYPE     prints the rate of np.matmul in GFLOP/s, on the BLAS's number of threads
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.worker_pool import ROOT, environment
from rnnkit.backends import needs
from rnnkit.core.dtypes import DTYPES

FLAGS_OF_INTEREST = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
CEILING_SIZE = 2048
CEILING_SECONDS = 2.0
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, Any]:
    """cpu, its family, cores that this process may use, caches, flags, memory and system.

    Nothing that identifies the host. The family is the row of rates that rnnkit uses (rnnkit/backends/numba/host.py).
    """
    info = _cpuinfo()
    return {
        "family": _family(),
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "caches": _caches(),
        "flags": [f for f in FLAGS_OF_INTEREST if f in (info.get("flags") or info.get("Features") or "").split()],
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _family() -> str | None:
    if needs.numba_problem() is not None:
        return None
    from rnnkit.backends.numba.host import host

    rates = host().rates
    return f"{rates.name}, {'assumed' if rates.source == 'assumed' else 'measured'} rates"


def slug(machine: dict[str, Any]) -> str:
    """The machine as a folder name: its processor and cores, such as `amd-epyc-2-cores`.

    `amd-epyc-avx2-2-cores` is without AVX-512: a virtual machine hides the model of which vector units are a part.
    """
    name = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", machine["cpu"].lower())
    name = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    narrow = "avx2" in machine["flags"] and "avx512f" not in machine["flags"]
    return f"{name or 'unknown'}{'-avx2' if narrow else ''}-{machine['cores']}-cores"


def cache_bytes(text: str) -> int:
    """A cache's size as Linux writes it, such as 1024K, in bytes."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    if found is None:
        raise ValueError(f"a cache's size must be a number and K, M or G, got {text!r}")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]]


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """The system's load average over the last minute; None where the system does not report it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def commit() -> str | None:
    """The measured commit, with + where the working tree differs from it; None outside a repository."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def ceiling(dtype: str, threads: int) -> dict[str, Any]:
    """np.matmul's best rate on one core and on `threads`, in a fresh process each, and bench.cpu_peaks' figures.

    They are those of the dtype of the arithmetic: float32 for 16-bit dtypes.
    """
    dtype = DTYPES[dtype].computed
    counts = sorted({1, threads})
    return {
        "what": f"np.matmul of two {CEILING_SIZE}x{CEILING_SIZE} {dtype} matrices, best in {CEILING_SECONDS} s",
        "gflops": {str(n): in_child("bench.machine", dtype, threads=n) for n in counts},
        **in_child("bench.cpu_peaks", dtype, str(threads), threads=threads),
    }


def in_child(module: str, *arguments: str, threads: int) -> Any:
    """The JSON that `python -m module arguments` prints last, from a fresh process. Raises as `run_child`."""
    return json.loads(run_child("-m", module, *arguments, threads=threads).splitlines()[-1])


def run_child(*arguments: str, threads: int) -> str:
    """What `python arguments` prints, from a fresh process whose thread pools have `threads` threads.

    Raises ValueError with the last line of its stderr where the process fails.
    """
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment(threads), cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise ValueError(f"python {' '.join(arguments[:2])} failed with {done.returncode}: {said}")
    return done.stdout


def matmul_gflops(dtype: str, size: int = CEILING_SIZE, seconds: float = CEILING_SECONDS) -> float:
    """The best rate of a square product, in this process."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size)).astype(dtype) for _ in range(2))
    out = a @ b
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - started)
    return 2e-9 * size**3 / best


def _git(*arguments: str) -> str:
    # Without optional locks, since a process that is killed meanwhile would leave the lock of the index behind.
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(CACHES.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


if __name__ == "__main__":
    print(matmul_gflops(sys.argv[1]))
