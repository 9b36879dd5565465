"""The functions of CuPy that rnnkit uses, and related ones, with CuPy's signatures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch
from tests.tools.fakecupy._array import ndarray
from tests.tools.fakecupy._creation import array, asarray, full
from tests.tools.fakecupy._public import PUBLIC, array_argument, public
from tests.tools.fakecupy._ufuncs import UFUNCS, dot, matmul

__all__ = ["PUBLIC", "UFUNCS", "array", "asarray", "full", "matmul"]

public(matmul)
public(dot)


# Joining, splitting and reshaping


def _joined(name: str, tup: Any, axis: int | None, out: Any, dtype: Any) -> ndarray:
    parts = [array_argument(part) for part in tup]

    def join(*hosts: np.ndarray) -> np.ndarray:
        joined = getattr(np, name)(hosts, axis=axis)
        return joined if dtype is None else joined.astype(dtype)

    return _launch.compute(name, join, *parts, out=out)


@public
def concatenate(
    tup: Any, axis: int | None = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    return _joined("concatenate", tup, axis, out, dtype)


@public
def stack(tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    return _joined("stack", tup, axis, out, dtype)


def _view_of(name: str, a: Any, *args: Any, **kwargs: Any) -> ndarray:
    a = array_argument(a)
    return a._view(getattr(np, name)(a._host, *args, **kwargs))


@public
def flip(a: Any, axis: Any = None) -> ndarray:
    return _view_of("flip", a, axis)


@public
def swapaxes(a: Any, axis1: int, axis2: int) -> ndarray:
    return _view_of("swapaxes", a, axis1, axis2)


@public
def moveaxis(a: Any, source: Any, destination: Any) -> ndarray:
    return _view_of("moveaxis", a, source, destination)


@public
def transpose(a: Any, axes: Any = None) -> ndarray:
    return array_argument(a).transpose(axes)


@public
def squeeze(a: Any, axis: Any = None) -> ndarray:
    return _view_of("squeeze", a, axis)


@public
def expand_dims(a: Any, axis: Any) -> ndarray:
    return _view_of("expand_dims", a, axis)


@public
def broadcast_to(array: Any, shape: Any) -> ndarray:
    return _view_of("broadcast_to", array, shape)


@public
def reshape(a: Any, newshape: Any, order: str = "C", *, copy: Any = None) -> ndarray:
    return array_argument(a).reshape(newshape, order=order, copy=copy)


@public
def ravel(a: Any, order: str = "C") -> ndarray:
    return array_argument(a).reshape(-1, order=order)


@public
def split(ary: Any, indices_or_sections: Any, axis: int = 0) -> list[ndarray]:
    ary = array_argument(ary)
    return [ary._view(part) for part in np.split(ary._host, indices_or_sections, axis)]


# Between host and device


@public
def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream=stream, order=order, out=out, blocking=blocking)
    host = np.asarray(a, order=order)  # type: ignore[call-overload]
    if out is None:
        return host
    out[...] = host
    return out


@public
def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    """dst = src where `where` is true. src: a device array or a scalar that broadcasts."""
    dst = array_argument(dst)
    if where is None:
        _launch.compute("copyto", lambda s: np.broadcast_to(s, dst.shape), src, out=dst, casting=casting)
        return

    def chosen(old: np.ndarray, new: Any, mask: Any) -> np.ndarray:
        return np.where(mask, np.asarray(new).astype(old.dtype), old)

    if isinstance(src, ndarray) and not np.can_cast(src.dtype, dst.dtype, casting):  # type: ignore[arg-type]
        raise TypeError(f"Cannot cast {src.dtype!r} to {dst.dtype!r} in {casting} casting mode")
    _launch.compute("copyto", chosen, dst, src, where, out=dst)


@public
def get_array_module(*args: Any) -> Any:
    import sys

    return sys.modules["cupy"] if any(isinstance(arg, ndarray) for arg in args) else np


@public
def shape(a: Any) -> tuple[int, ...]:
    return a.shape if isinstance(a, ndarray) else np.shape(a)


@public
def ndim(a: Any) -> int:
    return a.ndim if isinstance(a, ndarray) else np.ndim(a)


@public
def size(a: Any, axis: int | None = None) -> int:
    return math.prod(shape(a)) if axis is None else shape(a)[axis]


@public
def may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    return np.may_share_memory(a._host, b._host)


@public
def shares_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    return np.shares_memory(a._host, b._host)
