"""A Griffe extension for the API page: makes rnnkit's docstrings, which are plain text, good Markdown.

Lines with columns, as in

    x        (T, B, I), or (B, T, I) with batch_first
    lengths  (B,) whole numbers

become a code block, so that the columns stay aligned. An asterisk between two names (L*D) is no emphasis, and
<index> is no HTML.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import griffe

# A name or more, then at least two spaces, then text; or the indented continuation of such a line.
COLUMNS = re.compile(r"^\S+(?:, \S+)* {2,}\S|^ {4,}\S")
CODE = re.compile(r"(`[^`]*`)")


class Docstrings(griffe.Extension):
    """Rewrites each docstring when Griffe has read its object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A docstring as Markdown."""
    written: list[str] = []
    for columns, lines in groupby(docstring.split("\n"), lambda line: COLUMNS.match(line) is not None):
        block = list(lines)
        written += ["", "```text", *block, "```", ""] if columns else map(escaped, block)
    return "\n".join(written)


def escaped(line: str) -> str:
    """A line of text whose asterisks and angle brackets are literal, outside `code`."""
    parts = CODE.split(line)
    return "".join(p if p.startswith("`") else p.replace("*", r"\*").replace("<", "&lt;") for p in parts)
