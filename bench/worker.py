"""One peer in its own process: JSON requests on stdin, one line of JSON per answer on stdout.

    python -m bench.worker PEER|module:name THREADS

    {"do": "prepare", "point": {...}, "write": path}   -> {"seconds": ...}  makes two calls and writes the second one's
                                                                            results to path. A long call is made once
    {"do": "time", "seconds": s, "calls": n}           -> {"ms": [...]}     warms up, then times calls until s seconds
                                                                            have passed and, unless calls are long,
                                                                            there are n

The first line is {"versions": ...} or {"absent": reason}, without a request. An answer may be {"unsupported": reason}
or {"error": text} instead. What a library prints to stdout goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from bench.grid import Point
from bench.peers import PEERS, Absent, Peer, PeerRow, Prepared
from bench.problem import Problem, make_problem, select_rows

MOST_CALLS = 10_000
LONG_CALL = 0.1  # seconds; one such call is as exact as several short ones
# Seconds of calls, at least one, that do not count: they fill caches and wake threads, and a virtual machine's idle
# core may be scheduled again ten milliseconds late.
WARM_UP = 0.02
CHECKED_ONCE = 0.1  # estimated seconds; a longer call is made once before it is checked


def limit_cores(threads: int) -> None:
    """Pins this process to its first `threads` cores where the system can, so every thread pool of a peer fits."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Bench:
    """Answers the requests of one worker, for the point that was prepared last."""

    def __init__(self, peer: Peer, threads: int) -> None:
        self.peer = peer
        self.threads = threads
        self.prepared: Prepared | None = None
        self.problem: Problem | None = None

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        point = Point.from_dict(request["point"])
        reason = self.peer.unsupported(point)
        if reason:
            return {"unsupported": reason}
        self.prepared = None  # the previous point is freed first: two may not fit into memory
        started = time.perf_counter()
        problem = self.problem = self._problem_of(point)
        self.prepared = self.peer.prepare(problem, self.threads)
        # The second call is the one checked: the first may compile, fill caches or start from cleared buffers.
        called = self.prepared.call()
        if point.guessed_seconds() < CHECKED_ONCE:
            called = self.prepared.call()
        results = self.prepared.results(called)
        arrays: Any = select_rows(results, problem.rows)
        np.savez(request["write"], **arrays)
        return {"seconds": time.perf_counter() - started}

    def _problem_of(self, point: Point) -> Problem:
        """The inputs of a point: those of the previous point where only the pass differs."""
        # freed first, as above
        last = self.problem
        self.problem = None
        if last is not None and (last.point.shape, last.point.dtype) == (point.shape, point.dtype):
            return replace(last, point=point)
        return make_problem(point)

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.prepared is None:
            return {"error": "nothing is prepared"}
        call = self.prepared.call
        clock = time.perf_counter
        samples: list[float] = []
        least = request.get("calls", 1)
        gc.collect()
        gc.disable()
        warm = False
        took = 0.0
        warm_from = clock() + WARM_UP
        end = warm_from + request["seconds"]
        while len(samples) < MOST_CALLS and (
            not samples or clock() < end or (len(samples) < least and took < LONG_CALL)
        ):
            started = clock()
            call()
            ended = clock()
            took = ended - started
            if warm or ended >= end:  # a call that fills the whole time warms up by itself
                samples.append(1e3 * took)
            warm = ended >= warm_from
        gc.enable()
        return {"ms": samples}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"prepare": self.prepare, "time": self.time}[request["do"]](request)
        except Exception as error:  # whatever a peer raises is this point's result
            self.prepared = None
            return {"error": f"{type(error).__name__}: {error}"}


def serve(row: PeerRow, threads: int) -> None:
    """Answers requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    limit_cores(threads)
    try:
        peer = row.load()
    except (ImportError, Absent) as error:
        print(json.dumps({"absent": str(error)}), file=answers)
        return
    bench = Bench(peer, threads)
    print(json.dumps({"versions": peer.versions}), file=answers)
    for line in sys.stdin:
        print(json.dumps(bench.answer(json.loads(line))), file=answers)


def find_row(name: str) -> PeerRow:
    """A row of PEERS by name, or one made of `module:name`."""
    if ":" in name:
        module, _, own = name.partition(":")
        return PeerRow(own, module)
    return PEERS[name]


if __name__ == "__main__":
    serve(find_row(sys.argv[1]), int(sys.argv[2]))
