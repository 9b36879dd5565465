"""On the numba backend, a row's bits do not depend on other rows: docs/promises.md, Bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkit.core.cells import CELLS
from rnnkit.testing import Case, Inputs, make_inputs, run
from tests.helpers import assert_same, share_everything

OF_A_ROW = ("y", "dx", "h_n", "c_n", "dh0", "dc0")


def alone(inputs: Inputs, row: int, T: int) -> Inputs:
    """One row of T steps as a batch of 1."""
    pick = slice(row, row + 1)
    return Inputs(
        np.ascontiguousarray(inputs.x[:T, pick]),
        tuple(np.ascontiguousarray(s[pick]) for s in inputs.state0),
        inputs.weights,
        None,
        np.ascontiguousarray(inputs.dy[:T, pick]),
        tuple(np.ascontiguousarray(d[pick]) for d in inputs.dstate_n),
    )


def of_row(results: dict[str, Any], row: int, T: int) -> dict[str, Any]:
    pick = slice(row, row + 1)
    by_step = {name: results[name][:T, pick] for name in ("y", "dx")}
    return by_step | {name: results[name][pick] for name in OF_A_ROW[2:] if name in results}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_of_several_steps_has_the_bits_of_the_row_alone(
    cell: str, dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any other rows of any lengths, on any number of threads."""
    share_everything(monkeypatch, threads)
    for B, lengths in ((7, None), (7, [9, 2, 5, 9, 0, 3, 1]), (14, [2, 9] * 7)):
        case = Case(cell, T=9, B=B, I=21, H=37, P=18 if CELLS[cell].projects else 0)
        inputs = make_inputs(case, dtype)
        inputs.lengths = None if lengths is None else np.array(lengths)
        together = run(case, inputs, "numba")
        for row in range(B):
            T = 9 if lengths is None else lengths[row]
            if T > 1:
                want = of_row(run(case, alone(inputs, row, T), "numba"), 0, T)
                assert_same(of_row(together, row, T), want)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_row_of_a_call_of_one_step_has_the_bits_of_the_row_alone(
    cell: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of one step sums in another order than longer ones do (kernels/cpu/step.py)."""
    share_everything(monkeypatch, threads)
    for B, lengths in ((5, None), (5, [1, 0, 1, 1, 0])):
        case = Case(cell, T=1, B=B, I=21, H=37)
        inputs = make_inputs(case, "float32")
        inputs.lengths = None if lengths is None else np.array(lengths)
        together = run(case, inputs, "numba")
        for row in range(B):
            if lengths is None or lengths[row]:
                assert_same(of_row(together, row, 1), of_row(run(case, alone(inputs, row, 1), "numba"), 0, 1))
