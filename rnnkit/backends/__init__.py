"""BACKENDS: one row an implementation of a layer-direction, and the choice among them.

The array decides the device; the keyword `backend` may name the implementation. Nothing is tried and abandoned: a named
backend that cannot serve the call raises with its reason, and `explain` tells the choice and why.
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


@dataclass(frozen=True)
class BackendRow:
    """One row of BACKENDS: the array kind it takes, the dtypes it serves, and why it may not run here."""

    name: str
    arrays: str  # "numpy" or "cupy"
    dtypes: tuple[str, ...]
    about: str
    problem: Callable[[], str | None]

    def load(self) -> Backend:
        return importlib.import_module(f"rnnkit.backends.{self.name}")


def _no_problem() -> str | None:
    return None


def _numba_cuda_problem() -> str | None:
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed (pip install 'rnnkit[cuda13]' or 'rnnkit[cuda12]')"
    return cuda_problem()


# In order of preference for each kind of array.
BACKENDS: dict[str, BackendRow] = {
    row.name: row
    for row in (
        BackendRow("numba", "numpy", ("float32", "float64", "tf32"), "fused CPU scan, compiled by Numba", _no_problem),
        BackendRow("numpy", "numpy", tuple(DTYPES), "the NumPy oracle", _no_problem),
        BackendRow("cupy", "cupy", tuple(DTYPES), "CUDA C++ through CuPy", cuda_problem),
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


def check_backend(name: Any) -> None:
    """Raises ValueError for an unknown name, RuntimeError with the reason for one that cannot run here."""
    if name is None:
        return
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"backend must be None or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    problem = BACKENDS[name].problem()
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
        row = BACKENDS[name]
        if row.arrays != arrays:
            raise ValueError(f"backend {name!r} takes {row.arrays} arrays, got {arrays} arrays on {device}")
        if dtype not in row.dtypes:
            raise ValueError(f"backend {name!r} serves {', '.join(row.dtypes)}, got dtype {dtype}")
        return Choice(row, row.load(), DTYPES[dtype], _with_precision(f"backend={name!r} was asked for", row, dtype))
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
