"""Functions that create device arrays: new ones, and copies of arrays of the host, another device or library."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch, _state
from tests.tools.fakecupy._array import ndarray
from tests.tools.fakecupy._pointers import alloc
from tests.tools.fakecupy._public import array_argument, public


@public
def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


@public
def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype, order)


@public
def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype, order)


@public
def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.asarray(fill_value).dtype
    out = ndarray(shape, dtype, order=order)
    if out.size:
        out.fill(fill_value)
    return out


@public
def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    """Memory filled with NaN bytes, with the prototype's shape, dtype and, for order "K", its order of axes."""
    if subok is not None:
        raise TypeError("subok is not supported yet")
    like = np.empty_like(array_argument(prototype)._host, dtype=dtype, order=order, shape=shape)  # type: ignore[call-overload]
    return ndarray(like.shape, like.dtype, alloc(like.nbytes), like.strides)


def _filled_like(value: Any, a: Any, dtype: Any, order: str, subok: Any, shape: Any) -> ndarray:
    out = empty_like(a, dtype, order, subok, shape)
    if out.size:
        out.fill(value)
    return out


@public
def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return _filled_like(0, a, dtype, order, subok, shape)


@public
def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return _filled_like(1, a, dtype, order, subok, shape)


@public
def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return _filled_like(fill_value, a, dtype, order, subok, shape)


@public
def array(
    obj: Any,
    dtype: Any = None,
    copy: Any = True,
    order: str | None = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """A device array from a device array of any device, from another library's CUDA array, or from the host."""
    if subok:
        raise NotImplementedError
    order = order or "K"
    found = _from_cuda(obj)
    if found is not None:
        kind = _launch.check_dtype(found.dtype if dtype is None else dtype)
        here = found.data.device_id == _state.machine().device() or not found.size
        if copy or not here:
            return _launch.copy_of(found, kind, order)
        return found.astype(kind, order=order, copy=False)
    if isinstance(obj, (list, tuple)) and any(_from_cuda(part) is not None for part in obj):
        from tests.tools.fakecupy._functions import stack

        return stack([asarray(part, dtype) for part in obj])
    host = np.array(obj, dtype=dtype, order=order, ndmin=ndmin)  # type: ignore[call-overload]
    return _upload(host, blocking)


def _from_cuda(obj: Any) -> ndarray | None:
    if isinstance(obj, ndarray):
        return obj
    if hasattr(obj, "__cuda_array_interface__"):
        from tests.tools.fakecupy._interop import from_interface

        return from_interface(obj)
    return None


def _upload(host: np.ndarray, blocking: bool) -> ndarray:
    kind = _launch.check_dtype(host.dtype)
    out = ndarray(host.shape, kind, order="F" if host.flags.fnc else "C")
    if not host.size:
        return out
    if not host.ndim:
        out.fill(host)
        return out
    host = np.asfortranarray(host) if host.flags.fnc else np.ascontiguousarray(host)
    out.data.copy_from_host_async(host.ctypes.data, host.nbytes)
    if blocking:
        _state.machine().streams.current().synchronize()
    return out


@public
def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    return array(a, dtype, bool(copy), order, blocking=blocking)


@public
def asanyarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    return array(a, dtype, bool(copy), order, blocking=blocking)


@public
def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """`a` itself if it is C-contiguous in `dtype`, else a copy. As in CuPy, a 0-d array becomes (1,)."""
    a = array_argument(a)
    kind = a.dtype if dtype is None else _launch.check_dtype(dtype)
    if not a.ndim:
        a = a.reshape(1)
    return a if kind == a.dtype and a.flags.c_contiguous else _launch.copy_of(a, kind, "C")


@public
def copy(a: Any, order: str = "K") -> ndarray:
    return array_argument(a).copy(order)


@public
def astype(x: Any, dtype: Any, /, *, copy: bool = True) -> ndarray:
    return array_argument(x).astype(dtype, copy=copy)


@public
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    values = np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype=dtype)
    return _launch.compute("arange", lambda: values)


@public
def linspace(
    start: Any,
    stop: Any,
    num: int = 50,
    endpoint: bool = True,
    retstep: bool = False,
    dtype: Any = None,
    axis: int = 0,
) -> Any:
    values = np.linspace(start, stop, num, endpoint, False, dtype, axis)
    return _launch.compute("linspace", lambda: values)


@public
def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = float, order: str = "C") -> ndarray:
    return _launch.compute("eye", lambda: np.eye(N, M, k, dtype, order))  # type: ignore[call-overload]
