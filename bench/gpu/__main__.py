"""The command line of the run on a card.

python -m bench.gpu [--out FOLDER] [--seconds N] [--parts NAME ...] [--done gpu.json [--only-failed]] [--schedule NAME]

Every finished check is in OUT/gpu.json or OUT/items.jsonl as soon as it ends, whatever ends the run. Exit status: 0 all
is done and right; 1 something is wrong, or a part did not end; 2 an argument is wrong; 3 there is no usable CUDA card,
and nothing was written. (make exits with its own status for every failure, and prints ours.)
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.gpu import items_file, plan, report, result_file, tables
from bench.gpu.log import Log
from bench.gpu.processes import Part, Result, run
from bench.gpu.result_file import ITEMS, Document, Results, Unusable
from bench.worker_pool import ROOT
from rnnkit.backends import BACKENDS

NO_CARD = 3
SECONDS = 290.0
# Reserved at the end for a part that hangs, the plot, the files and the table.
ENDING = 20.0
RESULTS = ROOT / "bench" / "results"
STOPPED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str] | None = None, parts: Sequence[Part] | None = None, card: Part | None = None) -> int:
    """parts, card: for tests, in place of the plan's."""
    deadline = time.monotonic()
    options = _parser().parse_args(arguments)
    deadline += options.seconds
    earlier = _earlier(options)
    wanted = _chosen(options.parts, parts or plan.parts(options.schedule))
    for number in STOPPED:
        signal.signal(number, _stop)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        found, why = find_card(card or plan.card(), Path(folder))
    if why:
        print(f"there is no CUDA card that can be used here: {why}\nnothing was measured, nothing was written")
        return NO_CARD
    name = next(item["name"] for item in found if item["item"] == "device")
    if earlier is not None and report.card_name(earlier) != name:
        return _refuse(f"--done must be of this card, {name}; {options.done} is of {report.card_name(earlier)}")
    out = (options.out or RESULTS / slug(name)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    session = Run(out, deadline, wanted, found, earlier, options.only_failed)
    try:
        session.run()
    except items_file.NotWritten as problem:
        print(f"{problem}: nothing can be measured that cannot be kept")
        return 1
    except BaseException as stop:
        session.results.interrupt(f"the run was ended: {_said(stop)}")
        raise
    finally:
        session.close()
    return session.finish()


def find_card(part: Part, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """The items of the part "card", and why no card can be used ("" where one can)."""
    items = folder / ITEMS
    log = Log(folder / "log.txt")
    result = run(part, items, log, time.monotonic() + part.most)
    log.close()
    found = list(items_file.ended(items_file.read_lines(items)).get(part.name, {}).values())
    device = next((item for item in found if item["item"] == "device"), None)
    if device is None:
        return found, f"{result.why}: {' | '.join(result.last_lines[-3:])}"
    return found, "" if device["status"] == "ok" else device["why"]


class Run:
    """One run: its parts in order, with the results on disk after every check."""

    def __init__(
        self,
        out: Path,
        deadline: float,
        parts: Sequence[Part],
        card: list[dict[str, Any]],
        earlier: Document | None,
        only_failed: bool,
    ) -> None:
        self.out = out
        self.deadline = deadline
        self.items = out / ITEMS
        self._card = card
        self._stop = ""
        now = {"date": datetime.date.today().isoformat(), "commit": machine.commit(), "seconds": 0.0}
        runs = [*(earlier["runs"] if earlier else []), now]
        self.results = Results(out, {"schema": result_file.SCHEMA, **now, "runs": runs}, earlier)
        todo = {p.name: result_file.todo(p.name, earlier, only_failed) for p in parts} if earlier else {}
        self.parts = [part for part in parts if part.name not in todo or todo[part.name].start]
        # The items of parts that are not started again are in gpu.json already, and need no line.
        self._known = [line for part in self.parts if part.name in todo for line in todo[part.name].lines]
        if earlier is None:
            (out / "log.txt").unlink(missing_ok=True)
        self.log = Log(out / "log.txt")

    def run(self) -> None:
        self.items.unlink(missing_ok=True)
        items_file.reserve(self.items)
        items_file.append(self.items, [*self._known, *({"part": "card", **item} for item in self._card)])
        self.results.note({"part": "card", **item} for item in self._card)
        self.results.finish(Part("card", (), 0.0), Result("done", starts=1))
        for i, part in enumerate(self.parts):
            self._part(part, kept=ENDING + sum(later.least for later in self.parts[i + 1 :]))

    def _part(self, part: Part, kept: float) -> None:
        """Runs a part, and prints its table. kept: seconds reserved for what follows."""
        if self._stop:
            self.results.finish(part, Result("not run", self._stop))
            return
        print(f"\n{part.name} ...", flush=True)
        self.results.begin(part.name)
        result = run(part, self.items, self.log, self.deadline - kept, self._show)
        self.results.finish(part, result)
        if part.name == "smoke":
            self._stop = base_case_problem(self.results.document())
        if not result.written:
            self._stop = "items could not be written, the disk may be full"
        print(f"\n{tables.render(self.results.document(), part.name)}\n", flush=True)
        if self._stop:
            print(f"the run stops here: {self._stop}", flush=True)

    def _show(self, new: list[dict[str, Any]]) -> None:
        for name, item in self.results.note(new):
            print(tables.line(name, item), flush=True)

    def finish(self) -> int:
        """Draws the plot, prints the whole table and returns the exit status."""
        out = self.out
        document = self.results.document()
        self.results.add(means=report.means(document))
        self.results.save()
        log = Log(out / "log.txt")
        left = self.deadline - time.monotonic() - 3.0
        drawn = run(
            plan.plot(out / result_file.NAME, out / "gpu.png"), out / "plot.jsonl", log, time.monotonic() + left
        )
        log.close()
        (out / "plot.jsonl").unlink(missing_ok=True)
        document = self.results.document()
        text = tables.render(document)
        if drawn.status != "done":
            text += f"\nno plot: {drawn.why} {' | '.join(drawn.last_lines[-1:])}"
        if self.results.problem:
            text += f"\n{self.results.problem}; every item is in {ITEMS}"
        else:
            self.items.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (out / "summary.txt").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
        print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
        ended_badly = any(part["status"] != "done" for part in document["parts"].values())
        return int(bool(report.problems(document)) or ended_badly or bool(self.results.problem))

    def close(self) -> None:
        self.log.close()


def base_case_problem(document: Document) -> str:
    """Why nothing after "smoke" can be measured, "" where it can."""
    found = {item["item"]: item for item in report.items(document, "smoke")}
    for key in plan.BASE_CASE:
        item = found.get(key, {"status": "not run", "why": "it was not started"})
        if item["status"] != "ok":
            return f"the base case failed: {key}: {item['status']}: {item.get('why', '')}"[:300]
    return ""


def slug(name: str) -> str:
    """A card's name as a folder name: nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _stop(number: int, frame: Any) -> None:
    """Ends the run by an exception, once, so that its processes are ended and its results are written."""
    for each in STOPPED:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _said(stop: BaseException) -> str:
    if isinstance(stop, SystemExit) and isinstance(stop.code, int) and stop.code > 128:
        return signal.Signals(stop.code - 128).name
    return f"{type(stop).__name__}: {stop}"


def _chosen(names: list[str], parts: Sequence[Part]) -> list[Part]:
    known = [part.name for part in parts]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(_refuse(f"--parts must be of {', '.join(known)}, got {', '.join(unknown)}"))
    return [part for part in parts if not names or part.name in names]


def _earlier(options: argparse.Namespace) -> Document | None:
    if options.only_failed and options.done is None:
        raise SystemExit(_refuse("--only-failed needs --done, which names the run whose failed checks are repeated"))
    try:
        return None if options.done is None else result_file.load(options.done)
    except Unusable as problem:
        raise SystemExit(_refuse(f"--done: {problem}")) from None


def _refuse(why: str) -> int:
    print(f"python -m bench.gpu: error: {why}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="default bench/results/<card>")
    add("--seconds", type=_above_zero, default=SECONDS, help="of the whole run (default %(default).0f)")
    names = ", ".join(part.name for part in plan.parts())
    add("--parts", nargs="+", default=[], metavar="NAME", help=f"only these of {names}")
    add("--done", type=Path, metavar="FILE", help="continue the run of this gpu.json, and merge the two")
    add("--only-failed", action="store_true", help="with --done: repeat only what was wrong or failed there")
    schedules = BACKENDS["cupy"].schedules()
    add("--schedule", choices=schedules, help="run this schedule alone (default: the library's choice)")
    return parser


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
