"""Outcomes as text: the table of a run, the checks that did not pass, and the arrays of one check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rnnkit.backends import BACKENDS
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.parity.checks import Check
from rnnkit.parity.outcome import Outcome

NAMED = 20  # largest number of checks that are listed by name
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
    """The outcomes by (device, backend, dtype, cell): the CPU first, the others in the order of the tables."""
    by_key: dict[tuple[str, str, str, str], list[Outcome]] = {}
    for o in outcomes:
        if isinstance(o.check, Check):
            by_key.setdefault((o.check.device, o.check.backend, o.check.dtype, o.check.case.cell), []).append(o)

    def order(key: tuple[str, str, str, str]) -> tuple[Any, ...]:
        device, backend, dtype, cell = key
        positions = (_index(BACKENDS, backend.partition(":")[0]), backend, _index(DTYPES, dtype), _index(CELLS, cell))
        return (device != "cpu", device, *positions)

    return {key: by_key[key] for key in sorted(by_key, key=order)}


def _index(names: Iterable[str], name: str) -> int:
    """The index of a name. An unknown name, as in a file of another version, sorts last."""
    known = list(names)
    return known.index(name) if name in known else len(known)


def table(outcomes: Sequence[Outcome]) -> str:
    """A row per device, backend, dtype and cell: number of checks, worst and largest RMS share, equality of bits."""
    rows = []
    for key, group in groups(outcomes).items():
        worst = max(group, key=lambda o: o.worst)
        case = worst.check.case if isinstance(worst.check, Check) else ""
        bits = "no" if any(o.same_bits is False for o in group) else "yes"
        if all(o.same_bits is None for o in group):
            bits = "-"
        where = f"{case} {worst.worst_array}".rstrip()
        bad = sum(not o.ok for o in group)
        rms = max(o.rms for o in group)
        rows.append((*key, str(len(group)), str(bad), share(worst.worst), where, share(rms), bits))
    return "\n".join(lines(COLUMNS, rows))


def not_ok(outcomes: Sequence[Outcome]) -> list[str]:
    """One line per check that did not pass, at most NAMED lines, and the number of the others."""
    bad = [o for o in outcomes if not o.ok]
    listed = [f"{o.status}: {o.check}: {o.why}" for o in bad[:NAMED]]
    return listed + ([f"and {len(bad) - NAMED} more"] if len(bad) > NAMED else [])


def verdict(outcomes: Sequence[Outcome]) -> str:
    """The result of the run in one sentence."""
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
    entries = sorted(outcome.arrays.items(), key=lambda item: -item[1].worst)
    rows = [(name, share(e.worst), share(e.rms), "" if e.worst <= 1 else "over the bound") for name, e in entries]
    return "\n".join(lines(("array", "worst", "RMS", ""), rows))
