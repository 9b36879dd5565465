"""The file of items: every process of a run appends a line as soon as a check ends. JSON, one object per line.

    {"part": name, "pid": p, "start": key}                          a check has begun in process p
    {"part": name, "pid": p, "item": key, "status": STATUS, ...}    it has ended, with what it found
    {"part": name, "only": [key, ...]}                              this run repeats these checks alone

All processes share one file. A line is appended by one write under a lock, and readers skip incomplete lines. So the
file can be read at any time, and every finished item is in it however a process ends. A process that is started again
continues after the check that it began last. A run that continues an earlier one starts from a file with the earlier
items.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# The statuses of a check. "skipped": it does not apply here. "not run": there was no time. "not available": a library
# or a tool that it needs is missing.
STATUSES = ("ok", "wrong", "failed", "skipped", "not run", "not available")
BAD = ("wrong", "failed")

# The exit status of a part that asks to be started again: its CUDA context is lost.
AGAIN = 75
# The exit status of a part that cannot write its items.
NO_SPACE = 74

# cudaErrorStubLibrary, cudaErrorInsufficientDriver and cudaErrorNoDevice: there was no context.
NEVER_WORKED = (34, 35, 100)

# Disk space that is reserved for the items of a run, so that a disk that fills up later does not lose them.
RESERVED_BYTES = 8 << 20
KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h

Item = dict[str, Any]


class Unavailable(Exception):
    """Raised by a check that needs something this machine lacks. The message says what."""


class NotWritten(OSError):
    """An item could not be written: the disk is full, for example."""


class Lines:
    """The items of one part in one process. seconds: the time that the process may take."""

    def __init__(self, path: Path, part: str, seconds: float) -> None:
        self._path = path
        self.part = part
        self._deadline = time.monotonic() + seconds
        mine = [line for line in read_lines(path) if line.get("part") == part]
        self._begun = {line.get("start") or line.get("item") for line in mine}
        only = [line["only"] for line in mine if "only" in line]
        self._only = set(only[-1]) if only else None

    @classmethod
    def from_arguments(cls, about: str, arguments: list[str] | None = None) -> Lines:
        """From `--items FILE --part NAME --seconds N`, the options of every part."""
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        add_arguments(parser)
        options = parser.parse_args(arguments)
        return cls(options.items, options.part, options.seconds)

    def left(self) -> float:
        """Seconds until the process should be done."""
        return self._deadline - time.monotonic()

    def wants(self, key: str) -> bool:
        """Whether the check is to be done: it was not begun before, and is among those to repeat if there are any."""
        return key not in self._begun and (self._only is None or key in self._only)

    def item(self, key: str, work: Callable[[], Item | None], needs: float = 0.0) -> Item | None:
        """Runs `work` and writes its result, or why it failed. None where it is not wanted, or no time is left.

        needs: the seconds that it is expected to take.
        Exits the process with status AGAIN where the check failed and the CUDA context is lost.
        """
        if not self.wants(key):
            return None
        if self.left() < needs:
            self.skip(key, f"needs about {needs:.0f} s, {max(0.0, self.left()):.0f} s are left", "not run")
            return None
        self.begin(key)
        started = time.monotonic()
        try:
            found = {"status": "ok", **(work() or {})}
        except Unavailable as missing:
            found = {"status": "not available", "why": one_line(str(missing))}
        except Exception as error:  # the failure of one check, of whatever kind, does not end the part
            traceback.print_exc()
            found = {"status": "failed", "why": one_line(f"{type(error).__name__}: {error}")}
        found = {"item": key, **found, "seconds": round(time.monotonic() - started, 3)}
        self.write(found)
        if found["status"] == "failed" and context_is_lost():
            raise SystemExit(AGAIN)
        return found

    def begin(self, key: str) -> None:
        self._begun.add(key)
        self.write({"start": key})

    def skip(self, key: str, why: str, status: str = "skipped") -> None:
        """Writes an item for a check that is not done, with the reason."""
        if self.wants(key):
            self._begun.add(key)
            self.write({"item": key, "status": status, "why": why})

    def write(self, line: Item) -> None:
        """Appends a line of this part. Exits the process with status NO_SPACE where that fails."""
        try:
            append(self._path, [{"part": self.part, "pid": os.getpid(), **line}])
        except NotWritten as problem:
            print(f"{problem}; the item was {json.dumps(plain(line))}", file=sys.stderr, flush=True)
            raise SystemExit(NO_SPACE) from problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--items", type=Path, required=True, help="the file that items are appended to")
    parser.add_argument("--part", required=True, help="the part's name in it")
    parser.add_argument("--seconds", type=float, required=True, help="how long it may take")


def append(path: Path, lines: Iterable[Item]) -> None:
    """Appends the lines. Raises NotWritten where that fails. It may leave an incomplete line, which readers skip."""
    text = "".join(json.dumps(plain(line), allow_nan=False) + "\n" for line in lines).encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        # An interrupted write, by a full disk or a kill, leaves an incomplete line.
        if size and os.pread(file, 1, size - 1) != b"\n":
            text = b"\n" + text
        try:
            written = os.write(file, text)
            if written < len(text):
                raise OSError(f"{written} of {len(text)} bytes were written")
        except OSError as problem:
            raise NotWritten(f"an item cannot be written to {path.name}: {problem}") from problem
    finally:
        os.close(file)


def reserve(path: Path, size: int = RESERVED_BYTES) -> bool:
    """Reserves disk space beyond the end of the file, where the system can. Appending then needs no free space."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.fallocate(file, KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(size)) == 0
    except AttributeError:  # a system without fallocate
        return False
    finally:
        os.close(file)


class Tail:
    """Reads a file as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Item]:
        """The lines that were added since the last call, of those that are JSON objects."""
        if not self._path.exists() or self._path.stat().st_size <= self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        found = []
        for text in whole.splitlines():
            try:
                line = json.loads(text.decode(errors="replace"))
            except ValueError:
                continue
            if isinstance(line, dict):
                found.append(line)
        return found


def read_lines(path: Path) -> list[Item]:
    """All lines of a file that are JSON objects."""
    return Tail(path).new()


def ended(lines: Iterable[Item]) -> dict[str, dict[str, Item]]:
    """Part -> key -> the item, of every check that has ended, in the order in which they ended."""
    found: dict[str, dict[str, Item]] = {}
    for line in lines:
        part = line.get("part")
        key = line.get("item")
        if isinstance(part, str) and isinstance(key, str) and line.get("status") in STATUSES:
            found.setdefault(part, {})[key] = {
                name: value for name, value in line.items() if name not in ("part", "pid")
            }
    return found


def under_way(lines: Iterable[Item], part: str, pid: int) -> list[str]:
    """The checks of a part that have begun in a process and not ended."""
    begun: dict[str, None] = {}
    for line in lines:
        if line.get("part") != part:
            continue
        if line.get("pid") == pid and isinstance(line.get("start"), str):
            begun[line["start"]] = None
        elif isinstance(line.get("item"), str):
            begun.pop(line["item"], None)
    return list(begun)


def one_line(text: str) -> str:
    return " ".join(text.split())[:600]


def context_is_lost() -> bool:
    """Whether this process has a CUDA context that no longer works. After an illegal access every call fails."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return False
    try:
        cupy.cuda.runtime.deviceSynchronize()
    except Exception as error:  # CuPy's, or of an extension that does not load
        return getattr(error, "status", None) not in NEVER_WORKED
    return False


def plain(value: Any) -> Any:
    """`value` for JSON: NumPy's numbers as Python's, a number that is not finite as text, any other object as text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)
