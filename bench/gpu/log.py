"""The log of a run: the output of every process, in one file of limited size."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from pathlib import Path
from typing import Any

# Of each process: the beginning of its output at once, and the end when it has ended.
HEAD_BYTES = 1 << 20
TAIL_BYTES = 1 << 16
# Of the whole file.
MOST_BYTES = 12 << 20
SHOWN_LINES = 15


class Log:
    """The file. Lines of different processes may alternate in it, each with the name of its process before it."""

    def __init__(self, path: Path) -> None:
        self._file: Any = path.open("ab")
        self._lock = threading.Lock()

    def write(self, name: str, lines: list[bytes]) -> int:
        """Adds lines of the process `name`. Gives the bytes written: 0 when the file is full or cannot be written."""
        text = b"".join(b"%s| %s\n" % (name.encode(), line) for line in lines)
        with self._lock:
            if self._file.closed or self._file.tell() + len(text) > MOST_BYTES:
                return 0
            try:
                self._file.write(text)
                self._file.flush()
            except OSError:  # a full disk: the items matter more
                return 0
            return len(text)

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._file.close()


class Output:
    """The output of one process: a thread reads it, adds it to the log and keeps its last lines."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self._log = log
        self._written = 0
        self._dropped = 0
        self._tail: deque[bytes] = deque()
        self._kept = 0
        self._rest = b""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def follow(self, pipe: Any) -> None:
        """Reads the pipe until it ends."""
        self._thread = threading.Thread(target=self._pump, args=(pipe,), daemon=True)
        self._thread.start()

    def _pump(self, pipe: Any) -> None:
        while chunk := pipe.read1(1 << 14):
            self._take(chunk)
        pipe.close()
        self._take(b"\n")

    def _take(self, chunk: bytes) -> None:
        with self._lock:
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > TAIL_BYTES:  # output without line breaks
                lines.append(self._rest)
                self._rest = b""
            lines = [line for line in lines if line.strip()]
            for line in lines:
                self._tail.append(line)
                self._kept += len(line)
            while self._tail and self._kept - len(self._tail[0]) >= TAIL_BYTES:
                self._kept -= len(self._tail.popleft())
            if self._written < HEAD_BYTES:
                self._written += self._log.write(self.name, lines)
            else:
                self._dropped += sum(map(len, lines))

    def say(self, text: str) -> None:
        self._take(b"\n" + text.encode() + b"\n")

    def last(self, count: int = SHOWN_LINES) -> list[str]:
        """The last lines, as printable text."""
        with self._lock:
            lines = list(self._tail)[-count:]
        decoded = (line.decode(errors="replace") for line in lines)
        return ["".join(c if c.isprintable() else "?" for c in line)[:200] for line in decoded]

    def finish(self, seconds: float = 2.0) -> None:
        """Reads the rest of the pipe, without waiting for a grandchild that keeps it open. Adds the end to the log."""
        if self._thread is not None:
            self._thread.join(seconds)
        with self._lock:
            if self._dropped:
                self._log.write(self.name, [b"[%d bytes left out]" % max(0, self._dropped - self._kept), *self._tail])
                self._dropped = 0
