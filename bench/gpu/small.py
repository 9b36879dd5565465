"""A small case of every kernel of both backends, and nothing else: what compute-sanitizer and ncu are run over.

    python -m bench.gpu.small [--seconds N] [--backends cupy numba_cuda] [--dtypes ...] [--plain]

Every case runs twice, so that it is launched plainly and from a graph. The last line says how many of how many were
done in the time. It checks nothing: the parity tests do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np

from rnnkit.backends import BACKENDS
from rnnkit.cells import CELLS
from rnnkit.dtypes import DTYPES
from rnnkit.testing import Case, make_inputs, run

SIZES = {"T": 4, "B": 5, "I": 6, "H": 70}
BACKEND_NAMES = ("cupy", "numba_cuda")


def cases() -> Iterator[Case]:
    """For every cell ragged rows in reverse, and whole rows without biases; for the LSTM a projection besides."""
    for cell in CELLS.values():
        yield Case(cell.name, **SIZES, reverse=True, ragged=True)
        yield Case(cell.name, **SIZES, bias=False)
        if cell.projects:
            yield Case(cell.name, **SIZES, P=33, ragged=True)


def work(backends: list[str], dtypes: list[str]) -> list[tuple[str, str, Case]]:
    """(dtype, backend, case): both backends early, so that little time still sees both."""
    return [
        (dtype, backend, case)
        for dtype in dtypes
        for backend in backends
        if dtype in BACKENDS[backend].dtypes
        for case in cases()
    ]


def probe() -> None:
    """The kernels of kernels/probes.cu."""
    import cupy

    from bench.gpu import barriers

    seen, wrong, flags = cupy.zeros(8, np.uint32), cupy.zeros(1, np.uint32), cupy.zeros((2, 32), np.uint32)
    counter, rounds = cupy.zeros(1, np.uint32), np.int32(3)
    together = barriers.module(cooperative=True)
    together.get_function("grid_sync")((4,), (64,), (seen, wrong, rounds))
    together.get_function("grid_counter")((4,), (64,), (counter, seen, wrong, rounds))
    together.get_function("flag_handoff")((2,), (1,), (flags, wrong, rounds))
    barriers.module().get_function("count_up")((2,), (32,), (counter,))
    if int(cupy.cuda.Device().compute_capability) >= 90:
        barriers.module(cluster=2).get_function("cluster_sync")((4,), (64,), (wrong, rounds, np.int32(1)))
    if int(wrong.get()[0]):
        raise RuntimeError("a probe saw an earlier round")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--backends", nargs="+", default=list(BACKEND_NAMES), choices=BACKEND_NAMES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "float64", "bfloat16", "tf32"])
    parser.add_argument("--plain", action="store_true", help="each case once, and no probes")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    todo, done = work(options.backends, options.dtypes), 0
    for dtype, backend, case in todo:
        if time.monotonic() > deadline:
            break
        inputs = make_inputs(case, dtype, device="cuda:0")
        row = DTYPES[dtype]
        for _ in range(1 if options.plain else 2):
            run(case, inputs, backend, None if row.name == row.stored else row.name)
        done += 1
    if not options.plain and time.monotonic() < deadline:
        probe()
        print("probes done")
    print(f"small: {done} of {len(todo)} cases done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
