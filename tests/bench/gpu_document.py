"""An invented document of a run on a GPU, for tests of the report."""

from __future__ import annotations

from typing import Any

from bench.grid import FORWARD_BACKWARD, Point

CARD = {
    "status": "done",
    "why": "",
    "seconds": 1.0,
    "starts": 1,
    "last_lines": [],
    "items": [
        {"item": "device", "status": "ok", "name": "Planted Card 9", "arch": 90},
        {"item": "attributes", "status": "ok", "attributes": {"L2CacheSize": 5e7}},
    ],
}


def timed(ms: float) -> dict[str, Any]:
    return {"ms": {"median": ms, "p25": ms, "p75": 1.1 * ms, "calls": 9}, "wall_ms": ms, "host_ms": ms}


def measured(point: Point, paths: list[str], ours: float, eager: float, graph: float) -> dict[str, Any]:
    """An item of the part "throughput" for a forward pass."""
    times = {"ours": timed(ours), "torch_eager": timed(eager), "torch_graph": timed(graph)}
    result = {"status": "ok", "error": 0.1, "torch_error": 0.1, "paths": paths, "flop": point.flop(), **times}
    return {
        "item": f"{point.shape}-{point.dtype}",
        "status": "ok",
        "point": point.to_dict(),
        "passes": {"forward": result, FORWARD_BACKWARD: {"status": "wrong", "error": "inf", "paths": paths}},
    }


CEILINGS = [
    {"item": "copy 8 MiB", "status": "ok", "gb_per_s": 5000.0},
    {"item": "copy 4096 MiB", "status": "ok", "gb_per_s": 4000.0},
    {"item": "product float32 TN 8192", "status": "ok", "tflops": 50.0},
    {"item": "product float32 NN 8192", "status": "ok", "tflops": 45.0},
    {"item": "launches", "status": "ok", "count_up": {"eager_us": 2.0, "graph_us": 1.0}, "nothing": {"graph_us": 0.9}},
    {"item": "pointwise float32 B=1 H=2", "status": "ok", "gb_per_s": 900.0},
    {"item": "grid.sync 8", "status": "ok", "blocks": 8, "alone": {"us": 1.0}, "with_exchange": {"us": 1.5}},
    {"item": "cluster.sync 4", "status": "ok", "cluster": 4, "resident": 30, "one": {"us": 0.5}, "all": {"us": 0.6}},
    {"item": "flag handoff", "status": "ok", "one_way_us": 0.2},
    {"item": "hop tag", "status": "ok", "one_way_us": 0.3, "least_us": 0.25, "most_us": 0.4},
    {"item": "all-gather tag N=8 words=512", "status": "ok", "members": 8, "words": 512, "us": 1.2, "full_us": 1.4},
    {"item": "DSMEM hop pull C=4", "status": "ok", "cluster": 4, "one_way_us": 0.7},
    {
        "item": "DSMEM all-gather push C=4 words=512",
        "status": "ok",
        "cluster": 4,
        "words": 512,
        "us": 0.8,
        "full_us": 0.9,
    },
    {"item": "step float32 TN B=1 H=1024", "status": "ok", "ms": {"median": 0.005}},
    {"item": "step bfloat16 TN B=1 H=1024", "status": "wrong", "why": "planted"},
]


def document(throughput: list[dict[str, Any]], **parts: list[dict[str, Any]]) -> dict[str, Any]:
    made = {"card": CARD["items"], "throughput": throughput, "ceilings": CEILINGS, **parts}
    return {
        "schema": 1,
        "date": "2026-01-01",
        "commit": None,
        "seconds": 9.0,
        "parts": {name: {**CARD, "items": items} for name, items in made.items()},
    }
