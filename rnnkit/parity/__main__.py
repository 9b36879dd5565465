"""Compares every cell, dtype, shape, schedule and device of this machine with the float64 oracle.

Without options it checks everything that can run here. Exit status: 0 all errors are within their bounds, 1 a check is
wrong or failed, 2 bad argument, 3 something that was requested by name cannot be checked here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rnnkit.backends import pinned_names
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.parity import page
from rnnkit.parity import text as as_text
from rnnkit.parity.checks import Plan, plan
from rnnkit.parity.document import document, save, save_json
from rnnkit.parity.measure import run
from rnnkit.parity.outcome import Outcome
from rnnkit.testing import CASES, LARGE_CASES, Case

# Exit statuses; argparse exits with 2.
OK = 0
BAD = 1
MISSING = 3
INTERRUPTED = 130
EVERY_SECONDS = 5.0  # interval of progress lines if the stream is not a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    for option in ("json", "html"):
        _check_writable(option, getattr(args, option), parser)
    try:
        planned = _planned(args)
    except (TypeError, ValueError) as problem:
        parser.error(str(problem))
    start = time.monotonic()
    outcomes: list[Outcome] = []
    interrupted = False
    progress = Progress(len(planned.checks), sys.stderr)
    try:
        for check in planned.checks:
            progress.show(len(outcomes), sum(not o.ok for o in outcomes), check)
            outcomes.append(run(check))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.clear()
    _print(planned, outcomes)
    if interrupted:
        print(f"interrupted after {len(outcomes):,} of {len(planned.checks):,} checks; no file is written")
        return INTERRUPTED
    status = _status(planned, outcomes)
    report = document(planned, outcomes, status, time.monotonic() - start)
    try:
        if args.json:
            save_json(report, args.json)
        if args.html:
            save(page.page(report, outcomes), args.html)
    except OSError as problem:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
        return BAD
    return status


def _status(planned: Plan, outcomes: Sequence[Outcome]) -> int:
    if not all(o.ok for o in outcomes):
        return BAD
    return MISSING if planned.missing or not outcomes else OK


def _print(planned: Plan, outcomes: Sequence[Outcome]) -> None:
    """Prints the table, the checks that did not pass, the verdict, and what cannot be checked here."""
    if outcomes:
        print(as_text.table(outcomes))
        print()
    for line in as_text.not_ok(outcomes):
        print(line)
    print(as_text.verdict(outcomes))
    for name, reason in planned.unavailable.items():
        named = ", requested by name" if name in planned.missing else ""
        print(f"not checked here{named}: {name}: {reason}")


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rnnkit.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", nargs="+", metavar="NAME", help=f"backends: {', '.join(pinned_names())}; or cupy")
    parser.add_argument(
        "--dtype", nargs="+", metavar="NAME", choices=tuple(DTYPES), help=f"dtypes: {', '.join(DTYPES)}"
    )
    parser.add_argument("--cell", nargs="+", metavar="NAME", choices=tuple(CELLS), help=f"cells: {', '.join(CELLS)}")
    parser.add_argument("--device", nargs="+", metavar="NAME", help="devices: cpu, cuda, cuda:<index>")
    parser.add_argument(
        "--shape",
        action="append",
        type=_shape,
        metavar="T,B,I,H[,P]",
        help="steps, rows, features, units and projection, instead of the default cases; each shape runs forward with "
        "full rows and in reverse with ragged rows; the option may be repeated",
    )
    parser.add_argument("--large", action="store_true", help="also the large cases, which are for GPUs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every outcome to FILE")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a heat map to FILE")
    return parser


def _shape(text: str) -> tuple[int, ...]:
    """An argparse type for T,B,I,H or T,B,I,H,P."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) not in (4, 5) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be T,B,I,H or T,B,I,H,P, positive whole numbers, got {text!r}")
    if len(sizes) == 5 and sizes[4] >= sizes[3]:
        raise argparse.ArgumentTypeError(f"must have P < H, got {text!r}")
    return sizes


def _check_writable(option: str, path: Path | None, parser: argparse.ArgumentParser) -> None:
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        parser.error(f"--{option} must be a file in a folder that exists, got {str(path)!r}")


def _planned(args: argparse.Namespace) -> Plan:
    """The plan of the options. A shape without any check is missing too."""
    cases = CASES if args.shape is None else _cases_of(args.shape, args.cell)
    if args.large:
        cases += LARGE_CASES
    planned = plan(args.backend, args.dtype, args.cell, args.device, cases)
    if not planned.checks:
        return planned
    checked = {(c.case.T, c.case.B, c.case.I, c.case.H, c.case.P) for c in planned.checks}
    unchecked = [shape for shape in args.shape or () if (*shape, 0)[:5] not in checked]
    names = {f"shape {','.join(map(str, shape))}": "nothing that was requested serves it" for shape in unchecked}
    return Plan(planned.checks, planned.unavailable | names, (*planned.missing, *names))


def _cases_of(shapes: Sequence[tuple[int, ...]], cells: Sequence[str] | None) -> tuple[Case, ...]:
    """Two cases per cell and shape. A shape with a projection is for the cells that have one."""
    cases = []
    for shape in shapes:
        fitting = [cell for cell in cells or CELLS if len(shape) == 4 or CELLS[cell].projects]
        if not fitting:
            raise ValueError(
                f"--shape {','.join(map(str, shape))} has a projection, which no --cell of {', '.join(cells or ())} has"
            )
        for cell in fitting:
            T, B, I, H, P = (*shape, 0)[:5]
            cases += [Case(cell, T, B, I, H, P, reverse=flag, ragged=flag) for flag in (False, True)]
    return tuple(cases)


# Progress


class Progress:
    """Progress of a run on a stream: one line that is overwritten in a terminal, else a line every few seconds."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total = total
        self.stream = stream
        self.terminal = stream.isatty()
        self.shown = time.monotonic()

    def show(self, done: int, bad: int, check: Any) -> None:
        """Prints how many checks are done and which one starts."""
        if not self.terminal and time.monotonic() - self.shown < EVERY_SECONDS:
            return
        self.shown = time.monotonic()
        line = f"{done:,}/{self.total:,} checks, {bad:,} not ok: {check}"
        self.stream.write(f"\r\x1b[K{line[:110]}" if self.terminal else f"{line}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Erases the line in a terminal."""
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


if __name__ == "__main__":
    sys.exit(main())
