"""The heat map of a large grid: how many times faster rnnkit is than the best peer, a box per point.

Each pass and each (T, I) that most plain points have gives a panel per cell, with H down and B across. The variants
follow below. A box shows the ratio and the best peer's initial. It is red and framed where that peer is faster. The
colour scale is logarithmic, so twice as fast and half as fast are equally far from white. A panel without any ratio is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from bench import png
from bench.grid import MAIN_CELLS, Point
from bench.grid_summary import is_variant
from bench.report import Entry, geometric_mean, headline, median, others, ratio, sections
from bench.result_file import Document

# Inches: a panel with its labels, the labels left of it and above it, and the margins of the figure.
PANEL_WIDTH = 4.45
PANEL_HEIGHT = 2.95
LEFT = 0.7
BELOW = 0.75
VARIANT_WIDTH = 6.65
VARIANT_ROW = 0.34  # the height of a row of boxes
VARIANT_LEFT = 1.85
TOP = 0.95
BOTTOM = 1.15
LEAST_WIDTH = 8.0
COLOURS = 40  # of the scale; the fewer, the smaller the file
WIDEST = 2.0  # |log2 ratio| at the ends of the scale: a factor of four
Key = tuple[Any, ...]
Axes = Callable[[float, float, float, float], Any]


class Panel(NamedTuple):
    """One map. ratios: (row, column) -> (the best peer's time over ours, that peer)."""

    title: str
    rows: list[Key]
    columns: list[Key]
    ratios: dict[tuple[Key, Key], tuple[float, str]]


def suits(document: Document) -> bool:
    """Whether a map shows the grid: it has enough widths and batches of one shape, and a peer to compare with."""
    plain = [(p, r) for entries in sections(document).values() for p, r in entries if not is_variant(p)]
    points = [p for p, results in plain if ratio(results, headline(document), others(document)) is not None]
    return len({p.H for p in points}) > 3 and len({p.B for p in points}) > 3


def figure(document: Document) -> Any:
    """The figure. Panels are placed in inches, so no two overlap whatever their labels."""
    panels, across = _plain_panels(document)
    variants = _variant_panels(document)
    lines = -(-len(panels) // across)
    width = max(LEAST_WIDTH, PANEL_WIDTH * across + 0.65, VARIANT_WIDTH * len(variants) + 0.65)
    variant_height = VARIANT_ROW * max((len(panel.rows) for panel in variants), default=0)
    height = TOP + PANEL_HEIGHT * lines + (variant_height + BELOW if variants else 0) + BOTTOM
    fig = png.pyplot().figure(figsize=(width, height))

    def axes(left: float, top: float, wide: float, tall: float) -> Any:
        """Axes by inches from the left and from the top."""
        return fig.add_axes((left / width, 1 - (top + tall) / height, wide / width, tall / height))

    for i, panel in enumerate(panels):
        top = TOP + PANEL_HEIGHT * (i // across)
        axis = axes(LEFT + PANEL_WIDTH * (i % across), top, PANEL_WIDTH - 0.55, PANEL_HEIGHT - BELOW)
        image = _draw_panel(axis, panel)
    for i, panel in enumerate(variants):
        top = TOP + PANEL_HEIGHT * lines
        axis = axes(VARIANT_LEFT + VARIANT_WIDTH * i, top, VARIANT_WIDTH - 1.8, variant_height)
        _draw_panel(axis, panel)
    _draw_scale(axes(0.2 * width, height - BOTTOM + 0.15, 0.6 * width, 0.2), document, [*panels, *variants], image)
    measured = f"{document['dtype']}, {document['settings']['threads']} threads, {document['date']}"
    title = f"rnnkit on {document['machine']['cpu']}, {measured}:\nthe best peer's time / rnnkit's"
    fig.suptitle(title, fontsize=12, y=1 - 0.12 / height, va="top")
    return fig


def _plain_panels(document: Document) -> tuple[list[Panel], int]:
    """The maps of plain points, and how many fit side by side: a line per pass and (T, I) where there are two cells."""
    parts = sections(document)
    panels = []
    for T, I in _pairs(parts):
        for passes in parts:
            for cell in MAIN_CELLS:
                entries = [e for e in parts[passes] if _is_plain(e[0], cell, T, I)]
                rows = sorted({("H", p.H) for p, _ in entries})
                columns = sorted({("B", p.B) for p, _ in entries})
                ratios = _ratios_of(document, entries, lambda p: (("H", p.H), ("B", p.B)))
                panels.append((cell, Panel(f"{cell}, {passes}, T = {T}, I = {I}", rows, columns, ratios)))
    found = [(cell, panel) for cell, panel in panels if panel.ratios]
    cells = len({cell for cell, _ in found})
    return [panel for _, panel in found], cells if cells > 1 else min(len(parts) if len(parts) > 1 else 3, len(found))


def _variant_panels(document: Document) -> list[Panel]:
    def kind(p: Point) -> Key:
        return p.cell, " ".join("projection" if extra[0] == "P" else extra for extra in p.extras)

    def size(p: Point) -> Key:
        return "B", p.B, "H", p.H

    panels = []
    for passes, entries in sections(document).items():
        mine = [e for e in entries if is_variant(e[0])]
        rows = sorted({kind(p) for p, _ in mine})
        columns = sorted({size(p) for p, _ in mine}, key=lambda k: (k[3], k[1]))
        ratios = _ratios_of(document, mine, lambda p: (kind(p), size(p)))
        panels.append(Panel(f"variants, {passes}", rows, columns, ratios))
    return [panel for panel in panels if panel.ratios]


def _ratios_of(
    document: Document, entries: list[Entry], place: Callable[[Point], tuple[Key, Key]]
) -> dict[tuple[Key, Key], tuple[float, str]]:
    ours = headline(document)
    peers = others(document)
    found = {}
    for point, results in entries:
        r = ratio(results, ours, peers)
        if r is not None:
            _, best = min((ms, name) for name in peers if (ms := median(results, name)) is not None)
            found[place(point)] = (r, best)
    return found


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


def _draw_panel(axis: Any, panel: Panel) -> Any:
    """Draws one map and gives its image."""
    import numpy as np

    grid = np.full((len(panel.rows), len(panel.columns)), np.nan)
    for (row, column), (r, best) in panel.ratios.items():
        y = panel.rows.index(row)
        x = panel.columns.index(column)
        grid[y, x] = math.log2(r)
        _box(axis, x, y, r, best, 8 if len(panel.columns) < 10 else 7)
    image = axis.imshow(
        np.clip(grid, -WIDEST, WIDEST),
        cmap=png.pyplot().get_cmap("RdBu", COLOURS),
        vmin=-WIDEST,
        vmax=WIDEST,
        aspect="auto",
    )
    axis.set_facecolor("#e8e8e8")
    axis.set_xticks(range(len(panel.columns)), [_label(c) for c in panel.columns], fontsize=8)
    axis.set_yticks(range(len(panel.rows)), [_label(r) for r in panel.rows], fontsize=8)
    axis.tick_params(length=0)
    ratios = [r for r, _ in panel.ratios.values()]
    mean = geometric_mean(ratios)
    behind = sum(r < 1 for r in ratios)
    axis.set_title(f"{panel.title}\ngeometric mean {mean:.2f}, behind at {behind} of {len(ratios)}", fontsize=9)
    return image


def _box(axis: Any, x: int, y: int, r: float, best: str, fontsize: int) -> None:
    from matplotlib.patches import Rectangle

    colour = "white" if abs(math.log2(r)) > 0.7 * WIDEST else "black"
    text = f"{r:.2f}" if r < 9.95 else f"{r:.0f}"
    axis.text(x, y, f"{text} {best[0]}", ha="center", va="center", fontsize=fontsize, color=colour)
    if r < 1:
        axis.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=1.8))


def _label(key: Key) -> str:
    """("B", 1, "H", 100) as B 1 / H 100, a cell and its features as they are."""
    if key[0] not in ("B", "H"):
        return " ".join(filter(None, key))
    return "\n".join(f"{key[i]} {key[i + 1]}" for i in range(0, len(key), 2))


def _draw_scale(axis: Any, document: Document, panels: list[Panel], image: Any) -> None:
    """The colour bar, and what the letters and the grey boxes mean."""
    bar = axis.figure.colorbar(image, cax=axis, orientation="horizontal", extend="both")
    ticks = [-2, -1, 0, 1, 2]
    bar.set_ticks(ticks, labels=[f"{2.0**t:g}" for t in ticks])
    best = {name for panel in panels for _, name in panel.ratios.values()}
    initials = ", ".join(f"{name[0]} {name}" for name in others(document) if name in best)
    frames = any(r < 1 for panel in panels for r, _ in panel.ratios.values())
    grey = any(len(panel.ratios) < len(panel.rows) * len(panel.columns) for panel in panels)
    said = "above 1 rnnkit is faster" + ("; framed: the peer is faster" if frames else "")
    bar.set_label(f"{said}\nthe best peer: {initials}" + ("; grey: not in the grid or too large" if grey else ""))
