"""Predicts what a call of the stepwise CUDA schedule takes: its launches, a lower bound of its time, and its time.

`lower_bound`: the operations of a call at the measured product rate, or each input and output moved once at the
measured copy bandwidth, whichever takes longer. No schedule is faster. `predicted`: the lower bounds of all steps by
`bench.gpu.step_model`, and no less than their launches take in a graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.gpu import step_model
from bench.gpu.step_model import Card
from bench.grid import Point
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES


class Rates(NamedTuple):
    """Measured rates: the card, and the seconds per launch inside a graph."""

    card: Card
    node: float


def rates(name: str, l2_bytes: float, ceilings: list[dict[str, Any]]) -> Rates | None:
    """From the items of `bench.gpu.hardware_ceilings`; None where the bandwidth or the launches are missing."""
    ok = {item["item"]: item for item in ceilings if item["status"] == "ok"}
    copies = [item["gb_per_s"] * 1e9 for key, item in ok.items() if key.startswith("copy ")]
    products = {
        key.split()[1]: item["tflops"] * 1e12
        for key, item in ok.items()
        if key.startswith("product ") and " TN " in key
    }
    if not copies or "launches" not in ok:
        return None
    # The last copy is the largest and exceeds the L2 cache; the first fits it.
    card = Card(name, copies[-1], max(copies), l2_bytes, products)
    return Rates(card, ok["launches"]["count_up"]["graph_us"] * 1e-6)


def lower_bound(point: Point, backward: bool, measured: Rates) -> float | None:
    """Seconds that a call takes at least, with any schedule; None where its dtype's rate was not measured."""
    rate = measured.card.products.get(point.dtype)
    if rate is None or point.layers > 1 or point.ragged or point.bidirectional:
        return None
    size = DTYPES[point.dtype].storage.itemsize
    GH = CELLS[point.cell].n_gates * point.H
    weights = GH * (point.I + point.H) * size
    rows = point.T * point.B * (point.I + point.H) * size
    # With a backward x, dy and the weights are read, y, dx and the weights' gradients written.
    moved = (weights + rows) * (2 if backward else 1)
    return max(moved / measured.card.memory, point.flop() * (3 if backward else 1) / rate)


def predicted(point: Point, backward: bool, measured: Rates) -> float | None:
    """Seconds that the stepwise schedule is predicted to take; None as `lower_bound`."""
    least = lower_bound(point, backward, measured)
    if least is None:
        return None
    card = measured.card
    GH = CELLS[point.cell].n_gates * point.H
    outside = point.T * point.B * 2 * point.I * GH / card.products[point.dtype]  # x W_ih^T
    total = outside
    for way in (False, True) if backward else (False,):
        step = step_model.step_counts(point.cell, point.dtype, point.B, point.H, way, keep=backward)
        total += point.T * max(step_model.lower_bound(card, point.dtype, step), 2 * measured.node)
    # dW_ih, dW_hh and dx are a product as large each.
    return total + (3 * outside if backward else 0.0)


def launches(point: Point, backward: bool) -> dict[str, int]:
    """rnnkit's kernels and cuBLAS products in a call: one layer of a main cell, one direction, equal lengths, biases.

    backward: of a forward that keeps, and its backward.
    """
    from rnnkit.backends.cupy.problem import Problem
    from rnnkit.backends.cupy.stepwise_buffers import k_major
    from rnnkit.backends.ragged import packing

    cell = CELLS[point.cell]
    row = DTYPES[point.dtype]
    T = point.T
    B = point.B
    I = point.I
    H = point.H
    p = Problem(cell, row, T, B, I, H, H, False, False, packing(T, B, None))
    chunks = len(list(p.chunks()))
    spans = sum(len(chunk.spans()) for chunk in p.chunks())
    kernels = 2 + spans + T
    products = chunks + T
    if backward:
        sides = 2 if cell.splits_sides else 1
        backward_chunks = list(p.chunks(backward=True))
        kernels += 2 + spans + len(backward_chunks) * 2 * sides + T + k_major(p)
        products += T + len(backward_chunks)  # dx
        # Sizes of dW_ih and of dW_hh, which has one product per entry of `products`.
        for size in (p.GH * I, *(p.GH * H for _ in cell.products)):
            for chunk in backward_chunks:
                at_once = chunk.N if p.sums_in_place else p.slices_at_once(size) * p.slice_rows
                batches = [min(at_once, chunk.N - n) for n in range(0, chunk.N, at_once)]
                products += sum(_products_of_slices(steps, p.slice_rows) for steps in batches)
                kernels += 0 if p.sums_in_place else len(batches)  # each adds up its slices
    return {"kernels": kernels, "products": products, "chunks": chunks}


def _products_of_slices(steps: int, slice_rows: int) -> int:
    """A batched product of equal slices, and one more where the last slice is shorter; see Products.over_slices."""
    each = -(-steps // -(-steps // slice_rows))
    return 1 + (steps % each > 0)
