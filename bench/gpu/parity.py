"""The checks of `rnnkit.parity` on the card: python -m bench.gpu.parity --share 2/6.

A share has whole groups of a backend, cell and stored dtype, so that no two processes compile the same kernels.
"""

from __future__ import annotations

import argparse
import sys

from bench.gpu import items_file as file
from bench.gpu.items_file import Item, Lines
from rnnkit import parity
from rnnkit.backends import BACKENDS, pinned_names
from rnnkit.core.dtypes import DTYPES
from rnnkit.kernels.cells import HEADERS
from rnnkit.parity import Check
from rnnkit.testing import CASES as EVERY_CASE
from rnnkit.testing import LARGE_CASES, OPTION_CASES

DEVICE = "cuda:0"
CASES = tuple(case for case in EVERY_CASE if case.cell in HEADERS)
# The scan of Numba CUDA has one block per row, and takes seconds on larger cases.
LARGEST_NUMBA_H = 250


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    file.add_arguments(parser)
    parser.add_argument("--share", default="1/1", help="which share of how many is run")
    parser.add_argument("--schedule", help="of the CuPy backend, instead of all")
    options = parser.parse_args(arguments)
    which, count = map(int, options.share.split("/"))
    lines = Lines(options.items, options.part, options.seconds)
    checks, unavailable = plan(options.schedule)
    if which == 1:
        for name, why in unavailable.items():
            lines.skip(name, why, "not available")
    for check in share(checks, which, count):
        lines.item(str(check), lambda check=check: measured(check))
    return 0


def plan(schedule: str | None = None) -> tuple[list[Check], dict[str, str]]:
    """Every check of the CUDA backends, and by name why a backend cannot be checked here.

    Small cases come first, and of those the CuPy backend's: a run that is cut off has the most important checks.
    """
    names = [name for name in pinned_names() if BACKENDS[name.partition(":")[0]].arrays == "cupy"]
    if schedule is not None:
        names = [name for name in names if name.partition(":")[0] != "cupy"]
        names.insert(0, f"cupy:{schedule}")
    found = parity.plan(backends=names, devices=[DEVICE], cases=(*CASES, *OPTION_CASES, *LARGE_CASES))
    checks = [check for check in found.checks if _fits(check)]
    checks.sort(key=lambda check: (check.case in LARGE_CASES, check.backend == "numba_cuda"))
    return checks, found.unavailable


def _fits(check: Check) -> bool:
    if check.backend != "numba_cuda" or check.case not in LARGE_CASES:
        return True
    return check.case.H <= LARGEST_NUMBA_H and check.dtype == "float32"


def share(checks: list[Check], which: int, count: int) -> list[Check]:
    """The checks of share `which`, from 1, of `count`."""
    groups = list(dict.fromkeys(map(group_of, checks)))
    mine = set(groups[which - 1 :: count])
    return [check for check in checks if group_of(check) in mine]


def group_of(check: Check) -> tuple[str, str, str]:
    """Checks of one group run the same kernels."""
    return check.backend, check.case.cell, DTYPES[check.dtype].stored


def measured(check: Check) -> Item:
    found = parity.run(check).to_dict()
    return {key: value for key, value in found.items() if key != "check"}


if __name__ == "__main__":
    sys.exit(main())
