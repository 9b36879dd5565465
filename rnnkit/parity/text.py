"""Outcomes as text: the table of a run, the checks that did not pass, and the arrays of one check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rnnkit.backends import BACKENDS
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.parity.checks import Check
from rnnkit.parity.outcome import Outcome

NAMED = 20  # checks that did not pass, one line each
COLUMNS = ("device", "backend", "dtype", "cell", "checks", "not ok", "worst", "in", "RMS", "same bits")


def share(value: float) -> str:
    """A share of a bound with three significant digits."""
    return f"{value:.3g}"


def lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under column names, each column as wide as its widest entry."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def groups(outcomes: Sequence[Outcome]) -> dict[tuple[str, str, str, str], list[Outcome]]:
    """The outcomes by (device, backend, dtype, cell): the CPU first, the rest in the order of the project's tables."""
    found: dict[tuple[str, str, str, str], list[Outcome]] = {}
    for o in outcomes:
        if isinstance(o.check, Check):
            found.setdefault((o.check.device, o.check.backend, o.check.dtype, o.check.case.cell), []).append(o)

    def order(key: tuple[str, str, str, str]) -> tuple[Any, ...]:
        device, backend, dtype, cell = key
        places = (_place(BACKENDS, backend.partition(":")[0]), backend, _place(DTYPES, dtype), _place(CELLS, cell))
        return (device != "cpu", device, *places)

    return {key: found[key] for key in sorted(found, key=order)}


def _place(names: Iterable[str], name: str) -> int:
    """The index of a name; one that is unknown, as in a file of another version, comes last."""
    known = list(names)
    return known.index(name) if name in known else len(known)


def table(outcomes: Sequence[Outcome]) -> str:
    """A row per device, backend, dtype and cell: how many checks, the worst and the largest RMS share, equal bits."""
    rows = []
    for key, held in groups(outcomes).items():
        worst = max(held, key=lambda o: o.worst)
        case = worst.check.case if isinstance(worst.check, Check) else ""
        bits = "no" if any(o.same_bits is False for o in held) else "yes"
        if all(o.same_bits is None for o in held):
            bits = "-"
        where = f"{case} {worst.worst_array}".rstrip()
        bad = sum(not o.ok for o in held)
        rms = max(o.rms for o in held)
        rows.append((*key, str(len(held)), str(bad), share(worst.worst), where, share(rms), bits))
    return "\n".join(lines(COLUMNS, rows))


def not_ok(outcomes: Sequence[Outcome]) -> list[str]:
    """One line per check that did not pass, at most NAMED, and how many more there are."""
    bad = [o for o in outcomes if not o.ok]
    found = [f"{o.status}: {o.check}: {o.why}" for o in bad[:NAMED]]
    return found + ([f"and {len(bad) - NAMED} more"] if len(bad) > NAMED else [])


def verdict(outcomes: Sequence[Outcome]) -> str:
    """The run in one sentence."""
    counted = f"{len(outcomes):,} check{'' if len(outcomes) == 1 else 's'}"
    bad = [o for o in outcomes if not o.ok]
    if not outcomes:
        return "no check ran"
    if not bad:
        return f"{counted}: all within their bounds"
    kinds = [(sum(o.status == status for o in bad), status) for status in ("wrong", "failed")]
    return f"{counted}: {len(bad):,} not ok ({', '.join(f'{n:,} {status}' for n, status in kinds if n)})"


def arrays(outcome: Outcome) -> str:
    """Worst and RMS share of every array of one check, worst first."""
    found = sorted(outcome.arrays.items(), key=lambda item: -item[1].worst)
    rows = [(name, share(e.worst), share(e.rms), "" if e.worst <= 1 else "over the bound") for name, e in found]
    return "\n".join(lines(("array", "worst", "RMS", ""), rows))
