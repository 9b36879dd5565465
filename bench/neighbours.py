"""Whether thread pools fight: rnnkit's layer call alone, and in a process where other libraries' threads are awake.

    python -m bench.neighbours [--threads N] [--seconds S] [--out DIR]

    alone              nothing else in the process
    torch              PyTorch imported, a parallel product of its own between any two calls
    blas               a product of NumPy's BLAS between any two calls
    torch and blas     both
    two callers        two Python threads, each calling a layer of its own over and over

Only rnnkit's calls are timed, each from right after the other library's work, while that library's threads may still be
spinning for more. What spins holds a core, so beside other libraries the same calls are measured on one thread too: to
be slower than that on all threads is a stall, and so is a far p95 or maximum. Two callers share the cores, so that
twice the time of alone is what is due. Every scenario is a fresh process, and its last result is checked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, side
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from bench.problem import make_problem
from bench.table import aligned
from bench.worker import find_row

SCENARIOS = ("alone", "torch", "blas", "torch and blas", "two callers")
SIZE = 512  # of the neighbours' square products
LEAST_CALLS = 20
POINTS = [
    Point("lstm", 64, 32, 128, 128, passes=FORWARD),
    Point("lstm", 64, 32, 128, 128, passes=FORWARD_BACKWARD),
    Point("gru", 64, 1, 512, 512, passes=FORWARD),
    Point("rnn_tanh", 64, 4, 128, 128, passes=FORWARD),
]


def measure(
    points: list[Point], threads: int, seconds: float, scenarios: tuple[str, ...] = SCENARIOS, peer: str = "numba"
) -> dict[str, Any]:
    """{"results": [{"point", "scenario", "threads", "status", "ms"}]}; seconds: of calls, for each of these.

    A result's threads are rnnkit's own; the other libraries always have all.
    """
    results = []
    for point, scenario in itertools.product(points, scenarios):
        for own in sorted({threads, 1} if _beside_others(scenario) else {threads}, reverse=True):
            about = {"point": point.to_dict(), "scenario": scenario, "threads": own}
            request = json.dumps({**about, "seconds": seconds, "peer": peer})
            answer = machine.in_child("bench.neighbours", "--child", request, str(threads), threads=threads)
            told = answer if "absent" in answer else side.timed(answer["error"], {"ms": answer["ms"]})
            results.append({**about, "status": "absent", **told})
    return side.document(threads=threads, seconds=seconds, results=results)


def _beside_others(scenario: str) -> bool:
    return "torch" in scenario or "blas" in scenario


def child(request: dict[str, Any], threads: int) -> dict[str, Any]:
    """The milliseconds of every call in a scenario, and the error of the last; or why it cannot be had."""
    try:
        between = neighbours(request["scenario"], threads)
    except ImportError as error:
        return {"absent": str(error)}
    point = Point.from_dict(request["point"])
    problem, peer = make_problem(point), find_row(request["peer"]).load()
    callers = [
        peer.prepare(problem, request["threads"]) for _ in range(2 if request["scenario"] == "two callers" else 1)
    ]
    for prepared in callers:
        prepared.call()
    spans: list[list[float]] = [[] for _ in callers]
    last: list[Any] = [None] * len(callers)

    def call_on(i: int) -> None:
        end = time.perf_counter() + request["seconds"]
        while len(spans[i]) < LEAST_CALLS or time.perf_counter() < end:
            between()
            started = time.perf_counter()
            last[i] = callers[i].call()
            spans[i].append(1e3 * (time.perf_counter() - started))

    together = [threading.Thread(target=call_on, args=(i,)) for i in range(len(callers))]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    errors = [side.worst_error(point, problem, p.results(a)) for p, a in zip(callers, last, strict=True)]
    return {"ms": [ms for own in spans for ms in own], "error": max(errors)}


def neighbours(scenario: str, threads: int) -> Callable[[], None]:
    """What runs between two calls. Raises ImportError where torch is wanted and not here."""
    works: list[Callable[[], Any]] = []
    if "torch" in scenario:
        import torch

        torch.set_num_threads(threads)
        a, b = torch.ones(SIZE, SIZE), torch.ones(1 << 20)
        works += [lambda: torch.mm(a, a), lambda: torch.tanh(b)]
    if "blas" in scenario:
        c = np.ones((SIZE, SIZE), np.float32)
        works.append(lambda: c @ c)

    def between() -> None:
        for work in works:
            work()

    return between


def render(found: dict[str, Any]) -> str:
    rows = [["point", "scenario", "threads", "median ms", "p95", "max", "calls", "median to alone's"]]
    alone: dict[str, float] = {}
    for result in found["results"]:
        point = str(Point.from_dict(result["point"]))
        if result["status"] != "ok":
            rows.append([point, result["scenario"], str(result["threads"]), result["status"], *["-"] * 4])
            continue
        ms = result["ms"]
        alone.setdefault(point, ms["median"])
        row = [str(result["threads"]), *(f"{ms[key]:.3g}" for key in ("median", "p95", "max"))]
        rows.append([point, result["scenario"], *row, str(ms["count"]), f"{ms['median'] / alone[point]:.2f}"])
    return "\n".join([f"other libraries on {found['threads']} threads", *aligned(rows, {"point", "scenario"})])


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--child"]:
        print(json.dumps(child(json.loads(arguments[1]), int(arguments[2]))))
        return 0
    parser = argparse.ArgumentParser("python -m bench.neighbours", description=__doc__)
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--seconds", type=float, default=1.0, help="of calls, a point, scenario and number of threads")
    parser.add_argument("--out", type=Path, help="a folder; the file is under it by the machine's name")
    options = parser.parse_args(arguments)
    found = measure(POINTS, options.threads, options.seconds)
    print(render(found))
    if options.out:
        print(side.save("neighbours", found, options.out))
    return int(any(result["status"] == "wrong" for result in found["results"]))


if __name__ == "__main__":
    sys.exit(main())
