"""Functions over axes, sorting and searching. 16-bit floats are summed in float32 and rounded once, as CuPy does."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch, _state
from tests.tools.fakecupy._array import ndarray
from tests.tools.fakecupy._creation import array
from tests.tools.fakecupy._public import array_argument, public


def _reduced(name: str, a: Any, axis: Any, dtype: Any, out: Any, keepdims: bool, **more: Any) -> ndarray:
    a = array_argument(a)
    narrow = a.dtype.itemsize == 2 and a.dtype.kind not in "iu" and dtype is None
    result_dtype = a.dtype if narrow else dtype
    work_dtype = np.float32 if narrow else dtype

    def reduce(host: np.ndarray) -> np.ndarray:
        kwargs = dict(more) if work_dtype is None else {**more, "dtype": work_dtype}
        if name in ("max", "min", "any", "all"):
            kwargs.pop("dtype", None)
            return np.asarray(getattr(np, name)(host, axis=axis, keepdims=keepdims, **kwargs))
        result = np.asarray(getattr(np, name)(host, axis=axis, keepdims=keepdims, **kwargs))
        return result if result_dtype is None else result.astype(result_dtype)

    return _launch.compute(name, reduce, a, out=out)


@public
def sum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _reduced("sum", a, axis, dtype, out, keepdims)


@public
def prod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _reduced("prod", a, axis, dtype, out, keepdims)


@public
def mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _reduced("mean", a, axis, dtype, out, keepdims)


@public
def var(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> ndarray:
    return _reduced("var", a, axis, dtype, out, keepdims, ddof=ddof)


@public
def std(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False) -> ndarray:
    return _reduced("std", a, axis, dtype, out, keepdims, ddof=ddof)


def _extreme(name: str, a: Any, axis: Any, out: Any, keepdims: bool) -> ndarray:
    if not array_argument(a).size and axis is None:
        raise ValueError(f"zero-size array to reduction operation cupy_{name} which has no identity")
    return _reduced(name, a, axis, None, out, keepdims)


@public
def max(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _extreme("max", a, axis, out, keepdims)


@public
def min(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _extreme("min", a, axis, out, keepdims)


@public
def any(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _reduced("any", a, axis, None, out, keepdims)


@public
def all(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _reduced("all", a, axis, None, out, keepdims)


@public
def argmax(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _launch.compute("argmax", lambda h: np.argmax(h, axis, keepdims=keepdims), array_argument(a), out=out)


@public
def argmin(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _launch.compute("argmin", lambda h: np.argmin(h, axis, keepdims=keepdims), array_argument(a), out=out)


@public
def cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
    return _launch.compute("cumsum", lambda h: np.cumsum(h, axis, dtype), array_argument(a), out=out)


@public
def cumprod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
    return _launch.compute("cumprod", lambda h: np.cumprod(h, axis, dtype), array_argument(a), out=out)


def _check_kind(kind: Any) -> None:
    if kind is not None and kind != "stable":
        raise ValueError("kind can only be None or 'stable'")


@public
def argsort(a: Any, axis: int | None = -1, kind: Any = None) -> ndarray:
    _check_kind(kind)
    return _launch.compute("argsort", lambda h: np.argsort(h, axis, "stable"), array_argument(a))


@public
def sort(a: Any, axis: int | None = -1, kind: Any = None) -> ndarray:
    _check_kind(kind)
    return _launch.compute("sort", lambda h: np.sort(h, axis, "stable"), array_argument(a))


@public
def take(a: Any, indices: Any, axis: int | None = None, out: Any = None) -> ndarray:
    """Entries along an axis. Indices on the host are uploaded. Out-of-range indices wrap around."""
    a = array_argument(a)
    if not np.isscalar(indices) and not isinstance(indices, ndarray):
        indices = array(indices, dtype=int)

    def run(host: np.ndarray, chosen: Any) -> np.ndarray:
        return np.take(host, np.asarray(chosen).astype(np.int64), axis, mode="wrap")

    return _launch.compute("take", run, a, indices, out=out)


@public
def take_along_axis(a: Any, indices: Any, axis: Any) -> ndarray:
    a = array_argument(a)

    def run(host: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        length = host.size if axis is None else host.shape[axis]
        return np.take_along_axis(host, chosen % length, axis)

    return _launch.compute("take_along_axis", run, a, array_argument(indices))


@public
def clip(a: Any, a_min: Any, a_max: Any, out: Any = None) -> ndarray:
    if a_min is None and a_max is None:
        raise ValueError("array_clip: must set either max or min")
    bounds = [bound for bound in (a_min, a_max) if bound is not None]

    def run(host: np.ndarray, *values: Any) -> np.ndarray:
        held = iter(values)
        low = None if a_min is None else next(held)
        return np.clip(host, low, None if a_max is None else next(held))

    return _launch.compute("clip", run, array_argument(a), *bounds, out=out)


@public
def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    """x where the condition is true, else y. Without x and y, the indices where it is true, which synchronises."""
    if (x is None) != (y is None):
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    return nonzero(condition) if x is None else _launch.compute("where", np.where, array_argument(condition), x, y)


@public
def nonzero(a: Any) -> tuple[ndarray, ...]:
    """Synchronises, to count the nonzero entries."""
    a = array_argument(a)
    _launch.check_device(a)
    machine = _state.machine()
    if a.size:
        machine.streams.synchronise(machine.streams.current().ptr, "nonzero")
    count = int(np.count_nonzero(a._host))

    def which(axis: int) -> ndarray:
        return _launch.compute("nonzero", lambda host: np.nonzero(host)[axis][:count], a)

    return tuple(which(axis) for axis in range(a.ndim))


@public
def flatnonzero(a: Any) -> ndarray:
    return nonzero(array_argument(a).reshape(-1))[0]


@public
def searchsorted(a: Any, v: Any, side: str = "left", sorter: Any = None) -> ndarray:
    if sorter is not None:
        return searchsorted(take(a, sorter), v, side)
    found = lambda x, y: np.searchsorted(x, y, side)  # type: ignore[call-overload] # noqa: E731
    return _launch.compute("searchsorted", found, array_argument(a), array_argument(v))


@public
def repeat(a: Any, repeats: Any, axis: int | None = None) -> ndarray:
    return _launch.compute("repeat", lambda h: np.repeat(h, repeats, axis), array_argument(a))


@public
def tile(A: Any, reps: Any) -> ndarray:
    return _launch.compute("tile", lambda h: np.tile(h, reps), array_argument(A))


@public
def roll(a: Any, shift: Any, axis: Any = None) -> ndarray:
    return _launch.compute("roll", lambda h: np.roll(h, shift, axis), array_argument(a))


@public
def tril(m: Any, k: int = 0) -> ndarray:
    return _launch.compute("tril", lambda h: np.tril(h, k), array_argument(m))


@public
def triu(m: Any, k: int = 0) -> ndarray:
    return _launch.compute("triu", lambda h: np.triu(h, k), array_argument(m))


@public
def round(a: Any, decimals: int = 0, out: Any = None) -> ndarray:
    return _launch.compute("round", lambda h: np.round(h, decimals), array_argument(a), out=out)


@public
def isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> ndarray:
    return _launch.compute("isclose", lambda x, y: np.isclose(x, y, rtol, atol, equal_nan), a, b)


@public
def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> ndarray:
    """A 0-d device array, as CuPy's is."""
    return all(isclose(a, b, rtol, atol, equal_nan))


@public
def array_equal(a1: Any, a2: Any, equal_nan: bool = False) -> ndarray:
    """A 0-d device array, as CuPy's is."""
    return _launch.compute("array_equal", lambda x, y: np.array_equal(x, y, equal_nan), a1, a2)
