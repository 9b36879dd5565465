"""Thread contention: the time of rnnkit's layer call alone, and in a process where other libraries' threads are awake.

    python -m bench.thread_contention [--threads N] [--seconds S] [--out DIR]

    alone              nothing else in the process
    torch              PyTorch is imported and runs a parallel product between any two calls
    blas               NumPy's BLAS runs a product between any two calls
    torch and blas     both
    two callers        two Python threads, each of which calls its own layer repeatedly

Only rnnkit's calls are timed. Each starts right after the other library's work, while that library's threads may still
spin. A spinning thread occupies a core, so these scenarios are measured on one thread as well. All threads slower than
one thread is a stall, and so is a p95 or a maximum far from the median. Two callers share the cores, so twice the time
of "alone" is expected. Every scenario is a fresh process, and its last result is checked.
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

from bench import machine, tool_result
from bench.grid import FORWARD, FORWARD_BACKWARD, Point
from bench.problem import make_problem
from bench.table import aligned
from bench.worker import find_row

SCENARIOS = ("alone", "torch", "blas", "torch and blas", "two callers")
SIZE = 512  # rows and columns of the other libraries' products
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
    """{"results": [{"point", "scenario", "threads", "status", "ms"}]}; seconds: of calls per result.

    A result's "threads" are rnnkit's. The other libraries always have all threads.
    """
    results = []
    for point, scenario in itertools.product(points, scenarios):
        for own in sorted({threads, 1} if _beside_others(scenario) else {threads}, reverse=True):
            about = {"point": point.to_dict(), "scenario": scenario, "threads": own}
            request = json.dumps({**about, "seconds": seconds, "peer": peer})
            answer = machine.in_child("bench.thread_contention", "--child", request, str(threads), threads=threads)
            measured = answer if "absent" in answer else tool_result.checked(answer["error"], {"ms": answer["ms"]})
            results.append({**about, "status": "absent", **measured})
    return tool_result.with_machine(threads=threads, seconds=seconds, results=results)


def _beside_others(scenario: str) -> bool:
    return "torch" in scenario or "blas" in scenario


def child(request: dict[str, Any], threads: int) -> dict[str, Any]:
    """The milliseconds of every call in a scenario and the error of the last call, or why the scenario cannot run."""
    try:
        between = work_between_calls(request["scenario"], threads)
    except ImportError as error:
        return {"absent": str(error)}
    point = Point.from_dict(request["point"])
    problem = make_problem(point)
    peer = find_row(request["peer"]).load()
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
    errors = [tool_result.worst_error(point, problem, p.results(a)) for p, a in zip(callers, last, strict=True)]
    return {"ms": [ms for own in spans for ms in own], "error": max(errors)}


def work_between_calls(scenario: str, threads: int) -> Callable[[], None]:
    """The function that runs between two calls. Raises ImportError where torch is needed and not installed."""
    works: list[Callable[[], Any]] = []
    if "torch" in scenario:
        import torch

        torch.set_num_threads(threads)
        a = torch.ones(SIZE, SIZE)
        b = torch.ones(1 << 20)
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
    parser = argparse.ArgumentParser("python -m bench.thread_contention", description=__doc__)
    parser.add_argument("--threads", type=int, default=machine.usable_cores())
    parser.add_argument("--seconds", type=float, default=1.0, help="of calls per point, scenario and number of threads")
    parser.add_argument("--out", type=Path, help="writes DIR/<machine>/thread_contention.json")
    options = parser.parse_args(arguments)
    found = measure(POINTS, options.threads, options.seconds)
    print(render(found))
    if options.out:
        print(tool_result.save("thread_contention", found, options.out))
    return int(any(result["status"] == "wrong" for result in found["results"]))


if __name__ == "__main__":
    sys.exit(main())
