"""One line on standard error where compiling takes long: what is compiled, and in which folder it is cached.

At most one line per process and, of processes that compile side by side, one per cache folder. RNNKIT_QUIET=1
silences it. Nothing is printed where all code is cached.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

# Seconds of compiling in this process before the line; and how long the line of another process serves.
SHOWN_AFTER_S, MARK_VALID_S = 2.0, 600.0
MARK = "rnnkit-notice"


class Notice:
    """Measures the compilation in progress. Numba's compiler lock makes it one at a time."""

    def __init__(self) -> None:
        self._spent = self._since = 0.0  # seconds of earlier compilations; a time of time.monotonic()
        self._timer: threading.Timer | None = None
        self._shown = False

    def started(self, what: str, folders: tuple[Path, ...]) -> None:
        """A kernel is about to be compiled. what: its name for people; folders: where it may be cached, best first."""
        self._cancel()
        self._since = time.monotonic()
        if self._shown or os.environ.get("RNNKIT_QUIET", "0") not in ("", "0"):
            return
        self._timer = threading.Timer(max(0.0, SHOWN_AFTER_S - self._spent), self._show, (what, folders))
        self._timer.daemon = True
        try:
            self._timer.start()
        except RuntimeError:  # no thread can be started: then nothing is printed
            self._timer = None

    def ended(self) -> None:
        """It is compiled. Where compiling raises instead, the line may still be shown."""
        self._cancel()
        self._spent += time.monotonic() - self._since

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _show(self, what: str, folders: tuple[Path, ...]) -> None:
        self._shown = True
        folder = _marked(folders)
        if folder is None:
            return
        kept = f"caches them in {folder}" if folder else "finds no folder to cache them in (docs/install.md)"
        text = f"rnnkit compiles kernels for this machine, now {what}, and {kept}. RNNKIT_QUIET=1 hides this line.\n"
        with suppress(OSError, ValueError, AttributeError):  # closed, or none, as under pythonw
            sys.stderr.write(text)
            sys.stderr.flush()


def _marked(folders: tuple[Path, ...]) -> str | None:
    """The folder that takes the compiled code, "" where none does, None where another process has just said so."""
    for folder in folders:
        mark = folder / MARK
        try:
            if time.time() - mark.stat().st_mtime < MARK_VALID_S:
                return None
        except OSError:
            pass
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_bytes(b"")  # which also sets its time
        except OSError:
            continue
        return str(folder)
    return ""


compile_notice = Notice()
