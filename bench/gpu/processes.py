"""Runs a part: one or more processes that append their items to one file, within the part's time.

A process that exceeds its time, or ends no check for too long, is killed with all its children. A process that dies
with checks left may be started again, and continues after the check at which it died. No process outlives this one
(`exit_with_parent`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu import exit_with_parent
from bench.gpu.items_file import NO_SPACE, Item, Tail, append, read_lines, under_way
from bench.gpu.log import Log, Output
from bench.worker_pool import ROOT

POLL_SECONDS = 0.05
# From SIGTERM to SIGKILL, and how long a killed process is waited for: one stuck in the driver does not end.
KILL_SECONDS = 2.0
INTERRUPTED_SECONDS = 0.3
OUT_OF_TIME = "ended when its time was over"


@dataclass(frozen=True)
class Part:
    """One question of a run. workers: the commands that answer it at once, each given `--items --part --seconds`.

    most: the seconds it may take. least: the seconds that earlier parts reserve for it; with fewer it is not started.
    quiet: a worker that ends no check for this many seconds counts as hung. restarts: how often a worker may be started
    again. environment: variables in addition to those of this process.
    """

    name: str
    workers: tuple[tuple[str, ...], ...]
    most: float
    least: float = 10.0
    quiet: float = 1e9
    restarts: int = 0
    environment: tuple[tuple[str, str], ...] = ()


@dataclass
class Worker:
    """One process of a part, through all its starts."""

    part: Part
    command: tuple[str, ...]
    items: Path
    output: Output
    deadline: float
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    changed: float = 0.0
    ended: str = ""
    written: bool = True

    def start(self) -> None:
        seconds = max(1.0, self.deadline - time.monotonic())
        arguments = ("--items", str(self.items), "--part", self.part.name, "--seconds", f"{seconds:.0f}")
        self.starts += 1
        self.changed = time.monotonic()
        self.process = subprocess.Popen(
            exit_with_parent.command((*self.command, *arguments)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(self.part.environment),
            start_new_session=True,
        )
        self.output.follow(self.process.stdout)

    def over(self, now: float) -> bool:
        """Whether this start of the process is over; `ended` then says how, "" for well."""
        assert self.process is not None
        code = self.process.poll()
        self.ended = ""
        if code is None:
            # The deadline is the worker's own; a little longer is for what it does at its end.
            if now > self.deadline + KILL_SECONDS:
                self.ended = OUT_OF_TIME
            elif now > self.changed + self.part.quiet:
                self.ended = f"ended: no check came to an end for {self.part.quiet:.0f} s"
            else:
                return False
        elif code:
            self.ended = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            self.written = code != NO_SPACE
        return True

    def give_up(self) -> None:
        """Writes an item for each check that this process began and did not end.

        A check that ran out of time is left to the next run. A check at which its process died or hung has failed.
        """
        assert self.process is not None
        status = "not run" if self.ended == OUT_OF_TIME else "failed"
        why = self.ended or "the process ended here"
        lost = under_way(read_lines(self.items), self.part.name, self.process.pid)
        with contextlib.suppress(OSError):
            append(self.items, [{"part": self.part.name, "item": key, "status": status, "why": why} for key in lost])

    def may_start_again(self, now: float) -> bool:
        again = self.starts <= self.part.restarts and now < self.deadline - self.part.least
        return bool(self.ended) and self.written and again


@dataclass
class Result:
    """How a part went. written: False where its items could not be written, which ends the run."""

    status: str
    why: str = ""
    seconds: float = 0.0
    starts: int = 0
    last_lines: list[str] = field(default_factory=list)
    written: bool = True

    def to_dict(self) -> dict[str, Any]:
        fields = ("status", "why", "seconds", "starts", "last_lines")
        return {name: getattr(self, name) for name in fields}


def run(
    part: Part, items: Path, log: Log, deadline: float, seen: Callable[[list[Item]], None] = lambda new: None
) -> Result:
    """Runs a part to its end and says how it went; its items are in the file.

    deadline: when this part must be over, by time.monotonic(). seen: given every line that the file grows by.
    """
    started = time.monotonic()
    seconds = min(part.most, deadline - started)
    if seconds < part.least:
        return Result("not run", f"{max(0.0, seconds):.0f} s are left, it needs {part.least:.0f}")
    names = [part.name if len(part.workers) == 1 else f"{part.name}{i}" for i in range(1, len(part.workers) + 1)]
    workers = [
        Worker(part, command, items, Output(name, log), started + seconds)
        for name, command in zip(names, part.workers, strict=True)
    ]
    running: list[Worker] = []
    tail = Tail(items)
    tail.new()  # what other parts wrote
    try:
        for worker in workers:
            worker.start()
            running.append(worker)
        while running:
            _note(tail, running, seen)
            over = [worker for worker in running if worker.over(time.monotonic())]
            end([worker.process for worker in over], KILL_SECONDS)
            for worker in over:
                worker.output.finish()
                worker.give_up()
                if worker.may_start_again(time.monotonic()):
                    worker.output.say(f"[{worker.ended}: started again]")
                    worker.start()
                else:
                    running.remove(worker)
            time.sleep(POLL_SECONDS)
    finally:
        # Empty but where the run is being ended, and then there is no time.
        end([worker.process for worker in running], INTERRUPTED_SECONDS)
        for worker in running:
            worker.output.finish(INTERRUPTED_SECONDS)
    _note(tail, [], seen)
    return _result(workers, time.monotonic() - started)


def _result(workers: list[Worker], seconds: float) -> Result:
    """The result of a part whose workers have all ended."""
    bad = [worker for worker in workers if worker.ended]
    why = "; ".join(dict.fromkeys(worker.ended for worker in bad))
    return Result(
        status="failed" if bad else "done",
        why=why,
        seconds=round(seconds, 1),
        starts=max(worker.starts for worker in workers),
        last_lines=[line for worker in bad[:2] for line in worker.output.last()],
        written=all(worker.written for worker in workers),
    )


def _note(tail: Tail, running: list[Worker], seen: Callable[[list[Item]], None]) -> None:
    """Hands on what is new in the file, and takes it as a sign of life of the processes that wrote it."""
    new = tail.new()
    now = time.monotonic()
    writers = {line.get("pid") for line in new}
    for worker in running:
        if worker.process is not None and worker.process.pid in writers:
            worker.changed = now
    if new:
        seen(new)


def end(processes: Iterable[subprocess.Popen[bytes] | None], grace: float) -> None:
    """Ends processes and what they started, each a group of its own, all at once. grace: from SIGTERM to SIGKILL."""
    alive = [process for process in processes if process is not None]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + grace
        for process in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
