"""Draws docs/img/architecture.svg: python docs/figures.py (`make docs` runs it)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).resolve().parent

# Colours of the layers, top to bottom.
LAYER, PURE, BACKEND, KERNEL, CORE = "#dbe5f7", "#e2f0dc", "#fbe9cf", "#f6d7d3", "#ececec"
LINE = "#404040"


class Box(NamedTuple):
    """A rectangle with a title in bold and lines below it. x, y: its lower left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str
    lines: tuple[str, ...]


# Left edges and centres of the four columns of backends.
COLUMNS = (0.0, 2.9, 5.8, 8.7)
WIDTH, WHOLE = 2.7, 11.4
CENTRES = tuple(x + WIDTH / 2 for x in COLUMNS)

BOXES = (
    Box(0, 9.3, WHOLE, 1.2, LAYER, "rnnkit/nn", ("RNN, GRU, LSTM, Cells: hold parameters, check arguments",)),
    Box(0, 7.1, WHOLE, 1.2, PURE, "rnnkit/functional", ("stack: layers and directions; direction: one of them",)),
    Box(COLUMNS[0], 4.4, WIDTH, 1.6, BACKEND, "backends/numba", ("plans, allocates,", "launches")),
    Box(COLUMNS[1], 4.4, WIDTH, 1.6, BACKEND, "backends/cupy", ("schedule, cuBLAS,", "CUDA graphs")),
    Box(COLUMNS[2], 4.4, WIDTH, 1.6, BACKEND, "backends/numba_cuda", ("one launch per", "sequence")),
    Box(COLUMNS[3], 4.4, WIDTH, 1.6, BACKEND, "backends/numpy", ("the oracle,", "step by step")),
    Box(COLUMNS[0], 1.9, WIDTH, 1.6, KERNEL, "kernels/cpu", ("register tiles,", "scans, threads")),
    Box(COLUMNS[1], 1.9, WIDTH, 1.6, KERNEL, "kernels/cuda", ("CUDA C++,", "compiled by NVRTC")),
    Box(COLUMNS[2], 1.9, WIDTH, 1.6, KERNEL, "kernels/numba_cuda", ("the scans", "in Numba CUDA")),
    Box(COLUMNS[3], 1.9, WIDTH, 1.6, CORE, "core/cells.py", ("the definition", "of each cell")),
    Box(
        0,
        0,
        8.5,
        1.2,
        KERNEL,
        "kernels/cells",
        ("the pointwise step of each cell, forward and backward: .py and .cuh",),
    ),
    Box(11.9, 0, 2.3, 10.5, CORE, "rnnkit/core", ("cells", "dtypes", "checks", "devices", "thread pool", "grad mode")),
)

# From (x, y) to (x, y).
ARROWS = (
    ((WHOLE / 2, 9.3), (WHOLE / 2, 8.3)),
    *(((centre, 7.1), (centre, 6.0)) for centre in CENTRES),
    *(((centre, 4.4), (centre, 3.5)) for centre in CENTRES),
    *(((centre, 1.9), (centre, 1.2)) for centre in CENTRES[:3]),
)

# x, y and text.
NOTES = (
    (WHOLE / 2 + 0.15, 8.8, "x, states, lengths: checked, (T, B, ·)"),
    (0.05, 6.62, "backends/registry.py chooses: the array decides the device"),
)


def draw_box(axes: Axes, box: Box) -> None:
    outline = FancyBboxPatch(
        (box.x, box.y), box.width, box.height, "round,pad=0,rounding_size=0.12", facecolor=box.colour, edgecolor=LINE
    )
    axes.add_patch(outline)
    middle = box.x + box.width / 2
    top = box.y + box.height - 0.42
    axes.text(middle, top, box.title, ha="center", va="center", weight="bold", size=7.6)
    for k, line in enumerate(box.lines):
        axes.text(middle, top - 0.5 - 0.42 * k, line, ha="center", va="center", size=9)


def architecture(path: Path) -> None:
    """The path of a call, top to bottom."""
    figure, axes = plt.subplots(figsize=(9.6, 7.2))
    for box in BOXES:
        draw_box(axes, box)
    for start, end in ARROWS:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 1.3})
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    for x, y, text in NOTES:
        axes.text(x, y, text, va="center", size=8.5, bbox=white)
    axes.text(13.05, 5.4, "imported by\nnn, functional\nand backends", ha="center", va="center", size=9)
    axes.set_xlim(-0.1, 14.3)
    axes.set_ylim(-0.1, 10.6)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "rnnkit"  # so that the same drawing is the same file
    architecture(HERE / "img" / "architecture.svg")
