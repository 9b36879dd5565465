"""Start-up time in a new process: of `import rnnkit`, and of each cell's first call where its code is cached.

    python -m bench.first_call [--repeat N] [--out DIR]

Every sample is a fresh process. The first process fills the cache of compiled code and does not count. The time of a
first call begins after `import rnnkit` and the making of the input, and includes loading the backend, making the layer,
loading its compiled code and the call. The time of a second call in the same process is printed beside it. A call whose
result is wrong has no time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine, tool_result
from bench.grid import MAIN_CELLS, PASSES, Point
from bench.problem import make_problem
from bench.table import aligned
from bench.worker import find_row

T = 64
B = 32
H = 128
PEER = "numba"
IMPORT = "import time; t = time.perf_counter(); import rnnkit; print(time.perf_counter() - t)"


def measure(
    repeat: int, cells: tuple[str, ...] = MAIN_CELLS, sizes: tuple[int, int, int] = (T, B, H), peer: str = PEER
) -> dict[str, Any]:
    """{"import_s": ..., "first_calls": {"cell pass": {"status", "first_ms", "second_ms"}}}; sizes: T, B and H."""
    _import_seconds()
    calls = {}
    for cell in cells:
        for passes in PASSES:
            point = Point(cell, *sizes[:2], sizes[2], sizes[2], passes=passes)
            runs = [_first_call(point, peer) for _ in range(1 + repeat)][1:]
            samples = {key: [r[key] for r in runs] for key in ("first_ms", "second_ms")}
            calls[f"{cell} {passes}"] = tool_result.checked(max(r["error"] for r in runs), samples)
    imports = tool_result.quantiles([_import_seconds() for _ in range(repeat)])
    return tool_result.with_machine(import_s=imports, sizes=list(sizes), peer=peer, first_calls=calls)


def _import_seconds() -> float:
    return float(machine.run_child("-c", IMPORT, threads=machine.usable_cores()))


def _first_call(point: Point, peer: str) -> dict[str, float]:
    return machine.in_child(
        "bench.first_call", "--child", json.dumps(point.to_dict()), peer, threads=machine.usable_cores()
    )


def child(point: Point, peer: str) -> dict[str, float]:
    """The milliseconds of this process's first and second call, and the worse error of the two."""
    problem = make_problem(point)
    row = find_row(peer)
    started = time.perf_counter()
    prepared = row.load().prepare(problem, machine.usable_cores())
    called = prepared.call()
    first = time.perf_counter() - started
    errors = [tool_result.worst_error(point, problem, prepared.results(called))]
    started = time.perf_counter()
    called = prepared.call()
    second = time.perf_counter() - started
    errors.append(tool_result.worst_error(point, problem, prepared.results(called)))
    return {"first_ms": 1e3 * first, "second_ms": 1e3 * second, "error": max(errors)}


def render(found: dict[str, Any]) -> str:
    t = found["import_s"]
    rows = [["first call of", "pass", "min ms", "median", "max", "second call"]]
    for name, result in found["first_calls"].items():
        cell, passes = name.split()
        if result["status"] == "ok":
            first = [f"{result['first_ms'][key]:.0f}" for key in ("min", "median", "max")]
            rows.append([cell, passes, *first, f"{result['second_ms']['median']:.2f}"])
        else:
            rows.append([cell, passes, result["status"], "-", "-", "-"])
    return "\n".join(
        [
            f"import rnnkit: {1e3 * t['min']:.0f} ms at least, median {1e3 * t['median']:.0f} of {t['count']}",
            *aligned(rows, {"first call of", "pass"}),
            "T {}, B {}, I = H = {}".format(*found["sizes"]),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--child"]:
        print(json.dumps(child(Point.from_dict(json.loads(arguments[1])), arguments[2])))
        return 0
    parser = argparse.ArgumentParser("python -m bench.first_call", description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="processes per figure")
    parser.add_argument("--out", type=Path, help="writes DIR/<machine>/first_call.json")
    options = parser.parse_args(arguments)
    found = measure(options.repeat)
    print(render(found))
    if options.out:
        print(tool_result.save("first_call", found, options.out))
    return int(any(result["status"] != "ok" for result in found["first_calls"].values()))


if __name__ == "__main__":
    sys.exit(main())
