"""What a run found, from its document: rows, means, and the short table that is printed last.

The document: {"schema", "date", "commit", "seconds", "parts": {name: {"status": "done" | "failed" | "not run", "why",
"seconds", "starts", "last_lines", "items": [...]}}}; an item is described in `bench.gpu.lines`.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

from bench.gpu import cudnn, model, sample
from bench.grid import FORWARD_BACKWARD, PASSES, Point

SCHEMA = 1
FAILURES_SHOWN, LINES_SHOWN, LEAST_SHOWN = 12, 6, 8
Document = dict[str, Any]
TORCH = {"torch_eager": "eager", "torch_graph": "graph"}


class Row(NamedTuple):
    """One pass of one point. Times in milliseconds; None where there is none."""

    point: Point
    passes: str
    status: str
    error: float | None
    ours: float | None
    torch: float | None
    torch_by: str
    ratio: float | None
    spread: float | None
    wall: float | None
    paths: tuple[str, ...]
    floor_share: float | None
    predicted_share: float | None

    @property
    def dtype(self) -> str:
        return self.point.dtype

    @property
    def cell(self) -> str:
        return self.point.cell

    @property
    def step_flop(self) -> float:
        return self.point.flop() / self.point.T

    @property
    def standard(self) -> bool:
        """Whether torch takes cuDNN's non-persistent path in every pass: the rows that the bar is over."""
        return set(self.paths) == {cudnn.STANDARD}


def items(document: Document, part: str) -> list[dict[str, Any]]:
    return document["parts"].get(part, {}).get("items", [])


def item(document: Document, part: str, key: str) -> dict[str, Any]:
    return next((i for i in items(document, part) if i["item"] == key), {})


def card_name(document: Document) -> str:
    return item(document, "card", "device").get("name", "no card")


def rows(document: Document) -> list[Row]:
    """Every measured or wrong pass, in the order of measuring."""
    l2 = item(document, "card", "attributes").get("attributes", {}).get("L2CacheSize", 0)
    measured = model.rates(card_name(document), float(l2), items(document, "ceilings"))
    found = []
    for entry in items(document, "throughput"):
        for passes, result in entry.get("passes", {}).items():
            found.append(_row(Point.from_dict(entry["point"]), passes, result, measured))
    return found


def _row(point: Point, passes: str, result: dict[str, Any], measured: model.Rates | None) -> Row:
    ours = result.get("ours", {}).get("ms")
    median = ours["median"] if ours else None
    best, by = torch_best(result)
    shares = []
    for predict in (model.floor, model.stepwise):
        seconds = predict(point, passes == FORWARD_BACKWARD, measured) if measured else None
        shares.append(seconds * 1e3 / median if seconds and median else None)
    return Row(
        point,
        passes,
        result["status"],
        _number(result.get("error")),
        median,
        best,
        by,
        best / median if best and median else None,
        (ours["p75"] - ours["p25"]) / median if ours and median else None,
        result.get("ours", {}).get("wall_ms"),
        tuple(result.get("paths", ())),
        *shares,
    )


def torch_best(result: dict[str, Any]) -> tuple[float | None, str]:
    """torch's median milliseconds at its faster, and which that is; None where it was not timed."""
    times = {said: result[name]["ms"]["median"] for name, said in TORCH.items() if "ms" in result.get(name, {})}
    by = min(times, key=times.__getitem__, default="")
    return times.get(by), by


def measured_points(document: Document) -> set[str]:
    """The points that were begun and ended, right or wrong; gpu.json lists the others, if the part came to its end."""
    return {i["item"] for i in items(document, "throughput") if "passes" in i}


def mean(values: list[float]) -> float | None:
    """The geometric mean; None of nothing."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def means(document: Document) -> list[dict[str, Any]]:
    """By dtype and pass: the geometric mean of torch's time to ours over all rows, and over those of the bar."""
    found, all_rows = [], rows(document)
    for dtype in dict.fromkeys(row.dtype for row in all_rows):
        for passes in PASSES:
            chosen = [row for row in all_rows if (row.dtype, row.passes) == (dtype, passes) and row.ratio]
            bar = [row.ratio for row in chosen if row.standard and row.ratio]
            ratios = [row.ratio for row in chosen if row.ratio]
            if not chosen:
                continue
            found.append(
                {
                    "dtype": dtype,
                    "passes": passes,
                    "rows": len(ratios),
                    "mean": mean(ratios),
                    "bar_rows": len(bar),
                    "bar_mean": mean(bar),
                    "least": min(ratios),
                    "floor_share": mean([row.floor_share for row in chosen if row.floor_share]),
                    "predicted_share": mean([row.predicted_share for row in chosen if row.predicted_share]),
                }
            )
    return found


def problems(document: Document) -> list[str]:
    """One line for everything that is wrong or failed: what the run's exit status is about."""
    found = []
    for name, part in document["parts"].items():
        if part["status"] == "failed":
            found.append(f"{name}: {part['why']}")
        bad = [i for i in part["items"] if i["status"] in ("wrong", "failed")]
        found += [f"{name}: {i['item']}: {i['status']}: {i.get('why', _wrong_passes(i))}" for i in bad]
    return found


def _wrong_passes(entry: dict[str, Any]) -> str:
    errors = {p: r.get("error") for p, r in entry.get("passes", {}).items() if r["status"] == "wrong"}
    return "; ".join(f"{p}: {e} times the tolerance" for p, e in errors.items()) or str(entry.get("said", ""))[:300]


def render(document: Document) -> str:
    """The table: at most a few thousand characters, whatever the run found."""
    parts = [
        _heading(document),
        *_parts(document),
        *_ceilings(document),
        *_counters(document),
        *_means(document),
        *_worst(document),
    ]
    found = problems(document)
    parts += ["", f"{len(found)} problem{'s'[: len(found) > 1]}" if found else "no problems"]
    parts += [f"  {line}"[:240] for line in found[:FAILURES_SHOWN]]
    if len(found) > FAILURES_SHOWN:
        parts.append(f"  and {len(found) - FAILURES_SHOWN} more, in gpu.json")
    return "\n".join(parts)


def _heading(document: Document) -> str:
    versions = item(document, "card", "versions").get("versions", {})
    torch = item(document, "card", "torch_versions")
    limits = item(document, "card", "limits").get("smi", {})
    said = [f"driver {limits.get('driver_version', '?')}", f"CuPy {versions.get('cupy-cuda13x', '?')}"]
    said += [f"torch {torch.get('torch', '?')}", f"cuDNN {torch.get('cudnn', '?')}"]
    said += [f"cuBLAS {item(document, 'card', 'cublas_version').get('cublas', '?')}"]
    return f"{card_name(document)}, {document['date']}, {', '.join(said)}, {document['seconds']:.0f} s"


def _parts(document: Document) -> list[str]:
    lines = ["", f"{'part':<12}{'':<10}{'s':>5}  items"]
    for name, part in document["parts"].items():
        counts = Counter(i["status"] for i in part["items"])
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines.append(f"{name:<12}{part['status']:<10}{part['seconds']:>5.0f}  {said}")
        if part["status"] != "done":
            lines.append(f"    {part['why']}"[:200])
            lines += [f"    | {line}"[:160] for line in part["last_lines"][-LINES_SHOWN:]]
    for i in items(document, "sanitizer"):
        what = i.get("why") or f"{i.get('errors')} errors over {i.get('cases')} cases, probes {i.get('probes')}"
        lines.append(f"    {i['item']}: {i['status']}: {what}"[:200])
    return lines


def _ceilings(document: Document) -> list[str]:
    lines = [""]
    for i in items(document, "ceilings"):
        if i["status"] != "ok":
            continue
        key = i["item"]
        if key.startswith(("copy", "pointwise")):
            lines.append(f"{key}: {i['gb_per_s']:.0f} GB/s")
        elif key.startswith("product"):
            lines.append(f"{key}: {i['tflops']:.1f} TFLOP/s")
        elif key == "launches":
            one = i["count_up"]
            lines.append(f"launch: {one['eager_us']:.2f} us from the host, {one['graph_us']:.2f} us in a graph")
        elif "alone" in i:
            lines.append(f"{key} blocks: {i['alone']['us']:.2f} us, with exchange {i['with_exchange']['us']:.2f} us")
        elif "one" in i:
            lines.append(f"{key}: {i['one']['us']:.2f} us, card full {i['all']['us']:.2f} us")
        elif "one_way_us" in i:
            lines.append(f"{key}, one way: {i['one_way_us']:.3f} us")
    return lines


def _counters(document: Document) -> list[str]:
    """Launches and bytes a step, as predicted and as counted."""
    lines = []
    for i in items(document, "counters"):
        if "predicted" in i:
            want, got = i["predicted"], i.get("measured", {})
            counted = f"{got.get('kernels', '?')} kernels, {got.get('others', '?')} others"
            lines.append(f"{i['item']}: {counted}; predicted {want['kernels']}, {want['products']} products")
        for way in ("forward", "backward"):
            counted = i.get("kernels", {}).get(f"{way}_step", {}).get("lts__t_bytes.sum")
            if counted:
                want = i["predicted_step"][way]["pointwise_bytes"]
                lines.append(f"{i['item']} {way}_step: {counted / 1e3:.0f} kB through L2; predicted {want / 1e3:.0f}")
    return ["", *lines] if lines else []


def _means(document: Document) -> list[str]:
    found = means(document)
    if not found:
        return ["", "no time was measured"]
    header = f"{'rows':>5}{'ratio':>8}{'least':>7}{'bar rows':>10}{'bar':>7}{'floor':>8}{'model':>8}"
    about = "torch's time / ours, geometric means (bar: where cuDNN is not persistent); floor and model by our time"
    lines = ["", about, f"{'dtype':<10}{'pass':<18}{header}"]
    for m in found:
        cells = (m["mean"], m["least"], m["bar_mean"], m["floor_share"], m["predicted_share"])
        mean_, least, bar, share, predicted = (f"{v:.2f}" if v is not None else "-" for v in cells)
        numbers = f"{m['rows']:>5}{mean_:>8}{least:>7}{m['bar_rows']:>10}{bar:>7}{share:>8}{predicted:>8}"
        lines.append(f"{m['dtype']:<10}{m['passes']:<18}{numbers}")
    return [
        *lines,
        f"{len(measured_points(document))} of {len(list(sample.ordered()))} points of the grid were measured",
    ]


def _worst(document: Document) -> list[str]:
    found = sorted((row for row in rows(document) if row.ratio), key=lambda row: row.ratio or 0)[:LEAST_SHOWN]
    lines = ["", "furthest behind:"] if found else []
    for row in found:
        name = f"{row.point.shape}-{row.dtype} {row.passes}"
        torch = f"torch {row.torch:.3f} ({row.torch_by}, {'/'.join(row.paths)})"
        lines.append(f"  {row.ratio:.2f}  {name}: {row.ours:.3f} ms, {torch}")
    return lines


def _number(value: Any) -> float | None:
    """A number of the document, where what is not finite is text."""
    return None if value is None else float(value)
