"""The time of one step: calls of RNNCell, GRUCell and LSTMCell beside torch.nn's, in microseconds.

    python -m bench.cell_calls [--threads N] [--seconds S] [--out DIR] [--dtype float32]

The overhead of a call is reported as the whole time of a call at H = I = 8 and B = 1, where the arithmetic is a few
thousand operations. Nothing is subtracted, so it is an upper bound. There are three kinds of call: forward under
no_grad (torch: inference_mode), forward with gradients enabled, and forward+backward. A call whose result is wrong has
no time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from bench import machine, result_file
from bench.grid import FORWARD, MAIN_CELLS, PASSES, Point
from bench.peers import PeerRow
from bench.result_file import Document
from bench.runner import Settings, run
from bench.table import aligned

WIDTHS = (8, 128, 512)
BATCHES = (1, 32)
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
    """A document of bench.result_file. seconds: of timed calls per point and peer."""
    settings = Settings("cell_calls", chosen[0].dtype, PASSES, (), threads, seconds, 3, rows)
    *_, found = run(settings, chosen, [], lambda text: None)
    return found


def render(found: Document) -> str:
    """One row per call: median and quartiles of rnnkit and torch in microseconds, and torch's time over rnnkit's."""
    rows = [["cell", "H", "B", "call", "rnnkit us", "quartiles", "torch us", "quartiles", "ratio"]]
    wrong = []
    for entry in found["points"]:
        point = Point.from_dict(entry["point"])
        for end, call in _kinds(point):
            own, theirs = (entry["results"].get(side + end, {}) for side in ("rnnkit", "torch"))
            both = own.get("status") == theirs.get("status") == "ok"
            ahead = f"{theirs['ms']['median'] / own['ms']['median']:.2f}" if both else "-"
            rows.append([point.cell, str(point.H), str(point.B), call, *_cells(own), *_cells(theirs), ahead])
        wrong += [f"{name} at {point}: {r['why']}" for name, r in entry["results"].items() if r["status"] == "wrong"]
    return "\n".join([*aligned(rows, {"cell", "call"}), *_overhead(found), *wrong])


def _kinds(point: Point) -> list[tuple[str, str]]:
    """(suffix of the row's name, kind of call)."""
    return [("", "forward+backward")] if point.backward else [("", "forward, no_grad"), ("_grad", "forward")]


def _cells(result: dict[str, Any]) -> list[str]:
    if result.get("status") != "ok":
        return [result.get("status", "-"), "-"]
    median, p25, p75 = (1e3 * result["ms"][key] for key in ("median", "p25", "p75"))
    return [f"{median:.1f}", f"{p25:.1f} to {p75:.1f}"]


def _overhead(found: Document) -> list[str]:
    lines = []
    for entry in found["points"]:
        point = Point.from_dict(entry["point"])
        own = entry["results"].get("rnnkit", {})
        if (point.H, point.B, point.passes) == (8, 1, FORWARD) and own.get("status") == "ok":
            lines.append(f"overhead of a {point.cell} call, at most: {1e3 * own['ms']['median']:.1f} us")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.cell_calls", description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--out", type=Path, help="writes DIR/<machine>/cell_calls-DTYPE.json")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    found = measure(points(options.dtype), options.threads, options.seconds)
    print(render(found))
    if options.out:
        path = options.out / machine.slug(found["machine"]) / f"cell_calls-{options.dtype}.json"
        result_file.save(found, path)
        print(path)
    return int(any(r["status"] == "wrong" for e in found["points"] for n, r in e["results"].items() if "rnnkit" in n))


if __name__ == "__main__":
    sys.exit(main())
