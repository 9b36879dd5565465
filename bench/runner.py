"""Runs a grid: for each point the oracle, then every peer's checked call, then rounds of timed calls, peer after peer.

A peer is timed only where its result passed. The rounds go A B C A B C, so that a drift of the machine meets all alike.
The document is given back after every point, so that what is measured is not lost.
"""

from __future__ import annotations

import datetime
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.document import SCHEMA, Document, ok_result
from bench.grid import Point
from bench.peers import PeerRow
from bench.pool import Pool
from bench.problem import Oracle, check

PREPARE_SECONDS, TIME_SECONDS = 300.0, 120.0  # past these a worker is ended and the point counts as failed
SETTLE_SECONDS = 0.01  # between two workers: a held one's cores are free before the next starts

Say = Callable[[str], None]


@dataclass
class Settings:
    """How a run is done. seconds: of timed calls a point and peer, over all rounds."""

    grid: str
    dtype: str
    passes: tuple[str, ...]
    cells: tuple[str, ...]
    threads: int
    seconds: float
    rounds: int
    rows: list[PeerRow] = field(default_factory=list)


def run(settings: Settings, points: list[Point], left_out: list[tuple[Point, str]], say: Say) -> Iterator[Document]:
    """The document, again after every point; the last one is whole. `say` shows one line of progress."""
    say("measuring the ceiling (np.matmul)")
    document = _empty(settings, left_out)
    say(f"starting {', '.join(row.name for row in settings.rows)}")
    oracle: Oracle | None = None
    weights = [_weight(point, settings) for point in points]
    with Pool(settings.rows, settings.threads) as pool, tempfile.TemporaryDirectory() as folder:
        _note_peers(document, pool)
        yield document
        started = time.perf_counter()
        for i, point in enumerate(points):
            done = sum(weights[:i])
            left = (time.perf_counter() - started) / done * sum(weights[i:]) if done else math.nan
            where = f"[{i + 1}/{len(points)}] {point}"

            def tell(what: str, where: str = where, left: float = left) -> None:
                say(f"{where}: {what}" + ("" if math.isnan(left) else f", {left:.0f} s to go"))

            tell("oracle")
            if oracle is None or oracle.shape != point.shape:
                oracle = Oracle(point)
            results = measure_point(pool, point, oracle, settings, Path(folder) / "results.npz", tell)
            rows_checked = point.B if oracle.rows is None else len(oracle.rows)
            document["points"].append(
                {"point": point.to_dict(), "flop": point.flop(), "rows_checked": rows_checked, "results": results}
            )
            _note_peers(document, pool)
            yield document


def measure_point(
    pool: Pool, point: Point, oracle: Oracle, settings: Settings, written: Path, tell: Say
) -> dict[str, dict[str, Any]]:
    """Every peer's result at a point; a time only for those whose result is right."""
    results: dict[str, dict[str, Any]] = {}
    rounds: dict[str, list[list[float]]] = {}
    for name in pool.present:
        tell(f"checking {name}")
        results[name] = prepare_and_check(pool, name, point, oracle, written)
        if results[name]["status"] == "ok":
            rounds[name] = []
    for _ in range(settings.rounds):
        for name in list(rounds):
            tell(f"timing {name}")
            time.sleep(SETTLE_SECONDS)
            request = {"do": "time", "seconds": settings.seconds / settings.rounds}
            answer = pool.ask(name, request, TIME_SECONDS)
            if "ms" in answer:
                rounds[name].append(answer["ms"])
            else:
                results[name] = {"status": "failed", "why": answer["error"]}
                del rounds[name]
    return results | {name: ok_result(point, results[name]["error"], r) for name, r in rounds.items()}


def prepare_and_check(pool: Pool, name: str, point: Point, oracle: Oracle, written: Path) -> dict[str, Any]:
    """The gate: {"status": "ok", "error": ...} for a right result, else what to print in place of a time."""
    written.unlink(missing_ok=True)
    request = {"do": "prepare", "point": point.to_dict(), "write": str(written)}
    answer = pool.ask(name, request, PREPARE_SECONDS)
    if "unsupported" in answer:
        return {"status": "unsupported", "why": answer["unsupported"]}
    if "error" in answer:
        return {"status": "failed", "why": answer["error"]}
    with np.load(written) as got:
        errors = check(point, oracle, dict(got))
    worst = max(errors, key=lambda n: errors[n])
    if errors[worst] <= 1:
        return {"status": "ok", "error": errors[worst]}
    wrong = sorted(n for n, error in errors.items() if not error <= 1)
    return {"status": "wrong", "why": f"{', '.join(wrong)}: up to {errors[worst]:.3g} times the tolerance ({worst})"}


def _weight(point: Point, settings: Settings) -> float:
    """Guessed time of a point relative to others, for the time to go."""
    return 0.3 + settings.seconds + 6 * point.guessed_seconds()


def _empty(settings: Settings, left_out: list[tuple[Point, str]]) -> Document:
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
            "load": machine.load(),
        },
        "machine": machine.describe(),
        "ceiling": machine.ceiling(settings.dtype, settings.threads),
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
