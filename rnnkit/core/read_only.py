"""Read-only arrays: NumPy arrays over a bytes subclass, whose writeable flag cannot be set.

A plain `bytes` buffer does not mark an array as read-only here: unpickled arrays may have one, and may be written to.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class _Memory(bytes):
    """The memory of a constant array. Only `constant` creates it."""


def constant(a: np.ndarray) -> np.ndarray:
    """A C-contiguous copy of `a` that cannot be written to."""
    return np.ndarray(a.shape, a.dtype, buffer=_Memory(a.tobytes()))


def is_constant(a: Any) -> bool:
    """Whether `constant` created `a`. An array that is read-only in another way may be written to through its base."""
    return type(getattr(a, "base", None)) is _Memory


def writable(a: Any) -> Any:
    """`a` itself, or a copy if it is a read-only NumPy array."""
    return np.array(a) if type(a) is np.ndarray and not a.flags.writeable else a


def check_writable(name: str, a: Any) -> None:
    """Raises ValueError if a parameter is frozen, or read-only in another way."""
    if is_constant(a):
        raise ValueError(f"{name} is frozen and cannot be written to: call unfreeze() on its module first")
    if type(a) is np.ndarray and not a.flags.writeable:
        raise ValueError(f"{name} is read-only and cannot be written to")
