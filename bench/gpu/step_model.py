"""The bytes and operations of one step of the stepwise CUDA schedule, and its time: python -m bench.gpu.step_model.

A step is one cuBLAS product, h W_hh^T, and one pointwise launch. Each array that a launch reads or writes counts once.
The weights are read from the L2 cache where they fit, and everything else from memory, although much of what one launch
writes is still in L2 for the next. Rates are the vendors' figures for dense products.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES


class Card(NamedTuple):
    """A card: bytes per second of memory and L2, bytes of L2, and FLOP per second of products by dtype."""

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

# Assumed seconds, which bench.gpu.hardware_ceilings measures on a card: between two dependent nodes of a graph, of a
# small product and of a small pointwise launch.
NODE_S = 1.0e-6
PRODUCT_S = 3.0e-6
POINTWISE_S = 2.0e-6


class Step(NamedTuple):
    """One step: FLOP of the product, bytes of its weights and of its rows, and bytes of the pointwise launch."""

    flop: float
    weight_bytes: float
    row_bytes: float
    pointwise_bytes: float


def step_counts(cell: str, dtype: str, B: int, H: int, backward: bool, keep: bool = True) -> Step:
    """The counts of a cell with one product per step, without projection."""
    G = CELLS[cell].n_gates
    others = CELLS[cell].n_cell_states
    s = DTYPES[dtype].storage.itemsize
    c = DTYPES[dtype].compute.itemsize
    split = cell == "gru"
    unit = B * H
    weights = G * H * H * s
    if not backward:
        rows = unit * s + G * unit * c
        point = 2 * G * unit * c + 2 * others * unit * c + (2 + (split or keep)) * unit * s
        kept = (CELLS[cell].n_saved * s + s + others * c) * unit if keep else 0
        return Step(2.0 * unit * G * H, weights, rows, point + kept)
    rows = G * unit * s + (2 if split else 1) * unit * c
    reads = (CELLS[cell].n_saved * s + others * c + split * s + s) * unit + (1 + others) * unit * c
    writes = G * (2 if split else 1) * unit * s + (others + split) * unit * c
    return Step(2.0 * unit * G * H, weights, rows, reads + writes)


def lower_bound(card: Card, dtype: str, step: Step) -> float:
    """Seconds: each of the two launches at the slower of its FLOP and its bytes, with no time between them."""
    in_l2 = step.weight_bytes < 0.8 * card.l2_bytes
    weights = step.weight_bytes / (card.l2_rate if in_l2 else card.memory)
    product = max(step.flop / card.products[dtype], weights + step.row_bytes / card.memory)
    return product + step.pointwise_bytes / card.memory


def predicted(card: Card, dtype: str, step: Step) -> float:
    """Seconds: as `lower_bound`, with the least duration of a launch and the time between two launches."""
    empty = step._replace(pointwise_bytes=0)
    product = max(PRODUCT_S, lower_bound(card, dtype, empty))
    pointwise = max(POINTWISE_S, step.pointwise_bytes / card.memory)
    return product + pointwise + 2 * NODE_S


def table(cell: str = "lstm", B: int = 32) -> str:
    """Markdown by size, dtype and card: bytes, operations, lower bound / prediction in microseconds."""
    header = ["H", "dtype", "MFLOP", "W_hh KiB", "rows KiB", "pointwise KiB", *(card.name for card in CARDS)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for H in (128, 512, 1024, 2048):
        for dtype in ("float32", "tf32", "float16"):
            ways = [step_counts(cell, dtype, B, H, backward) for backward in (False, True)]
            f, b = ways
            counts = [f"{f.flop / 1e6:.0f}", f"{f.weight_bytes / 1024:.0f}"]
            counts += [
                f"{getattr(f, n) / 1024:.0f}, {getattr(b, n) / 1024:.0f}" for n in ("row_bytes", "pointwise_bytes")
            ]
            times = [
                ", ".join(
                    f"{1e6 * lower_bound(card, dtype, w):.1f} / {1e6 * predicted(card, dtype, w):.1f}" for w in ways
                )
                for card in CARDS
            ]
            lines.append("| " + " | ".join([str(H), dtype, *counts, *times]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
