"""Compiles kernels ahead of their first call, for example in a Dockerfile.

    RUN python -m rnnkit.warmup --cell lstm --dtype float32

Without options it compiles every cell and dtype of every compiled backend that can run here, one after the other;
`--processes 4` compiles in four processes. `--dtype float32_int8` and `float32_bfloat16` are for layers with compressed
weights. CPU kernels are cached in the folders that docs/install.md names, CUDA kernels in CuPy's cache. Exit status:
0 all kernels are compiled and cached, 1 a compilation failed or no folder accepts the code, 2 bad argument, 3 something
that was requested by name cannot run here.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import rnnkit
from rnnkit.backends import BACKENDS, BackendRow
from rnnkit.core.cells import CELLS
from rnnkit.core.devices import to_device
from rnnkit.core.dtypes import COMPRESSED, DTYPES
from rnnkit.core.thread_pool import shared_pool

# Exit statuses; argparse exits with 2.
OK = 0
BAD = 1
MISSING = 3
INTERRUPTED = 130

COMPILED = tuple(name for name in BACKENDS if name != "numpy")
COMPRESSED_ROWS = {row.name: row for row in COMPRESSED.values()}  # what `rnnkit.compress` makes of float32
LAYERS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": rnnkit.RNN,
    "rnn_relu": partial(rnnkit.RNN, nonlinearity="relu"),
    "gru": rnnkit.GRU,
    "gru_reset_before": partial(rnnkit.GRU, reset_after=False),
    "lstm": rnnkit.LSTM,
    "slstm": rnnkit.SLSTM,
}


class Kernels(NamedTuple):
    """The kernels of a cell, in a dtype, on a backend: names in CELLS, DTYPES or COMPRESSED_ROWS, and BACKENDS."""

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
        dtypes: names in DTYPES or COMPRESSED_ROWS.
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
        served = [dtype for dtype in dtypes if row.serves(dtype)] if dtypes else _dtypes_of(row)
        of_row = [cell for cell in cells or CELLS if cell in row.cells()]
        if not of_row:
            unavailable[name] = f"serves the cells {', '.join(row.cells())}"
        # Neighbours differ in their dtype: the kernels that cells share are then not compiled by two processes at once.
        kernels += [Kernels(name, dtype, cell) for cell in of_row for dtype in served]
    return Plan(tuple(kernels), unavailable)


def _dtypes_of(row: BackendRow) -> list[str]:
    """The names of what a backend has kernels of its own for, and this machine arrays."""
    found = [*row.dtypes, *row.compressed]
    if row.arrays == "numpy":
        found.remove("tf32")  # on the CPU tf32 is float32
    if importlib.util.find_spec("ml_dtypes") is None:
        found = [dtype for dtype in found if not dtype.endswith("bfloat16")]
    return found


def warm_up(kernels: Kernels) -> None:
    """Calls layers forward and backward so that all their kernels are compiled. Raises what the calls raise."""
    backend, dtype, cell = kernels
    device = "cpu" if BACKENDS[backend].arrays == "numpy" else "cuda"
    compressed = COMPRESSED_ROWS.get(dtype)
    stored = "float32" if compressed else dtype
    make = partial(LAYERS[cell], 3, 4, dtype=stored, device=device, backend=backend, rng=0)
    layers = [make(), make(num_layers=2, bidirectional=True)]
    if CELLS[cell].projects:
        layers.append(make(proj_size=2))
    for layer in layers:
        called = rnnkit.compress(layer, compressed.weights) if compressed else layer
        for T, lengths in ((3, None), (3, [3, 1]), (1, None)):
            x = _zeros(layer, T)
            with rnnkit.no_grad():
                called(x, lengths=lengths)
            if not compressed:  # compressed weights have no backward
                y, state = layer(x, lengths=lengths)
                layer.backward(y, state)
                layer.backward(None, state)
    if backend == "numba":
        shared_pool()  # compiles the loops of the thread pool; it starts no thread


def _zeros(layer: Any, T: int) -> Any:
    """An input of T steps and two rows, on the layer's device."""
    x = np.zeros((T, 2, layer.input_size), layer.dtype)
    return to_device(x, layer.device)


# The command


class Outcome(NamedTuple):
    """What compiling one combination took. new: counts of the CPU kernels' cache. problem: "" if it succeeded."""

    seconds: float
    new: Counter[str]
    problem: str

    def __str__(self) -> str:
        if self.problem:
            return f"failed: {self.problem}"
        new = f", {self.new['compiled']} compiled" if self.new else ""
        return f"{self.seconds:.1f} s{new}"


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
    print(f"to compile: {len(planned.kernels)} combinations", flush=True)
    outcomes = _one_by_one(planned.kernels) if args.processes == 1 else _beside(planned.kernels, args.processes)
    failed = False
    new: Counter[str] = Counter()
    try:
        for number, (one, outcome) in enumerate(outcomes, 1):
            print(f"{number}/{len(planned.kernels)} {one} ... {outcome}", flush=True)
            failed = failed or bool(outcome.problem)
            new += outcome.new
    except KeyboardInterrupt:
        print("interrupted; what was compiled is cached")
        return INTERRUPTED
    if any(one.backend == "numba" for one in planned.kernels):
        failed = not _report(new) or failed
    return BAD if failed else OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit.warmup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, names in (("backend", COMPILED), ("dtype", (*DTYPES, *COMPRESSED_ROWS)), ("cell", tuple(CELLS))):
        parser.add_argument(f"--{option}", nargs="+", metavar="NAME", choices=names, help=f"names: {', '.join(names)}")
    parser.add_argument(
        "--processes", type=_count, default=1, metavar="N", help="that compile side by side; default: 1"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return int(text)


def _one_by_one(kernels: Sequence[Kernels]) -> Iterator[tuple[Kernels, Outcome]]:
    for one in kernels:
        yield one, compiled(one)


def _beside(kernels: Sequence[Kernels], processes: int) -> Iterator[tuple[Kernels, Outcome]]:
    """In the order in which they end. A process that dies is the outcome of what it and the others were compiling."""
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        jobs = {pool.submit(compiled, one): one for one in kernels}
        for job in as_completed(jobs):
            died = isinstance(job.exception(), BrokenProcessPool)
            yield jobs[job], Outcome(0.0, Counter(), "a process died") if died else job.result()
    finally:
        pool.shutdown(cancel_futures=True)


def compiled(kernels: Kernels) -> Outcome:
    """`warm_up`, and what it took."""
    start = time.monotonic()
    before = Counter(_counts())
    problem = ""
    try:
        warm_up(kernels)
    except Exception as found:  # any exception of a compiler; other kernels may compile
        lines = str(found).strip().splitlines() or [""]
        problem = f"{type(found).__name__}: {lines[0]}"
    return Outcome(time.monotonic() - start, _counts() - before, problem)


def _counts() -> Counter[str]:
    """Counts of the CPU kernels' cache in this process; empty if no CPU kernel was used."""
    cache = sys.modules.get("rnnkit.kernels.cpu.cache")
    return Counter() if cache is None else cache.counts


def _report(new: Counter[str]) -> bool:
    """Prints the folders of the CPU kernels. Returns whether all that `new` counts are cached."""
    from rnnkit.kernels.cpu import cache

    for folder in cache.kernel_folders():
        files = cache.survey(folder, cache.environment_stamp())["current"]
        if files:
            size = sum(path.stat().st_size for path in files)
            print(f"{len(files)} CPU kernels for this machine, {size / 1e6:.1f} MB, are in {folder}")
    uncached = new["compiled"] - new["cached"]
    if uncached:
        print(f"{uncached} compiled kernels are cached nowhere: no folder is writable", file=sys.stderr)
    return not uncached


if __name__ == "__main__":
    sys.exit(main())
