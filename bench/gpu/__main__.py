"""The command line of the run on a card.

python -m bench.gpu [--out FOLDER] [--seconds N] [--parts NAME ...]

Exit status: 0 all done and right; 1 something is wrong, or a part did not end well; 3 there is no CUDA card to be used,
and nothing was written; 2 an argument is wrong. (make has one status of its own for every failure, and prints ours.)
"""

from __future__ import annotations

import argparse
import datetime
import json
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
from bench.gpu import report
from bench.gpu.plan import Part, run
from bench.pool import ROOT

NO_CARD = 3
SECONDS, CARD_SECONDS, PLOT_SECONDS = 560.0, 60.0, 40.0
# Kept at the end for the plot, the files and the table.
ENDING = 25.0
LOG_BYTES = 12 << 20
RESULTS = ROOT / "bench" / "results"
# Without the project's conftest and options, and without other plugins: they may not be installed where the card is.
PYTEST = ("-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider")
TESTS, SHARES = ("tests/test_gpu.py", "tests/test_gpu_calls.py"), 4


def module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"bench.gpu.{name}")


def plan() -> list[list[Part]]:
    """The parts, group by group; those of a group run at once, so that only what is not timed has company."""
    surroundings = (
        ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"),
        *((f"{name}_NUM_THREADS", "2") for name in ("OPENBLAS", "OMP", "MKL")),
    )
    shares = [
        Part(
            f"parity{which}",
            (sys.executable, *PYTEST, "-p", "bench.gpu.reports", "--share", f"{which}/{SHARES}", *TESTS),
            most=170,
            least=40,
            quiet=75,
            restarts=3,
            environment=surroundings,
        )
        for which in range(1, SHARES + 1)
    ]
    return [
        [*shares, Part("sanitizer", module("sanitizer"), most=150, least=40)],
        [Part("ceilings", module("ceilings"), most=60, least=25, quiet=30, restarts=3)],
        [Part("counters", module("counters"), most=75, least=25, quiet=65, restarts=1)],
        [Part("throughput", module("throughput"), most=1e4, least=60, quiet=60, restarts=5)],
    ]


def main(arguments: list[str] | None = None, groups: Sequence[Sequence[Part]] | None = None) -> int:
    options = _parser().parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    # A SystemExit, so that children are ended when the run is.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        card, why = find_card(Path(folder))
    if why:
        print(f"there is no CUDA card that can be used here: {why}\nnothing was measured, nothing was written")
        return NO_CARD
    name = next(i["name"] for i in card["items"] if i["item"] == "device")
    out = (Path(options.out) if options.out else RESULTS / slug(name)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    named = ([part for part in group if _named(part, options.parts)] for group in groups or plan())
    chosen = [group for group in named if group]
    try:
        document = run_all(chosen, out, deadline, card)
    finally:
        _remove_live(out)
    text = report.render(document)
    (out / "summary.txt").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    print(f"written to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return int(bool(report.problems(document)) or any(p["status"] != "done" for p in document["parts"].values()))


def find_card(folder: Path) -> tuple[dict[str, Any], str]:
    """The result of the part "card", and why there is none to be used, "" where there is."""
    (result,) = run([Part("card", module("card"), CARD_SECONDS, 0.0)], folder, time.monotonic() + CARD_SECONDS).values()
    device: dict[str, Any] = next((i for i in result["items"] if i["item"] == "device"), {})
    if device.get("status") == "ok":
        return result, ""
    return result, device.get("why") or f"{result['why']}: {' | '.join(result['last_lines'][-3:])}"


def run_all(groups: Sequence[Sequence[Part]], out: Path, deadline: float, card: dict[str, Any]) -> dict[str, Any]:
    """Runs the groups one after the other; the document is on disk after each, whatever comes then."""
    started = time.monotonic()
    document: dict[str, Any] = {
        "schema": report.SCHEMA,
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "seconds": 0.0,
        "parts": {"card": card},
    }
    (out / "log.txt").write_bytes(b"")
    for i, group in enumerate(groups):
        after = ENDING + sum(max((part.least for part in later), default=0.0) for later in groups[i + 1 :])
        print(f"{', '.join(part.name for part in group)} ...", flush=True)
        try:
            document["parts"] |= run(group, out, deadline, after)
        finally:
            for part in group:
                _keep_log(part.name, out)
        document["seconds"] = round(time.monotonic() - started, 1)
        save(document, out / "gpu.json")
    document["means"] = report.means(document)
    save(document, out / "gpu.json")
    plot = Part("plot", (*module("plot"), str(out / "gpu.json"), str(out / "gpu.png")), PLOT_SECONDS, 1.0)
    left = max(10.0, deadline - time.monotonic() - 5.0)
    document["parts"] |= run([plot], out, time.monotonic() + left)
    _keep_log("plot", out)
    save(document, out / "gpu.json")
    return document


def save(document: dict[str, Any], path: Path) -> None:
    """Writes the file whole or not at all, an item a line."""
    partial = path.with_suffix(".partial")
    parts = []
    for name, part in document["parts"].items():
        rows = ",\n".join("   " + json.dumps(item) for item in part["items"])
        head = json.dumps({k: v for k, v in part.items() if k != "items"})[:-1]
        parts.append(f'  "{name}": {head}, "items": [\n{rows}\n  ]}}')
    head = json.dumps({k: v for k, v in document.items() if k != "parts"})[:-1]
    partial.write_text(f'{head},\n "parts": {{\n' + ",\n".join(parts) + "\n }}\n", encoding="utf-8")
    os.replace(partial, path)


def slug(name: str) -> str:
    """A card's name as a folder's: nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _keep_log(name: str, out: Path) -> None:
    """Moves a part's log to the end of the one that stays, and forgets its lines, which are in the document."""
    path, whole = out / f"{name}.log", out / "log.txt"
    if path.exists():
        with whole.open("ab") as file:
            if file.tell() < LOG_BYTES:
                file.write(f"\n======== {name}\n".encode() + path.read_bytes())
        path.unlink()
    (out / f"{name}.jsonl").unlink(missing_ok=True)


def _remove_live(out: Path) -> None:
    """After an interruption: the folder has its few files and no more."""
    for path in [*out.glob("*.log"), *out.glob("*.partial")]:
        path.unlink()


def _named(part: Part, parts: list[str]) -> bool:
    return not parts or part.name.startswith(tuple(parts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", metavar="FOLDER", help="default bench/results/<card>")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run (default %(default).0f)")
    parser.add_argument("--parts", nargs="+", default=[], metavar="NAME", help="these alone, or beginnings of names")
    return parser


if __name__ == "__main__":
    sys.exit(main())
