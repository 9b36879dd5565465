"""Arrays that nothing can write to: NumPy's over memory of this module's own kind, whose writeable flag cannot be set.

Arrays over plain `bytes` are not meant: unpickled ones may be that, and are written to all the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class _Memory(bytes):
    """The memory of a constant array, which nothing but `constant` makes."""


def constant(a: np.ndarray) -> np.ndarray:
    """A copy of `a`, C-contiguous, that stays what it is."""
    return np.ndarray(a.shape, a.dtype, buffer=_Memory(a.tobytes()))


def is_constant(a: Any) -> bool:
    """Whether `a` is such an array. One that is read-only in another way may be written to by way of its owner."""
    return type(getattr(a, "base", None)) is _Memory


def writable(a: Any) -> Any:
    """`a` itself, or of a read-only NumPy array a copy."""
    return np.array(a) if type(a) is np.ndarray and not a.flags.writeable else a


def check_writable(name: str, a: Any) -> None:
    """Raises ValueError for a parameter that is frozen, or read-only in another way."""
    if is_constant(a):
        raise ValueError(f"{name} is frozen and cannot be written to: call unfreeze() on its module first")
    if type(a) is np.ndarray and not a.flags.writeable:
        raise ValueError(f"{name} is read-only and cannot be written to")
