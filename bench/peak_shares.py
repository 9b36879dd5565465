"""Our rates as shares of the machine's peaks: of the multiply-add peak, and for one row of the read bandwidth.

At one row (B = 1) each step reads all of W_hh for a product of its size, so reading bounds the call. Only the bytes of
W_hh count, with each gate's units padded to whole vectors as the kernels pack them, once per step forward and once more
per step backward. The input's product, outside the time loop, does not count. Each thread reads its part of W_hh. Its
rate is compared with one core's bandwidth from the smallest cache that holds that part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench import machine
from bench.grid import Point
from bench.result_file import Document, gflops
from rnnkit.core.cells import CELLS


class Stream(NamedTuple):
    """A thread's reads of W_hh: GB/s, the memory level that they come from, and the share of that level's bandwidth."""

    gb_s: float
    level: str
    share: float


def fma_share(document: Document, point: Point, result: dict[str, Any]) -> float | None:
    """The rate of a timed result as a share of the peak on the run's threads; None where the peak was not measured."""
    peak = document["ceiling"].get("fma_gflops", {}).get(str(document["settings"]["threads"]))
    return None if peak is None else gflops(point, result) / peak


def weight_bytes(point: Point, vector_bytes: int) -> int:
    """W_hh (G*H, R) of every layer and direction, each gate's units padded to whole vectors."""
    lanes = vector_bytes // point.itemsize
    units = -(-point.H // lanes) * lanes
    return point.layers * point.directions * CELLS[point.cell].n_gates * units * (point.P or point.H) * point.itemsize


def stream(document: Document, point: Point, result: dict[str, Any]) -> Stream | None:
    """The reads of a timed result at B = 1. None at other B, and where the bandwidths were not measured."""
    rates = document["ceiling"].get("read_gb_s")
    caches = document["machine"]["caches"]
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
