"""BACKENDS: one row an implementation of a layer-direction, and the choice among them.

The array decides the device; the keyword `backend` may name the implementation, and with a colon one of its schedules:
"cupy:stepwise". Nothing is tried and abandoned: a named backend that cannot serve the call raises with its reason, and
`explain` tells the choice and why.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from rnnkit.backends import needs
from rnnkit.backends.interface import Backend
from rnnkit.core.cells import CELLS, Cell, cell_of
from rnnkit.core.devices import cuda_problem
from rnnkit.core.dtypes import COMPRESSED, DTYPES, DType, row_of


def _no_schedules() -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class BackendRow:
    """One row of BACKENDS: the array kind it takes, the dtypes it serves, and why it may not run here.

    cells: the names of the cells it serves: asked for when a call is made, as the tables of kernels are imported late.
    fused: whether it runs compiled kernels, which `strict` demands.
    schedules: the names of its ways to run a layer-direction, of which a call may name one; () where there is one way.
    compressed: the names of the rows of COMPRESSED that it serves.
    """

    name: str
    arrays: str  # "numpy" or "cupy"
    dtypes: tuple[str, ...]
    about: str
    problem: Callable[[], str | None]
    cells: Callable[[], Collection[str]]
    schedules: Callable[[], tuple[str, ...]] = _no_schedules
    fused: bool = True
    compressed: tuple[str, ...] = ()

    def serves(self, dtype: str) -> bool:
        """Whether it serves a row of DTYPES or of COMPRESSED, by its name."""
        return dtype in self.dtypes or dtype in self.compressed

    def load(self, schedule: str | None = None) -> Backend:
        """The backend's module, or where a schedule is named the module's `pinned(schedule)`."""
        module: Any = importlib.import_module(f"rnnkit.backends.{self.name}")
        return module if schedule is None else module.pinned(schedule)


def _no_problem() -> str | None:
    return None


def _all_cells() -> Collection[str]:
    return CELLS


def _compiled_cells() -> Collection[str]:
    from rnnkit.kernels.cells import POINTWISE

    return POINTWISE


def _cuda_cells() -> Collection[str]:
    from rnnkit.kernels.cells import HEADERS

    return HEADERS


def _cupy_schedules() -> tuple[str, ...]:
    from rnnkit.backends.cupy.schedules import SCHEDULES  # which imports this file

    return tuple(schedule.name for schedule in SCHEDULES)


_INSTALL_CUDA = "pip install 'rnnkit[cuda13]' or 'rnnkit[cuda12]'"


@cache
def _libnvvm_problem() -> str | None:
    """Why Numba CUDA cannot compile a kernel here: it does so with libNVVM of the CUDA toolkit."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        load_nvidia_dynamic_lib("nvvm")
    except Exception as error:  # pathfinder is missing, finds nothing, or cannot load what it finds
        said = str(error).strip().splitlines() or [type(error).__name__]
        return f"numba-cuda finds no libNVVM (set CUDA_HOME to a CUDA toolkit, or {_INSTALL_CUDA}): {said[0]}"
    return None


def _numba_cuda_problem() -> str | None:
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed ({_INSTALL_CUDA})"
    return cuda_problem() or needs.import_problem() or _libnvvm_problem()


_ALL_COMPRESSED = tuple(row.name for row in COMPRESSED.values())

# In order of preference for each kind of array.
BACKENDS: dict[str, BackendRow] = {
    row.name: row
    for row in (
        BackendRow(
            "numba",
            "numpy",
            tuple(DTYPES),
            "fused CPU scan, compiled by Numba",
            lambda: needs.numba_problem(),  # looked up when asked, so that a test may replace it
            _compiled_cells,
            compressed=_ALL_COMPRESSED,
        ),
        BackendRow(
            "numpy",
            "numpy",
            tuple(DTYPES),
            "the NumPy oracle",
            _no_problem,
            _all_cells,
            fused=False,
            compressed=_ALL_COMPRESSED,
        ),
        BackendRow(
            "cupy",
            "cupy",
            tuple(DTYPES),
            "CUDA C++ through CuPy",
            cuda_problem,
            _cuda_cells,
            _cupy_schedules,
        ),
        BackendRow(
            "numba_cuda",
            "cupy",
            ("float32", "float64", "float16"),
            "Numba CUDA",
            _numba_cuda_problem,
            _compiled_cells,
        ),
    )
}


class Choice(NamedTuple):
    """A backend chosen for a call, the dtype it is to compute in, and why."""

    row: BackendRow
    backend: Backend
    dtype: DType
    why: str


def available(name: str) -> bool:
    """Whether the backend can run on this machine."""
    return BACKENDS[name].problem() is None


def pinned_names() -> tuple[str, ...]:
    """Every backend by name, one with schedules once for each of them: "numba", ..., "cupy:stepwise"."""
    names: list[str] = []
    for row in BACKENDS.values():
        names += [f"{row.name}:{schedule}" for schedule in row.schedules()] or [row.name]
    return tuple(names)


def backend_row(name: Any) -> tuple[BackendRow, str | None]:
    """The row of a backend's name, and the schedule that the name pins or None. Raises ValueError for another name."""
    if not isinstance(name, str) or name.partition(":")[0] not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    row_name, colon, schedule = name.partition(":")
    row = BACKENDS[row_name]
    if not colon:
        return row, None
    known = row.schedules()
    if schedule not in known:
        has = f"has the schedules {', '.join(map(repr, known))}" if known else "has no schedules to name"
        raise ValueError(f"backend {row_name!r} {has}, got {name!r}")
    return row, schedule


def check_backend(name: Any) -> None:
    """Raises ValueError for an unknown name, RuntimeError with the reason for one that cannot run here."""
    if name is None:
        return
    row, _ = backend_row(name)
    problem = row.problem()
    if problem:
        raise RuntimeError(f"backend {name!r} cannot run here: {problem}")


@cache
def select(device: str, dtype: str, cell: str, name: str | None = None, strict: bool = False) -> Choice:
    """The backend for arrays on `device` ('cpu' or 'cuda:<index>') computed as a row of DTYPES or COMPRESSED says.

    `cell` is a `Cell.key`. `name` asks for one backend; `strict` for one with compiled kernels.

    Raises ValueError where the named backend does not fit the arrays, RuntimeError where none can run.
    """
    check_backend(name)
    row_of_cell = cell_of(cell)
    arrays = "numpy" if device == "cpu" else "cupy"
    if name is not None:
        row, schedule = backend_row(name)
        if row.arrays != arrays:
            raise ValueError(f"backend {name!r} takes {row.arrays} arrays, got {arrays} arrays on {device}")
        if not row.serves(dtype):
            raise ValueError(f"backend {name!r} serves {', '.join(row.dtypes)}, got dtype {dtype}")
        if row_of_cell.name not in row.cells():
            raise ValueError(f"backend {name!r} serves the cells {', '.join(row.cells())}, got {cell}")
        problem = _not_fused(row, strict)
        if problem:
            raise ValueError(f"backend {name!r} {problem}")
        why = _with_precision(f"backend={name!r} was asked for", row, dtype)
        return Choice(row, row.load(schedule), row_of(dtype), why)
    skipped: list[str] = []
    for row in BACKENDS.values():
        if row.arrays != arrays:
            continue
        problem = row.problem() or _unserved(row, dtype, row_of_cell) or _not_fused(row, strict)
        if problem:
            skipped.append(f"{row.name}: {problem}")
            continue
        why = f"first backend for {arrays} arrays that serves {dtype} {cell}"
        why = "; ".join([why, *(f"passed over {s}" for s in skipped)])
        return Choice(row, row.load(), row_of(dtype), _with_precision(why, row, dtype))
    raise RuntimeError(f"no backend can run {cell} in {dtype} on {device}: {'; '.join(skipped)}")


def _unserved(row: BackendRow, dtype: str, cell: Cell) -> str | None:
    if not row.serves(dtype):
        return f"does not serve {dtype}"
    return None if cell.name in row.cells() else f"does not serve the cell {cell.name}"


def _not_fused(row: BackendRow, strict: bool) -> str | None:
    return "has no compiled kernels, which strict=True demands" if strict and not row.fused else None


def _with_precision(why: str, row: BackendRow, dtype: str) -> str:
    return (
        f"{why}; a CPU has no TF32: products are in full float32" if (row.arrays, dtype) == ("numpy", "tf32") else why
    )
