"""The plot of a run: torch's time to rnnkit's, and the lower bound to rnnkit's time, per pass.

python -m bench.gpu.plot gpu.json gpu.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import png
from bench.gpu import report
from bench.gpu.report import Row
from bench.grid import PASSES

COLOURS = {"float32": "#1b1b1b", "tf32": "#2e86ab", "float16": "#d1495b", "bfloat16": "#4f9d69"}
MARKERS = {"rnn_tanh": "o", "gru": "^", "lstm": "s"}
SHAPES = {"o": "circle", "^": "triangle", "s": "square"}
# The label of each row of panels, and the value of a point in it.
VALUES: dict[str, Callable[[Row], float | None]] = {
    "torch's time / rnnkit's\n(above 1 rnnkit is faster)": lambda row: row.ratio,
    "lower bound / rnnkit's time": lambda row: row.lower_bound_share,
}


def figure(document: dict[str, Any]) -> Any:
    """A column per pass and a row per entry of VALUES, without those that have no value. None where nothing has one."""
    rows = report.rows(document)
    panels = {
        (label, passes): [row for row in rows if row.passes == passes and value(row) is not None]
        for label, value in VALUES.items()
        for passes in PASSES
    }
    labels = [label for label in VALUES if any(panels[label, passes] for passes in PASSES)]
    columns = [passes for passes in PASSES if any(panels[label, passes] for label in labels)]
    if not columns:
        return None
    size = (7.0 * len(columns), 0.6 + 4.2 * len(labels))
    fig, axes = png.pyplot().subplots(len(labels), len(columns), figsize=size, squeeze=False, layout="constrained")
    for across, label in zip(axes, labels, strict=True):
        for axis, passes in zip(across, columns, strict=True):
            if panels[label, passes]:
                _draw_panel(axis, panels[label, passes], label)
                axis.set_title(passes, pad=22)
            else:
                axis.remove()
    cells = ", ".join(f"{cell} {SHAPES[marker]}" for cell, marker in MARKERS.items())
    fig.suptitle(f"rnnkit on {report.card_name(document)}, {document['date']}; {cells}", fontsize=11)
    return fig


def _draw_panel(axis: Any, rows: list[Row], label: str) -> None:
    """A marker per row, by the work of one step: the operations of the whole batch in it."""
    for dtype, colour in COLOURS.items():
        named = dtype
        for cell, marker in MARKERS.items():
            points = [(row.step_flop, VALUES[label](row)) for row in rows if (row.dtype, row.cell) == (dtype, cell)]
            if points:
                axis.scatter(*zip(*points, strict=True), s=16, color=colour, marker=marker, label=named, alpha=0.8)
                named = "_nolegend_"
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axis.set_xlabel("operations per step")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    # Above the axes, where no point can be under it.
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    axis.legend(fontsize=8, ncols=len(COLOURS), handletextpad=0.1, columnspacing=1.0, **above)


def main(arguments: list[str] | None = None) -> int:
    source, target = sys.argv[1:3] if arguments is None else arguments[:2]
    fig = figure(json.loads(Path(source).read_text(encoding="utf-8")))
    if fig is None:
        print("no point was timed")
        return 1
    png.save(fig, Path(target), dpi=100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
