"""A result file as tables for a terminal: a section a pass, a row a point, and the geometric means.

ratio is the best other peer's time over ours (above 1 we are ahead); spread is the middle half of our calls as a share
of their median, and a time marked * has one above 20%. FMA and W_hh are the shares of bench.shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from bench import shares
from bench.document import Document, spread
from bench.grid import Point
from bench.table import aligned

NOISY, BUSY = 0.2, 1.0
Entry = tuple[Point, dict[str, dict[str, Any]]]


def headline(document: Document) -> str | None:
    """The backend `ours` stands for: the first of rnnkit's that is here; None where none was measured."""
    return next((name for name, peer in document["peers"].items() if peer["ours"] and "absent" not in peer), None)


def others(document: Document) -> list[str]:
    """The peers that are not rnnkit and are here."""
    return [name for name, peer in document["peers"].items() if not peer["ours"] and "absent" not in peer]


def sections(document: Document) -> dict[str, list[Entry]]:
    """The points by pass."""
    found: dict[str, list[Entry]] = {}
    for entry in document["points"]:
        point = Point.from_dict(entry["point"])
        found.setdefault(point.passes, []).append((point, entry["results"]))
    return found


def median(results: dict[str, Any], name: str | None) -> float | None:
    """A peer's median milliseconds, where its result was right."""
    result = results.get(name or "", {})
    return result["ms"]["median"] if result.get("status") == "ok" else None


def ratio(results: dict[str, Any], ours: str | None, peers: Iterable[str]) -> float | None:
    """The best of the peers' times over ours; None where either side has none."""
    own, theirs = median(results, ours), [ms for name in peers if (ms := median(results, name)) is not None]
    return None if own is None or not theirs else min(theirs) / own


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def render(document: Document) -> str:
    """The whole report."""
    lines = [*_head(document), ""]
    for passes, entries in sections(document).items():
        lines += [f"{document['dtype']} {passes}, milliseconds a call", *_table(document, entries), ""]
    lines += [*_means(document), *_notes(document)]
    return "\n".join(lines)


def _head(document: Document) -> Iterator[str]:
    m, settings = document["machine"], document["settings"]
    caches = " ".join(f"{level} {size}" for level, size in m["caches"].items())
    yield f"{m['cpu']}, {m['cores']} cores, {caches}; {' '.join(m['flags'])}"
    for name, peer in document["peers"].items():
        versions = ", ".join(f"{key} {version}" for key, version in peer.get("versions", {}).items())
        yield f"{name}: " + (f"absent: {peer['absent']}" if "absent" in peer else versions)
    for what, key in (("np.matmul", "gflops"), ("multiply-add peak", "fma_gflops")):
        rates = ", ".join(f"{rate:.0f} on {n}" for n, rate in document["ceiling"].get(key, {}).items())
        if rates:
            yield f"{what} {document['dtype']} GFLOP/s, by threads: {rates}"
    reads = ", ".join(f"{level} {rate:.0f}" for level, rate in document["ceiling"].get("read_gb_s", {}).items())
    if reads:
        yield f"read by one core, GB/s: {reads}"
    said = f"grid {document['grid']}, {document['date']}, commit {document['commit'] or 'unknown'}"
    if (settings["load"] or 0) > BUSY:
        yield f"the machine was busy: load {settings['load']} before the run; these figures are not to be trusted"
    if settings.get("every", 1) > 1:
        said += f", about one shape in {settings['every']}"
    yield f"{said}, {settings['threads']} threads, {settings['rounds']} rounds in {settings['seconds']:g} s a peer"
    turns = [entry["turns"] for entry in document["points"] if "turns" in entry]
    if turns:
        again, unsure = (sum(t[key] for t in turns) for key in ("again", "unsure"))
        yield f"{again} turns repeated as not all cores were at hand, {unsure} kept though they may not have been"
    planned, done = settings.get("planned", 0), len(document["points"])
    if done < planned:
        yield f"not finished: {done} of {planned} points; --resume goes on"


def _table(document: Document, entries: list[Entry]) -> list[str]:
    ours = headline(document)
    names = [name for name, peer in document["peers"].items() if "absent" not in peer]
    extras = any(point.extras for point, _ in entries)
    header = ["cell", "T", "B", "I", "H", *(["with"] if extras else []), *names]
    header += ["seq/s", "GFLOP/s", "ratio", "spread"]
    told = "fma_gflops" in document["ceiling"]
    header += ["FMA", "W_hh"] if told else []
    rows = [header]
    for point, results in entries:
        row = [point.cell, *map(str, (point.T, point.B, point.I, point.H))]
        row += [" ".join(point.extras)] if extras else []
        row += [_time(results.get(name)) for name in names]
        own = results.get(ours or "", {})
        if own.get("status") == "ok":
            ahead = ratio(results, ours, others(document))
            row += [f"{own['sequences_per_s']:.0f}", f"{own['gflops']:.1f}"]
            row += ["-" if ahead is None else f"{ahead:.2f}", f"{100 * spread(own):.0f}%"]
            row += [shares.fma_text(document, point, own), shares.stream_text(document, point, own)] if told else []
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
    ours, peers = headline(document), others(document)
    if ours is None or not peers:
        yield "no ratios: " + ("rnnkit was not measured" if ours is None else "no other peer is here")
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
    """Whatever has no time, and why; and what the grid left out."""
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

    The peers that did not change between the two tell how far the machine itself drifted.
    """
    olds = {str(Point.from_dict(e["point"])): e["results"] for e in before["points"]}
    ours, lines = headline(after), []
    speedups: dict[tuple[str, str], list[float]] = {}
    for entry in after["points"]:
        point, old = Point.from_dict(entry["point"]), olds.get(str(Point.from_dict(entry["point"])))
        if old is None:
            continue
        for name in entry["results"]:
            a, b = median(old, name), median(entry["results"], name)
            if a is None or b is None:
                continue
            speedups.setdefault((point.passes, name), []).append(a / b)
            if name == ours:
                lines.append(f"{a:9.3g} ms {b:9.3g} ms {a / b:6.2f}  {point}")
    if not speedups:
        return "the two files have no right result in common"
    head = [f"{'before':>12} {'after':>12} {'ratio':>6}  {ours}"] if lines else []
    means = [
        f"  {passes}, {name}: {geometric_mean(found):.3f} over {len(found)} points"
        for (passes, name), found in speedups.items()
    ]
    return "\n".join([*head, *lines, "geometric means, before / after (above 1: the second is faster)", *means])
