"""A process that ends with its parent, however that ends: `python -m bench.gpu.exit_with_parent PARENT COMMAND ...`.

On Linux the kernel is asked (prctl PR_SET_PDEATHSIG) to kill this process when its parent dies, and the setting
outlives the exec of COMMAND. PARENT is the parent's process id: one that died before the kernel was asked shows by it.
Programs that a tool starts (compute-sanitizer, ncu) call `follow_parent` themselves.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def follow_parent(parent: int | None = None) -> None:
    """Has this process killed when its parent dies. parent: its id, or None for whichever it is now."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        raise SystemExit("the parent has died")


def command(arguments: tuple[str, ...]) -> list[str]:
    """The command that runs `arguments` and ends with this process."""
    return [sys.executable, "-m", "bench.gpu.exit_with_parent", str(os.getpid()), *arguments]


if __name__ == "__main__":
    follow_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
