"""Rows of text as an aligned table."""

from __future__ import annotations

from collections.abc import Collection


def aligned(rows: list[list[str]], left: Collection[str] = ()) -> list[str]:
    """One line per row. The first row is the header. Columns whose header is in `left` are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            v.ljust(w) if h in left else v.rjust(w) for v, w, h in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        for row in rows
    ]
