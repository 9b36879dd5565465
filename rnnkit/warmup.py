"""Compiles kernels ahead of their first call, as in a Dockerfile.

    RUN python -m rnnkit.warmup --cell lstm --dtype float32

Without options: every cell and dtype of every compiled backend that can run here. CPU kernels are cached in the folders
that docs/install.md names, CUDA kernels in CuPy's cache. Exit status: 0 all is compiled and cached, 1 something failed
or no folder takes the code, 2 a bad argument, 3 what was asked for by name cannot run here.
"""

from __future__ import annotations

import argparse
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

OK, BAD, MISSING, INTERRUPTED = 0, 1, 3, 130  # argparse exits with 2

COMPILED = tuple(name for name in BACKENDS if name != "numpy")
LAYERS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": rnnkit.RNN,
    "rnn_relu": partial(rnnkit.RNN, nonlinearity="relu"),
    "gru": rnnkit.GRU,
    "gru_reset_before": partial(rnnkit.GRU, reset_after=False),
    "lstm": rnnkit.LSTM,
}


class Kernels(NamedTuple):
    """The kernels of one cell, in one dtype, on one backend: names of BACKENDS, DTYPES and CELLS."""

    backend: str
    dtype: str
    cell: str

    def __str__(self) -> str:
        return " ".join(self)


class Plan(NamedTuple):
    """What to compile, and backend -> why it cannot run here."""

    kernels: tuple[Kernels, ...]
    unavailable: dict[str, str]


def plan(
    backends: Sequence[str] | None = None, dtypes: Sequence[str] | None = None, cells: Sequence[str] | None = None
) -> Plan:
    """Every combination that exists; None asks for all. The NumPy backend compiles nothing and has none."""
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
            served = [dtype for dtype in served if DTYPES[dtype].stored == dtype]  # tf32 is float32 there
        kernels += [Kernels(name, dtype, cell) for dtype in served for cell in cells or CELLS]
    return Plan(tuple(kernels), unavailable)


def warm_up(kernels: Kernels) -> None:
    """Calls layers forward and backward, so that all is compiled that calls of such layers need. Raises as they do."""
    backend, dtype, cell = kernels
    device = "cpu" if BACKENDS[backend].arrays == "numpy" else "cuda"
    make = partial(LAYERS[cell], 3, 4, dtype=dtype, device=device, backend=backend, rng=0)
    layers = [make(), make(num_layers=2, bidirectional=True)]
    if CELLS[cell].projects:
        layers.append(make(proj_size=2))
    for layer in layers:
        for T, lengths in ((3, None), (3, [3, 1]), (1, None), (1, [1, 0])):
            x = _zeros(layer, T)
            y, state = layer(x, lengths=lengths)
            layer.backward(y, state)
            layer.backward(None, state)
            with rnnkit.no_grad():
                layer(x, lengths=lengths)
    if backend == "numba":
        shared_pool()  # its own loops. It starts no thread


def _zeros(layer: Any, T: int) -> Any:
    """An input of T steps and two rows, on the layer's device."""
    x = np.zeros((T, 2, layer.input_size), layer.dtype)
    return to_device(x, layer.device)


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """The command; gives the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    planned = plan(args.backend, args.dtype, args.cell)
    for name, reason in planned.unavailable.items():
        print(f"not compiled here: {name}: {reason}")
    named = [name for name in planned.unavailable if name in (args.backend or ())]
    if named or not planned.kernels:
        print(f"{parser.prog}: nothing is compiled, because what was named cannot run here", file=sys.stderr)
        return MISSING
    os.environ.setdefault("RNNKIT_QUIET", "1")  # the lines below say it
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
        parser.add_argument(f"--{option}", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}")
    return parser


def _compile(kernels: Sequence[Kernels]) -> int:
    """A line per combination as it is done. Gives how many failed."""
    failed = 0
    for number, one in enumerate(kernels, 1):
        start, before = time.monotonic(), _compiled()
        print(f"{number}/{len(kernels)} {one} ... ", end="", flush=True)
        try:
            warm_up(one)
        except Exception as problem:  # whatever a compiler raises; the other kernels may do
            failed += 1
            lines = str(problem).strip().splitlines() or [""]
            print(f"failed: {type(problem).__name__}: {lines[0]}")
            continue
        new = "" if one.backend != "numba" else f", {_compiled() - before} compiled"
        print(f"{time.monotonic() - start:.1f} s{new}")
    return failed


def _counts() -> Counter[str]:
    """What the cache of the CPU kernels has counted in this process; nothing where no such kernel was made."""
    cache = sys.modules.get("rnnkit.kernels.cpu.cache")
    return Counter() if cache is None else cache.counts


def _compiled() -> int:
    return _counts()["compiled"]


def _report(before: Counter[str]) -> bool:
    """Says where the CPU kernels are. False where one that was compiled since `before` is cached nowhere."""
    counts = _counts()
    if not counts:
        return True
    from rnnkit.kernels.cpu import cache

    for folder in cache.kernel_folders():
        found = cache.survey(folder, cache.environment_stamp())["current"]
        if found:
            size = sum(path.stat().st_size for path in found)
            print(f"{len(found)} CPU kernels for this machine, {size / 1e6:.1f} MB, are in {folder}")
    new = counts - before
    lost = new["compiled"] - new["cached"]
    if lost:
        print(f"{lost} compiled kernels are cached nowhere: no folder takes them", file=sys.stderr)
    return not lost


if __name__ == "__main__":
    sys.exit(main())
