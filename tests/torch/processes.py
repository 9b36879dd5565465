"""Child processes that cannot outlive a test: they have a deadline, and are killed with all their descendants."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
ON_ONE_THREAD = {"OMP_NUM_THREADS": "1", "RNNKIT_NUM_THREADS": "1", "RNNKIT_QUIET": "1"}
# gloo then listens on the loopback device, whatever the machine's name resolves to.
ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}


class Job:
    """A command of Python. Used by `with`: whatever is left of its processes is killed at the end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        found = os.environ | {"PYTHONPATH": str(ROOT)} | ON_ONE_THREAD | ON_LOOPBACK | dict(environment or {})
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=found,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*_descendants(self.process.pid), self.process.pid]:
            if pid != self.process.pid or self.process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.output.close()

    def finished(self, seconds: float) -> str:
        """Waits, and returns what was printed. Raises AssertionError, with that, if it failed or takes longer."""
        try:
            status: int | str = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"none after {seconds} seconds"
        self.output.seek(0)
        printed = self.output.read()
        assert status == 0, f"status {status}:\n{printed[-6000:]}"
        return printed


def _descendants(pid: int) -> Iterator[int]:
    """Its children, their children and so on. torchrun's workers are in sessions of their own."""
    for path in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from _descendants(child)
