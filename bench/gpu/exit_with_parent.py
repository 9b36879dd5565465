"""Runs a command that is killed when its parent dies: `python -m bench.gpu.exit_with_parent PARENT COMMAND ...`.

On Linux, prctl PR_SET_PDEATHSIG makes the kernel kill this process when its parent dies. The setting survives the exec
of COMMAND. PARENT is the parent's process id, which detects a parent that died before the call. Programs that a tool
starts (compute-sanitizer, ncu) call `follow_parent` themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def follow_parent(parent: int | None = None) -> None:
    """Makes the kernel kill this process when its parent dies. parent: its id, or None for the current parent."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        raise SystemExit("the parent has died")


def command(arguments: tuple[str, ...]) -> list[str]:
    """The command that runs `arguments` and is killed when this process dies."""
    return [sys.executable, "-m", "bench.gpu.exit_with_parent", str(os.getpid()), *arguments]


if __name__ == "__main__":
    follow_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
