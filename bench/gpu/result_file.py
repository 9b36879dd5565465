"""gpu.json, the document of a run: built from the items as they end, and merged with an earlier run's.

{"schema", "date", "commit", "seconds", "runs": [...], "parts": {name: {"status": "done" | "failed" | "not run" |
"under way" | "ended", "why", "seconds", "starts", "last_lines", "items": [...]}}}. `items_file` describes an item. Its
"run" is the index in "runs" of the run that it comes from.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.items_file import BAD, Item, ended, read_lines
from bench.gpu.processes import Part, Result

SCHEMA = 2
Document = dict[str, Any]
NAME = "gpu.json"
ITEMS = "items.jsonl"
# A run that continues repeats the items of these statuses.
OPEN = ("not run", "not available")
SAVE_SECONDS = 1.0


class Unusable(ValueError):
    """A file that a run cannot be continued from."""


def load(path: Path) -> Document:
    """An earlier run's document, with every item that ended, also those after the document was last written.

    path: gpu.json or its folder. Raises Unusable where there is none, or one of another format.
    """
    path = path / NAME if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unusable(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:
        raise Unusable(f"{path} cannot be read: {problem}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        was = document.get("schema") if isinstance(document, dict) else None
        raise Unusable(f"{path} must be a gpu.json of schema {SCHEMA}, it has schema {was}")
    latest = len(document["runs"]) - 1
    for name, found in ended(read_lines(path.with_name(ITEMS))).items():
        part = document["parts"].setdefault(name, empty_part("ended"))
        items = {item["item"]: item for item in part["items"]}
        items |= {key: {"run": latest, **item} for key, item in found.items()}
        part["items"] = list(items.values())
    return document


def empty_part(status: str, why: str = "") -> dict[str, Any]:
    return {**Result(status, why).to_dict(), "items": []}


class Todo(NamedTuple):
    """What a run that continues an earlier one has to do in a part."""

    start: bool
    lines: list[Item]


def todo(part: str, earlier: Document, only_failed: bool) -> Todo:
    """Whether the part is started again, and the lines of the checks that it need not repeat."""
    known = earlier["parts"].get(part)
    if known is None:
        return Todo(not only_failed, [])
    bad = [item["item"] for item in known["items"] if item["status"] in BAD]
    if only_failed:
        if known["status"] == "failed" and not bad:  # the part failed as a whole
            return Todo(True, [])
        return Todo(bool(bad), [{"part": part, "only": bad}])
    finished = known["status"] == "done" and not any(item["status"] in OPEN for item in known["items"])
    kept = [{"part": part, **item} for item in known["items"] if item["status"] not in OPEN]
    return Todo(not finished, kept)


class Results:
    """The document of the current run, in OUT/gpu.json."""

    def __init__(self, out: Path, head: Document, earlier: Document | None = None) -> None:
        self.path = out / NAME
        self._head = head
        self._run = len(head["runs"]) - 1
        self._parts: dict[str, dict[str, Any]] = dict(earlier["parts"]) if earlier else {}
        self._items = {name: {item["item"]: item for item in part["items"]} for name, part in self._parts.items()}
        self._started = time.monotonic()
        self._saved = 0.0
        self.problem = ""

    def document(self) -> Document:
        seconds = round(time.monotonic() - self._started, 1)
        self._head["runs"][self._run]["seconds"] = seconds
        self._head["seconds"] = round(sum(run["seconds"] for run in self._head["runs"]), 1)
        parts = {
            name: {**part, "items": list(self._items.get(name, {}).values())} for name, part in self._parts.items()
        }
        return {**self._head, "parts": parts}

    def begin(self, part: str) -> None:
        self._parts[part] = {**self._parts.get(part, empty_part("")), "status": "under way"}

    def note(self, new: Iterable[Item]) -> list[tuple[str, Item]]:
        """Adds new lines. Gives (part, item) for each check that ended."""
        found = [(name, item) for name, items in ended(new).items() for item in items.values()]
        for name, item in found:
            self._items.setdefault(name, {})[item["item"]] = {"run": self._run, **item}
        if found and time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()
        return found

    def finish(self, part: Part, result: Result) -> None:
        before = self._parts.get(part.name, empty_part(""))
        seconds = round(before["seconds"] + result.seconds, 1)
        self._parts[part.name] = {**result.to_dict(), "seconds": seconds}
        self.save()

    def interrupt(self, why: str) -> None:
        """Marks the current part as ended. Its finished items stay."""
        for name, part in self._parts.items():
            if part["status"] == "under way":
                self._parts[name] = {**part, "status": "ended", "why": why}
        self.save()

    def add(self, **fields: Any) -> None:
        self._head |= fields

    def save(self) -> None:
        """Writes gpu.json whole. Where that fails, the previous one stays and `problem` says why."""
        self._saved = time.monotonic()
        try:
            write(self.document(), self.path)
        except OSError as problem:
            self.problem = f"gpu.json cannot be written: {problem}"


def write(document: Document, path: Path) -> None:
    """Writes the file whole or not at all, one item per line."""
    partial = path.with_suffix(".partial")
    parts = []
    for name, part in document["parts"].items():
        rows = ",\n".join("   " + json.dumps(item) for item in part["items"])
        head = json.dumps({k: v for k, v in part.items() if k != "items"})[:-1]
        parts.append(f'  "{name}": {head}, "items": [\n{rows}\n  ]}}')
    head = json.dumps({k: v for k, v in document.items() if k != "parts"})[:-1]
    try:
        partial.write_text(f'{head},\n "parts": {{\n' + ",\n".join(parts) + "\n }}\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
