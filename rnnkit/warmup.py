"""Compiles kernels ahead of their first call, for example in a Dockerfile.

    RUN python -m rnnkit.warmup --cell lstm --dtype float32

Without options it compiles every cell and dtype of every compiled backend that can run here. CPU kernels are cached in
the folders that docs/install.md names, CUDA kernels in CuPy's cache. Exit status: 0 all kernels are compiled and
cached, 1 a compilation failed or no folder accepts the code, 2 bad argument, 3 something that was requested by name
cannot run here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import rnnkit
from rnnkit.backends import BACKENDS
from rnnkit.core.cells import CELLS
from rnnkit.core.devices import to_device
from rnnkit.core.dtypes import DTYPES
from rnnkit.core.thread_pool import shared_pool

# Exit statuses; argparse exits with 2.
OK = 0
BAD = 1
MISSING = 3
INTERRUPTED = 130

COMPILED = tuple(name for name in BACKENDS if name != "numpy")
LAYERS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": rnnkit.RNN,
    "rnn_relu": partial(rnnkit.RNN, nonlinearity="relu"),
    "gru": rnnkit.GRU,
    "gru_reset_before": partial(rnnkit.GRU, reset_after=False),
    "lstm": rnnkit.LSTM,
}


class Kernels(NamedTuple):
    """The kernels of one cell, in one dtype, on one backend: names in BACKENDS, DTYPES and CELLS."""

    backend: str
    dtype: str
    cell: str

    def __str__(self) -> str:
        return " ".join(self)


class Plan(NamedTuple):
    """The kernels to compile, and backend -> why it cannot run here."""

    kernels: tuple[Kernels, ...]
    unavailable: dict[str, str]


def plan(
    backends: Sequence[str] | None = None, dtypes: Sequence[str] | None = None, cells: Sequence[str] | None = None
) -> Plan:
    """Lists every combination that exists; None stands for all. The NumPy backend has no kernels.

    Args:
        backends: names in COMPILED.
        dtypes: names in DTYPES.
        cells: names in CELLS.

    Returns:
        A Plan.
    """
    unavailable = {}
    kernels = []
    for name in backends or COMPILED:
        row = BACKENDS[name]
        problem = row.problem()
        if problem:
            unavailable[name] = problem
            continue
        served = [dtype for dtype in dtypes or row.dtypes if dtype in row.dtypes]
        if dtypes is None and row.arrays == "numpy":
            served = [dtype for dtype in served if DTYPES[dtype].stored == dtype]  # on the CPU tf32 is float32
        if dtypes is None and importlib.util.find_spec("ml_dtypes") is None:
            served = [dtype for dtype in served if dtype != "bfloat16"]
        kernels += [Kernels(name, dtype, cell) for dtype in served for cell in cells or CELLS]
    return Plan(tuple(kernels), unavailable)


def warm_up(kernels: Kernels) -> None:
    """Calls layers forward and backward so that all their kernels are compiled. Raises what the calls raise."""
    backend, dtype, cell = kernels
    device = "cpu" if BACKENDS[backend].arrays == "numpy" else "cuda"
    make = partial(LAYERS[cell], 3, 4, dtype=dtype, device=device, backend=backend, rng=0)
    layers = [make(), make(num_layers=2, bidirectional=True)]
    if CELLS[cell].projects:
        layers.append(make(proj_size=2))
    for layer in layers:
        for T, lengths in ((3, None), (3, [3, 1]), (1, None)):
            x = _zeros(layer, T)
            y, state = layer(x, lengths=lengths)
            layer.backward(y, state)
            layer.backward(None, state)
            with rnnkit.no_grad():
                layer(x, lengths=lengths)
    if backend == "numba":
        shared_pool()  # compiles the loops of the thread pool; it starts no thread


def _zeros(layer: Any, T: int) -> Any:
    """An input of T steps and two rows, on the layer's device."""
    x = np.zeros((T, 2, layer.input_size), layer.dtype)
    return to_device(x, layer.device)


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    planned = plan(args.backend, args.dtype, args.cell)
    for name, reason in planned.unavailable.items():
        print(f"not compiled here: {name}: {reason}")
    named = [name for name in planned.unavailable if name in (args.backend or ())]
    if named or not planned.kernels:
        print(f"{parser.prog}: nothing is compiled, because a requested backend cannot run here", file=sys.stderr)
        return MISSING
    os.environ.setdefault("RNNKIT_QUIET", "1")  # the progress lines replace the notice of a compilation
    before = Counter(_counts())
    try:
        failed = _compile(planned.kernels)
    except KeyboardInterrupt:
        print("interrupted; what was compiled is cached")
        return INTERRUPTED
    return BAD if failed or not _report(before) else OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit.warmup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, names in (("backend", COMPILED), ("dtype", tuple(DTYPES)), ("cell", tuple(CELLS))):
        parser.add_argument(f"--{option}", nargs="+", metavar="NAME", choices=names, help=f"names: {', '.join(names)}")
    return parser


def _compile(kernels: Sequence[Kernels]) -> int:
    """Compiles the kernels and prints a line for each. Returns the number of failures."""
    failed = 0
    for number, one in enumerate(kernels, 1):
        start = time.monotonic()
        before = _compiled()
        print(f"{number}/{len(kernels)} {one} ... ", end="", flush=True)
        try:
            warm_up(one)
        except Exception as problem:  # any exception of a compiler; other kernels may compile
            failed += 1
            lines = str(problem).strip().splitlines() or [""]
            print(f"failed: {type(problem).__name__}: {lines[0]}")
            continue
        new = "" if one.backend != "numba" else f", {_compiled() - before} compiled"
        print(f"{time.monotonic() - start:.1f} s{new}")
    return failed


def _counts() -> Counter[str]:
    """Counts of the CPU kernels' cache in this process; empty if no CPU kernel was used."""
    cache = sys.modules.get("rnnkit.kernels.cpu.cache")
    return Counter() if cache is None else cache.counts


def _compiled() -> int:
    return _counts()["compiled"]


def _report(before: Counter[str]) -> bool:
    """Prints the folders of the CPU kernels. Returns whether all kernels compiled since `before` are cached."""
    counts = _counts()
    if not counts:
        return True
    from rnnkit.kernels.cpu import cache

    for folder in cache.kernel_folders():
        files = cache.survey(folder, cache.environment_stamp())["current"]
        if files:
            size = sum(path.stat().st_size for path in files)
            print(f"{len(files)} CPU kernels for this machine, {size / 1e6:.1f} MB, are in {folder}")
    new = counts - before
    uncached = new["compiled"] - new["cached"]
    if uncached:
        print(f"{uncached} compiled kernels are cached nowhere: no folder is writable", file=sys.stderr)
    return not uncached


if __name__ == "__main__":
    sys.exit(main())
