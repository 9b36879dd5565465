"""The picture of a run: torch's time to ours by dtype and pass, and our share of the floor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.gpu import report

COLOURS = {"float32": "#1b1b1b", "tf32": "#2e86ab", "float16": "#d1495b", "bfloat16": "#4f9d69"}
MARKERS = {"rnn_tanh": "o", "gru": "^", "lstm": "s"}
SHAPES = {"o": "circle", "^": "triangle", "s": "square"}


def draw(document: dict[str, Any], path: Path) -> None:
    """Writes the PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report.rows(document)
    figure, axes = pyplot.subplots(2, 2, figsize=(14, 9), squeeze=False)
    for (above, below), passes in zip(axes.T, ("forward", "forward+backward"), strict=True):
        chosen = [row for row in rows if row.passes == passes]
        above.set_title(passes)
        _scatter(above, [(row, row.ratio) for row in chosen], "torch's time / ours (above 1: ahead)")
        above.axhline(1, color="black", linewidth=0.8)
        _scatter(below, [(row, row.floor_share) for row in chosen], "floor / our time")
    card = report.card_name(document)
    cells = ", ".join(f"{cell} {SHAPES[marker]}" for cell, marker in MARKERS.items())
    figure.suptitle(f"rnnkit on {card}, {document['date']}; {cells}", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _scatter(axis: Any, values: list[tuple[report.Row, float | None]], label: str) -> None:
    """A point a row, by the work of a step: how many operations a step of the whole batch has."""
    for dtype, colour in COLOURS.items():
        for cell, marker in MARKERS.items():
            chosen = [(row.step_flop, v) for row, v in values if (row.dtype, row.cell) == (dtype, cell) and v]
            if chosen:
                name = dtype if cell == "lstm" else None
                axis.scatter(*zip(*chosen, strict=True), s=16, color=colour, marker=marker, label=name, alpha=0.8)
    if axis.collections:
        axis.set_xscale("log")
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    axis.set_xlabel("operations a step")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)


def main(arguments: list[str] | None = None) -> int:
    source, target = sys.argv[1:3] if arguments is None else arguments[:2]
    draw(json.loads(Path(source).read_text(encoding="utf-8")), Path(target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
