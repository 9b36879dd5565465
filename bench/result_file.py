"""The result file of a run: what it contains, and how it is written and read.

In memory a result file is a dict, the document:

    schema, grid, dtype, date, commit
    settings   passes, cells, threads, seconds, rounds, calls, every, planned, minutes, load (before the run)
    machine    see bench.machine.describe;   ceiling   see bench.machine.ceiling
    peers      name -> {"ours": bool, "versions": {...}} or {"ours": bool, "absent": reason}
    left_out   [{"point": name, "reason": text}]
    points     [{"point": {...}, "rows_checked": int, "results": {peer: result},
               "timing_runs": {"repeated": int, "unconfirmed": int}}]; timing_runs: see bench.runner.TimingRuns

A result with a time is {"status": "ok", "error": largest error as a share of its tolerance, "ms": {median, p25, p75,
min, max, calls}, "round_ms": [median of each round]}. A result without one is {"status": "wrong" | "failed" |
"unsupported", "why": text}. Rates are not stored: `gflops` and `sequences_per_s` compute them from the median.

On disk a point is one line of arrays, a third of the size of the dicts. "columns" names their fields, once per file. A
point's dtype is left out, and so are its last fields where they have their defaults. A result without a time is its
index in "reasons".
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.grid import Point

SCHEMA = 2
STATUSES = ("ok", "wrong", "failed", "unsupported")
# In the order in which they are written.
KEYS = ("schema", "grid", "dtype", "date", "commit", "settings", "machine", "ceiling", "peers", "left_out", "points")
TIMES = ("median", "p25", "p75", "min", "max", "calls")
RUNS = ("repeated", "unconfirmed")
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Point) if field.name != "dtype"}
POINT_FIELDS = tuple(DEFAULTS)
COLUMNS = {
    "points": ["point", "rows_checked", "timing_runs", "results"],
    "point": list(POINT_FIELDS),
    "timing_runs": list(RUNS),
    "result": ["error", *TIMES, "round_ms"],
}

Document = dict[str, Any]


def ok_result(error: float, rounds: list[list[float]]) -> dict[str, Any]:
    """The result of a peer that is right and was timed. rounds: the milliseconds of every call of every round."""
    samples = np.concatenate([np.asarray(r) for r in rounds])
    p25, median, p75 = (float(q) for q in np.percentile(samples, (25, 50, 75)))
    return {
        "status": "ok",
        "error": _rounded(error, 3),
        "ms": {
            "median": _rounded(median, 5),
            "p25": _rounded(p25),
            "p75": _rounded(p75),
            "min": _rounded(float(samples.min())),
            "max": _rounded(float(samples.max())),
            "calls": len(samples),
        },
        "round_ms": [_rounded(float(np.median(r))) for r in rounds],
    }


def gflops(point: Point, result: dict[str, Any]) -> float:
    """GFLOP/s at the median; see Point.flop."""
    return point.flop() / result["ms"]["median"] / 1e6


def sequences_per_s(point: Point, result: dict[str, Any]) -> float:
    return point.B / result["ms"]["median"] * 1e3


def spread(result: dict[str, Any]) -> float:
    """The interquartile range of the calls as a share of their median."""
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
    """Reads a result file. Raises ValueError that says what is wrong with it."""
    try:
        stored = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    try:
        document = _unpacked(stored)
        validate(document)
    except ValueError as error:
        raise ValueError(f"{path} is no result file: {error}") from error
    return document


def validate(document: Any) -> None:
    """Raises ValueError naming what is missing or not as it should be."""
    _check_keys(document)
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


def _check_keys(document: Any) -> None:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}")
    missing = [key for key in KEYS if key not in document]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")


def _lines(document: Document) -> str:
    """JSON with one line per point, so that a diff shows which points changed."""
    reasons = _reasons(document)
    lines = {**document, "columns": COLUMNS, "reasons": reasons}
    lines["points"] = [_packed(entry, reasons) for entry in document["points"]]
    parts = []
    for key in (*KEYS[:-1], "columns", "reasons", "points"):
        value = lines[key]
        if value and isinstance(value, list):
            text = ",\n".join(_json(row) for row in value)
            parts.append(f'"{key}":[\n{text}\n]')
        else:
            parts.append(f'"{key}":{_json(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _reasons(document: Document) -> list[dict[str, str]]:
    """The results without a time, each once."""
    found: dict[str, dict[str, str]] = {}
    for entry in document["points"]:
        for result in entry["results"].values():
            if result["status"] != "ok":
                found[_json(result)] = result
    return list(found.values())


def _packed(entry: dict[str, Any], reasons: list[dict[str, str]]) -> list[Any]:
    """An entry of "points" as it is on disk."""
    values = [entry["point"][name] for name in POINT_FIELDS]
    while values[-1] == DEFAULTS[POINT_FIELDS[len(values) - 1]]:
        values.pop()
    results: dict[str, Any] = {}
    for peer, result in entry["results"].items():
        if result["status"] == "ok":
            results[peer] = [result["error"], *(result["ms"][name] for name in TIMES), result["round_ms"]]
        else:
            results[peer] = reasons.index(result)
    return [values, entry["rows_checked"], [entry["timing_runs"][name] for name in RUNS], results]


def _unpacked(stored: Any) -> Document:
    """The document of a file. Raises ValueError where the file is not as `save` writes it."""
    _check_keys(stored)
    if stored.get("columns") != COLUMNS:
        raise ValueError(f"columns must be {COLUMNS}")
    document = {key: stored[key] for key in KEYS}
    try:
        document["points"] = [_unpacked_entry(entry, stored) for entry in stored["points"]]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(f"a point is not as it should be: {error!r}") from error
    return document


def _unpacked_entry(entry: list[Any], stored: dict[str, Any]) -> dict[str, Any]:
    values, rows_checked, runs, packed = entry
    named = dict(zip(POINT_FIELDS[: len(values)], values, strict=True))
    point = Point(**named, dtype=stored["dtype"])
    results: dict[str, Any] = {}
    for peer, result in packed.items():
        if isinstance(result, list):
            error, *times, round_ms = result
            ms = dict(zip(TIMES, times, strict=True))
            results[peer] = {"status": "ok", "error": error, "ms": ms, "round_ms": round_ms}
        else:
            results[peer] = stored["reasons"][result]
    timing_runs = dict(zip(RUNS, runs, strict=True))
    return {"point": point.to_dict(), "rows_checked": rows_checked, "timing_runs": timing_runs, "results": results}


def _rounded(value: float, digits: int = 4) -> float:
    """`value` in significant digits: four is finer than the spread of any timing."""
    return float(f"{value:.{digits}g}")
