"""Result documents from given times or ratios, for tests of the benchmark's report and plots."""

from __future__ import annotations

from typing import Any

from bench import grid, machine, result_file
from bench.grid import FORWARD, FORWARD_BACKWARD, Point

CEILING: dict[str, Any] = {
    "what": "planted",
    "gflops": {"1": 50.0, "2": 99.0},
    "fma_gflops": {"1": 100.0, "2": 200.0},
    "vector_bytes": 64,
    "read_gb_s": {"L1": 200.0, "L2": 100.0, "L3": 50.0, "memory": 20.0},
}
CACHES = {"L1": "32K", "L2": "1024K", "L3": "32768K"}


def of_times(times: dict[Point, dict[str, float]]) -> result_file.Document:
    """A document with these median milliseconds per point and peer. The peer `numba` is rnnkit."""
    points = []
    for point, given in times.items():
        found = {name: result_file.ok_result(0.5, [[ms, ms]]) for name, ms in given.items()}
        runs = {"repeated": 0, "unconfirmed": 0}
        points.append({"point": point.to_dict(), "rows_checked": 1, "timing_runs": runs, "results": found})
    return {
        "schema": result_file.SCHEMA,
        "grid": "cpu",
        "dtype": "float32",
        "date": "2026-01-01",
        "commit": None,
        "settings": {"passes": [], "cells": [], "threads": 2, "seconds": 1.0, "rounds": 1, "load": 0.0},
        "machine": {**machine.describe(), "caches": CACHES},
        "ceiling": CEILING,
        "peers": {"numba": {"ours": True}, "torch": {"ours": False}, "jax": {"ours": False}},
        "left_out": [],
        "points": points,
    }


def of_gru(times: list[dict[str, float]]) -> result_file.Document:
    """Like `of_times`, for a GRU with 8, 16, ... units."""
    return of_times({Point("gru", 10, 5, 8, 8 * (i + 1)): given for i, given in enumerate(times)})


def of_ratios(ratios: dict[Point, float], own: float = 2.0) -> result_file.Document:
    """A document in which numba takes `own` ms, torch `ratio` times as long, and jax ten times as long as torch."""
    return of_times({p: {"numba": own, "torch": own * r, "jax": 10 * own * r} for p, r in ratios.items()})


def whole_grid() -> dict[Point, float]:
    """The cpu grid, with ratio 2 except at two points."""
    kept, _ = grid.points("cpu", "float32")
    ratios = dict.fromkeys(kept, 2.0)
    ratios[Point("gru", 64, 8, 64, 64, passes=FORWARD)] = 0.5
    ratios[Point("lstm", 64, 32, 512, 512, passes=FORWARD_BACKWARD)] = 0.8
    return ratios
