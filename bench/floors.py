"""What a step of schedule D must move and compute, and the time that takes at least: `python -m bench.floors`.

A step is one cuBLAS product, h W_hh^T, and one pointwise launch. Bytes are counted once for each array a launch reads
or writes; the weights come from the L2 cache where they fit, everything else as from memory, though what one launch
writes the next mostly finds in L2. Rates are the vendors' figures for dense products.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES


class Card(NamedTuple):
    """Rates of a card: memory and L2 in bytes a second, L2 in bytes, products in FLOP a second by name of DTYPES."""

    name: str
    memory: float
    l2_rate: float
    l2_bytes: float
    products: dict[str, float]


def _rates(float64: float, float32: float, tf32: float, half: float) -> dict[str, float]:
    rates = {"float64": float64, "float32": float32, "tf32": tf32, "float16": half, "bfloat16": half}
    return {name: rate * 1e12 for name, rate in rates.items()}


CARDS = (
    Card("H200", 4.8e12, 5.5e12, 50e6, _rates(67, 67, 495, 989)),
    Card("H100", 3.35e12, 5.5e12, 50e6, _rates(67, 67, 495, 989)),
    Card("A100", 2.04e12, 4.5e12, 40e6, _rates(19.5, 19.5, 156, 312)),
    Card("RTX 4090", 1.01e12, 4.5e12, 72e6, _rates(1.3, 82.6, 82.6, 165)),
)

# What is assumed of a launch, until a card has measured it (bench/gpu): a dependent node of a graph starts this long
# after the one before it, and a small product or pointwise launch takes so long from start to end.
NODE_S, PRODUCT_S, POINTWISE_S = 1.0e-6, 3.0e-6, 2.0e-6


class Step(NamedTuple):
    """Of one step: FLOP and bytes of the product's weights and of its rows, and bytes of the pointwise launch."""

    flop: float
    weight_bytes: float
    row_bytes: float
    pointwise_bytes: float


def step_of(cell: str, dtype: str, B: int, H: int, backward: bool, keep: bool = True) -> Step:
    """Counts of schedule D for a cell of one product a step, without projection."""
    G, two = CELLS[cell].n_gates, len(CELLS[cell].states) == 2
    s, c = DTYPES[dtype].storage.itemsize, DTYPES[dtype].compute.itemsize
    split, unit = cell == "gru", B * H
    weights = G * H * H * s
    if not backward:
        rows = unit * s + G * unit * c
        point = 2 * G * unit * c + 2 * two * unit * c + (2 + (split or keep)) * unit * s
        kept = (CELLS[cell].n_saved * s + s + two * c) * unit if keep else 0
        return Step(2.0 * unit * G * H, weights, rows, point + kept)
    rows = G * unit * s + (2 if split else 1) * unit * c
    reads = (CELLS[cell].n_saved * s + two * c + split * s + s) * unit + (1 + two) * unit * c
    writes = G * (2 if split else 1) * unit * s + (two + split) * unit * c
    return Step(2.0 * unit * G * H, weights, rows, reads + writes)


def floor_of(card: Card, dtype: str, step: Step) -> float:
    """Seconds: each of the two launches at the slower of its FLOP and its bytes, and nothing between them."""
    in_l2 = step.weight_bytes < 0.8 * card.l2_bytes
    weights = step.weight_bytes / (card.l2_rate if in_l2 else card.memory)
    product = max(step.flop / card.products[dtype], weights + step.row_bytes / card.memory)
    return product + step.pointwise_bytes / card.memory


def predicted(card: Card, dtype: str, step: Step) -> float:
    """Seconds: as `floor_of`, but a launch takes no less than a small one does, and starts a node after the other."""
    empty = step._replace(pointwise_bytes=0)
    product = max(PRODUCT_S, floor_of(card, dtype, empty))
    pointwise = max(POINTWISE_S, step.pointwise_bytes / card.memory)
    return product + pointwise + 2 * NODE_S


def table(cell: str = "lstm", B: int = 32) -> str:
    """Markdown: bytes, operations, floor / prediction in microseconds, forward, backward; by size, dtype and card."""
    header = ["H", "dtype", "MFLOP", "W_hh KiB", "rows KiB", "pointwise KiB", *(card.name for card in CARDS)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for H in (128, 512, 1024, 2048):
        for dtype in ("float32", "tf32", "float16"):
            ways = [step_of(cell, dtype, B, H, backward) for backward in (False, True)]
            f, b = ways
            counts = [f"{f.flop / 1e6:.0f}", f"{f.weight_bytes / 1024:.0f}"]
            counts += [
                f"{getattr(f, n) / 1024:.0f}, {getattr(b, n) / 1024:.0f}" for n in ("row_bytes", "pointwise_bytes")
            ]
            times = [
                ", ".join(f"{floor_of(card, dtype, w) * 1e6:.1f} / {predicted(card, dtype, w) * 1e6:.1f}" for w in ways)
                for card in CARDS
            ]
            lines.append("| " + " | ".join([str(H), dtype, *counts, *times]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
