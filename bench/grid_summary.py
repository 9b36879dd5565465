"""Summarises a large grid on one page, and compares two runs of one grid.

The summary has the geometric means of the ratio to the best peer by cell, batch, width and feature, and every point at
which that peer is faster, which a mean would hide. Two runs of one grid show how far a ratio varies between runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from bench import peak_shares
from bench.grid import MAIN_CELLS, Point
from bench.report import Entry, geometric_mean, headline, median, others, ratio, sections
from bench.result_file import Document
from bench.table import aligned

SUMMED_FROM = 24  # points per pass; the table of a smaller grid fits a page
GROUPS: dict[str, Callable[[Point], object]] = {
    "cell": lambda p: p.cell if not p.extras else None,
    "B": lambda p: p.B,
    "H": lambda p: p.H,
    "T I": lambda p: None if is_variant(p) else f"{p.T} {'H' if p.I == p.H else p.I}",
    "with": lambda p: " ".join("projection" if extra[0] == "P" else extra for extra in p.extras) or "nothing",
}


def is_variant(point: Point) -> bool:
    """Whether the point is not one plain layer of a main cell."""
    return bool(point.extras) or point.cell not in MAIN_CELLS


def summary(document: Document) -> list[str]:
    """The points where a peer is faster. For a large grid also the means by group and the shares of the peaks."""
    parts = sections(document)
    lines: list[str] = []
    if max(map(len, parts.values()), default=0) >= SUMMED_FROM:
        lines += ["", *_means(document, parts), *_peaks(document, parts), ""]
    return lines + list(_behind(document, parts)) + list(_behind_through_torch(document, parts))


def _means(document: Document, parts: dict[str, list[Entry]]) -> list[str]:
    ours = headline(document)
    peers = others(document)
    rows = [["by", "", *(text for passes in parts for text in (passes, "least", "behind"))]]
    for name, group in GROUPS.items():
        keys = {group(point): None for entries in parts.values() for point, _ in entries}
        for key in sorted((k for k in keys if k is not None), key=lambda k: (isinstance(k, str), k)):
            row = [name, str(key)]
            for entries in parts.values():
                mine = [ratio(results, ours, peers) for point, results in entries if group(point) == key]
                found = [r for r in mine if r is not None]
                row += [f"{geometric_mean(found):.2f}" if found else "-", f"{min(found):.2f}" if found else "-"]
                row += [f"{sum(r < 1 for r in found)}/{len(found)}"]
            rows.append(row)
    return ["geometric means of the ratio to the best peer", *aligned(rows, {"by", ""})]


def _peaks(document: Document, parts: dict[str, list[Entry]]) -> Iterator[str]:
    """The shares of the multiply-add peak at B >= 32, and of the read bandwidth at B = 1."""
    ours = headline(document) or ""
    for passes, entries in parts.items():
        right = [(p, r[ours]) for p, r in entries if median(r, ours) is not None and not is_variant(p)]
        wide = [(p, r) for p, r in right if p.B >= 32 and 128 <= p.H <= 512]
        found = [(share, p) for p, r in wide if (share := peak_shares.fma_share(document, p, r)) is not None]
        if found:
            least, where = min(found, key=lambda pair: pair[0])
            most = max(share for share, _ in found)
            yield (
                f"{passes}, B >= 32 and H 128 to 512: {100 * least:.0f}% to {100 * most:.0f}% of the multiply-add peak,"
                f" median {100 * statistics.median(s for s, _ in found):.0f}%; the least at {where.shape}"
            )
        for level in ("L1", "L2", "L3", "memory"):
            streams = [
                s for p, r in right if (s := peak_shares.stream(document, p, r)) is not None and s.level == level
            ]
            if streams:
                least = min(s.share for s in streams)
                most = max(s.share for s in streams)
                yield (
                    f"{passes}, B = 1, a thread's share of W_hh within {level}: {100 * least:.0f}% to"
                    f" {100 * most:.0f}% of one core's read bandwidth from {level}"
                )


def _behind(document: Document, parts: dict[str, list[Entry]]) -> Iterator[str]:
    ours = headline(document)
    peers = others(document)
    for passes, entries in parts.items():
        found = []
        for point, results in entries:
            r = ratio(results, ours, peers)
            if r is not None and r < 1:
                best = min((ms, name) for name in peers if (ms := median(results, name)) is not None)[1]
                found.append((r, point.shape, best))
        if found:
            yield f"behind, {passes}: {len(found)} points"
            yield from (f"  {r:.2f}  {shape}  ({best})" for r, shape, best in sorted(found))


def _behind_through_torch(document: Document, parts: dict[str, list[Entry]]) -> Iterator[str]:
    """Points at which rnnkit is faster than torch.nn, and rnnkit.torch is not; how many there are, also if none."""
    ours = headline(document)
    for name in ("via torch", "via torch, compiled"):
        for passes, entries in parts.items():
            ahead = [(p, r, a) for p, r in entries if (a := ratio(r, ours, ["torch"])) is not None and a > 1]
            both = [(b, p.shape, a) for p, r, a in ahead if (b := ratio(r, name, ["torch"])) is not None]
            if both:
                found = sorted(entry for entry in both if entry[0] <= 1)
                yield (
                    f"{name} behind torch where {ours} is ahead of it, {passes}: {len(found)} of {len(both)} points,"
                    f" geometric mean over torch {geometric_mean([b for b, *_ in both]):.2f}"
                )
                yield from (f"  {b:.2f}  {shape}  ({ours} {a:.2f})" for b, shape, a in found)


def spread_of_runs(first: Document, second: Document) -> str:
    """The differences between two runs of one grid, point by point: of the ratio to the best peer, and of each time.

    A difference is the larger value over the smaller one, minus 1. Raises ValueError for two grids or two dtypes.
    """
    for key in ("grid", "dtype"):
        if first[key] != second[key]:
            raise ValueError(
                f"the two files must be runs of one grid, but their {key} is {first[key]!r} and {second[key]!r}"
            )
    before = {str(Point.from_dict(e["point"])): e["results"] for e in first["points"]}
    lines = []
    for passes, entries in sections(second).items():
        pairs = [(p, before[str(p)], results) for p, results in entries if str(p) in before]
        lines += list(_spread_of_pass(first, second, passes, pairs))
    return "\n".join(lines) if lines else "no point has a time of rnnkit and of a peer in both files"


def _spread_of_pass(first: Document, second: Document, passes: str, pairs: list) -> Iterator[str]:
    ours = headline(second)
    peers = others(second)
    if headline(first) != ours:
        return
    found = [(a, b, p) for p, old, new in pairs if (a := ratio(old, ours, peers)) and (b := ratio(new, ours, peers))]
    if not found:
        return
    apart = sorted((max(a, b) / min(a, b) - 1, p.shape, a, b) for a, b, p in found)
    _, where, a, b = apart[-1]
    yield (
        f"{second['dtype']} {passes}, {len(found)} points in both: geometric mean of the ratio"
        f" {geometric_mean([a for a, _, _ in found]):.3f} and {geometric_mean([b for _, b, _ in found]):.3f}"
    )
    yield (
        f"  the ratio differs by {100 * statistics.median(d for d, *_ in apart):.1f}% in the median,"
        f" {100 * apart[int(0.95 * (len(apart) - 1))][0]:.0f}% at 95 of 100, at most {100 * apart[-1][0]:.0f}%"
        f" ({a:.2f} and {b:.2f} at {where})"
    )
    for name in filter(None, (ours, *peers)):
        times = [(x, y) for _, old, new in pairs if (x := median(old, name)) and (y := median(new, name))]
        if times:
            off = statistics.median(max(x, y) / min(x, y) - 1 for x, y in times)
            yield f"  {name}: a time differs by {100 * off:.1f}% in the median"
    both = sorted((max(a, b), p.shape, a, b) for a, b, p in found if a < 1 and b < 1)
    flips = sorted((min(a, b), p.shape, a, b) for a, b, p in found if (a < 1) != (b < 1))
    for what, those in (("behind in both runs", both), ("behind in one run alone", flips)):
        yield f"  {what}: {len(those)}"
        yield from (f"    {a:.2f} {b:.2f}  {shape}" for _, shape, a, b in those)
