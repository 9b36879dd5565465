"""The output of a run: a line per check as it ends, a table after each part, and the whole table last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.gpu import hardware_ceilings_table, point_order
from bench.gpu.report import Document, card_name, item, items, means, measured_points, problems, rows, torch_best, why

FAILURES_SHOWN = 12
LINES_SHOWN = 6
LEAST_SHOWN = 8
LINE_CHARACTERS = 150


def line(part: str, entry: dict[str, Any]) -> str:
    """The line of a check that has ended."""
    said = why(entry) if entry["status"] != "ok" else _figure(entry)
    seconds = f"{entry['seconds']:.1f} s" if "seconds" in entry else ""
    return f"{part:<11}{entry['status']:<14}{entry['item']}  {said}  {seconds}".rstrip()[:LINE_CHARACTERS]


def _figure(entry: dict[str, Any]) -> str:
    """The figure of a check with status "ok", where it has one."""
    if "passes" in entry:
        found = []
        for passes, result in entry["passes"].items():
            best, _ = torch_best(result)
            if best and "ours" in result:
                ours = result["ours"]["ms"]["median"]
                found.append(f"{passes} {ours:.3f} ms, torch {best / ours:.2f} times")
        return "; ".join(found)
    if "worst" in entry:
        return f"{float(entry['worst']):.2g} of its bound"
    for field, unit in (("tflops", "TFLOP/s"), ("gb_per_s", "GB/s"), ("one_way_us", "us one way"), ("us", "us")):
        if field in entry:
            return f"{entry[field]:.4g} {unit}"
    return ""


def render(document: Document, part: str | None = None) -> str:
    """The table of one part, or of the whole run: at most a few thousand characters."""
    if part is not None:
        return "\n".join([*_parts(document, [part]), *SECTIONS.get(part, _nothing)(document)])
    lines = [_heading(document), "", *_parts(document, list(document["parts"]))]
    for section in SECTIONS.values():
        lines += section(document)
    found = problems(document)
    lines += ["", f"{len(found)} problem{'s'[: len(found) > 1]}" if found else "no problems"]
    lines += [f"  {text}"[:240] for text in found[:FAILURES_SHOWN]]
    if len(found) > FAILURES_SHOWN:
        lines.append(f"  and {len(found) - FAILURES_SHOWN} more, in gpu.json")
    return "\n".join(lines)


def _nothing(document: Document) -> list[str]:
    return []


def _heading(document: Document) -> str:
    versions = item(document, "card", "versions").get("versions", {})
    torch = item(document, "smoke", "torch's LSTM")
    limits = item(document, "card", "limits").get("smi", {})
    cupy = next((version for name, version in versions.items() if name.startswith("cupy")), "?")
    said = [f"driver {limits.get('driver_version', '?')}", f"CuPy {cupy}"]
    said += [f"torch {torch.get('torch', '?')}", f"cuDNN {torch.get('cudnn', '?')}"]
    said += [f"cuBLAS {item(document, 'card', 'cublas_version').get('cublas', '?')}"]
    runs = f" in {len(document['runs'])} runs" if len(document.get("runs", ())) > 1 else ""
    return f"{card_name(document)}, {document['date']}, {', '.join(said)}, {document['seconds']:.0f} s{runs}"


def _parts(document: Document, names: list[str]) -> list[str]:
    lines = [f"{'part':<12}{'':<12}{'s':>5}  items"]
    for name in names:
        part = document["parts"][name]
        counts = Counter(i["status"] for i in part["items"])
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        lines.append(f"{name:<12}{part['status']:<12}{part['seconds']:>5.0f}  {said}")
        if part["status"] != "done":
            lines.append(f"    {part['why']}"[:200])
            lines += [f"    | {text}"[:160] for text in part["last_lines"][-LINES_SHOWN:]]
        missing = dict.fromkeys(why(i) for i in part["items"] if i["status"] == "not available")
        lines += [f"    not available: {text}"[:160] for text in list(missing)[:4]]
    return lines


def _smoke(document: Document) -> list[str]:
    return [f"  {i['item']}: {i['status']} {why(i)}".rstrip()[:200] for i in items(document, "smoke")]


def _parity(document: Document) -> list[str]:
    """By backend and dtype: the checks of values, those that are not ok, and the worst error."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in items(document, "parity"):
        if "worst" in entry:
            backend, dtype, *_ = entry["item"].split()
            groups.setdefault((backend, dtype), []).append(entry)
    if not groups:
        return []
    lines = ["", f"{'parity':<16}{'dtype':<10}{'checks':>7}{'bad':>5}{'worst':>9}  where"]
    for (backend, dtype), entries in sorted(groups.items()):
        worst = max(entries, key=lambda entry: float(entry["worst"]))
        bad = sum(entry["status"] != "ok" for entry in entries)
        where = worst["item"].split()[2]
        lines.append(f"{backend:<16}{dtype:<10}{len(entries):>7}{bad:>5}{float(worst['worst']):>9.3g}  {where}")
    return lines


def _ceilings(document: Document) -> list[str]:
    return hardware_ceilings_table.lines(items(document, "ceilings"))


def _counters(document: Document) -> list[str]:
    """Launches and bytes per step, as predicted and as counted."""
    lines = []
    for i in items(document, "counters"):
        if "predicted" in i:
            want = i["predicted"]
            got = i.get("measured", {})
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
    header = f"{'rows':>5}{'ratio':>8}{'least':>7}{'bar rows':>10}{'bar':>7}{'bound':>8}{'model':>8}"
    about = (
        "torch's time / ours, geometric means (bar: where cuDNN is not persistent); lower bound and model / our time"
    )
    lines = ["", about, f"{'dtype':<10}{'pass':<18}{header}"]
    for m in found:
        cells = (m["mean"], m["least"], m["bar_mean"], m["lower_bound_share"], m["predicted_share"])
        mean_, least, bar, share, predicted = (f"{v:.2f}" if v is not None else "-" for v in cells)
        numbers = f"{m['rows']:>5}{mean_:>8}{least:>7}{m['bar_rows']:>10}{bar:>7}{share:>8}{predicted:>8}"
        lines.append(f"{m['dtype']:<10}{m['passes']:<18}{numbers}")
    return [
        *lines,
        f"{len(measured_points(document))} of {len(list(point_order.ordered()))} points of the grid were measured",
    ]


def _ragged(document: Document) -> list[str]:
    """Ragged batches, milliseconds: lengths that repeat, new lengths, and torch with batches packed before."""
    names = ("ours", "ours_fresh", "torch_eager", "torch_fresh", "torch_packed")
    lines = []
    for entry in items(document, "throughput"):
        for passes, result in entry.get("passes", {}).items():
            if "ours_fresh" in result:
                times = [result.get(name, {}).get("ms", {}).get("median") for name in names]
                figures = "".join(f"{ms:>14.3f}" if ms else f"{'-':>14}" for ms in times)
                lines.append(f"{entry['point']['cell']:<10}{entry['point']['dtype']:<10}{passes:<18}{figures}")
    header = f"{'ragged':<38}" + "".join(f"{name:>14}" for name in names)
    return ["", header, *lines] if lines else []


def _fell_back(document: Document) -> list[str]:
    """The points at which our steps were launched one by one instead of by a graph."""
    found = {}
    for entry in items(document, "throughput"):
        for passes, result in entry.get("passes", {}).items():
            reasons = result.get("ours", {}).get("fell_back", [])
            if reasons:
                found[f"{entry['item']} {passes}"] = reasons[0]
    if not found:
        return []
    name, reason = next(iter(found.items()))
    return [f"{len(found)} passes fell back from graphs, the first {name}: {reason}"[:240]]


def _throughput(document: Document) -> list[str]:
    if "throughput" not in document["parts"]:
        return []
    return [*_means(document), *_fell_back(document), *_ragged(document), *_worst(document)]


def _sanitizer(document: Document) -> list[str]:
    lines = []
    for i in items(document, "sanitizer"):
        if i["status"] == "not available":  # printed once, with the part
            continue
        what = why(i) or f"{i.get('errors')} errors over {i.get('cases')} cases, probes {i.get('probes')}"
        lines.append(f"  {i['item']}: {i['status']}: {what}"[:200])
    return lines


def _worst(document: Document) -> list[str]:
    found = sorted((row for row in rows(document) if row.ratio), key=lambda row: row.ratio or 0)[:LEAST_SHOWN]
    lines = ["", "furthest behind:"] if found else []
    for row in found:
        name = f"{row.point.shape}-{row.dtype} {row.passes}"
        torch = f"torch {row.torch:.3f} ({row.torch_by}, {'/'.join(row.paths)})"
        lines.append(f"  {row.ratio:.2f}  {name}: {row.ours:.3f} ms, {torch}")
    return lines


SECTIONS: dict[str, Callable[[Document], list[str]]] = {
    "smoke": _smoke,
    "parity": _parity,
    "ceilings": _ceilings,
    "throughput": _throughput,
    "counters": _counters,
    "sanitizer": _sanitizer,
}
