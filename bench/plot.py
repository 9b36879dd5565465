"""The plot of a result file: how many times faster rnnkit is than each peer, and GFLOP/s beside the measured ceiling.

A grid with many widths and batches has a heat map instead, see bench.heat_map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import heat_map, png
from bench.grid import MAIN_CELLS, Point
from bench.report import Entry, headline, median, others, ratio, sections
from bench.result_file import Document, gflops

COLOURS = {
    "numba": "#1b1b1b",
    "via torch": "#7a6f9b",
    "via torch, compiled": "#c58bc9",
    "torch": "#d1495b",
    "onnxruntime": "#2e86ab",
    "openvino": "#e3a018",
    "jax": "#4f9d69",
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LEGEND_COLUMNS = 4  # as many names fit above a panel
LABELLED_POINTS = 60  # with more, labels would overlap, and only the cells are named
Series = dict[str, list[tuple[int, float]]]


def draw(document: Document, path: Path) -> None:
    """Writes the PNG. Needs matplotlib. Raises ValueError where no result has a time."""
    if heat_map.suits(document):
        png.save(heat_map.figure(document), path, dpi=90)
    else:
        png.save(figure(document), path, dpi=100)


def figure(document: Document) -> Any:
    """A column per pass: the ratios above, where a peer was measured, and the rates below."""
    parts = {passes: entries for passes, entries in sections(document).items() if _rates(document, entries)}
    if not parts:
        raise ValueError("no result has a time")
    with_ratios = any(_ratios(document, entries) for entries in parts.values())
    longest = max(len(entries) for entries in parts.values())
    width = min(10.0, max(6.5, 0.36 * longest)) * len(parts)
    fig, axes = png.pyplot().subplots(
        1 + with_ratios,
        len(parts),
        figsize=(width, 4.4 + 4 * with_ratios),
        squeeze=False,
        sharex="col",
        layout="constrained",
    )
    for column, (passes, entries) in zip(axes.T, parts.items(), strict=True):
        found = _ratios(document, entries)
        if found:
            _draw_ratios(column[0], document, found, len(entries))
        elif with_ratios:
            column[0].remove()
        _draw_rates(column[-1], document, entries)
        _name_points(column[-1], [point for point, _ in entries])
        column[0 if found else -1].set_title(passes, pad=24)
    m = document["machine"]
    threads = document["settings"]["threads"]
    fig.suptitle(f"rnnkit on {m['cpu']}, {document['dtype']}, {threads} threads, {document['date']}", fontsize=11)
    return fig


def _ratios(document: Document, entries: list[Entry]) -> Series:
    """Peer -> (position, the peer's time over ours); and under "" the best peer's."""
    ours = headline(document)
    peers = others(document)
    found: Series = {}
    for name, those in [*((peer, [peer]) for peer in peers), ("", peers)]:
        points = [(x, r) for x, (_, results) in enumerate(entries) if (r := ratio(results, ours, those)) is not None]
        if points:
            found[name] = points
    return found


def _rates(document: Document, entries: list[Entry]) -> Series:
    """Name -> (position, GFLOP/s), of everything that was timed."""
    found: Series = {}
    for x, (point, results) in enumerate(entries):
        for name in document["peers"]:
            if median(results, name) is not None:
                found.setdefault(name, []).append((x, gflops(point, results[name])))
    return found


def _draw_ratios(axis: Any, document: Document, found: Series, count: int) -> None:
    axis.axhline(1, color="black", linewidth=0.8)
    for i, name in enumerate(others(document)):
        if name in found:
            _scatter(axis, found[name], name, i, _size(count))
    rings = {"facecolors": "none", "edgecolors": "black", "linewidths": 0.8, "label": "the best peer"}
    axis.scatter(*zip(*found[""], strict=True), s=3 * _size(count), **rings)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylabel("peer's time / rnnkit's\n(above 1 rnnkit is faster)")
    _finish(axis)


def _draw_rates(axis: Any, document: Document, entries: list[Entry]) -> None:
    order = {name: i for i, name in enumerate(others(document))}
    own = [name for name, peer in document["peers"].items() if peer["ours"]]
    for name, points in _rates(document, entries).items():
        i = order.get(name, len(order) + own.index(name) if name in own else 0)
        label = f"rnnkit ({name})" if document["peers"][name]["ours"] else name
        _scatter(axis, points, label, i, _size(len(entries)), COLOURS.get(name))
    rates = document["ceiling"]["gflops"]
    for threads, rate in rates.items():
        axis.axhline(rate, color="grey", linewidth=0.8, linestyle="--")
        # Right of the axes, where no point can be under the label; above or below its line, away from the other one.
        side = "bottom" if rate == max(rates.values()) else "top"
        at = {"xycoords": axis.get_yaxis_transform(), "va": side, "fontsize": 7, "color": "grey"}
        axis.annotate(f"np.matmul,\n{threads} thread{'s'[: int(threads) > 1]}", (1.01, rate), **at)
    axis.set_yscale("log")
    axis.set_ylabel("GFLOP/s")
    _finish(axis)


def _finish(axis: Any) -> None:
    """The grid, and the legend above the axes, where no point can be under it."""
    axis.grid(axis="y", alpha=0.3)
    columns = min(LEGEND_COLUMNS, len(axis.get_legend_handles_labels()[0]))
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    axis.legend(fontsize=8, ncols=columns, handletextpad=0.1, columnspacing=1.0, **above)


def _size(points: int) -> int:
    return 26 if points <= LABELLED_POINTS else 6


def _scatter(
    axis: Any, points: list[tuple[int, float]], label: str, i: int, size: int, colour: str | None = None
) -> None:
    chosen = colour or COLOURS.get(label, "#b0a18b")
    axis.scatter(*zip(*points, strict=True), s=size, label=label, marker=MARKERS[i % len(MARKERS)], color=chosen)


def _name_points(axis: Any, points: list[Point]) -> None:
    if len(points) <= LABELLED_POINTS:
        labels = [" ".join([p.cell, f"T{p.T} B{p.B} H{p.H}", *p.extras]) for p in points]
        axis.set_xticks(range(len(points)), labels, rotation=90, fontsize=7)
        return
    groups = [p.cell if p.cell in MAIN_CELLS and not p.extras else "variants" for p in points]
    starts = [x for x, group in enumerate(groups) if x == 0 or group != groups[x - 1]]
    axis.set_xticks(starts, [groups[x] for x in starts], fontsize=8, ha="left")
    for x in starts[1:]:
        axis.axvline(x - 0.5, color="grey", linewidth=0.5)
