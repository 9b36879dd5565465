"""How near our figures are to what the machine can do: the multiply-add peak, and for one row the reading rate.

At one row (B = 1) each step reads all of W_hh for a product of its size, so reading bounds the call. The bytes counted
are W_hh's alone, its rows of units padded to whole vectors as the kernels pack it, once a step forward and once more a
step backward; the input's product, outside time, is not in them. Each thread reads its share, which is compared with
one core's reading rate from the smallest cache that holds that share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench import machine
from bench.document import Document
from bench.grid import Point
from rnnkit.core.cells import CELLS


class Stream(NamedTuple):
    """A thread's reading of W_hh: bytes a second / 1e9, the level it comes from, and the share of that level's rate."""

    gb_s: float
    level: str
    share: float


def fma_share(document: Document, point: Point, result: dict[str, Any]) -> float | None:
    """A right result's rate as a share of the peak on the run's threads; None where the peak was not measured."""
    peak = document["ceiling"].get("fma_gflops", {}).get(str(document["settings"]["threads"]))
    return None if peak is None else result["gflops"] / peak


def weight_bytes(point: Point, vector_bytes: int) -> int:
    """W_hh (G*H, R) of every layer and direction, each gate's units padded to whole vectors."""
    lanes = vector_bytes // point.itemsize
    units = -(-point.H // lanes) * lanes
    return point.layers * point.directions * CELLS[point.cell].n_gates * units * (point.P or point.H) * point.itemsize


def stream(document: Document, point: Point, result: dict[str, Any]) -> Stream | None:
    """Of a right result at B = 1; None elsewhere, and where the reading rates were not measured."""
    rates, caches = document["ceiling"].get("read_gb_s"), document["machine"]["caches"]
    if point.B != 1 or not rates:
        return None
    own = weight_bytes(point, document["ceiling"]["vector_bytes"]) / document["settings"]["threads"]
    levels = [level for level, size in caches.items() if level in rates and own <= machine.cache_bytes(size)]
    level = levels[0] if levels else "memory"
    gb_s = own * point.T * (2 if point.backward else 1) / result["ms"]["median"] / 1e6
    return Stream(gb_s, level, gb_s / rates[level])


def fma_text(document: Document, point: Point, result: dict[str, Any]) -> str:
    share = fma_share(document, point, result)
    return "-" if share is None else f"{100 * share:.0f}%"


def stream_text(document: Document, point: Point, result: dict[str, Any]) -> str:
    """Such as 41GB/s=39%L2."""
    found = stream(document, point, result)
    return "-" if found is None else f"{found.gb_s:.0f}GB/s={100 * found.share:.0f}%{found.level}"
