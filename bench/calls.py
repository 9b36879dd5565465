"""What one step costs: calls of the Cells, microseconds, beside torch.nn's.

    python -m bench.calls [--threads N] [--seconds S] [--out DIR] [--dtype float32]

The overhead of a call is told as the whole time of a call at H = I = 8 and B = 1, where the arithmetic is a few
thousand operations; nothing is taken off it, so it is an upper bound. Three ways to call: forward under no_grad
(torch: inference_mode), forward with gradients enabled, forward+backward. No time without a right result, as in every
run of bench.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from bench import document, machine
from bench.document import Document
from bench.grid import FORWARD, MAIN_CELLS, PASSES, Point
from bench.peers import PeerRow
from bench.runner import Settings, run
from bench.table import aligned

WIDTHS, BATCHES = (8, 128, 512), (1, 32)
ROWS = [
    PeerRow(name, "bench.peers.cells", ours=name.startswith("rnnkit"))
    for name in ("rnnkit", "rnnkit_grad", "torch", "torch_grad")
]


def points(dtype: str, widths: tuple[int, ...] = WIDTHS) -> list[Point]:
    return [
        Point(cell, 1, B, H, H, dtype, passes)
        for cell, H, B, passes in itertools.product(MAIN_CELLS, widths, BATCHES, PASSES)
    ]


def measure(chosen: list[Point], threads: int, seconds: float, rows: list[PeerRow] = ROWS) -> Document:
    """A document as bench's own; `seconds` of timed calls, a point and peer."""
    settings = Settings("calls", chosen[0].dtype, PASSES, (), threads, seconds, 3, rows)
    *_, found = run(settings, chosen, [], lambda text: None)
    return found


def render(found: Document) -> str:
    """A row a call: the median and the middle half of both sides, in microseconds, and torch's time over ours."""
    rows = [["cell", "H", "B", "call", "rnnkit us", "middle half", "torch us", "middle half", "ratio"]]
    wrong = []
    for entry in found["points"]:
        point = Point.from_dict(entry["point"])
        for end, call in _ways(point):
            own, theirs = (entry["results"].get(side + end, {}) for side in ("rnnkit", "torch"))
            both = own.get("status") == theirs.get("status") == "ok"
            ahead = f"{theirs['ms']['median'] / own['ms']['median']:.2f}" if both else "-"
            rows.append([point.cell, str(point.H), str(point.B), call, *_cells(own), *_cells(theirs), ahead])
        wrong += [f"{name} at {point}: {r['why']}" for name, r in entry["results"].items() if r["status"] == "wrong"]
    return "\n".join([*aligned(rows, {"cell", "call"}), *_overhead(found), *wrong])


def _ways(point: Point) -> list[tuple[str, str]]:
    """(end of the row's name, what the call is)."""
    return [("", "forward+backward")] if point.backward else [("", "forward, no_grad"), ("_grad", "forward")]


def _cells(result: dict[str, Any]) -> list[str]:
    if result.get("status") != "ok":
        return [result.get("status", "-"), "-"]
    median, p25, p75 = (1e3 * result["ms"][key] for key in ("median", "p25", "p75"))
    return [f"{median:.1f}", f"{p25:.1f} to {p75:.1f}"]


def _overhead(found: Document) -> list[str]:
    lines = []
    for entry in found["points"]:
        point, own = Point.from_dict(entry["point"]), entry["results"].get("rnnkit", {})
        if (point.H, point.B, point.passes) == (8, 1, FORWARD) and own.get("status") == "ok":
            lines.append(f"overhead of a {point.cell} call, at most: {1e3 * own['ms']['median']:.1f} us")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.calls", description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--out", type=Path, help="a folder; the file is under it by the machine's name")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    found = measure(points(options.dtype), options.threads, options.seconds)
    print(render(found))
    if options.out:
        path = options.out / machine.slug(found["machine"]) / f"calls-{options.dtype}.json"
        document.save(found, path)
        print(path)
    return int(any(r["status"] == "wrong" for e in found["points"] for n, r in e["results"].items() if "rnnkit" in n))


if __name__ == "__main__":
    sys.exit(main())
