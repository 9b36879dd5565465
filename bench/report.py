"""A result file as tables for a terminal: a section per pass, a row per point, and the geometric means.

ratio is the best peer's time over rnnkit's, so rnnkit is faster above 1. spread is the interquartile range of rnnkit's
calls as a share of their median; a time marked * has a spread above 20%. FMA and W_hh are the shares of
bench.peak_shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from bench import peak_shares
from bench.grid import Point
from bench.result_file import Document, gflops, sequences_per_s, spread
from bench.table import aligned
from rnnkit.core.dtypes import DTYPES

NOISY = 0.2
BUSY = 1.0
Entry = tuple[Point, dict[str, dict[str, Any]]]


def headline(document: Document) -> str | None:
    """The backend that stands for rnnkit: its first one that was measured; None where none was."""
    return next((name for name, peer in document["peers"].items() if peer["ours"] and "absent" not in peer), None)


def others(document: Document) -> list[str]:
    """The peers that are not rnnkit and were measured."""
    return [name for name, peer in document["peers"].items() if not peer["ours"] and "absent" not in peer]


def sections(document: Document) -> dict[str, list[Entry]]:
    """The points by pass."""
    found: dict[str, list[Entry]] = {}
    for entry in document["points"]:
        point = Point.from_dict(entry["point"])
        found.setdefault(point.passes, []).append((point, entry["results"]))
    return found


def median(results: dict[str, Any], name: str | None) -> float | None:
    """A peer's median milliseconds; None where it has no time."""
    result = results.get(name or "", {})
    return result["ms"]["median"] if result.get("status") == "ok" else None


def ratio(results: dict[str, Any], ours: str | None, peers: Iterable[str]) -> float | None:
    """The best of the peers' times over ours; None where ours or every peer's is missing."""
    own = median(results, ours)
    theirs = [ms for name in peers if (ms := median(results, name)) is not None]
    return None if own is None or not theirs else min(theirs) / own


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def render(document: Document) -> str:
    """The whole report."""
    lines = [*_head(document), ""]
    for passes, entries in sections(document).items():
        lines += [f"{document['dtype']} {passes}, milliseconds per call", *_table(document, entries), ""]
    lines += [*_means(document), *_notes(document)]
    return "\n".join(lines)


def _head(document: Document) -> Iterator[str]:
    m = document["machine"]
    settings = document["settings"]
    caches = " ".join(f"{level} {size}" for level, size in m["caches"].items())
    family = f" ({m['family']})" if m.get("family") else ""
    yield f"{m['cpu']}{family}, {m['cores']} cores, {caches}; {' '.join(m['flags'])}"
    for name, peer in document["peers"].items():
        versions = ", ".join(f"{key} {version}" for key, version in peer.get("versions", {}).items())
        yield f"{name}: " + (f"absent: {peer['absent']}" if "absent" in peer else versions)
    for what, key in (("np.matmul", "gflops"), ("multiply-add peak", "fma_gflops")):
        rates = ", ".join(f"{rate:.0f} on {n}" for n, rate in document["ceiling"].get(key, {}).items())
        if rates:
            yield f"{what} {DTYPES[document['dtype']].computed} GFLOP/s, by threads: {rates}"
    reads = ", ".join(f"{level} {rate:.0f}" for level, rate in document["ceiling"].get("read_gb_s", {}).items())
    if reads:
        yield f"read by one core, GB/s: {reads}"
    said = f"grid {document['grid']}, {document['date']}, commit {document['commit'] or 'unknown'}"
    if (settings["load"] or 0) > BUSY:
        yield f"the machine was busy (load {settings['load']} before the run): do not trust these times"
    if settings.get("every", 1) > 1:
        said += f", about one shape in {settings['every']}"
    yield f"{said}, {settings['threads']} threads, {settings['rounds']} rounds in {settings['seconds']:g} s per peer"
    runs = [entry["timing_runs"] for entry in document["points"]]
    if runs:
        repeated = sum(run["repeated"] for run in runs)
        unconfirmed = sum(run["unconfirmed"] for run in runs)
        yield f"timing runs without all cores available: {repeated} repeated, {unconfirmed} counted"
    planned = settings.get("planned", 0)
    done = len(document["points"])
    if done < planned:
        yield f"not finished: {done} of {planned} points; --resume continues"


def _table(document: Document, entries: list[Entry]) -> list[str]:
    ours = headline(document)
    names = [name for name, peer in document["peers"].items() if "absent" not in peer]
    extras = any(point.extras for point, _ in entries)
    header = ["cell", "T", "B", "I", "H", *(["with"] if extras else []), *names]
    header += ["seq/s", "GFLOP/s", "ratio", "spread"]
    has_peak = "fma_gflops" in document["ceiling"]
    header += ["FMA", "W_hh"] if has_peak else []
    rows = [header]
    for point, results in entries:
        row = [point.cell, *map(str, (point.T, point.B, point.I, point.H))]
        row += [" ".join(point.extras)] if extras else []
        row += [_time(results.get(name)) for name in names]
        own = results.get(ours or "", {})
        if own.get("status") == "ok":
            ahead = ratio(results, ours, others(document))
            row += [f"{sequences_per_s(point, own):.0f}", f"{gflops(point, own):.1f}"]
            row += ["-" if ahead is None else f"{ahead:.2f}", f"{100 * spread(own):.0f}%"]
            if has_peak:
                row += [peak_shares.fma_text(document, point, own), peak_shares.stream_text(document, point, own)]
        else:
            row += [own.get("status", "-"), *["-"] * (len(header) - len(row) - 1)]
        rows.append(row)
    return aligned(rows, {"cell", "with"})


def _time(result: dict[str, Any] | None) -> str:
    if result is None or result["status"] == "unsupported":
        return "-"
    if result["status"] != "ok":
        return result["status"]
    ms = result["ms"]["median"]
    return (f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}") + ("*" if spread(result) > NOISY else "")


def _means(document: Document) -> Iterator[str]:
    ours = headline(document)
    peers = others(document)
    if ours is None or not peers:
        yield "no ratios: " + ("rnnkit was not measured" if ours is None else "no peer was measured")
        return
    yield f"geometric means of ratios, {ours} to"
    for passes, entries in sections(document).items():
        said = []
        for name in peers:
            found = [r for _, results in entries if (r := ratio(results, ours, [name])) is not None]
            said += [f"{name} {geometric_mean(found):.2f}"] if found else []
        best = [(r, point) for point, results in entries if (r := ratio(results, ours, peers)) is not None]
        if not best:
            continue
        least, where = min(best, key=lambda pair: pair[0])
        behind = sum(r < 1 for r, _ in best)
        yield (
            f"  {passes}: the best {geometric_mean([r for r, _ in best]):.2f}, {', '.join(said)};"
            f" least {least:.2f} at {where.shape}; behind at {behind} of {len(best)}"
        )


def _notes(document: Document) -> Iterator[str]:
    """The results without a time, with the reason, and the points that the grid left out."""
    for entry in document["points"]:
        for name, result in entry["results"].items():
            if result["status"] in ("wrong", "failed"):
                yield f"{result['status']}: {name} at {Point.from_dict(entry['point'])}: {result['why']}"
    unsupported: dict[tuple[str, str], int] = {}
    for entry in document["points"]:
        for name, result in entry["results"].items():
            if result["status"] == "unsupported":
                key = (name, result["why"])
                unsupported[key] = unsupported.get(key, 0) + 1
    for (name, why), count in unsupported.items():
        yield f"-: {name} at {count} points: {why}"
    if document["left_out"]:
        first = document["left_out"][0]
        yield (
            f"left out of the grid as too large: {len(document['left_out'])} points,"
            f" such as {first['point']} ({first['reason']})"
        )


def has_errors(document: Document) -> bool:
    """Whether one of rnnkit's own results is wrong or failed."""
    own = {name for name, peer in document["peers"].items() if peer["ours"]}
    return any(
        result["status"] in ("wrong", "failed")
        for entry in document["points"]
        for name, result in entry["results"].items()
        if name in own
    )


def compare(before: Document, after: Document) -> str:
    """Times of two files side by side: before / after, above 1 where the second is faster.

    The ratios of peers that did not change between the two show how far the machine drifted.
    """
    olds = {str(Point.from_dict(e["point"])): e["results"] for e in before["points"]}
    ours = headline(after)
    lines = []
    speedups: dict[tuple[str, str], list[float]] = {}
    for entry in after["points"]:
        point = Point.from_dict(entry["point"])
        old = olds.get(str(point))
        if old is None:
            continue
        for name in entry["results"]:
            a = median(old, name)
            b = median(entry["results"], name)
            if a is None or b is None:
                continue
            speedups.setdefault((point.passes, name), []).append(a / b)
            if name == ours:
                lines.append(f"{a:9.3g} ms {b:9.3g} ms {a / b:6.2f}  {point}")
    if not speedups:
        return "no point has a time of one peer in both files"
    head = [f"{'before':>12} {'after':>12} {'ratio':>6}  {ours}"] if lines else []
    means = [
        f"  {passes}, {name}: {geometric_mean(found):.3f} over {len(found)} points"
        for (passes, name), found in speedups.items()
    ]
    return "\n".join([*head, *lines, "geometric means, before / after (above 1: the second is faster)", *means])
