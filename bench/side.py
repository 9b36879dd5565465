"""What the small tools share: the check of a layer's results, the spread of some samples, and the file they write."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine
from bench.grid import Point
from bench.problem import Oracle, Problem, check, select_rows


def worst_error(point: Point, problem: Problem, results: dict[str, np.ndarray]) -> float:
    """The largest error of the point's results as a share of its tolerance; above 1 they are wrong."""
    return max(check(point, Oracle(point), select_rows(results, problem.rows)).values())


def told(samples: list[float]) -> dict[str, float]:
    """min, p25, median, p75, p95 and max, and how many."""
    names = {"min": 0, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}
    values = np.percentile(samples, list(names.values()))
    return {**{name: float(f"{v:.5g}") for name, v in zip(names, values, strict=True)}, "count": len(samples)}


def timed(error: float, samples: dict[str, list[float]]) -> dict[str, Any]:
    """The samples told, if the result was right; else that it was wrong, and no time."""
    if not error <= 1:
        return {"status": "wrong", "why": f"up to {error:.3g} times the tolerance"}
    return {"status": "ok", "error": error, **{name: told(values) for name, values in samples.items()}}


def document(**content: Any) -> dict[str, Any]:
    """The content with the date, the commit and the machine before it."""
    about = {"date": datetime.date.today().isoformat(), "commit": machine.commit(), "machine": machine.describe()}
    return {**about, "load": machine.load(), **content}


def save(name: str, content: dict[str, Any], folder: Path) -> Path:
    """Writes folder/<machine>/name.json and says where."""
    path = folder / machine.slug(content["machine"]) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path
