"""How one of CuPy's own operations runs: a NumPy function over the bytes behind device arrays, submitted to a stream.

CuPy knows the shape and dtype of a result before the device computes it. Here they come from an immediate run, whose
values are discarded if the work is recorded or queued.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.tools.fakecupy import _state
from tests.tools.fakecupy._errors import FakeError
from tests.tools.fakecupy._streams import Node

__all__ = ["FakeError", "Node", "compute", "copy_of", "new", "store"]

SCALARS = (bool, int, float, complex, np.generic)


def bfloat16() -> np.dtype | None:
    """ml_dtypes' bfloat16, or None where ml_dtypes is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return np.dtype(ml_dtypes.bfloat16)


def check_dtype(dtype: Any) -> np.dtype:
    """`dtype` as NumPy's. Raises ValueError for one that CuPy does not support."""
    found = np.dtype(dtype)
    if found.kind in "biufc" and found.itemsize <= 16 and found.char not in "gG":
        return found.newbyteorder("=")
    if found == bfloat16():
        return found
    raise ValueError(f"Unsupported dtype {found}")


def new(shape: Any, dtype: Any, order: str = "C") -> Any:
    """A device array of memory filled with NaN bytes."""
    from tests.tools.fakecupy._array import ndarray

    return ndarray(shape, dtype, order=order)


def is_array(value: Any) -> bool:
    from tests.tools.fakecupy._array import ndarray

    return isinstance(value, ndarray)


def host_view(value: Any) -> Any:
    """The NumPy array or scalar that replaces an argument in the computation.

    Raises TypeError for types that CuPy rejects, such as NumPy arrays and lists, and ValueError for an array of another
    device: CuPy needs peer access for it, which these devices do not support.
    """
    if is_array(value):
        check_device(value)
        return value._host
    if isinstance(value, SCALARS):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def check_device(array: Any) -> None:
    current = _state.machine().device()
    if array.size and array.data.device_id != current:
        raise ValueError(
            f"The device where the array resides ({array.data.device_id}) is different from the current device "
            f"({current}). Peer access is unavailable between these devices."
        )


def blocks_of(*values: Any) -> tuple[Any, ...]:
    """The blocks of memory behind the device arrays among `values`."""
    found = (value.data.block() for value in values if is_array(value) and value.size)
    return tuple(block for block in found if block is not None)


def compute(name: str, function: Callable[..., Any], *args: Any, out: Any = None, casting: str = "same_kind") -> Any:
    """Computes function(*args) with NumPy views of the device arrays, into a new device array or `out`.

    Raises TypeError if the result cannot be cast to out's dtype under `casting`, ValueError if the shapes differ.
    """
    hosts = [host_view(arg) for arg in args]

    def run() -> np.ndarray:
        with np.errstate(all="ignore"):  # a device has no floating-point warnings
            return np.asarray(function(*hosts))

    result = run()
    if out is None:
        out = new(result.shape, result.dtype)
    else:
        _check_out(name, out, result, casting)
    store(name, out, run, result, args)
    return out


def store(
    name: str,
    out: Any,
    run: Callable[[], Any],
    result: Any,
    owners: tuple[Any, ...],
    tally: tuple[str, str | None] | None = None,
) -> None:
    """Submits `out[...] = run()`. result: of an earlier run, used if the work runs at once."""
    if not out.size:
        return
    target, ready = out._host, [result]

    def work() -> None:
        value = ready.pop() if ready else run()
        with np.errstate(all="ignore"):
            np.copyto(target, value, casting="unsafe")

    if _state.machine().streams.deferring():
        ready.clear()
    node = Node(name, tally or ("operations", name), work, blocks_of(out, *owners))
    _state.machine().streams.submit(node, owners=(out, *owners))


def _check_out(name: str, out: Any, result: np.ndarray, casting: str) -> None:
    if not is_array(out):
        raise TypeError(f"Unsupported type {type(out)}")
    check_device(out)
    if out.shape != result.shape and np.broadcast_shapes(out.shape, result.shape) != out.shape:
        raise ValueError(f"Out shape is mismatched: {out.shape} for a result of {result.shape}")
    if not np.can_cast(result.dtype, out.dtype, casting):  # type: ignore[arg-type]
        raise TypeError(
            f"output (typecode '{result.dtype.char}') could not be coerced to provided output parameter "
            f"(typecode '{out.dtype.char}') according to the casting rule \"{casting}\" [{name}]"
        )


def copy_of(array: Any, dtype: np.dtype, order: str = "C") -> Any:
    """A copy on the current device, from any device, cast to dtype; with the strides of NumPy's copy in `order`."""
    from tests.tools.fakecupy._array import ndarray
    from tests.tools.fakecupy._pointers import alloc

    source = array._host
    like = np.empty_like(source, dtype=dtype, order=order)  # type: ignore[call-overload]
    out = ndarray(array.shape, dtype, alloc(like.nbytes), like.strides)
    if not out.size:
        return out
    same = dtype == array.dtype and out.strides == array.strides and array.flags.forc
    if same and array.data.device_id == _state.machine().device():
        out.data.copy_from_device_async(array.data, array.nbytes)
        return out

    store("copy", out, lambda: source, source, (array,))
    return out
