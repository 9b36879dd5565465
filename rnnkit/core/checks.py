"""Argument checks. Each raises one error that names the argument, what it was, and what it should be."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from rnnkit.core.devices import adopted, array_module, device_of, is_foreign_cuda
from rnnkit.errors import DeviceMemoryError

# What Python and NumPy count among the numbers and nobody means as one.
NOT_NUMBERS = (bool, np.bool_, np.timedelta64)


def positive_int(name: str, value: Any) -> int:
    """`value` as an int of at least 1."""
    if isinstance(value, NOT_NUMBERS) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a positive whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    return int(value)


def fraction(name: str, value: Any) -> float:
    """`value` as a float in [0, 1]."""
    if isinstance(value, NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number in [0, 1], got {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool, when it is one: 1, "no" and other truthy things are mistakes here."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def one_of(name: str, value: Any, choices: tuple[str | None, ...]) -> Any:
    """`value`, when it is one of `choices`: strings, and None."""
    if not isinstance(value, (str, type(None))) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


@contextmanager
def memory_for(**sizes: int) -> Iterator[None]:
    """Around the drawing of parameters: what NumPy says of a shape beyond memory becomes a ValueError with `sizes`."""
    try:
        yield
    except DeviceMemoryError:
        raise
    except (MemoryError, OverflowError, ValueError) as problem:
        said = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"parameters of {said} do not fit memory ({problem})") from None


def plain_array(name: str, value: Any, wanted: str = "NumPy or CuPy array") -> ModuleType:
    """The module of `value`, when it is a NumPy or CuPy array and of no subclass with arithmetic of its own."""
    xp = array_module(value)
    if xp is not None:
        return xp
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a plain NumPy array, got {kind} (use np.asarray)")
    raise TypeError(f"{name} must be a {wanted}, got {kind}")


def adopt(name: str, value: Any) -> Any:
    """`value`, or where it is another library's array on a CUDA device a CuPy array over the same memory."""
    try:
        return adopted(value)
    except (ImportError, BufferError, TypeError, ValueError, RuntimeError) as problem:
        raise TypeError(f"{name} is a {type(value).__name__} that CuPy cannot take: {problem}") from problem


def located(name: str, value: Any, device: str, wanted: str = "NumPy or CuPy array") -> Any:
    """`value`, when it is a plain array on `device`, whatever its dtype; never moved.

    Where `device` is a CUDA device, another library's array there comes back as CuPy's, over the same memory.
    """
    if device == "cpu" and is_foreign_cuda(value):
        raise ValueError(f"{name} must be on device cpu, got a {type(value).__name__} on a CUDA device")
    value = adopt(name, value)
    if device != "cpu" and array_module(value) in (np, None) and hasattr(value, "__array__"):
        kind = type(value).__name__
        raise ValueError(f"{name} must be on device {device}, got {kind} on the host: cupy.asarray({name}) copies it")
    plain_array(name, value, wanted)
    found = device_of(value)
    if found != device:
        how = f"{name}.get() copies it" if device == "cpu" else f"layer.to({found!r}) moves the layer"
        raise ValueError(f"{name} must be on device {device}, got an array on {found}: {how}")
    return value


def array(name: str, value: Any, dtype: np.dtype, device: str) -> Any:
    """`located`, when it is of `dtype` too; never cast."""
    if type(value) is np.ndarray and device == "cpu" and value.dtype == dtype:
        return value  # as nearly every call's: the rest takes microseconds
    value = located(name, value, device)
    if value.dtype != dtype:
        raise TypeError(
            f"{name} must have dtype {dtype}, got {value.dtype} (nothing is cast silently: use {name}.astype)"
        )
    return value


def shaped(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype, device: str, means: str) -> Any:
    """`array`, when it is of exactly `shape` too; `means` spells the shape in letters."""
    value = array(name, value, dtype, device)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {means} = {tuple(shape)}, got {tuple(value.shape)}")
    return value


def states(
    given: Any, names: tuple[str, str], shapes: Sequence[tuple[int, ...]], dtype: np.dtype, device: str, means: str
) -> tuple[Any, ...]:
    """One array or None for each of `shapes`, one or two: `given` itself where it is one, else a pair; or None."""
    if given is None:
        return (None,) * len(shapes)
    if len(shapes) == 1:
        return (shaped(names[0], given, shapes[0], dtype, device, means),)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        was = f"{len(given)} arrays" if isinstance(given, (tuple, list)) else type(given).__name__
        raise TypeError(f"the state of an LSTM must be a pair ({', '.join(names)}), got {was}")
    return tuple(
        [
            None if state is None else shaped(name, state, shape, dtype, device, means)
            for name, state, shape in zip(names, given, shapes, strict=False)
        ]
    )


def lengths(value: Any, T: int, B: int, unbatched: bool = False) -> np.ndarray | None:
    """Row lengths as a host int64 array (B,), or None where every row has all T steps.

    Takes any sequence or array of whole numbers in [0, T], in any order; for an unbatched x also the number alone.
    One on a CUDA device is copied to the host, which waits for that device.
    """
    wanted = "be a whole number or have shape (1,)" if unbatched else f"have shape (B,) = ({B},)"
    if value is None:
        return None
    value = adopt("lengths", value)
    if isinstance(value, np.ndarray):
        plain_array("lengths", value)
    elif array_module(value) is not None:
        value = value.get()
    try:
        got = np.asarray(value)
    except ValueError:
        raise ValueError(f"lengths must {wanted}, got a nested sequence: {value!r}") from None
    if unbatched and got.ndim == 0:
        got = got[None]
    if got.shape != (B,):
        raise ValueError(f"lengths must {wanted}, got {got.shape}")
    if got.dtype.kind == "f" and isinstance(value, (list, tuple)) and _whole(np.asarray(value, dtype=object)):
        got = np.asarray(value, dtype=object)  # NumPy makes floats of whole numbers on both sides of 2**63
    if got.size and not _whole(got):
        raise TypeError(f"lengths must be whole numbers, got dtype {got.dtype}")
    wrong = (got < 0) | (got > T)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"lengths must be between 0 and T = {T}, got {int(got[row])} in row {row}")
    return None if (got == T).all() else got.astype(np.int64)


def _whole(values: np.ndarray) -> bool:
    """Whether all are whole numbers; NumPy keeps those beyond 64 bits as Python's own."""
    if values.dtype == object:
        return all(isinstance(v, (int, np.integer)) and not isinstance(v, NOT_NUMBERS) for v in values)
    return values.dtype.kind in "iu"
