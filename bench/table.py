"""Rows of text as an aligned table."""

from __future__ import annotations

from collections.abc import Collection


def aligned(rows: list[list[str]], left: Collection[str] = ()) -> list[str]:
    """A line a row; the first row is the header, and its columns named in `left` go to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            v.ljust(w) if h in left else v.rjust(w) for v, w, h in zip(row, widths, rows[0], strict=True)
        ).rstrip()
        for row in rows
    ]
