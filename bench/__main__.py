"""The command line.

python -m bench [--grid quick|full|cpu] [...]    measure, print the table, write JSON and PNG
python -m bench report FILE                      print the table of a result file and draw its plot
python -m bench report FILE SECOND               two runs of one grid: the differences between them
python -m bench compare BEFORE AFTER             the ratio of two result files, point by point
python -m bench options [--peers] [...]          what each option of a cell costs: bench/cell_options.py
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from pathlib import Path

from bench import cell_options, grid_summary, machine, report, result_file
from bench.grid import BENCHED, GRIDS, PASSES, points
from bench.peers import PEERS
from bench.runner import Settings, run
from bench.worker_pool import ROOT
from rnnkit.core.dtypes import DTYPES


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {"report": report_command, "compare": compare_command, "options": cell_options.main}
    try:
        if arguments and arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
        return measure_command(arguments)
    except (OSError, ValueError) as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        return 2


def measure_command(arguments: list[str]) -> int:
    options = measure_parser().parse_args(arguments)
    # As a SystemExit, which ends the workers with the run.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    grid = GRIDS[options.grid]
    failed = False
    show = Progress()
    end = time.monotonic() + 60 * options.budget if options.budget else math.inf
    folder = Path(options.out) / machine.slug(machine.describe())
    names = options.peers or [n for n in PEERS if ":" not in n and (grid.slow_too or not PEERS[n].slow)]
    for dtype in options.dtype:
        chosen, left_out = points(grid.name, dtype, options.passes, options.cells, options.every)
        if not chosen:
            raise ValueError(f"--cells {' '.join(options.cells)} leaves no point of the {grid.name} grid")
        path = folder / f"{grid.name}-{dtype}{'' if options.run == 1 else f'-{options.run}'}.json"
        settings = Settings(
            grid=grid.name,
            dtype=dtype,
            passes=tuple(options.passes),
            cells=tuple(options.cells),
            threads=options.threads,
            seconds=options.seconds_per_point or grid.seconds,
            rounds=options.repeat or grid.rounds,
            rows=[row for name, row in PEERS.items() if name in names],
            every=options.every,
            resume=path if options.resume else None,
            end=end,
        )
        if time.monotonic() > end:
            print(f"no time left for {path}; --resume continues")
            continue
        started = time.perf_counter()
        found = None
        for found in run(settings, chosen, left_out, show):
            result_file.save(found, path)
        show.clear()
        assert found is not None
        print(report.render(found))
        print("\n".join(grid_summary.summary(found)))
        print(f"{time.perf_counter() - started:.0f} s; {path}, {draw(found, path)}\n")
        failed |= report.has_errors(found)
    return int(failed)


def measure_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    about = "; ".join(f"{grid.name}: {grid.about}" for grid in GRIDS.values())
    add("--grid", choices=GRIDS, default="quick", help=about)
    add("--cells", nargs="+", default=[], metavar="CELL", help=f"of {', '.join(BENCHED)}, or beginnings of them")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="one result file per dtype")
    add("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    peers = f"of {', '.join(PEERS)}; default: all without a colon; the slow ones in the quick grid alone"
    add("--peers", nargs="+", choices=PEERS, metavar="PEER", help=peers)
    add("--out", default=str(ROOT / "bench" / "results"), metavar="DIR")
    add("--threads", type=_positive, default=machine.usable_cores(), help="per peer; default: all cores")
    add("--seconds-per-point", type=_above_zero, metavar="S", help="of timed calls per point and peer")
    add("--every", type=_positive, default=1, metavar="N", help="about one shape in N, drawn by a checksum of its name")
    add(
        "--run",
        type=_positive,
        default=1,
        metavar="N",
        help="from 2 on the number is part of the file's name; see report FILE SECOND",
    )
    add("--resume", action="store_true", help="continue the result file, if its commit and settings are the same")
    add(
        "--budget",
        type=_above_zero,
        metavar="MINUTES",
        help="of the whole command: it then ends after the current point",
    )
    add("--repeat", type=_positive, metavar="N", help="rounds over the peers per point; default 3")
    return parser


def report_command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench report")
    parser.add_argument("file", type=Path)
    parser.add_argument("second", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    path = options.file
    found = result_file.load(options.file)
    if options.second is not None:
        print(grid_summary.spread_of_runs(found, result_file.load(options.second)))
        return 0
    print(report.render(found))
    print("\n".join(grid_summary.summary(found)))
    print(draw(found, path))
    return int(report.has_errors(found))


def compare_command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench compare")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    print(report.compare(result_file.load(options.before), result_file.load(options.after)))
    return 0


def draw(found: result_file.Document, path: Path) -> str:
    """Draws the plot beside the file. Gives its path, or why there is none."""
    from bench import plot

    try:
        plot.draw(found, path.with_suffix(".png"))
    except (ImportError, ValueError) as error:
        return f"no plot: {error}"
    return str(path.with_suffix(".png"))


class Progress:
    """Progress on stderr: one line that is rewritten on a terminal, one line per point elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def __call__(self, text: str) -> None:
        if self._terminal:
            print(f"\r\x1b[K{text[:150]}", end="", file=sys.stderr, flush=True)
        elif text.split(":")[0] != self._last:
            self._last = text.split(":")[0]
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
