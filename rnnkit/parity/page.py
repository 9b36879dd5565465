"""The heat map of a run: an HTML file without scripts. A row per case, a column per device, backend and dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from rnnkit.parity import text
from rnnkit.parity.checks import Check
from rnnkit.parity.outcome import Outcome
from rnnkit.parity.style import STYLE
from rnnkit.testing import Case

# Upper limits of the classes s0 to s6 of the style: half-decades up to the bound.
ENDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

Column = tuple[str, str, str]  # device, backend, dtype
Grid = dict[Case, dict[Column, Outcome]]


def page(report: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The HTML text of a run.

    Args:
        report: the run's document, see `rnnkit.parity.document`.
        outcomes: the run's outcomes.

    Returns:
        The HTML text.
    """
    grid, columns = _grid(outcomes)
    verdict = text.verdict(outcomes)
    good = bool(outcomes) and all(o.ok for o in outcomes)
    not_checked = _list("Not checked here", [_unavailable(report, name) for name in report["unavailable"]])
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>rnnkit parity: {escape(verdict)}</title>",
        f"<style>{STYLE}</style></head><body><main>",
        "<h1>rnnkit parity</h1>",
        f'<p class="verdict {"good" if good else "bad"}">{"✓" if good else "✗"} {escape(verdict)}</p>',
        "<p>Every output and gradient of forward and backward against the float64 oracle. A number is the worst error "
        "of a case as a share of its bound: at most 1 passes. Point at a number for its array, its RMS share, and "
        "whether every call gave the same bits.</p>",
        *_list("Not ok", text.not_ok(outcomes)),
        *(not_checked if report["missing"] else ()),
        _legend(),
    ]
    if outcomes:
        parts += ["<table>", f"<caption>{escape(_caption(report))}</caption>", _head(columns, report)]
        parts += [_group(cell, grid, columns) for cell in dict.fromkeys(case.cell for case in grid)]
        parts.append("</table>")
    else:
        parts.append(f"<p>{escape(_caption(report))}</p>")
    parts += () if report["missing"] else not_checked
    return "\n".join([*parts, "</main></body></html>", ""])


def _grid(outcomes: Sequence[Outcome]) -> tuple[Grid, list[Column]]:
    """The outcomes by case and column, and the columns, in the order of the outcomes with equal devices adjacent."""
    grid: Grid = {}
    for (device, backend, dtype, _), group in text.groups(outcomes).items():
        for outcome in group:
            assert isinstance(outcome.check, Check)
            grid.setdefault(outcome.check.case, {})[(device, backend, dtype)] = outcome
    columns = list(dict.fromkeys(key[:3] for key in text.groups(outcomes)))
    return grid, columns


def _list(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    return [f"<h2>{title}</h2>", "<ul>", *(f"<li>{escape(item)}</li>" for item in items), "</ul>"]


def _unavailable(report: dict[str, Any], name: str) -> str:
    named = ", requested by name" if name in report["missing"] else ""
    return f"{name}{named}: {report['unavailable'][name]}"


def _caption(report: dict[str, Any]) -> str:
    """Versions, machine, date and duration."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    cores = f"{machine['cores']} core{'' if machine['cores'] == 1 else 's'}"
    where = f"{machine['processor']}, {cores}, {machine['system']}"
    date = report["date"].replace("T", " ").replace("+00:00", " UTC")
    return f"{versions}. {where}. {date}, {report['seconds']:,.1f} s."


def _legend() -> str:
    """The meaning of the colours and signs."""
    names = [f"below {ENDS[0]:g}"]
    names += [f"{low:g} to {high:g}" for low, high in pairwise(ENDS)]
    ramp = [(f"s{k}", "", name) for k, name in enumerate(names)]
    signs = [
        ("over", "✗", "over the bound"),
        ("over", "≠", "bits differ from call to call"),
        ("failed", "!", "the backend raised"),
        ("none", "-", "not checked"),
    ]
    rows = []
    for title, swatches in (("Share of the bound", ramp), ("Not ok", signs)):
        entries = [f'<span><i class="{kind}">{sign}</i>{name}</span>' for kind, sign, name in swatches]
        rows.append(f'<p class="legend"><b>{title}</b> {" ".join(entries)}</p>')
    return "".join(rows)


# The table


def _head(columns: list[Column], report: dict[str, Any]) -> str:
    """Three rows: devices, backends, dtypes. A name spans the columns that share it."""
    rows = []
    for level in range(3):
        cells = []
        for first, count in _runs([column[: level + 1] for column in columns]):
            name = columns[first][level]
            edge = ' class="edge"' if first and columns[first][:2] != columns[first - 1][:2] else ""
            about = report["machine"]["devices"].get(name, "") if level == 0 else ""
            label = escape(name) + (f" <small>{escape(about)}</small>" if about else "")
            label = label.replace(":", ":<wbr>")
            cells.append(f'<th scope="colgroup" colspan="{count}"{edge}>{label}</th>')
        case = '<th rowspan="3" class="corner">case</th>' if level == 0 else ""
        rows.append(f"<tr>{case}{''.join(cells)}</tr>")
    return f"<thead>{''.join(rows)}</thead>"


def _runs(keys: Sequence[Any]) -> list[tuple[int, int]]:
    """(first index, length) of each stretch of equal keys."""
    firsts = [k for k in range(len(keys)) if not k or keys[k] != keys[k - 1]]
    return [(a, b - a) for a, b in zip(firsts, [*firsts[1:], len(keys)], strict=True)]


def _group(cell: str, grid: Grid, columns: list[Column]) -> str:
    """The rows of one recurrent cell, under its name and its worst share."""
    rows_of_cell = {case: row for case, row in grid.items() if case.cell == cell}
    outcomes = [outcome for row in rows_of_cell.values() for outcome in row.values()]
    worst = max((o.worst for o in outcomes if o.arrays), default=math.inf)
    bad = sum(not o.ok for o in outcomes)
    cases = f"{len(rows_of_cell)} case{'' if len(rows_of_cell) == 1 else 's'}, worst share {text.share(worst)}"
    cases += f", {bad} of {len(outcomes)} checks not ok" if bad else ""
    title = f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}"><b>{cell}</b> {cases}</th></tr>'
    rows = []
    for case, row in rows_of_cell.items():
        cells = "".join(_cell(case, columns, k, row.get(column)) for k, column in enumerate(columns))
        rows.append(f'<tr><th scope="row" title="{case}">{_label(case)}</th>{cells}</tr>')
    return f"<tbody>{title}{''.join(rows)}</tbody>"


def _label(case: Case) -> str:
    sizes = [f"{name}\u202f{getattr(case, name)}" for name in "TBIHP" if getattr(case, name) or name != "P"]
    flags = [name for name in ("reverse", "ragged") if getattr(case, name)] + ([] if case.bias else ["no bias"])
    return ", ".join(sizes) + "".join(f" <em>{flag}</em>" for flag in flags)


def _cell(case: Case, columns: list[Column], k: int, outcome: Outcome | None) -> str:
    edge = " edge" if k and columns[k][:2] != columns[k - 1][:2] else ""
    if outcome is None:
        return f'<td class="none{edge}" title="{case}: not checked">-</td>'
    kind, shown = _kind(outcome)
    return f'<td class="{kind}{edge}" title="{escape(_tooltip(outcome))}">{shown}</td>'


def _kind(outcome: Outcome) -> tuple[str, str]:
    """The CSS class and the text of a cell. Wrong cells also have a sign, for readers who do not see the colour."""
    if outcome.status == "failed":
        return "failed", "! failed"
    shown = _short(outcome.worst)
    if outcome.ok:
        return next(f"s{k}" for k, end in enumerate(ENDS) if outcome.worst <= end), shown
    signs = ("" if outcome.worst <= 1 else "✗") + ("≠" if outcome.same_bits is False and outcome.arrays else "")
    return "over", f"{signs or '✗'}\u202f{shown}"


def _short(value: float) -> str:
    """A share in at most six characters."""
    if math.isinf(value):
        return "∞"
    if value == 0:
        return "0"
    if value < ENDS[0]:
        return "&lt;.001"
    return f"{value:#.2g}" if value < 9.95 else f"{value:.0f}" if value < 99999 else f"{value:.0e}"


def _tooltip(outcome: Outcome) -> str:
    bits = {True: "the same in every call", False: "differ from call to call", None: "not compared"}
    lines = [str(outcome.check), outcome.status + (f": {outcome.why}" if outcome.why else "")]
    if outcome.arrays:
        lines += [f"worst {text.share(outcome.worst)} in {outcome.worst_array}", f"RMS {text.share(outcome.rms)}"]
    return "\n".join([*lines, f"bits {bits[outcome.same_bits]}", f"{outcome.seconds:.3g} s"])
