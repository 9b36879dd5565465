"""PUBLIC: the functions that are available as `cupy.<name>`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.tools.fakecupy._array import ndarray

PUBLIC: dict[str, Callable[..., Any]] = {}


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a function to PUBLIC."""
    PUBLIC[function.__name__] = function
    return function


def array_argument(value: Any) -> ndarray:
    """`value` if it is a device array. Raises TypeError as CuPy does for lists and NumPy arrays."""
    if not isinstance(value, ndarray):
        raise TypeError(f"Argument 'a' has incorrect type (expected cupy.ndarray, got {type(value)})")
    return value
