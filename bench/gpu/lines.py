"""What a part writes while it runs: JSON lines, so that a part that dies or hangs leaves what it had found.

    {"start": key}                                              an item has begun
    {"item": key, "status": STATUS, ...}                        and what came of it
    {"skip": key, "why": text}                                  one that was not begun

A part that is started again goes on behind the item that it last began.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUSES = ("ok", "wrong", "failed", "skipped", "not run")

# What a part ends with to be started again: its CUDA context is of no more use.
AGAIN = 75

Item = dict[str, Any]


class Lines:
    """The lines of one part; `seconds` are what it may take from now on."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._deadline = path, time.monotonic() + seconds
        self._begun = {line.get("start") or line.get("skip") for line in read_lines(path)}

    @classmethod
    def from_arguments(cls, about: str, arguments: list[str] | None = None) -> Lines:
        """By `--lines FILE --seconds N`, which every part takes."""
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--lines", type=Path, required=True, help="the file that is written to")
        parser.add_argument("--seconds", type=float, required=True, help="how long it may take")
        options = parser.parse_args(arguments)
        return cls(options.lines, options.seconds)

    def left(self) -> float:
        """Seconds until the part should be done."""
        return self._deadline - time.monotonic()

    def item(self, key: str, work: Callable[[], Item | None], needs: float = 0.0) -> Item | None:
        """Does `work` and writes what it returns, or why it failed. None where it had its turn, or no time is left.

        needs: the seconds it is thought to take.
        """
        if key in self._begun:
            return None
        self._begun.add(key)
        if self.left() < needs:
            self.write({"skip": key, "why": f"needs about {needs:.0f} s, {max(0.0, self.left()):.0f} s are left"})
            return None
        self.write({"start": key})
        started = time.monotonic()
        try:
            found = {"status": "ok", **(work() or {})}
        except Exception as error:  # one item's failure, of whatever kind, is not the part's
            traceback.print_exc()
            found = {"status": "failed", "why": f"{type(error).__name__}: {error}"[:600]}
        found = {"item": key, **found, "seconds": round(time.monotonic() - started, 3)}
        self.write(found)
        return found

    def has(self, key: str) -> bool:
        """Whether the item had its turn, in this process or before it was started again."""
        return key in self._begun

    def skip(self, key: str, why: str) -> None:
        if key not in self._begun:
            self._begun.add(key)
            self.write({"skip": key, "why": why})

    def write(self, line: Item) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(line), allow_nan=False) + "\n")


def read_lines(path: Path) -> list[Item]:
    """The lines of a file that are JSON objects: the last may be cut short, and a part may write what it likes."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def items(lines: list[Item], why: str) -> list[Item]:
    """Every item of a part in the order of their beginning. why: what is said of one that began and never ended."""
    order: dict[str, Item] = {}
    for line in lines:
        if "start" in line:
            order[line["start"]] = {"item": line["start"], "status": "failed", "why": why}
        elif "skip" in line:
            order[line["skip"]] = {"item": line["skip"], "status": "not run", "why": line.get("why", "")}
        elif "item" in line and line.get("status") in STATUSES:
            order[line["item"]] = line
    return list(order.values())


def _plain(value: Any) -> Any:
    """`value` as JSON has it: NumPy's numbers as Python's, what is not finite as text, the rest by its name."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)
