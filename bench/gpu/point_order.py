"""Which points of the grid are measured, and in what order.

The whole grid is far more than one run has time for. So the order is such that however far the run comes, what it has
done covers the grid evenly: every next point is the one whose pairs of levels (this cell with this H, this H with this
dtype, ...) have been seen least, and of those the cheaper. Points of a special kind are spread among the plain ones.
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

# After how many plain points a special one follows.
SPECIAL_EVERY = 6
# How much a tenfold cost weighs beside the newness of a point's pairs, which is at most 1.
COST_WEIGHT = 0.1

# Deliberately slowish: products a second by dtype, and seconds a step of a direction. Only order and `needs` use them.
GUESSED_FLOPS = {"float64": 20e12, "float32": 20e12, "tf32": 100e12, "float16": 200e12, "bfloat16": 200e12}
GUESSED_STEP = 15e-6


def guessed_seconds(point: Point) -> float:
    """Roughly what one forward and backward of a point cost on a large card."""
    steps = point.T * point.layers * point.directions
    return 3 * (point.flop() / GUESSED_FLOPS[point.dtype] + steps * GUESSED_STEP)


def guessed_bytes(point: Point) -> float:
    """Roughly what both sides hold at once over a forward and backward."""
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
    """Two layers in both directions, and ragged rows, at sizes people have."""
    found = []
    for dtype, cell in itertools.product(NAMES, MAIN_CELLS):
        found.append(Point(cell, 256, 32, 512, 512, dtype, ragged=True))
        found.append(Point(cell, 256, 32, 256, 256, dtype, layers=2, bidirectional=True))
    # Of every dtype one early, of every cell too.
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
    """`points` such that every beginning of the order covers pairs of levels evenly, cheap ones first among equals."""
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
