"""Runs a grid: for each point the oracle, then every peer's checked call, then rounds of timed calls, peer after peer.

A peer is timed only where its result passed. The rounds go A B C A B C, so that a drift of the machine meets all alike.
After what warms up a turn lasts its share of `seconds`, and longer where that would leave fewer than LEAST_CALLS in all
rounds together; calls above a tenth of a second are made once a turn, and a peer whose call takes more than 20 ms and
more than twice the fastest other peer's has no further turn, as it cannot be the best. A turn stands between two looks
at the cores (bench/cores.py), and is repeated where they were not whole at both, for PATIENCE seconds a point; how many
were, and how many remained unsure, stands with the point. Before anything is timed, a peer that compiles does so beside
the oracle and the other peers' checks.
The document is given back after every point, so that what is measured is not lost, and a run can be ended and resumed.
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
from bench.cores import Cores
from bench.document import SCHEMA, Document, ok_result
from bench.grid import Point
from bench.peers import PeerRow
from bench.pool import Pool
from bench.problem import Oracle, check
from bench.resume import begun, remaining

PREPARE_SECONDS, TIME_SECONDS = 300.0, 120.0  # past these a worker is ended and the point counts as failed
SETTLE_SECONDS = 0.01  # between two workers: a held one's cores are free before the next starts
OUTRUN, OUTRUN_FROM = 2.0, 20.0  # times the fastest other peer's time, and ms of a call, from where it has one turn
PATIENCE = 3.0  # seconds a point that are given to waiting for whole cores and to turns that are repeated
LEAST_CALLS = 7  # of a short call, a point and peer: quartiles of fewer say nothing

Say = Callable[[str], None]


@dataclass
class Settings:
    """How a run is done. seconds: of timed calls a point and peer, over all rounds; every: see grid.points.

    resume: a result file to go on with, where it exists; end: the time.monotonic() after which no point is begun.
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
    """The document, again after every point; the last one is whole, or what there was time for.

    `say` shows one line of progress. Raises ValueError where the file to resume is of another run.
    """
    document = _empty(settings, points, left_out)
    say(f"starting {', '.join(row.name for row in settings.rows)}")
    with (
        Pool(settings.rows, settings.threads) as pool,
        tempfile.TemporaryDirectory() as folder,
        closing(Cores(settings.threads)) as cores,
    ):
        _note_peers(document, pool)
        old = begun(settings.resume, document) if settings.resume else None
        if old is None:
            say("measuring the ceiling (multiply-adds, np.matmul, reading)")
            document["ceiling"] = machine.ceiling(settings.dtype, settings.threads)
        else:
            document = old
        yield document
        begin, oracles = time.monotonic(), Oracles()
        spent = document["settings"].get("minutes", 0.0)
        left = remaining(points, document)
        for point, tell in _told(left, settings, say):
            if time.monotonic() > settings.end:
                return
            turns = Turns(pool, cores)
            results, rows_checked = measure_point(pool, point, oracles, settings, turns, Path(folder), tell)
            looked = {"again": turns.again, "unsure": turns.unsure}
            about = {"point": point.to_dict(), "flop": point.flop(), "rows_checked": rows_checked, "turns": looked}
            document["points"].append({**about, "results": results})
            document["settings"]["minutes"] = round(spent + (time.monotonic() - begin) / 60, 2)
            _note_peers(document, pool)
            yield document


def _told(points: list[Point], settings: Settings, say: Say) -> Iterator[tuple[Point, Say]]:
    """Each point with the function that says what is done at it and how long the rest may take."""
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
    pool: Pool, point: Point, oracles: Oracles, settings: Settings, turns: Turns, folder: Path, tell: Say
) -> tuple[dict[str, dict[str, Any]], int]:
    """Every peer's result at a point, a time only for those whose result is right; and how many rows were checked."""
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
            answer = turns.take(name, request)
            if "ms" in answer:
                rounds[name].append(answer["ms"])
            else:
                results[name] = {"status": "failed", "why": answer["error"]}
                del rounds[name]
        left = [name for name in rounds if name not in _outrun(pool, rounds)]
    timed = {name: ok_result(point, results[name]["error"], r) for name, r in rounds.items()}
    return results | timed, rows_checked


class Turns:
    """The turns of a point. again: how many were repeated; unsure: those that count though the cores were not whole."""

    def __init__(self, pool: Any, cores: Any) -> None:
        self._pool, self._cores = pool, cores
        self._lost = 0.0
        self.again = self.unsure = 0

    def take(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """The peer's answer, of a turn with whole cores before and after it if there is one in time."""
        while True:
            started = time.monotonic()
            time.sleep(SETTLE_SECONDS)
            whole = self._cores.whole()
            patient = self._lost < PATIENCE
            if whole or not patient:
                answer = self._pool.ask(name, request, TIME_SECONDS)
                whole = whole and self._cores.whole()
                if whole or not patient or "ms" not in answer:
                    self.unsure += not whole
                    return answer
                self.again += 1
            self._lost += time.monotonic() - started


def _outrun(pool: Pool, rounds: dict[str, list[list[float]]]) -> list[str]:
    """The peers that have shown enough: not short, and far behind another that is not rnnkit."""
    medians = {name: float(np.median(np.concatenate(r))) for name, r in rounds.items() if not pool.rows[name].ours}
    return [name for name, ms in medians.items() if ms > max(OUTRUN_FROM, OUTRUN * min(medians.values()))]


class Oracles:
    """The oracle of a point's shape; the passes of one shape follow each other and share it."""

    def __init__(self) -> None:
        self._last: Oracle | None = None

    def of(self, point: Point) -> Oracle:
        if self._last is None or self._last.shape != point.shape:
            self._last = None  # let go first: two may not fit
            self._last = Oracle(point)
        return self._last


def _checked(
    pool: Pool, point: Point, oracles: Oracles, folder: Path, tell: Say
) -> tuple[dict[str, dict[str, Any]], int]:
    """The gate: for each peer {"status": "ok", "error": ...}, or what to print in place of a time."""
    found, present = {}, list(pool.present)
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
    with np.load(written) as got:
        errors = check(point, oracle, dict(got))
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
