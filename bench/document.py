"""The result file: what is in it, how it is written and read.

    schema, grid, dtype, date, commit
    settings   passes, cells, threads, seconds, rounds, load (of the machine just before)
    machine    see bench.machine.describe;   ceiling   see bench.machine.ceiling
    peers      name -> {"ours": bool, "versions": {...}} or {"ours": bool, "absent": reason}
    left_out   [{"point": name, "reason": text}]
    points     [{"point": {...}, "flop": int, "rows_checked": int, "turns": {"again": int, "unsure": int}, "results":
               {peer: result}}]; turns, which older files lack: see bench.runner.Turns

A result is {"status": "ok", "error": worst share of its tolerance, "ms": {median, p25, p75, min, max, calls},
"round_ms": [median of each round], "sequences_per_s", "steps_per_s", "gflops"}; or {"status": "wrong" | "failed" |
"unsupported", "why": text} and no time at all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.grid import Point

SCHEMA = 1
STATUSES = ("ok", "wrong", "failed", "unsupported")
# In the order they are written.
KEYS = ("schema", "grid", "dtype", "date", "commit", "settings", "machine", "ceiling", "peers", "left_out", "points")

Document = dict[str, Any]


def ok_result(point: Point, error: float, rounds: list[list[float]]) -> dict[str, Any]:
    """A right and timed result; rounds: the milliseconds of every call of every round."""
    samples = np.concatenate([np.asarray(r) for r in rounds])
    p25, median, p75 = (float(q) for q in np.percentile(samples, (25, 50, 75)))
    seconds = median / 1e3
    return {
        "status": "ok",
        "error": _short(error),
        "ms": {
            "median": _short(median),
            "p25": _short(p25),
            "p75": _short(p75),
            "min": _short(float(samples.min())),
            "max": _short(float(samples.max())),
            "calls": len(samples),
        },
        "round_ms": [_short(float(np.median(r))) for r in rounds],
        "sequences_per_s": _short(point.B / seconds),
        "steps_per_s": _short(point.steps() / seconds),
        "gflops": _short(point.flop() / seconds / 1e9),
    }


def spread(result: dict[str, Any]) -> float:
    """How far apart the calls are: the middle half's width as a share of the median."""
    ms = result["ms"]
    return (ms["p75"] - ms["p25"]) / ms["median"]


def save(document: Document, path: Path) -> None:
    """Writes the file whole or not at all. Raises ValueError where the document is not as described."""
    validate(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(_lines(document))
    os.replace(partial, path)


def load(path: Path) -> Document:
    """Reads a result file. Raises ValueError saying what is wrong with it."""
    try:
        document = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    try:
        validate(document)
    except ValueError as error:
        raise ValueError(f"{path} is no result file: {error}") from error
    return document


def validate(document: Any) -> None:
    """Raises ValueError naming what is missing or not as it should be."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}")
    missing = [key for key in KEYS if key not in document]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    for entry in document["points"]:
        try:
            name = str(Point.from_dict(entry["point"]))
            results = entry["results"].items()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a point is not as it should be: {error!r}") from error
        for peer, result in results:
            if peer not in document["peers"]:
                raise ValueError(f"{name} has a result of {peer!r}, which is not among the peers")
            if result.get("status") not in STATUSES:
                raise ValueError(f"{name}: status of {peer} must be one of {', '.join(STATUSES)}")
            if (result["status"] == "ok") != ("ms" in result):
                raise ValueError(f"{name}: {peer} must have a time if and only if its result is right")


def _lines(document: Document) -> str:
    """JSON with one line a point, so that two runs can be compared by eye and in a diff."""
    parts = []
    for key in KEYS:
        value = document[key]
        if key in ("points", "left_out"):
            rows = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in value)
            parts.append(f' "{key}": [\n{rows}\n ]' if value else f' "{key}": []')
        else:
            parts.append(f' "{key}": {json.dumps(value, allow_nan=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _short(value: float) -> float:
    """Five significant digits: more than a clock can tell."""
    return float(f"{value:.5g}")
