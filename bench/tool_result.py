"""Shared by the standalone measurements (first call, thread contention): the check, the quantiles and the file."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.grid import Point
from bench.problem import Oracle, Problem, check, select_rows

QUANTILES = {"min": 0, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}


def worst_error(point: Point, problem: Problem, results: dict[str, np.ndarray]) -> float:
    """The largest error of the point's results as a share of its tolerance; above 1 they are wrong."""
    return max(check(point, Oracle(point), select_rows(results, problem.rows)).values())


def quantiles(samples: list[float]) -> dict[str, float]:
    """QUANTILES of the samples, and their count."""
    values = np.percentile(samples, list(QUANTILES.values()))
    return {**{name: float(f"{v:.5g}") for name, v in zip(QUANTILES, values, strict=True)}, "count": len(samples)}


def checked(error: float, samples: dict[str, list[float]]) -> dict[str, Any]:
    """The quantiles of each list of samples where the result was right; otherwise the status "wrong" and no time."""
    if not error <= 1:
        return {"status": "wrong", "why": f"up to {error:.3g} times the tolerance"}
    return {"status": "ok", "error": error, **{name: quantiles(values) for name, values in samples.items()}}


def with_machine(**content: Any) -> dict[str, Any]:
    """The content, preceded by the date, the commit, the machine and its load."""
    about = {"date": datetime.date.today().isoformat(), "commit": machine.commit(), "machine": machine.describe()}
    return {**about, "load": machine.load(), **content}


def save(name: str, content: dict[str, Any], folder: Path) -> Path:
    """Writes folder/<machine>/name.json, with one line per result, and gives its path."""
    path = folder / machine.slug(content["machine"]) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(json.dumps(row, allow_nan=False) for row in value)
            parts.append(f'"{key}": [\n{rows}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value, allow_nan=False)}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    return path
