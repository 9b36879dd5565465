"""The pages of the documentation and the Python in them. Blocks that need PyTorch say so in their title."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md")))
PLAIN = "```python\n"
FOR_TORCH = '```python title="PyTorch"\n'


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code(page: str, opening: str = PLAIN) -> str:
    """All Python of a page, as one program. opening: `FOR_TORCH` for the blocks that need PyTorch."""
    return "\n".join(re.findall(rf"^{re.escape(opening)}(.*?)^```", text(page), re.DOTALL | re.MULTILINE))
