"""CuPy's element-wise functions, and its matrix product, which calls cuBLAS."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch, _state

NAMES = [
    "add",
    "subtract",
    "multiply",
    "divide",
    "true_divide",
    "floor_divide",
    "remainder",
    "power",
    "negative",
    "positive",
    "absolute",
    "fabs",
    "sign",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "sqrt",
    "cbrt",
    "square",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "arcsin",
    "arccos",
    "arctan",
    "arctan2",
    "sinh",
    "cosh",
    "tanh",
    "arcsinh",
    "arccosh",
    "arctanh",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "floor",
    "ceil",
    "trunc",
    "rint",
    "copysign",
    "nextafter",
    "hypot",
    "isfinite",
    "isnan",
    "isinf",
    "signbit",
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "invert",
    "left_shift",
    "right_shift",
]
OTHER_NAMES = {"abs": "absolute", "mod": "remainder", "pow": "power", "bitwise_not": "invert"}


class ufunc:
    """`cupy.ufunc`: an element-wise function of device arrays and scalars."""

    def __init__(self, name: str) -> None:
        self._numpy = getattr(np, name)
        self.name, self.nin, self.nout, self.nargs = f"cupy_{name}", self._numpy.nin, 1, self._numpy.nin + 1
        self.__name__ = name

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"

    def __call__(self, *args: Any, out: Any = None, dtype: Any = None, casting: str = "same_kind") -> Any:
        """f(x, out=None, dtype=None): a new array or `out`. NumPy arrays and lists raise TypeError."""
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(
                f"Wrong number of arguments for {self.name!r}. It must be either {self.nin} or {self.nargs} "
                f"(with outputs), but given {len(args)}."
            )
        if len(args) == self.nargs:
            if out is not None:
                raise ValueError("Cannot specify 'out' as both a positional and keyword argument")
            args, out = args[:-1], args[-1]
        if isinstance(out, tuple):
            (out,) = out
        kind = None if dtype is None else _launch.check_dtype(dtype)

        def run(*hosts: Any) -> Any:
            return self._numpy(*hosts) if kind is None else self._numpy(*hosts, dtype=kind, casting=casting)

        return _launch.compute(self.__name__, run, *args, out=out, casting=casting)

    def outer(self, a: Any, b: Any, **kwargs: Any) -> Any:
        return self(a.reshape(-1)[:, None], b.reshape(-1)[None, :], **kwargs)


UFUNCS: dict[str, Any] = {name: ufunc(name) for name in NAMES}
UFUNCS.update({name: UFUNCS[of] for name, of in OTHER_NAMES.items()})


def _product(name: str, function: Any, a: Any, b: Any, out: Any) -> Any:
    """A product by cuBLAS. Raises in a capture, as all cuBLAS calls of CuPy do."""
    for operand in (a, b):
        if not _launch.is_array(operand):
            raise TypeError(f"Unsupported type {type(operand)}")
    wide = np.promote_types(a.dtype, b.dtype)
    vectors = a.ndim == 1 and b.ndim == 1

    def run(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if wide.itemsize == 2 and wide.kind not in "iu":  # accumulated in float32, rounded once
            return np.asarray(function(x.astype(np.float32), y.astype(np.float32))).astype(wide)
        return function(x, y)

    if vectors or wide.kind in "biu" or not (a.size and b.size):  # computed by CuPy's kernels, not by cuBLAS
        return _launch.compute(name, run, a, b, out=out)
    streams = _state.machine().streams
    if streams.is_capturing(streams.current().ptr):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    hosts = [_launch.host_view(a), _launch.host_view(b)]
    result = run(*hosts)
    target = _launch.new(result.shape, wide)
    _launch.store(name, target, lambda: run(*hosts), result, (a, b), tally=("gemms", None))
    if out is None:
        return target
    out[...] = target
    return out


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """a @ b."""
    if _launch.is_array(a) and _launch.is_array(b) and not (a.ndim and b.ndim):
        raise ValueError("Scalar operands are not allowed, use '*' instead")
    return _product("matmul", np.matmul, a, b, out)


def dot(a: Any, b: Any, out: Any = None) -> Any:
    """np.dot of device arrays."""
    return _product("dot", np.dot, a, b, out)
