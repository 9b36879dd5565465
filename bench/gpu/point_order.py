"""The points of the throughput grid, in the order in which they are measured.

One run has time for a small part of the grid. The order makes every beginning of it cover the grid evenly. The next
point is the one whose pairs of levels (this cell with this H, this H with this dtype, ...) were measured least often,
and the cheapest of those. Points of a special kind are spread among the plain ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from bench.grid import FORWARD, MAIN_CELLS, Point
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES

SIZES = (64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 8, 32, 128, 512)
LENGTHS = (64, 256, 1024)
NAMES = ("float32", "tf32", "float16", "bfloat16")

# A special point follows after this many plain ones.
SPECIAL_EVERY = 6
# The weight of a tenfold cost, beside the newness of a point's pairs, which is at most 1.
COST_WEIGHT = 0.1

# Rates of a slow card, for estimates: FLOP/s by dtype, seconds per step. Only the order and `needs` use them.
GUESSED_FLOPS = {"float64": 20e12, "float32": 20e12, "tf32": 100e12, "float16": 200e12, "bfloat16": 200e12}
GUESSED_STEP = 15e-6


def guessed_seconds(point: Point) -> float:
    """An estimate of the seconds of a forward and backward on a large card."""
    steps = point.T * point.layers * point.directions
    return 3 * (point.flop() / GUESSED_FLOPS[point.dtype] + steps * GUESSED_STEP)


def guessed_bytes(point: Point) -> float:
    """An estimate of the memory of rnnkit and torch together over a forward and backward."""
    G = CELLS[point.cell].n_gates
    size = DTYPES[point.dtype].storage.itemsize
    a_step = 3 * point.I + (3 * G + 8) * point.H
    weights = 4 * G * point.H * (point.I + point.H)
    return 2.0 * size * (point.T * point.B * a_step * point.directions + weights) * point.layers


def plain() -> list[Point]:
    """The grid of one layer: I = H."""
    levels = itertools.product(MAIN_CELLS, SIZES, BATCHES, LENGTHS, NAMES)
    return [Point(cell, T, B, H, H, dtype, FORWARD) for cell, H, B, T, dtype in levels]


def special() -> list[Point]:
    """Two bidirectional layers, and ragged batches, at common sizes."""
    found = []
    for dtype, cell in itertools.product(NAMES, MAIN_CELLS):
        found.append(Point(cell, 256, 32, 512, 512, dtype, ragged=True))
        found.append(Point(cell, 256, 32, 256, 256, dtype, layers=2, bidirectional=True))
    # An early one of every dtype and of every cell.
    return sorted(found, key=lambda p: (NAMES.index(p.dtype) + MAIN_CELLS.index(p.cell)) % len(NAMES))


def ordered() -> Iterator[Point]:
    """Every point once, in the order of measuring."""
    others = iter(special())
    for i, point in enumerate(cover(plain())):
        if i % SPECIAL_EVERY == SPECIAL_EVERY // 2:
            yield from itertools.islice(others, 1)
        yield point
    yield from others


def cover(points: list[Point]) -> Iterator[Point]:
    """Orders `points` so that any first part covers the pairs of levels evenly. Ties go to the cheapest point."""
    fields = ("cell", "H", "B", "T", "dtype")
    columns = []
    for field in fields:
        values = [getattr(point, field) for point in points]
        levels = list(dict.fromkeys(values))
        columns.append(np.array([levels.index(value) for value in values]))
    pairs = [a * (b.max() + 1) + b for a, b in itertools.combinations(columns, 2)]
    seen = [np.zeros(pair.max() + 1) for pair in pairs]
    cost = COST_WEIGHT * np.log10([guessed_seconds(point) for point in points])
    left = np.ones(len(points), bool)
    for _ in points:
        newness = sum(1 / (1 + counts[pair]) for pair, counts in zip(pairs, seen, strict=True)) / len(pairs)
        best = int(np.argmax(np.where(left, newness - cost, -np.inf)))
        left[best] = False
        for pair, counts in zip(pairs, seen, strict=True):
            counts[pair[best]] += 1
        yield points[best]
