"""One forward and backward of a layer without graphs, for ncu to count: python -m bench.gpu.ncu_call CELL."""

from __future__ import annotations

import sys

from bench.gpu import exit_with_parent, timing
from bench.grid import Point
from rnnkit.testing import Case, make_inputs, run


def point_of(cell: str) -> Point:
    return Point(cell, 4, 128, 512, 512)


def main(arguments: list[str] | None = None) -> int:
    if arguments is None:
        exit_with_parent.follow_parent()
    (cell,) = sys.argv[1:] if arguments is None else arguments
    p = point_of(cell)
    case = Case(cell, T=p.T, B=p.B, I=p.I, H=p.H)
    # The first call of a shape uses no graph.
    run(case, make_inputs(case, p.dtype, device="cuda:0"), "cupy")
    timing.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
