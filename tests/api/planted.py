"""A backend with one fault, for tests that must find it: the NumPy oracle with one change."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from rnnkit import backends
from rnnkit.backends import BACKENDS, BackendRow, BackwardCall, Forward, LayerCall, Sizes
from rnnkit.backends import numpy as oracle
from rnnkit.core.cells import CELLS

Fault = Callable[[dict[str, Any]], None]  # changes y, dx etc. in place


@contextlib.contextmanager
def planted(fault: Fault, dtypes: tuple[str, ...] = ("float64", "float32")) -> Iterator[None]:
    """Adds the row "planted" to BACKENDS: NumPy, with `fault` applied to the results of each forward and backward."""

    def forward(call: LayerCall) -> Forward:
        y, state_n, saved = oracle.forward(call)
        found = {"y": y, "h_n": state_n[0]}
        fault(found)
        return found["y"], (found["h_n"], *state_n[1:]), saved

    def backward(call: BackwardCall) -> Any:
        dx, dstate0, dweights = oracle.backward(call)
        found = {"dx": dx, "dh0": dstate0[0], "dw_hh": dweights.w_hh}
        fault(found)
        return found["dx"], (found["dh0"], *dstate0[1:]), dweights._replace(w_hh=found["dw_hh"])

    @dataclasses.dataclass(frozen=True)
    class Row(BackendRow):
        def load(self, schedule: str | None = None) -> Any:
            return types.SimpleNamespace(forward=forward, backward=backward, describe=oracle.describe)

    row = Row("planted", "numpy", dtypes, "NumPy with a fault", lambda: None, lambda: CELLS)
    backends.select.cache_clear()
    try:
        with mock.patch.dict(BACKENDS, {"planted": row}):
            yield
    finally:
        backends.select.cache_clear()


def off(name: str) -> Fault:
    """A fault: 0.01 is added to one element of the array."""

    def fault(found: dict[str, Any]) -> None:
        if name in found:
            found[name] = found[name].copy()
            found[name].reshape(-1)[1] += 0.01

    return fault


def changing_bits() -> Fault:
    """A fault: dw_hh is within its bounds, with other bits in every call."""
    calls = itertools.count()

    def fault(found: dict[str, Any]) -> None:
        if "dw_hh" in found:
            found["dw_hh"] = found["dw_hh"] * found["dw_hh"].dtype.type(1 + 1e-6 * next(calls))

    return fault


def broken(found: dict[str, Any]) -> None:
    raise FloatingPointError("planted\nand more lines")


def unwritten(found: dict[str, Any]) -> None:
    """A fault: one element of y is never written."""
    if "y" in found:
        y = np.empty_like(found["y"])
        y.reshape(-1)[1:] = found["y"].reshape(-1)[1:]
        found["y"] = y


@contextlib.contextmanager
def refusing(problem: Callable[[Sizes], str | None]) -> Iterator[None]:
    """Only the last schedule of the CuPy backend, which rejects the sizes for which `problem` returns a reason."""
    from rnnkit.backends.cupy import schedules

    last = schedules.SCHEDULES[-1]
    asked = mock.patch.object(schedules.Schedule, "problem", lambda self, work, card: problem(work.sizes))
    with asked, mock.patch.object(schedules, "SCHEDULES", (last,)):
        yield
