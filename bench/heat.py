"""The picture of a large grid: how many times faster than the best peer, a box a point, red where that peer is ahead.

A row of panels for each pass and each (T, I) that has most of the plain points, a panel a cell, H down and B across;
and below them the variants. A box says the ratio and the initial of the best peer, and is framed where the ratio is
below 1. The scale is logarithmic, so that twice as fast and half as fast are equally far from white.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.document import Document
from bench.grid import MAIN_CELLS, Point
from bench.means import is_variant
from bench.report import Entry, geometric_mean, headline, median, others, ratio, sections

WIDTH, TOP, BAND, VARIANT_BAND, BOTTOM = 14.0, 0.95, 2.95, 4.0, 0.95  # inches
WIDEST = 2.0  # |log2 ratio| at the ends of the scale: four times
Key = tuple[Any, ...]


def suits(document: Document) -> bool:
    """Whether the grid has enough widths and batches of one shape for a map of them."""
    points = [p for entries in sections(document).values() for p, _ in entries if not is_variant(p)]
    return len({p.H for p in points}) > 3 and len({p.B for p in points}) > 3


def draw(document: Document, path: Path) -> None:
    """Writes the PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = sections(document)
    rows = [(passes, pair) for pair in _pairs(parts) for passes in parts]
    variants = [passes for passes, entries in parts.items() if any(is_variant(p) for p, _ in entries)]
    height = TOP + BAND * len(rows) + (VARIANT_BAND if variants else 0) + BOTTOM
    figure = pyplot.figure(figsize=(WIDTH, height))

    def axes(left: float, top: float, width: float, tall: float) -> Any:
        """Axes by inches from the left and from the top: no two can overlap, whatever their labels."""
        return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))

    images = []
    for i, (passes, (T, I)) in enumerate(rows):
        for j, cell in enumerate(MAIN_CELLS):
            entries = [e for e in parts[passes] if _is_plain(e[0], cell, T, I)]
            title = f"{cell}, {passes}, T = {T}, I = {I}"
            axis = axes(0.7 + 4.45 * j, TOP + BAND * i, 3.9, BAND - 0.75)
            images.append(_panel(axis, document, entries, title, *_by_size(entries)))
    for j, passes in enumerate(variants):
        entries = [e for e in parts[passes] if is_variant(e[0])]
        axis = axes(1.75 + 6.65 * j, TOP + BAND * len(rows), 4.85, VARIANT_BAND - 0.95)
        images.append(_panel(axis, document, entries, f"variants, {passes}", *_by_variant(entries)))
    drawn = [image for image in images if image is not None]
    if drawn:
        _scale(axes(3, height - BOTTOM + 0.15, WIDTH - 6, 0.2), document, drawn[0])
    m, settings = document["machine"], document["settings"]
    measured = f"{document['dtype']}, {settings['threads']} threads, {document['date']}"
    figure.suptitle(
        f"rnnkit on {m['cpu']}, {measured}: the best peer's time / rnnkit's", fontsize=14, y=1 - 0.15 / height, va="top"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _pairs(parts: dict[str, list[Entry]]) -> list[tuple[int, str]]:
    """(T, I) with I "H" or a number, of plain points at more than one width, in the grid's order."""
    widths: dict[tuple[int, str], set[int]] = {}
    for entries in parts.values():
        for p, _ in entries:
            if not is_variant(p):
                widths.setdefault((p.T, "H" if p.I == p.H else str(p.I)), set()).add(p.H)
    return [pair for pair, found in widths.items() if len(found) > 1]


def _is_plain(p: Point, cell: str, T: int, I: str) -> bool:
    return not is_variant(p) and (p.cell, p.T) == (cell, T) and str(p.H if I == "H" else I) == str(p.I)


def _by_size(entries: list[Entry]) -> tuple[list[Key], list[Key], Callable[[Point], tuple[Key, Key]]]:
    """The rows, the columns, and where a point stands."""
    rows = sorted({("H", p.H) for p, _ in entries})
    columns = sorted({("B", p.B) for p, _ in entries})
    return rows, columns, lambda p: (("H", p.H), ("B", p.B))


def _by_variant(entries: list[Entry]) -> tuple[list[Key], list[Key], Callable[[Point], tuple[Key, Key]]]:
    def kind(p: Point) -> Key:
        return p.cell, " ".join("projection" if extra[0] == "P" else extra for extra in p.extras)

    rows = sorted({kind(p) for p, _ in entries})
    columns = sorted({("B", p.B, "H", p.H) for p, _ in entries}, key=lambda k: (k[3], k[1]))
    return rows, columns, lambda p: (kind(p), ("B", p.B, "H", p.H))


def _panel(
    axis: Any,
    document: Document,
    entries: list[Entry],
    title: str,
    rows: list[Key],
    columns: list[Key],
    place: Callable[[Point], tuple[Key, Key]],
) -> Any:
    """One map; its image, or None where nothing of it was measured."""
    import numpy as np

    ours, peers = headline(document), others(document)
    grid = np.full((len(rows), len(columns)), np.nan)
    found = {}
    for point, results in entries:
        r = ratio(results, ours, peers)
        if r is not None:
            row, column = place(point)
            at = rows.index(row), columns.index(column)
            best = min((ms, name) for name in peers if (ms := median(results, name)) is not None)[1]
            grid[at], found[at] = math.log2(r), (r, best)
    if not found:
        axis.set_axis_off()
        return None
    image = axis.imshow(np.clip(grid, -WIDEST, WIDEST), cmap="RdBu", vmin=-WIDEST, vmax=WIDEST, aspect="auto")
    axis.set_facecolor("#e8e8e8")
    for (y, x), (r, best) in found.items():
        _box(axis, x, y, r, best)
    axis.set_xticks(range(len(columns)), [_label(c) for c in columns], fontsize=8)
    axis.set_yticks(range(len(rows)), [_label(r) for r in rows], fontsize=8)
    axis.tick_params(length=0)
    mean, behind = geometric_mean([r for r, _ in found.values()]), sum(r < 1 for r, _ in found.values())
    axis.set_title(f"{title}\ngeometric mean {mean:.2f}, behind at {behind} of {len(found)}", fontsize=9)
    return image


def _box(axis: Any, x: int, y: int, r: float, best: str) -> None:
    from matplotlib.patches import Rectangle

    colour = "white" if abs(math.log2(r)) > 0.7 * WIDEST else "black"
    text = f"{r:.2f}" if r < 9.95 else f"{r:.0f}"
    axis.text(x, y, f"{text} {best[0]}", ha="center", va="center", fontsize=8, color=colour)
    if r < 1:
        axis.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=1.8))


def _label(key: Key) -> str:
    """("B", 1, "H", 100) as B 1 / H 100, a cell and its features as they are."""
    if key[0] not in ("B", "H"):
        return " ".join(filter(None, key))
    return "\n".join(f"{key[i]} {key[i + 1]}" for i in range(0, len(key), 2))


def _scale(axis: Any, document: Document, image: Any) -> None:
    bar = axis.figure.colorbar(image, cax=axis, orientation="horizontal", extend="both")
    ticks = [-2, -1, 0, 1, 2]
    bar.set_ticks(ticks, labels=[f"{2.0**t:g}" for t in ticks])
    initials = ", ".join(f"{name[0]} {name}" for name in others(document))
    bar.set_label(f"above 1 rnnkit is faster; framed: the best peer is. The best peer: {initials}. Grey: not measured")
