"""Argument checks. Each raises one error that names the argument, its value, and the requirement."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from rnnkit.core.devices import adopted, array_module, device_of, is_foreign_cuda
from rnnkit.errors import DeviceMemoryError

# Types that Python or NumPy registers as numbers and that no argument accepts as a number.
NOT_NUMBERS = (bool, np.bool_, np.timedelta64)


def positive_int(name: str, value: Any) -> int:
    """Returns `value` as an int of at least 1."""
    if isinstance(value, NOT_NUMBERS) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a positive whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    return int(value)


def fraction(name: str, value: Any) -> float:
    """Returns `value` as a float in [0, 1]."""
    if isinstance(value, NOT_NUMBERS) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number in [0, 1], got {value!r}")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Returns `value` if it is a bool. Other truthy values, such as 1 or "no", are likely mistakes."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def one_of(name: str, value: Any, choices: tuple[str | None, ...]) -> Any:
    """Returns `value` if it is one of `choices`, which are strings or None."""
    if not isinstance(value, (str, type(None))) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


@contextmanager
def memory_for(**sizes: int) -> Iterator[None]:
    """Context for drawing parameters: NumPy's errors for shapes beyond the memory become a ValueError with `sizes`."""
    try:
        yield
    except DeviceMemoryError:
        raise
    except (MemoryError, OverflowError, ValueError) as problem:
        text = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"parameters of {text} do not fit memory ({problem})") from None


def plain_array(name: str, value: Any, expected: str = "NumPy or CuPy array") -> ModuleType:
    """The module (numpy or cupy) of `value`, if it is an array of that module and not of a subclass."""
    xp = array_module(value)
    if xp is not None:
        return xp
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a plain NumPy array, got {kind} (use np.asarray)")
    raise TypeError(f"{name} must be a {expected}, got {kind}")


def adopt(name: str, value: Any) -> Any:
    """Returns `value`; for another library's array on a CUDA device, a CuPy array over the same memory."""
    try:
        return adopted(value)
    except (ImportError, BufferError, TypeError, ValueError, RuntimeError) as problem:
        raise TypeError(f"{name} is a {type(value).__name__} that CuPy cannot use: {problem}") from problem


def located(name: str, value: Any, device: str, expected: str = "NumPy or CuPy array") -> Any:
    """Returns `value` if it is a plain array of any dtype on `device`. It is never moved.

    On a CUDA device, another library's array is returned as a CuPy array over the same memory.
    """
    if device == "cpu" and is_foreign_cuda(value):
        raise ValueError(f"{name} must be on device cpu, got a {type(value).__name__} on a CUDA device")
    value = adopt(name, value)
    if device != "cpu" and array_module(value) in (np, None) and hasattr(value, "__array__"):
        kind = type(value).__name__
        raise ValueError(f"{name} must be on device {device}, got {kind} on the host: cupy.asarray({name}) copies it")
    plain_array(name, value, expected)
    actual = device_of(value)
    if actual != device:
        hint = f"{name}.get() copies it" if device == "cpu" else f"layer.to({actual!r}) moves the layer"
        raise ValueError(f"{name} must be on device {device}, got an array on {actual}: {hint}")
    return value


def array(name: str, value: Any, dtype: np.dtype, device: str) -> Any:
    """Returns `value` if it is `located` on `device` and has the dtype. It is never cast."""
    if type(value) is np.ndarray and device == "cpu" and value.dtype == dtype:
        return value  # fast path: the checks below take microseconds
    value = located(name, value, device)
    if value.dtype != dtype:
        raise TypeError(
            f"{name} must have dtype {dtype}, got {value.dtype} (arrays are not cast implicitly: use {name}.astype)"
        )
    return value


def shaped(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype, device: str, means: str) -> Any:
    """Returns `value` if it passes `array` and has exactly this shape. `means` is the shape in letters."""
    value = array(name, value, dtype, device)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {means} = {tuple(shape)}, got {tuple(value.shape)}")
    return value


def states(
    state: Any, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: np.dtype, device: str, means: str
) -> tuple[Any, ...]:
    """A state as a tuple of checked arrays or None, one for each of `shapes`.

    `state` is one array if there is one shape, else a tuple with one for each; or None.
    """
    if state is None:
        return (None,) * len(shapes)
    if len(shapes) == 1:
        return (shaped(names[0], state, shapes[0], dtype, device, means),)
    if not isinstance(state, (tuple, list)) or len(state) != len(shapes):
        kind = f"{len(state)} arrays" if isinstance(state, (tuple, list)) else type(state).__name__
        layer, count = ("an LSTM", "a pair") if len(shapes) == 2 else ("this layer", f"{len(shapes)} arrays")
        raise TypeError(f"the state of {layer} must be {count} ({', '.join(names)}), got {kind}")
    return tuple(
        [
            None if part is None else shaped(name, part, shape, dtype, device, means)
            for name, part, shape in zip(names, state, shapes, strict=True)
        ]
    )


def lengths(value: Any, T: int, B: int, unbatched: bool = False) -> np.ndarray | None:
    """Row lengths as an int64 array (B,) on the host, or None if every row has T steps.

    `value` is a sequence or array of whole numbers in [0, T], in any order, or None; for an unbatched x also one
    number. A CUDA array is copied to the host, which synchronises.
    """
    if value is None:
        return None
    required = "be a whole number or have shape (1,)" if unbatched else f"have shape (B,) = ({B},)"
    value = adopt("lengths", value)
    if isinstance(value, np.ndarray):
        plain_array("lengths", value)
    elif array_module(value) is not None:
        value = value.get()
    try:
        got = np.asarray(value)
    except ValueError:
        raise ValueError(f"lengths must {required}, got a nested sequence: {value!r}") from None
    if unbatched and got.ndim == 0:
        got = got[None]
    if got.shape != (B,):
        raise ValueError(f"lengths must {required}, got {got.shape}")
    if got.dtype.kind == "f" and isinstance(value, (list, tuple)) and _whole(np.asarray(value, dtype=object)):
        got = np.asarray(value, dtype=object)  # NumPy converts integers below and above 2**63 to float
    if got.size and not _whole(got):
        raise TypeError(f"lengths must be whole numbers, got dtype {got.dtype}")
    wrong = (got < 0) | (got > T)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"lengths must be between 0 and T = {T}, got {int(got[row])} in row {row}")
    return None if (got == T).all() else got.astype(np.int64)


def step_flags(name: str, value: Any, T: int, B: int, unbatched: bool, batch_first: bool) -> np.ndarray | None:
    """Flags per step as a bool array (T, B) on the host, C-contiguous, or None.

    `value` is an array or nested sequence of bools, (T, B), or (B, T) with `batch_first`, or (T,) for an unbatched x;
    or None. A CUDA array is copied to the host, which synchronises.
    """
    if value is None:
        return None
    value = adopt(name, value)
    if isinstance(value, np.ndarray):
        plain_array(name, value)
    elif array_module(value) is not None:
        value = value.get()
    letters, shape = ("(T,)", (T,)) if unbatched else ("(B, T)", (B, T)) if batch_first else ("(T, B)", (T, B))
    try:
        got = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must have shape {letters} = {shape}, got rows of different lengths") from None
    if got.shape != shape:
        raise ValueError(f"{name} must have shape {letters} = {shape}, got {got.shape}")
    if got.dtype != np.bool_ and got.size:
        raise TypeError(f"{name} must be booleans, got dtype {got.dtype}: {name} != 0 converts numbers")
    if unbatched:
        got = got[:, None]
    elif batch_first:
        got = got.T
    return np.ascontiguousarray(got, np.bool_)


def _whole(values: np.ndarray) -> bool:
    """Whether all values are whole numbers. NumPy stores integers beyond 64 bits as Python objects."""
    if values.dtype == object:
        return all(isinstance(v, (int, np.integer)) and not isinstance(v, NOT_NUMBERS) for v in values)
    return values.dtype.kind in "iu"
