"""Arrays that nothing can write to: NumPy's over the memory of a bytes object, whose writeable flag cannot be set."""

from __future__ import annotations

from typing import Any

import numpy as np


def constant(a: np.ndarray) -> np.ndarray:
    """A copy of `a`, C-contiguous, that stays what it is."""
    return np.ndarray(a.shape, a.dtype, buffer=a.tobytes())


def is_constant(a: Any) -> bool:
    """Whether `a` is such an array. One that is read-only in another way may be written to by way of its owner."""
    return type(getattr(a, "base", None)) is bytes


def check_writable(name: str, a: Any) -> None:
    """Raises ValueError for a parameter that is frozen."""
    if is_constant(a):
        raise ValueError(f"{name} is frozen and cannot be written to: call unfreeze() on its module first")
