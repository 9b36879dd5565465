"""What the Numba backend requires of the environment. It is checked before the backend is chosen."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
import struct
import sys
from functools import cache
from typing import Any

OLDEST_NUMBA = (0, 61, 2)
INSTALL_NUMBA = "pip install --upgrade numba"
# The processors that the kernels are tested on, as platform.machine() names them.
PROCESSORS = ("x86_64", "amd64", "aarch64", "arm64")


def numba_problem() -> str | None:
    """Why the compiled CPU backend cannot run in this process, or None if it can. Imports Numba."""
    return _first_problem()[0]


def numba_broken() -> bool:
    """Whether Numba is installed but broken, as opposed to missing, disabled or without support for this processor."""
    return _first_problem()[1]


@cache
def _first_problem() -> tuple[str | None, bool]:
    """The first problem, and whether it means a broken installation."""
    checks = (
        (_processor_problem, False),
        (_missing_problem, False),
        (import_problem, True),
        (_version_problem, True),
        (_jit_problem, False),
        (_compatibility_problem, True),
    )
    for check, broken in checks:
        problem = check()
        if problem:
            return problem, broken
    return None, False


def _processor_problem() -> str | None:
    """The kernels require 64-bit addresses and little-endian byte order."""
    machine = platform.machine().lower()
    bits = 8 * struct.calcsize("P")
    if bits != 64 or sys.byteorder != "little" or machine not in PROCESSORS:
        return f"its kernels are for 64-bit x86 and ARM, and this is a {bits}-bit Python on {machine or 'no known CPU'}"
    return None


def _missing_problem() -> str | None:
    return f"Numba is not installed ({INSTALL_NUMBA})" if importlib.util.find_spec("numba") is None else None


def import_problem() -> str | None:
    """Why Numba cannot be imported, or None if it can. Imports it."""
    try:
        importlib.import_module("numba")
    except Exception as problem:  # for example an unsupported NumPy, a broken llvmlite, a missing library
        return f"Numba is installed and cannot be imported ({_one_line(problem)})"
    return None


def _version_problem() -> str | None:
    version = _numba().__version__
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers is None or tuple(int(number or 0) for number in numbers.groups()) >= OLDEST_NUMBA:
        return None  # a version in another format is accepted
    return f"Numba {version} is too old: {'.'.join(map(str, OLDEST_NUMBA))} or later is needed ({INSTALL_NUMBA})"


def _jit_problem() -> str | None:
    return "NUMBA_DISABLE_JIT is set, so Numba compiles nothing" if _numba().config.DISABLE_JIT else None


def _compatibility_problem() -> str | None:
    """The kernels use internal parts of Numba, which may change in a later release."""
    try:
        importlib.import_module("rnnkit.backends.numba.layer")
    except Exception as problem:
        return f"Numba {_numba().__version__} does not fit this rnnkit ({_one_line(problem)})"
    return None


def _numba() -> Any:
    return sys.modules["numba"]


def _one_line(problem: Exception) -> str:
    """The type and first line of an exception."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__
