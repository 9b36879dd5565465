"""A line on standard error if compiling takes long. It names the kernel and the folder that caches the machine code.

It appears at most once per process and, of processes that compile at the same time, once per cache folder. The
environment variable RNNKIT_QUIET=1 disables it. A process that finds all code in the cache prints nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

SHOWN_AFTER_S = 2.0  # seconds of compiling in this process before the line
MARK_VALID_S = 600.0  # seconds for which the line of one process silences the others
MARK = "rnnkit-notice"  # a file in the cache folder, whose time is that of the line


class Notice:
    """Times the compilation in progress. Numba's compiler lock allows one at a time."""

    def __init__(self) -> None:
        self._spent = 0.0  # seconds of earlier compilations
        self._since = 0.0  # a time of time.monotonic()
        self._timer: threading.Timer | None = None
        self._shown = False

    def started(self, what: str, folders: tuple[Path, ...]) -> None:
        """Call before a kernel is compiled. what: its readable name; folders: where it may be cached, best first."""
        self._cancel()
        self._since = time.monotonic()
        if self._shown or os.environ.get("RNNKIT_QUIET", "0") not in ("", "0"):
            return
        self._timer = threading.Timer(max(0.0, SHOWN_AFTER_S - self._spent), self._show, (what, folders))
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no thread can be started: the line is left out
            self._timer = None

    def ended(self) -> None:
        """Call after a kernel was compiled. If compiling raises instead, the line may still appear."""
        self._cancel()
        self._spent += time.monotonic() - self._since

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _show(self, what: str, folders: tuple[Path, ...]) -> None:
        self._shown = True
        folder = _mark_folder(folders)
        if folder is None:
            return
        caching = f"caches them in {folder}" if folder else "finds no folder to cache them in (docs/install.md)"
        text = f"rnnkit compiles kernels for this machine, now {what}, and {caching}. RNNKIT_QUIET=1 hides this line.\n"
        with suppress(OSError, ValueError, AttributeError):  # standard error is closed, or None, as under pythonw
            sys.stderr.write(text)
            sys.stderr.flush()


def _mark_folder(folders: tuple[Path, ...]) -> str | None:
    """Marks the first writable folder and returns it. "" if none is writable, None if a recent mark exists."""
    for folder in folders:
        mark = folder / MARK
        try:
            if time.time() - mark.stat().st_mtime < MARK_VALID_S:
                return None
        except OSError:
            pass
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_bytes(b"")  # sets the file's time, too
        except OSError:
            continue
        return str(folder)
    return ""


compile_notice = Notice()
