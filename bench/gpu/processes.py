"""Runs parts: processes of their own, each with a time, none of which can cost the others theirs.

A part that outstays its time, or writes no line for too long, is ended with all its children. One that dies with
items left may be started again, and goes on behind the item at which it died.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.gpu.lines import items, read_lines
from bench.pool import ROOT

LOG_HEAD, LOG_TAIL = 1 << 20, 1 << 16
SHOWN_LINES = 15
POLL_SECONDS, KILL_SECONDS = 0.05, 5.0


@dataclass(frozen=True)
class Part:
    """One question. command: a program and its arguments; it is given `--lines FILE --seconds N` besides.

    most: seconds it may take; least: fewer are not worth the start, and so many are kept for it by the parts before.
    quiet: seconds without a line, after which it is taken to hang. restarts: how often it may be started again.
    """

    name: str
    command: tuple[str, ...]
    most: float
    least: float = 10.0
    quiet: float = 1e9
    restarts: int = 0
    environment: tuple[tuple[str, str], ...] = ()


@dataclass
class Running:
    """A part under way, and then what came of it."""

    part: Part
    lines: Path
    log: Log
    deadline: float
    started: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    size: int = -1
    changed: float = 0.0
    ended: str = ""

    def start(self) -> None:
        arguments = ["--lines", str(self.lines), "--seconds", f"{max(1.0, self.deadline - time.monotonic()):.0f}"]
        self.starts, self.changed = self.starts + 1, time.monotonic()
        self.process = subprocess.Popen(
            [*self.part.command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(self.part.environment),
            start_new_session=True,
        )
        self.log.follow(self.process.stdout)

    def poll(self) -> bool:
        """Whether the part has come to its end; starts it again where it may."""
        assert self.process is not None
        now, code = time.monotonic(), self.process.poll()
        size = self.lines.stat().st_size if self.lines.exists() else 0
        if size != self.size:
            self.size, self.changed = size, now
        if code is None:
            # The deadline is the part's own; a little longer is for what it does at its end.
            if now > self.deadline + KILL_SECONDS:
                self.ended = f"ended after {now - self.started:.0f} s, its time"
            elif now > self.changed + self.part.quiet:
                self.ended = f"ended: nothing new for {self.part.quiet:.0f} s"
            else:
                return False
        elif code:
            self.ended = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        else:
            self.ended = ""
        end(self.process)
        self.log.finish()
        again = self.ended and self.starts <= self.part.restarts and now < self.deadline - self.part.least
        if again:
            self.log.say(f"[{self.ended}: started again]")
            self.start()
        return not again

    def result(self) -> dict[str, Any]:
        """What the result file has of a part."""
        found = items(read_lines(self.lines), self.ended or "the process ended here")
        return {
            "status": "failed" if self.ended else "done",
            "why": self.ended,
            "seconds": round(time.monotonic() - self.started, 1),
            "starts": self.starts,
            "last_lines": self.log.last() if self.ended else [],
            "items": found,
        }


class Log:
    """What a part prints: the beginning and the end, in a file that does not grow past LOG_HEAD + LOG_TAIL."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._written, self._dropped = 0, 0
        self._tail: deque[bytes] = deque()
        self._kept = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def follow(self, pipe: Any) -> None:
        self._thread = threading.Thread(target=self._pump, args=(pipe,), daemon=True)
        self._thread.start()

    def _pump(self, pipe: Any) -> None:
        while chunk := pipe.read1(1 << 14):
            self._take(chunk)
        pipe.close()

    def _take(self, chunk: bytes) -> None:
        with self._lock:
            self._tail.append(chunk)
            self._kept += len(chunk)
            while self._kept - len(self._tail[0]) >= LOG_TAIL:
                self._kept -= len(self._tail.popleft())
            if self._written < LOG_HEAD and not self._file.closed:
                self._written += self._file.write(chunk)
                self._file.flush()
            else:
                self._dropped += len(chunk)

    def say(self, text: str) -> None:
        self._take(text.encode() + b"\n")

    def finish(self) -> None:
        """Waits for what is still in the pipe; not for a grandchild that holds it open."""
        if self._thread is not None:
            self._thread.join(2.0)

    def last(self, lines: int = SHOWN_LINES) -> list[str]:
        with self._lock:
            text = b"".join(self._tail).decode(errors="replace")
        printable = ("".join(c if c.isprintable() else "?" for c in line) for line in text.splitlines())
        return [line[:200] for line in printable if line.strip()][-lines:]

    def close(self) -> None:
        with self._lock:
            if self._dropped:
                tail = b"".join(self._tail)[-min(self._dropped, LOG_TAIL) :]
                self._file.write(b"\n[%d bytes left out]\n" % (self._dropped - len(tail)) + tail)
            self._file.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and what it started, which are a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:  # stuck in the driver: after SIGKILL there is no more to be done
            continue


def run(group: Iterable[Part], folder: Path, deadline: float, after: float = 0.0) -> dict[str, dict[str, Any]]:
    """Runs the parts of a group at once, and gives the result of each by its name.

    deadline: of the whole run, by time.monotonic(); after: seconds that the later parts need at least.
    Lines and logs are left in `folder`, as PART.jsonl and PART.log.
    """
    folder = folder.resolve()  # parts run in the checkout
    under_way: list[Running] = []
    results: dict[str, dict[str, Any]] = {}
    for part in group:
        seconds = min(part.most, deadline - after - time.monotonic())
        if seconds < part.least:
            why = f"{max(0.0, seconds):.0f} s are left, it needs {part.least:.0f}"
            results[part.name] = {"status": "not run", "why": why, "seconds": 0.0, "last_lines": [], "items": []}
            continue
        log = Log(folder / f"{part.name}.log")
        running = Running(part, folder / f"{part.name}.jsonl", log, time.monotonic() + seconds)
        running.start()
        under_way.append(running)
    try:
        while under_way:
            for running in [r for r in under_way if r.poll()]:
                under_way.remove(running)
                running.log.close()
                results[running.part.name] = running.result()
            time.sleep(POLL_SECONDS)
    finally:
        for running in under_way:
            if running.process is not None:
                end(running.process)
            running.log.finish()
            running.log.close()
    return results
