"""The parts of a run on a card, the most important first.

    smoke        does anything work: the compiler, cuBLAS, one step, a graph, bfloat16, Numba, torch
    parity       is every result right
    ceilings     what can the card do: products, copies, launches, barriers, exchanges
    throughput   how fast is it beside torch and cuDNN
    counters     how many launches and bytes does a step take
    sanitizer    does compute-sanitizer find an error in any kernel

Each part has at most `most` seconds, and leaves `least` for every part after it. So a part that hangs costs the run no
more than its own time. In a run of 290 seconds the first four parts have the time they need, and the last two the rest.
A second run that continues the first (`--done`) completes them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.gpu.processes import Part

# The checks of "smoke" without which no later part has anything to measure.
BASE_CASE = ("nvrtc", "cublas", "one step")

CARD_SECONDS = 25.0
PARITY_WORKERS = 6
CALLS_WORKERS = 2
# Without the project's conftest, options and plugins, which may not be installed on the machine with the card.
PYTEST = ("-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider")
TESTS = ("tests/cuda/test_gpu.py", "tests/cuda/test_gpu_calls.py")
TOOLKIT = Path("/usr/local/cuda")


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"bench.gpu.{name}", *arguments)


def card() -> Part:
    """The card and its software. Without a usable card the run ends here."""
    return Part("card", (module("card"),), most=CARD_SECONDS, least=1.0, environment=toolkit())


def parts(schedule: str | None = None) -> list[Part]:
    """All parts. schedule: of the CuPy backend, for parity and throughput; None for the library's choice."""
    pinned = () if schedule is None else ("--schedule", schedule)
    values = [module("parity", "--share", f"{i}/{PARITY_WORKERS}", *pinned) for i in range(1, PARITY_WORKERS + 1)]
    # The tests of streams, memory and graphs, by pytest. The other processes check values.
    reported = (sys.executable, *PYTEST, "-k", "not parity", "-p", "bench.gpu.pytest_plugin")
    calls = [(*reported, "--share", f"{i}/{CALLS_WORKERS}", *TESTS) for i in range(1, CALLS_WORKERS + 1)]
    timed = module("throughput", *pinned)
    few_threads = tuple((f"{name}_NUM_THREADS", "2") for name in ("OPENBLAS", "OMP", "MKL"))
    side_by_side = (*toolkit(), *few_threads, ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"))
    return [
        Part("smoke", (module("smoke"),), most=45, least=5, quiet=30, restarts=2, environment=toolkit()),
        Part("parity", (*values, *calls), most=90, least=20, quiet=45, restarts=3, environment=side_by_side),
        Part(
            "ceilings", (module("hardware_ceilings"),), most=40, least=20, quiet=15, restarts=3, environment=toolkit()
        ),
        Part("throughput", (timed,), most=150, least=60, quiet=30, restarts=4, environment=toolkit()),
        Part("counters", (module("counters"),), most=60, least=15, quiet=30, restarts=2, environment=toolkit()),
        Part("sanitizer", (module("sanitizer"),), most=180, least=25, quiet=90, restarts=1, environment=toolkit()),
    ]


def plot(source: Path, target: Path) -> Part:
    return Part("plot", (module("plot", str(source), str(target)),), most=15, least=1)


def toolkit() -> tuple[tuple[str, str], ...]:
    """CUDA_HOME, where it is not set and a toolkit is in its usual folder: numba-cuda looks for libNVVM there."""
    if "CUDA_HOME" in os.environ or not TOOLKIT.is_dir():
        return ()
    return (("CUDA_HOME", str(TOOLKIT)),)
