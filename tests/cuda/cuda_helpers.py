"""Helpers of the CUDA tests: the stand-in for CuPy, calls with results on the device, small chunks of steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from rnnkit import testing
from rnnkit.backends.cupy.step_products import Step, cell_problem
from rnnkit.core import cells
from rnnkit.core.cells import Weights
from rnnkit.functional import direction
from rnnkit.kernels.cells import HEADERS
from rnnkit.testing import Case, Inputs, assert_close, kind_of, make_inputs, run
from tests import helpers
from tests.tools import fakecupy

# What `cupy` serves, and its schedule `stepwise`, of the tables of these names.
CELLS = {name: cell for name, cell in cells.CELLS.items() if name in HEADERS}
CASES = tuple(case for case in testing.CASES if case.cell in CELLS)
LAYERS = {name: layer for name, layer in helpers.LAYERS.items() if name in CELLS}

# What the resident schedules serve, and the kinds of steps that they have kernels of their own for: every one of these
# cells, and those with a projection.
RESIDENT_CELLS = {name: cell for name, cell in CELLS.items() if cell_problem(cell) is None}
RESIDENT_CASES = tuple(case for case in CASES if case.cell in RESIDENT_CELLS)
PROJECTED = tuple(f"{name}_projected" for name, cell in RESIDENT_CELLS.items() if cell.projects)
KINDS = (*RESIDENT_CELLS, *PROJECTED)


def of_few_builds(dtypes: Iterable[str], cells: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of a cell and a dtype that need few builds of schedule D: a build takes a second or two of g++.

    Every cell in float32, and every dtype of the two cells with the most code.
    """
    return [
        (cell, dtype)
        for cell, dtype in itertools.product(cells, dtypes)
        if dtype in ("float32", "tf32") or cell in ("lstm", "gru_reset_before")
    ]


def kind_case(kind: str, **sizes: Any) -> Case:
    """A case of a kind, whose projection has three fifths of the units."""
    cell = kind.removesuffix("_projected")
    H = sizes.get("H", 6)
    return Case(cell, P=0 if kind == cell else 3 * H // 5, **sizes)


def step_of(case: Case) -> Step:
    """A step of a case."""
    return Step(CELLS[case.cell], case.H, case.P or case.H, bool(case.P))


def step_of_kind(kind: str, H: int) -> Step:
    """A step of a kind, see `kind_case`."""
    return step_of(kind_case(kind, H=H))


@contextmanager
def cuda(**settings: Any) -> Iterator[Any]:
    """Installs the stand-in for CuPy, with two devices by default."""
    with fakecupy.installed(**{"devices": 2, **settings}) as fake:
        yield fake


def assert_matches(got: dict[str, Any], want: dict[str, Any], dtype: str = "float32") -> None:
    """Compares every output and gradient by name, within the tolerance of its kind."""
    assert got.keys() == want.keys()
    for name in want:
        forward = kind_of(name) == "forward" or name.startswith("state_n")
        assert_close(name, got[name], want[name], dtype, "forward" if forward else "backward")


@contextmanager
def chunked(steps: int) -> Iterator[None]:
    """Limits chunks to `steps` steps."""
    from rnnkit.backends.cupy import problem

    with mock.patch.object(problem, "CHUNK_STEPS", steps):
        yield


def outputs(case: Case, inputs: Inputs, backend: str) -> dict[str, Any]:
    """Like `rnnkit.testing.run`, but the results stay on the device."""
    cell = CELLS[case.cell]
    given = (inputs.x, inputs.state0, inputs.weights)
    y, state_n, saved = direction.forward(
        case.cell, *given, lengths=inputs.lengths, reverse=case.reverse, backend=backend
    )
    assert saved is not None
    dx, dstate0, dweights = direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)
    found = {"y": y, "dx": dx}
    for name, n, d in zip(cell.states, state_n, dstate0, strict=True):
        found |= {f"{name}_n": n, f"d{name}0": d}
    return found | {f"d{name}": d for name, d in zip(Weights._fields, dweights, strict=True) if d is not None}


def run_on(cp: Any, case: Case, device: str, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Runs a case with its arrays on `device`, which need not be current."""
    inputs = make_inputs(case, dtype, device=device)
    return run(case, inputs, "cupy")
