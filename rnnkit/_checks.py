"""Argument checks. Each raises one error that names the argument, what it was, and what it should be."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from rnnkit._device import array_module, device_of


def positive_int(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a positive whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    return int(value)


def fraction(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number in [0, 1], got {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """`value`, when it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def array(name: str, value: Any, dtype: np.dtype, device: str) -> Any:
    """`value`, when it is an array of `dtype` on `device`; never cast, never moved."""
    if array_module(value) is None:
        raise TypeError(f"{name} must be a NumPy or CuPy array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(
            f"{name} must have dtype {dtype}, got {value.dtype} (nothing is cast silently: use {name}.astype)"
        )
    if device_of(value) != device:
        raise ValueError(f"{name} must be on device {device}, got an array on {device_of(value)}")
    return value


def shaped(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype, device: str, means: str) -> Any:
    """`value`, when it is an array of exactly `shape`, `dtype` and `device`; `means` spells the shape in letters."""
    array(name, value, dtype, device)
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {means} = {tuple(shape)}, got {tuple(value.shape)}")
    return value


def lengths(value: Any, T: int, B: int) -> np.ndarray | None:
    """Row lengths as a host int64 array (B,), or None where every row has all T steps.

    Takes any sequence or array of whole numbers in [0, T], in any order.
    """
    if value is None:
        return None
    if array_module(value) not in (None, np):
        value = value.get()
    try:
        got = np.asarray(value)
    except ValueError:
        raise ValueError(f"lengths must have shape (B,) = ({B},), got a nested sequence: {value!r}") from None
    if got.ndim != 1 or got.shape[0] != B:
        raise ValueError(f"lengths must have shape (B,) = ({B},), got {got.shape}")
    if got.size and not np.issubdtype(got.dtype, np.integer):
        raise TypeError(f"lengths must be whole numbers, got dtype {got.dtype}")
    wrong = (got < 0) | (got > T)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"lengths must be between 0 and T = {T}, got {int(got[row])} in row {row}")
    return None if (got == T).all() else got.astype(np.int64)
