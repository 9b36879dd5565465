"""What a call of schedule D takes by count: its launches, and from the measured ceilings its floor and its prediction.

`floor`: the operations of a call at the matrix rate, or each of its inputs and outputs moved once at the copy
bandwidth, whichever takes longer; no schedule is faster. `stepwise`: what `bench.floors` counts for every step, and no
less than its launches in a graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.floors import Card, floor_of, step_of
from bench.grid import Point
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES


class Rates(NamedTuple):
    """What was measured: the card by `bench.floors`, and seconds a launch inside a graph."""

    card: Card
    node: float


def rates(name: str, l2_bytes: float, ceilings: list[dict[str, Any]]) -> Rates | None:
    """From the items of `bench.gpu.ceilings`; None where bandwidth or a node's time is missing."""
    ok = {item["item"]: item for item in ceilings if item["status"] == "ok"}
    copies = [item["gb_per_s"] * 1e9 for key, item in ok.items() if key.startswith("copy ")]
    products = {
        key.split()[1]: item["tflops"] * 1e12
        for key, item in ok.items()
        if key.startswith("product ") and " TN " in key
    }
    if not copies or "launches" not in ok:
        return None
    # The last copy is the largest, out of memory; the first lies in the L2 cache.
    card = Card(name, copies[-1], max(copies), l2_bytes, products)
    return Rates(card, ok["launches"]["count_up"]["graph_us"] * 1e-6)


def floor(point: Point, backward: bool, measured: Rates) -> float | None:
    """Seconds below which no way of doing the call can go; None where its dtype's rate was not measured."""
    rate = measured.card.products.get(point.dtype)
    if rate is None or point.layers > 1 or point.ragged or point.bidirectional:
        return None
    size, GH = DTYPES[point.dtype].storage.itemsize, CELLS[point.cell].n_gates * point.H
    weights = GH * (point.I + point.H) * size
    rows = point.T * point.B * (point.I + point.H) * size
    # With a backward x, dy and the weights are read, y, dx and the weights' gradients written.
    moved = (weights + rows) * (2 if backward else 1)
    return max(moved / measured.card.memory, point.flop() * (3 if backward else 1) / rate)


def stepwise(point: Point, backward: bool, measured: Rates) -> float | None:
    """Seconds that schedule D is predicted to take; None as `floor`."""
    least = floor(point, backward, measured)
    if least is None:
        return None
    card, GH = measured.card, CELLS[point.cell].n_gates * point.H
    outside = point.T * point.B * 2 * point.I * GH / card.products[point.dtype]  # x W_ih^T
    total = outside
    for way in (False, True) if backward else (False,):
        step = step_of(point.cell, point.dtype, point.B, point.H, way, keep=backward)
        total += point.T * max(floor_of(card, point.dtype, step), 2 * measured.node)
    # dW_ih, dW_hh and dx are a product as large each.
    return total + (3 * outside if backward else 0.0)


def launches(point: Point, backward: bool) -> dict[str, int]:
    """Kernels of ours and products in a call: one layer and direction, whole rows, biases.

    backward: of a forward that keeps, and its backward.
    """
    from rnnkit.backends.cupy.problem import Problem
    from rnnkit.backends.ragged import packing

    cell, row, T, B, I, H = CELLS[point.cell], DTYPES[point.dtype], point.T, point.B, point.I, point.H
    p = Problem(cell, row, T, B, I, H, H, False, False, packing(T, B, None))
    chunks = len(list(p.chunks()))
    kernels, products = 2 + chunks + T, chunks + T
    if backward:
        sides = 2 if point.cell == "gru" else 1
        kernels += 2 + chunks * (1 + 2 * sides) + T
        # Sums rounded to the storage dtype: two weights', the biases'.
        kernels += 0 if p.storage_bytes == p.compute_bytes else 2 + sides
        products += T + chunks * (2 + len(cell.products))
    return {"kernels": kernels, "products": products, "chunks": chunks}
