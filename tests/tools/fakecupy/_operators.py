"""Operators and methods of `cupy.ndarray`: each is the module's function of the same name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch


def _functions() -> Any:
    from tests.tools.fakecupy import _functions

    return _functions


def _binary(name: str) -> Any:
    def forward(self: Any, other: Any) -> Any:
        if getattr(other, "__array_ufunc__", other) is None:
            return NotImplemented
        return _functions().UFUNCS[name](self, other)

    return forward


def _reflected(name: str) -> Any:
    def backward(self: Any, other: Any) -> Any:
        return _functions().UFUNCS[name](other, self)

    return backward


def _in_place(name: str) -> Any:
    def update(self: Any, other: Any) -> Any:
        return _functions().UFUNCS[name](self, other, out=self)

    return update


def _unary(name: str) -> Any:
    def of(self: Any) -> Any:
        return _functions().UFUNCS[name](self)

    return of


def _comparison(name: str) -> Any:
    def compare(self: Any, other: Any) -> Any:
        if isinstance(other, np.ndarray) and other.ndim == 0:
            other = other.item()
        if other is None:
            return _functions().full(self.shape, name == "not_equal", dtype=bool)
        return _functions().UFUNCS[name](self, other)

    return compare


def _function(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _functions().PUBLIC[name](self, *args, **kwargs)

    method.__name__ = name
    return method


def _resolved(shape: tuple[Any, ...], size: int) -> tuple[int, ...]:
    """`shape` with -1 replaced by the size of that axis."""
    known = math.prod(int(n) for n in shape if n != -1)
    missing = sum(n == -1 for n in shape)
    if missing > 1:
        raise ValueError("can only specify one unknown dimension")
    if (size % known if known else 1) if missing else known != size:
        raise ValueError(f"cannot reshape array of size {size} into shape {shape}")
    return tuple(size // known if n == -1 else int(n) for n in shape)


class Operators:
    """The base class of `ndarray`. As in CuPy, arrays are not hashable."""

    __hash__ = None  # type: ignore[assignment]

    __add__, __radd__, __iadd__ = _binary("add"), _reflected("add"), _in_place("add")
    __sub__, __rsub__, __isub__ = _binary("subtract"), _reflected("subtract"), _in_place("subtract")
    __mul__, __rmul__, __imul__ = _binary("multiply"), _reflected("multiply"), _in_place("multiply")
    __truediv__, __rtruediv__ = _binary("true_divide"), _reflected("true_divide")
    __itruediv__ = _in_place("true_divide")
    __floordiv__, __rfloordiv__ = _binary("floor_divide"), _reflected("floor_divide")
    __ifloordiv__ = _in_place("floor_divide")
    __mod__, __rmod__, __imod__ = _binary("remainder"), _reflected("remainder"), _in_place("remainder")
    __pow__, __rpow__, __ipow__ = _binary("power"), _reflected("power"), _in_place("power")
    __and__, __rand__, __iand__ = _binary("bitwise_and"), _reflected("bitwise_and"), _in_place("bitwise_and")
    __or__, __ror__, __ior__ = _binary("bitwise_or"), _reflected("bitwise_or"), _in_place("bitwise_or")
    __xor__, __rxor__, __ixor__ = _binary("bitwise_xor"), _reflected("bitwise_xor"), _in_place("bitwise_xor")
    __lshift__, __rshift__ = _binary("left_shift"), _binary("right_shift")
    __neg__, __abs__, __invert__ = _unary("negative"), _unary("absolute"), _unary("invert")
    __eq__, __ne__ = _comparison("equal"), _comparison("not_equal")
    __lt__, __le__ = _comparison("less"), _comparison("less_equal")
    __gt__, __ge__ = _comparison("greater"), _comparison("greater_equal")

    def __pos__(self) -> Any:
        return self.copy()

    def __matmul__(self, other: Any) -> Any:
        return _functions().matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return _functions().matmul(other, self)

    def __imatmul__(self, other: Any) -> Any:
        return NotImplemented

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Dispatches np.add(x, y), or a NumPy scalar as left operand, to the function of the same name here."""
        if method != "__call__":
            return NotImplemented
        if "out" in kwargs:
            kwargs["out"] = kwargs["out"][0]
        name = ufunc.__name__
        function = _functions().UFUNCS.get(name) or _functions().PUBLIC.get(name)
        return NotImplemented if function is None else function(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Dispatches np.sum(x) etc. to the function of the same name here, if CuPy has one."""
        ours = _functions().PUBLIC.get(function.__name__)
        return NotImplemented if ours is None else ours(*args, **kwargs)

    sum, prod, mean, max, min = map(_function, ("sum", "prod", "mean", "max", "min"))
    var, std, any, all = map(_function, ("var", "std", "any", "all"))
    argmax, argmin, cumsum, cumprod = map(_function, ("argmax", "argmin", "cumsum", "cumprod"))
    take, argsort, clip, repeat = map(_function, ("take", "argsort", "clip", "repeat"))
    dot, nonzero, squeeze, swapaxes, ravel, round = map(
        _function, ("dot", "nonzero", "squeeze", "swapaxes", "ravel", "round")
    )

    def transpose(self: Any, *axes: Any) -> Any:
        if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
            axes = () if axes[0] is None else tuple(axes[0])
        return self._view(self._host.transpose(*axes))

    def reshape(self: Any, *shape: Any, order: str = "C", copy: Any = None) -> Any:
        """A view if the strides allow it, else a copy."""
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        wanted = _resolved(shape, self.size)
        host = self._host.reshape(wanted, order=order)
        if not copy and (np.may_share_memory(host, self._host) or not self.size):
            return self._view(host)
        if copy is False:
            raise ValueError("Unable to avoid creating a copy while reshaping.")
        return _launch.compute("reshape", lambda a: a.reshape(wanted, order=order), self)

    def astype(
        self: Any, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> Any:
        """A copy in `dtype`, or the array itself if it has that dtype and copy is False. Rejects casting and subok."""
        if casting is not None:
            raise TypeError("casting is not supported yet")
        if subok is not None:
            raise TypeError("subok is not supported yet")
        kind = _launch.check_dtype(dtype)
        flags = self.flags
        fits = order in "KA" or (order == "C" and flags.c_contiguous) or (order == "F" and flags.f_contiguous)
        if not copy and kind == self.dtype and fits:
            return self
        return _launch.copy_of(self, kind, order)

    def copy(self: Any, order: str = "C") -> Any:
        """A copy on the current device, from any device."""
        return _launch.copy_of(self, self.dtype, order)

    def flatten(self: Any, order: str = "C") -> Any:
        return self.copy().reshape(-1)

    def fill(self: Any, value: Any) -> None:
        """Sets every entry to `value`, a scalar or a 0-d array."""
        if _launch.is_array(value):
            if value.shape != ():
                raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
            _launch.compute("fill", lambda v: np.broadcast_to(v, self.shape), value, out=self, casting="unsafe")
            return
        scalar = np.asarray(value, dtype=self.dtype)
        if scalar.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        _launch.check_device(self)
        if self.flags.c_contiguous and scalar == 0:
            self.data.memset_async(0, self.nbytes)
            return
        _launch.compute("fill", lambda: np.broadcast_to(scalar, self.shape), out=self, casting="unsafe")

    def sort(self: Any, axis: int = -1, kind: Any = None) -> None:
        ordered = _functions().PUBLIC["sort"](self, axis, kind)
        self[...] = ordered

    def view(self: Any, dtype: Any = None) -> Any:
        return self._view(self._host.view() if dtype is None else self._host.view(_launch.check_dtype(dtype)))
