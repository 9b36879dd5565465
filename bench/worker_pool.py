"""The workers as the parent process sees them: start, ask, stop. One computes at a time; the others are stopped.

A worker that is not asked anything is stopped with SIGSTOP. The thread pools of several libraries spin for a while
after a call, and would take cores from the worker that is timed. Each worker is a process group of its own, so if the
parent is killed, the system continues and hangs up the stopped workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench.peers import PeerRow

ROOT = Path(__file__).resolve().parent.parent
POOL_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
CAN_HOLD = hasattr(signal, "SIGSTOP")


class WorkerDied(Exception):
    """A worker exited, or was killed because it took too long. The message has the last line of its stderr."""


def environment(threads: int) -> dict[str, str]:
    """This process's environment with every thread pool set to `threads`, and the repository importable."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **dict.fromkeys(POOL_VARIABLES, str(threads))}


class Worker:
    """One running peer. `hello` waits for its start. `start` continues it and asks; `finish` reads and stops it."""

    def __init__(self, row: PeerRow, threads: int) -> None:
        self.row = row
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", f"{row.module}:{row.name}", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=ROOT,
            env=environment(threads),
            process_group=0 if CAN_HOLD else None,
        )

    def hello(self, timeout: float) -> dict[str, Any]:
        """Versions, or why the peer is absent. Raises WorkerDied."""
        answer = self._read(timeout)
        self._signal("SIGSTOP")
        return answer

    def start(self, request: dict[str, Any]) -> None:
        self._signal("SIGCONT")
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `finish` notices a dead worker
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def finish(self, timeout: float) -> dict[str, Any]:
        """The answer to what was asked. Raises WorkerDied."""
        answer = self._read(timeout)
        self._signal("SIGSTOP")
        return answer

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(timeout, self._process.kill)
        timer.daemon = True  # it must not keep an interrupted run alive
        timer.start()
        try:
            line = self._process.stdout.readline()
            in_time = timer.is_alive()
        finally:
            timer.cancel()
        if not line:
            self._process.wait()
            raise WorkerDied(self._last_line() if in_time else f"took more than {timeout:.0f} s")
        return json.loads(line)

    def _last_line(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"exit status {self._process.returncode}" + (f": {lines[-1]}" if lines else "")

    def _signal(self, name: str) -> None:
        if CAN_HOLD and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))

    def close(self) -> None:
        """Kills the worker."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


class Pool:
    """Every peer's worker by name. A worker that dies is started again. absent: why a peer cannot run, by name."""

    def __init__(self, rows: list[PeerRow], threads: int, start_seconds: float = 120.0) -> None:
        self.threads = threads
        self._start_seconds = start_seconds
        self.rows = {row.name: row for row in rows}
        self.versions: dict[str, dict[str, str]] = {}
        self.absent: dict[str, str] = {}
        self._workers = {row.name: Worker(row, threads) for row in rows}  # they import at the same time
        for name in list(self._workers):
            self._greet(name)

    def _greet(self, name: str) -> None:
        try:
            hello = self._workers[name].hello(self._start_seconds)
        except WorkerDied as died:
            hello = {"absent": f"did not start: {died}"}
        if "absent" in hello:
            self.absent[name] = hello["absent"]
            self._workers.pop(name).close()
        else:
            self.versions[name] = hello["versions"]

    @property
    def present(self) -> list[str]:
        return list(self._workers)

    def ask(self, name: str, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """One worker's answer. Where it died: {"error": ...}, and it is started again."""
        self.start(name, request)
        return self.finish(name, timeout)

    def start(self, name: str, request: dict[str, Any]) -> None:
        """Asks without waiting. Nothing may be timed before `finish` was called."""
        self._workers[name].start(request)

    def finish(self, name: str, timeout: float) -> dict[str, Any]:
        """The answer to what `start` asked, as `ask` gives it."""
        try:
            return self._workers[name].finish(timeout)
        except WorkerDied as died:
            self._workers[name].close()
            self._workers[name] = Worker(self.rows[name], self.threads)
            self._greet(name)
            return {"error": str(died)}

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
