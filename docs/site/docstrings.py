"""A Griffe extension for the API page: makes rnnkit's docstrings, which are plain text, good Markdown.

A paragraph with columns, as in

    x        (T, B, I), or (B, T, I) with batch_first
    lengths  (B,) whole numbers

becomes a code block, so that the columns stay aligned. An asterisk between two names (L*D) is no emphasis.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# A name or two, then at least two spaces, then text.
COLUMNS = re.compile(r"^\S+(?:, \S+)* {2,}\S")
CODE = re.compile(r"(`[^`]*`)")


class Docstrings(griffe.Extension):
    """Rewrites each docstring when Griffe has read its object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(as_markdown, paragraphs))


def as_markdown(paragraph: str) -> str:
    """One paragraph of a docstring as Markdown."""
    lines = paragraph.split("\n")
    if lines[0].startswith("    "):
        return paragraph
    if any(map(COLUMNS.match, lines)):
        return "\n".join(["```text", *lines, "```"])
    return "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in CODE.split(paragraph))
