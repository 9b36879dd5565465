"""Runs a grid. At each point the oracle runs, then every peer's checked call, then rounds of timed calls.

A peer is timed only where its result is right. The peers alternate (A B C A B C), so a drift of the machine affects all
of them alike. One peer's share of one round is a timing run:

- It lasts `seconds` / `rounds` after its warm-up, and longer where all rounds together would have fewer than
  LEAST_CALLS calls. A call above a tenth of a second is made once per run.
- Each timing run is preceded and followed by a check that all cores are available (bench.core_check). A run that fails
  either check is repeated, for up to PATIENCE seconds per point. The point records how many runs were repeated, and how
  many count although a check failed.
- A peer whose call takes more than OUTRUN_FROM ms and more than OUTRUN times the fastest other peer's is not timed
  again, because it cannot be the best.

Peers that compile do so before anything is timed, while the oracle and the other peers' checks run. `run` yields the
document after every point, so that an interrupted run loses one point at most and can be resumed.
"""

from __future__ import annotations

import datetime
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.core_check import CoreCheck
from bench.grid import Point
from bench.peers import PeerRow
from bench.problem import Oracle, check
from bench.result_file import SCHEMA, Document, ok_result
from bench.resume import begun, remaining
from bench.worker_pool import Pool
from rnnkit.core.dtypes import DTYPES

# Seconds after which a worker is killed and the point counts as failed.
PREPARE_SECONDS = 300.0
TIME_SECONDS = 120.0
# Pause between two workers, in which the cores of the stopped one become free.
SETTLE_SECONDS = 0.01
OUTRUN = 2.0
OUTRUN_FROM = 20.0  # ms
# Seconds per point for waiting until all cores are available and for repeating timing runs.
PATIENCE = 3.0
# Timed calls per point and peer, where a call is short: quartiles of fewer say nothing.
LEAST_CALLS = 7

Say = Callable[[str], None]


@dataclass
class Settings:
    """The settings of a run.

    seconds: of timed calls per point and peer, over all rounds. every: see grid.points. resume: a result file to
    continue, where it exists. end: the time.monotonic() after which no point is started.
    """

    grid: str
    dtype: str
    passes: tuple[str, ...]
    cells: tuple[str, ...]
    threads: int
    seconds: float
    rounds: int
    rows: list[PeerRow] = field(default_factory=list)
    every: int = 1
    resume: Path | None = None
    end: float = math.inf


def run(settings: Settings, points: list[Point], left_out: list[tuple[Point, str]], say: Say) -> Iterator[Document]:
    """Yields the document at the start and after every point. The last one has every point that there was time for.

    say: shows one line of progress. Raises ValueError where the file to resume is of another run.
    """
    document = _empty(settings, points, left_out)
    say(f"starting {', '.join(row.name for row in settings.rows)}")
    with (
        Pool(settings.rows, settings.threads) as pool,
        tempfile.TemporaryDirectory() as folder,
        closing(CoreCheck(settings.threads)) as cores,
    ):
        _note_peers(document, pool)
        old = begun(settings.resume, document) if settings.resume else None
        if old is None:
            say("measuring the ceiling (multiply-adds, np.matmul, reading)")
            document["ceiling"] = machine.ceiling(settings.dtype, settings.threads)
        else:
            document = old
        yield document
        begin = time.monotonic()
        oracles = Oracles()
        spent = document["settings"].get("minutes", 0.0)
        for point, tell in _with_progress(remaining(points, document), settings, say):
            if time.monotonic() > settings.end:
                return
            runs = TimingRuns(pool, cores)
            results, rows_checked = measure_point(pool, point, oracles, settings, runs, Path(folder), tell)
            document["points"].append(
                {
                    "point": point.to_dict(),
                    "rows_checked": rows_checked,
                    "timing_runs": {"repeated": runs.repeated, "unconfirmed": runs.unconfirmed},
                    "results": results,
                }
            )
            document["settings"]["minutes"] = round(spent + (time.monotonic() - begin) / 60, 2)
            _note_peers(document, pool)
            yield document


def _with_progress(points: list[Point], settings: Settings, say: Say) -> Iterator[tuple[Point, Say]]:
    """Each point with a function that shows its progress: the current action, and an estimate of the seconds left."""
    started = time.perf_counter()
    weights = [0.5 + settings.seconds * len(settings.rows) + 12 * point.guessed_seconds() for point in points]
    for i, point in enumerate(points):
        done = sum(weights[:i])
        left = (time.perf_counter() - started) / done * sum(weights[i:]) if done else math.nan
        end = "" if math.isnan(left) else f", {left:.0f} s to go"
        where = f"[{i + 1}/{len(points)}] {point}"

        def tell(what: str, where: str = where, end: str = end) -> None:
            say(f"{where}: {what}{end}")

        yield point, tell


def measure_point(
    pool: Pool, point: Point, oracles: Oracles, settings: Settings, runs: TimingRuns, folder: Path, tell: Say
) -> tuple[dict[str, dict[str, Any]], int]:
    """Every peer's result at a point, with a time where it is right, and how many rows were checked."""
    errors, rows_checked = _checked(pool, point, oracles, folder, tell)
    results = {name: errors[name] for name in pool.rows if name in errors}
    rounds: dict[str, list[list[float]]] = {name: [] for name, r in results.items() if r["status"] == "ok"}
    left = list(rounds)
    for i in range(settings.rounds):
        for name in left:
            tell(f"timing {name}")
            missing = LEAST_CALLS - sum(map(len, rounds[name]))
            calls = max(1, math.ceil(missing / (settings.rounds - i)))
            request = {"do": "time", "seconds": settings.seconds / settings.rounds, "calls": calls}
            answer = runs.measure(name, request)
            if "ms" in answer:
                rounds[name].append(answer["ms"])
            else:
                results[name] = {"status": "failed", "why": answer["error"]}
                del rounds[name]
        left = [name for name in rounds if name not in _outrun(pool, rounds)]
    timed = {name: ok_result(results[name]["error"], r) for name, r in rounds.items()}
    return results | timed, rows_checked


class TimingRuns:
    """The timing runs of one point.

    repeated: how many were repeated. unconfirmed: how many count although not all cores were available.
    """

    def __init__(self, pool: Any, cores: Any) -> None:
        self._pool = pool
        self._cores = cores
        self._lost = 0.0
        self.repeated = 0
        self.unconfirmed = 0

    def measure(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """The peer's answer, from a run with all cores available before and after it if PATIENCE allows one."""
        while True:
            started = time.monotonic()
            time.sleep(SETTLE_SECONDS)
            available = self._cores.all_available()
            patient = self._lost < PATIENCE
            if available or not patient:
                answer = self._pool.ask(name, request, TIME_SECONDS)
                available = available and self._cores.all_available()
                if available or not patient or "ms" not in answer:
                    self.unconfirmed += not available
                    return answer
                self.repeated += 1
            self._lost += time.monotonic() - started


def _outrun(pool: Pool, rounds: dict[str, list[list[float]]]) -> list[str]:
    """The peers that are not timed again: their calls are long, and another peer, not rnnkit, is far ahead of them."""
    medians = {name: float(np.median(np.concatenate(r))) for name, r in rounds.items() if not pool.rows[name].ours}
    return [name for name, ms in medians.items() if ms > max(OUTRUN_FROM, OUTRUN * min(medians.values()))]


class Oracles:
    """Caches the oracle of the last shape: the passes of a shape follow each other and share it."""

    def __init__(self) -> None:
        self._last: Oracle | None = None

    def of(self, point: Point) -> Oracle:
        if self._last is None or self._last.shape != point.shape:
            self._last = None  # freed first: two may not fit into memory
            self._last = Oracle(point)
        return self._last


def _checked(
    pool: Pool, point: Point, oracles: Oracles, folder: Path, tell: Say
) -> tuple[dict[str, dict[str, Any]], int]:
    """Each peer's checked call: {"status": "ok", "error": ...}, or the status that is printed in place of a time."""
    found = {}
    present = list(pool.present)
    first = [name for name in present if pool.rows[name].compiles]
    files = {name: folder / f"{name}.npz" for name in present}

    def ask(name: str) -> None:
        pool.start(name, {"do": "prepare", "point": point.to_dict(), "write": str(files[name])})

    tell("oracle")
    for name in first:
        ask(name)
    oracle = oracles.of(point)
    oracle.wanted(point)
    for name in sorted(present, key=first.__contains__):
        tell(f"checking {name}")
        if name not in first:
            ask(name)
        found[name] = _verdict(pool.finish(name, PREPARE_SECONDS), point, oracle, files[name])
    return found, point.B if oracle.rows is None else len(oracle.rows)


def _verdict(answer: dict[str, Any], point: Point, oracle: Oracle, written: Path) -> dict[str, Any]:
    if "unsupported" in answer:
        return {"status": "unsupported", "why": answer["unsupported"]}
    if "error" in answer:
        return {"status": "failed", "why": answer["error"]}
    storage = DTYPES[point.dtype].storage
    with np.load(written) as got:
        # NumPy's file format has no bfloat16: it loads such arrays with a dtype of two raw bytes.
        errors = check(point, oracle, {name: a.view(storage) if a.dtype.kind == "V" else a for name, a in got.items()})
    written.unlink()  # a later point's check must not find it
    worst = max(errors, key=lambda n: errors[n])
    if errors[worst] <= 1:
        return {"status": "ok", "error": errors[worst]}
    wrong = sorted(n for n, error in errors.items() if not error <= 1)
    return {"status": "wrong", "why": f"{', '.join(wrong)}: up to {errors[worst]:.3g} times the tolerance ({worst})"}


def _empty(settings: Settings, points: list[Point], left_out: list[tuple[Point, str]]) -> Document:
    return {
        "schema": SCHEMA,
        "grid": settings.grid,
        "dtype": settings.dtype,
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "settings": {
            "passes": list(settings.passes),
            "cells": list(settings.cells),
            "threads": settings.threads,
            "seconds": settings.seconds,
            "rounds": settings.rounds,
            "calls": LEAST_CALLS,
            "every": settings.every,
            "planned": len(points),
            "load": machine.load(),
        },
        "machine": machine.describe(),
        "ceiling": {},
        "peers": {row.name: {"ours": row.ours} for row in settings.rows},
        "left_out": [{"point": str(point), "reason": reason} for point, reason in left_out],
        "points": [],
    }


def _note_peers(document: Document, pool: Pool) -> None:
    for name, peer in document["peers"].items():
        if name in pool.absent:
            peer["absent"] = pool.absent[name]
        else:
            peer["versions"] = {"python": platform.python_version(), **pool.versions[name]}
