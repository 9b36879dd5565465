"""BACKENDS: one row an implementation of a layer-direction, and the choice among them.

The array decides the device; the keyword `backend` may name the implementation, and with a colon one of its schedules:
"cupy:stepwise". Nothing is tried and abandoned: a named backend that cannot serve the call raises with its reason, and
`explain` tells the choice and why.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from rnnkit._device import cuda_problem
from rnnkit.backends import needs
from rnnkit.cells import CELLS, Array, Cell, State, Weights
from rnnkit.dtypes import DTYPES, DType


class Sizes(NamedTuple):
    """Sizes of one layer-direction; R is P under projection, else H; N the steps of all rows, T*B without lengths."""

    T: int
    B: int
    I: int
    H: int
    R: int
    N: int


class HeldWeights(Weights):
    """Weights of a layer that are the same arrays at every call, C-contiguous, whatever is written into them.

    A backend leaves in `found` what it has found out of where they stand.
    """

    found: Any = None


class Forward(NamedTuple):
    """What a backend's forward gives: y (T, B, R), the final states, and what its own backward needs or None."""

    y: Array
    state_n: State
    saved: Any


class Gradients(NamedTuple):
    """What a backend's backward gives: dx (T, B, I), and the gradients of the initial states and of the weights."""

    dx: Array
    dstate0: State
    dweights: Weights


class Description(NamedTuple):
    """A kernel in words, and bytes that a forward takes beyond x and its results: see `explain`.

    transient  while it runs
    kept       until its backward has run
    resident   those of `transient` that stay with the backend, for its next call, whatever that is
    own        others that stay, for the next call of the same layer
    placed     whether it writes y into a wider array itself
    """

    kernel: str
    transient: int
    kept: int
    resident: int = 0
    own: int = 0
    placed: bool = False


class Backend(Protocol):
    """What a backend module provides: one layer in one direction. No argument is checked here: `ops` has done it.

    A backend that supplies a time scan alone takes the products around it from `rnnkit.backends.by_scan`.
    """

    def forward(
        self,
        cell: Cell,
        dtype: DType,
        x: Array,
        state0: State,
        weights: Weights,
        *,
        lengths: np.ndarray | None,
        reverse: bool,
        keep: bool,
        out: Array | None,
    ) -> Forward:
        """x (T, B, I), C-contiguous and kept by reference; lengths (B,) on the host, or None for T everywhere.

        out: where the caller will copy y to (T, B, R), part of a wider array or None. A backend may write y there
        itself, and then gives `out` as y.

        Arrays are of dtype.storage; dtype says more than they do where it names a way to compute, as tf32.
        """
        ...

    def backward(
        self,
        cell: Cell,
        dtype: DType,
        saved: Any,
        dy: Array | None,
        dstate_n: State,
        weights: Weights,
        into: Weights | None,
    ) -> Gradients:
        """dy (T, B, R), of any strides, or None for zeros; dstate_n one array a state. Neither is written to.

        into: where the caller will add the weights' gradients. A backend may do so itself, and gives None for those it
        has added.
        """
        ...

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        """What a forward of these sizes would run, and the memory it takes."""
        ...


def _no_schedules() -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class BackendRow:
    """One row of BACKENDS: the array kind it takes, the dtypes it serves, and why it may not run here.

    schedules: the names of its ways to run a layer-direction, of which a call may name one; () where there is one way.
    """

    name: str
    arrays: str  # "numpy" or "cupy"
    dtypes: tuple[str, ...]
    about: str
    problem: Callable[[], str | None]
    schedules: Callable[[], tuple[str, ...]] = _no_schedules

    def load(self, schedule: str | None = None) -> Backend:
        """The backend's module, or where a schedule is named the module's `pinned(schedule)`."""
        module: Any = importlib.import_module(f"rnnkit.backends.{self.name}")
        return module if schedule is None else module.pinned(schedule)


def _no_problem() -> str | None:
    return None


def _cupy_schedules() -> tuple[str, ...]:
    from rnnkit.backends.cuda.schedules import SCHEDULES  # which imports this file

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


# In order of preference for each kind of array.
BACKENDS: dict[str, BackendRow] = {
    row.name: row
    for row in (
        BackendRow(
            "numba",
            "numpy",
            ("float32", "float64", "tf32"),
            "fused CPU scan, compiled by Numba",
            lambda: needs.numba_problem(),  # looked up when asked, so that a test may replace it
        ),
        BackendRow("numpy", "numpy", tuple(DTYPES), "the NumPy oracle", _no_problem),
        BackendRow("cupy", "cupy", tuple(DTYPES), "CUDA C++ through CuPy", cuda_problem, _cupy_schedules),
        BackendRow("numba_cuda", "cupy", ("float32", "float64", "float16"), "Numba CUDA", _numba_cuda_problem),
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
def select(device: str, dtype: str, cell: str, name: str | None = None) -> Choice:
    """The backend for arrays on `device` ('cpu' or 'cuda:<index>') computed as the row `dtype` of DTYPES says.

    `name` asks for one.

    Raises ValueError where the named backend does not fit the arrays, RuntimeError where none can run.
    """
    check_backend(name)
    arrays = "numpy" if device == "cpu" else "cupy"
    if name is not None:
        row, schedule = backend_row(name)
        if row.arrays != arrays:
            raise ValueError(f"backend {name!r} takes {row.arrays} arrays, got {arrays} arrays on {device}")
        if dtype not in row.dtypes:
            raise ValueError(f"backend {name!r} serves {', '.join(row.dtypes)}, got dtype {dtype}")
        why = _with_precision(f"backend={name!r} was asked for", row, dtype)
        return Choice(row, row.load(schedule), DTYPES[dtype], why)
    skipped: list[str] = []
    for row in BACKENDS.values():
        if row.arrays != arrays:
            continue
        problem = row.problem() or (None if dtype in row.dtypes else f"does not serve {dtype}")
        if problem:
            skipped.append(f"{row.name}: {problem}")
            continue
        why = f"first backend for {arrays} arrays that serves {dtype} {CELLS[cell].name}"
        why = "; ".join([why, *(f"passed over {s}" for s in skipped)])
        return Choice(row, row.load(), DTYPES[dtype], _with_precision(why, row, dtype))
    raise RuntimeError(f"no backend can run {cell} in {dtype} on {device}: {'; '.join(skipped)}")


def _with_precision(why: str, row: BackendRow, dtype: str) -> str:
    return (
        f"{why}; a CPU has no TF32: products are in full float32" if (row.arrays, dtype) == ("numpy", "tf32") else why
    )
