"""Runs every kernel of both backends on a small case, under compute-sanitizer.

    python -m bench.gpu.every_kernel [--seconds N] [--backends cupy numba_cuda] [--dtypes ...] [--plain]

Every case runs twice: launched plainly, and from a graph. A case that fails does not end the others. The last line
counts the cases that were done in time and those that failed. Results are not checked here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from bench.gpu import exit_with_parent
from bench.gpu.items_file import context_is_lost
from rnnkit.backends import backend_row, pinned_names
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.testing import Case, make_inputs, run

SIZES = {"T": 8, "B": 5, "I": 6, "H": 70}
WIDE_H = 72  # a multiple of the units that a thread of a wide kernel processes; SIZES' H is none
BACKEND_NAMES = ("cupy", "numba_cuda")


def cases() -> Iterator[Case]:
    """Per cell: a ragged batch in reverse, equal lengths without biases, wide rows. For the LSTM also projections."""
    for cell in CELLS.values():
        yield Case(cell.name, **SIZES, reverse=True, ragged=True)
        yield Case(cell.name, **SIZES, bias=False)
        yield Case(cell.name, **{**SIZES, "H": WIDE_H}, ragged=True)
        if cell.projects:
            yield Case(cell.name, **SIZES, P=33, ragged=True)
            yield Case(cell.name, **{**SIZES, "H": WIDE_H}, P=32)


def work(backends: list[str], dtypes: list[str]) -> list[tuple[str, str, Case]]:
    """(dtype, backend, case), with every schedule of a backend by name. Both backends come early in a short run."""
    names = [name for backend in backends for name in pinned_names() if name.partition(":")[0] == backend]
    return [
        (dtype, name, case)
        for dtype in dtypes
        for name in names
        if dtype in backend_row(name)[0].dtypes
        for case in cases()
        if case.cell in backend_row(name)[0].cells()
    ]


def probe() -> None:
    """The kernels of kernels/cuda/probes.cu and kernels/cuda/probes_cluster.cu, a few rounds of each."""
    import cupy

    from bench.gpu import sync_costs

    words = 64
    wrong = cupy.zeros(1, np.uint32)
    n = np.int32
    shared = 16 * words

    def zeros(count: int, dtype: type = np.uint32) -> Any:
        return cupy.zeros(count, dtype)

    plain = sync_costs.module()
    together = sync_costs.module(cooperative=True)
    plain.get_function("nothing")((1,), (32,), ())
    plain.get_function("count_up")((2,), (32,), (zeros(1),))
    plain.get_function("pass_on")((2,), (32,), (zeros(words), zeros(words), n(words)))
    seen = zeros(8)
    counter = zeros(1)
    together.get_function("grid_sync")((4,), (64,), (seen, wrong, n(3)))
    together.get_function("grid_counter")((4,), (64,), (counter, seen, wrong, n(3)))
    for name, line in (("flag_handoff", zeros(64)), ("hop_by_flag", zeros(128)), ("hop_by_tag", zeros(32, np.uint64))):
        together.get_function(name)((2,), (1,), (line, wrong, n(3)))
    # Two groups of two blocks.
    sizes = (wrong, n(words), n(2), n(3))
    flags = zeros(64)
    for name, given in (("flag", (flags, zeros(4 * words))), ("tag", (zeros(4 * words, np.uint64),))):
        together.get_function(f"gather_by_{name}")((4,), (64,), (*given, *sizes), shared_mem=shared)
    if int(cupy.cuda.Device().compute_capability) >= 90:
        clusters = sync_costs.module(cluster=2)
        clusters.get_function("cluster_sync")((4,), (64,), (wrong, n(3), n(1)))
        clusters.get_function("hop_by_push")((4,), (64,), (wrong, n(3)))
        for name in ("push", "mbarrier", "pull"):
            gather = clusters.get_function(f"gather_by_{name}")
            gather((4,), (64,), (wrong, n(words), n(3)), shared_mem=shared)
    if int(wrong.get()[0]):
        raise RuntimeError("a probe saw an earlier round")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--backends", nargs="+", default=list(BACKEND_NAMES), choices=BACKEND_NAMES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "float64", "bfloat16", "tf32"])
    parser.add_argument("--plain", action="store_true", help="each case once, and no probes")
    options = parser.parse_args(arguments)
    if arguments is None:
        exit_with_parent.follow_parent()  # the parent is compute-sanitizer
    deadline = time.monotonic() + options.seconds
    todo = work(options.backends, options.dtypes)
    done = failed = refused = 0
    for dtype, backend, case in todo:
        if time.monotonic() > deadline or context_is_lost():
            break
        try:
            launch(dtype, backend, case, 1 if options.plain else 2)
            done += 1
        except UnsupportedDeviceError:  # the schedule does not serve the case, or the card not the dtype
            refused += 1
        except Exception as problem:
            failed += 1
            print(f"every_kernel: case {backend} {dtype} {case}: {type(problem).__name__}: {problem}"[:300], flush=True)
    probes = "not wanted"
    if not options.plain and "cupy" in options.backends and "float32" in options.dtypes:
        probes = "not done"
        if time.monotonic() < deadline and not context_is_lost():
            probe()
            probes = "done"
    print(f"every_kernel: {done} of {len(todo) - refused} cases done, {failed} failed, probes {probes}", flush=True)
    return int(failed > 0)


def launch(dtype: str, backend: str, case: Case, times: int) -> None:
    """Runs a case forward and backward, `times` times. Rows of WIDE_H units run the wide kernels, if there are any."""
    inputs = make_inputs(case, dtype, device="cuda:0")
    row = DTYPES[dtype]
    with always_wide() if case.H == WIDE_H else nullcontext():
        for _ in range(times):
            run(case, inputs, backend, None if row.name == row.stored else row.name)


@contextmanager
def always_wide() -> Iterator[None]:
    """The schedule stepwise launches its wide kernels for few elements too."""
    from rnnkit.backends.cupy import stepwise_launch

    least = stepwise_launch.WIDE_ELEMENTS
    stepwise_launch.WIDE_ELEMENTS = 0
    try:
        yield
    finally:
        stepwise_launch.WIDE_ELEMENTS = least


if __name__ == "__main__":
    sys.exit(main())
