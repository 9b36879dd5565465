"""A kernel and all functions that it calls as plain Python: the same code objects, with other globals.

`cuda` is replaced by the simulated one, and a compiled function by its own clone. `math` is replaced by NumPy's
functions, which keep the dtype of their argument and overflow to infinity, as a device does. Numba's types are replaced
by NumPy's scalars.
"""

from __future__ import annotations

from types import CellType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numba import types

_MATH = SimpleNamespace(exp=np.exp, tanh=np.tanh, sqrt=np.sqrt)
_SCALARS = {types.float16: np.float16, types.float32: np.float32, types.float64: np.float64, types.uint64: int}
_TYPES = SimpleNamespace(**{kind.name: scalar for kind, scalar in _SCALARS.items()})


def clone(dispatcher: Any, cuda: Any, done: dict[Any, FunctionType] | None = None) -> FunctionType:
    """The Python function of a dispatcher. It calls clones, and `cuda` in place of numba.cuda."""
    done = {} if done is None else done
    function = dispatcher.py_func
    if function in done:
        return done[function]

    def replaced(value: Any) -> Any:
        if isinstance(value, ModuleType) and value.__name__ in ("numba.cuda", "math", "numba.core.types"):
            return {"numba.cuda": cuda, "math": _MATH}.get(value.__name__, _TYPES)
        if isinstance(value, types.Type):
            return _SCALARS[value]
        return clone(value, cuda, done) if hasattr(value, "py_func") else value

    names = {name: replaced(function.__globals__[name]) for name in _globals_of(function)}
    cells = tuple(CellType(replaced(cell.cell_contents)) for cell in function.__closure__ or ())
    done[function] = FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
    return done[function]


def _globals_of(function: FunctionType) -> list[str]:
    return [name for name in function.__code__.co_names if name in function.__globals__]
