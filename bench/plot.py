"""The picture of a result file: how many times faster than each peer, and GFLOP/s against the measured ceiling.

A grid over many widths and batches has a map of them instead, see bench.heat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import heat
from bench.document import Document
from bench.grid import MAIN_CELLS, Point
from bench.report import Entry, headline, median, others, ratio, sections

COLOURS = {"numba": "#1b1b1b", "torch": "#d1495b", "onnxruntime": "#2e86ab", "jax": "#4f9d69"}
MARKERS = ("o", "s", "^", "D", "v", "P")
LABELLED_POINTS = 60  # with more, labels would overlap, and the cells alone are named


def draw(document: Document, path: Path) -> None:
    """Writes the PNG: a column a pass, above the ratios and below the rates. Needs matplotlib."""
    if heat.suits(document):
        heat.draw(document, path)
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = sections(document)
    longest = max((len(entries) for entries in parts.values()), default=1)
    width = min(10.0, max(5.5, 0.3 * longest)) * max(1, len(parts))
    figure, axes = pyplot.subplots(2, max(1, len(parts)), figsize=(width, 8.5), squeeze=False, sharex="col")
    for (above, below), (passes, entries) in zip(axes.T, parts.items(), strict=False):
        above.set_title(f"{document['dtype']} {passes}")
        _draw_ratios(above, document, entries)
        _draw_rates(below, document, entries)
        _name_points(below, [point for point, _ in entries])
    m = document["machine"]
    figure.suptitle(f"rnnkit on {m['cpu']}, {document['settings']['threads']} threads, {document['date']}", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_ratios(axis: Any, document: Document, entries: list[Entry]) -> None:
    ours, peers = headline(document), others(document)
    axis.axhline(1, color="black", linewidth=0.8)
    for i, name in enumerate(peers):
        points = [(x, r) for x, (_, results) in enumerate(entries) if (r := ratio(results, ours, [name])) is not None]
        _scatter(axis, points, name, i, _size(len(entries)))
    best = [(x, r) for x, (_, results) in enumerate(entries) if (r := ratio(results, ours, peers)) is not None]
    if best:
        rings = {"facecolors": "none", "edgecolors": "black", "linewidths": 0.8, "label": "the best of them"}
        axis.scatter(*zip(*best, strict=True), s=3 * _size(len(entries)), **rings)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(fontsize=8)
    axis.set_ylabel(f"peer's time / {ours}'s (above 1: ahead)")
    axis.grid(axis="y", alpha=0.3)


def _draw_rates(axis: Any, document: Document, entries: list[Entry]) -> None:
    names = [name for name, peer in document["peers"].items() if "absent" not in peer]
    order = {name: i for i, name in enumerate(others(document))}
    for name in names:
        points = []
        for x, (point, results) in enumerate(entries):
            ms = median(results, name)
            if ms is not None:
                points.append((x, point.flop() / ms / 1e6))
        i = order.get(name, len(order) + (name != headline(document)))
        _scatter(axis, points, name, i, _size(len(entries)))
    for threads, rate in document["ceiling"]["gflops"].items():
        axis.axhline(rate, color="grey", linewidth=0.8, linestyle="--")
        x = max(0, len(entries) - 1)
        axis.annotate(f"np.matmul on {threads}", (x, rate), fontsize=7, color="grey", va="bottom", ha="right")
    axis.set_yscale("log")
    axis.set_ylabel("GFLOP/s")
    axis.legend(fontsize=8)
    axis.grid(axis="y", alpha=0.3)


def _size(points: int) -> int:
    return 26 if points <= LABELLED_POINTS else 6


def _scatter(axis: Any, points: list[tuple[int, float]], name: str, i: int, size: int) -> None:
    if points:
        axis.scatter(
            *zip(*points, strict=True),
            s=size,
            label=name,
            marker=MARKERS[i % len(MARKERS)],
            color=COLOURS.get(name, "#b0a18b"),
        )


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
