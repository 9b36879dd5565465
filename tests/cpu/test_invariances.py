"""Invariances: results do not depend on other rows, padding, strides or splits in time. Also empty and extreme inputs.

All tests use the functional form, on every CPU backend, with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rnnkit.core.cells import CELLS, Weights
from rnnkit.testing import Case, Inputs, assert_close, make_inputs, parity, run
from tests.helpers import ONE_BACKEND, assert_same, slow_except

ALL_CELLS = pytest.mark.parametrize("cell", CELLS)
BOTH_WAYS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
FORWARD = ("y", "h_n", "c_n")


def assert_results(got: dict[str, Any], want: dict[str, Any], dtype: str = "float64") -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert_close(name, got[name], want[name], dtype, "forward" if name in FORWARD else "backward")


def rows(inputs: Inputs, pick: Any, T: int | None = None) -> Inputs:
    """The inputs of some rows, truncated to T steps. None: not truncated, with their lengths."""
    return Inputs(
        np.ascontiguousarray(inputs.x[:T, pick]),
        tuple(np.ascontiguousarray(s[pick]) for s in inputs.state0),
        inputs.weights,
        None if inputs.lengths is None or T is not None else inputs.lengths[pick],
        np.ascontiguousarray(inputs.dy[:T, pick]),
        tuple(np.ascontiguousarray(d[pick]) for d in inputs.dstate_n),
    )


def of_rows(results: dict[str, Any], pick: Any, T: int | None = None) -> dict[str, Any]:
    """The outputs and input gradients of some rows, without the weights' gradients, which sum over the batch."""
    picked = {n: results[n][:T, pick] for n in ("y", "dx")}
    return picked | {n: a[pick] for n, a in results.items() if n.endswith(("_n", "0"))}


@ALL_CELLS
@BOTH_WAYS
def test_a_padded_row_equals_the_row_alone(cell: str, reverse: bool, cpu_backend: str) -> None:
    """Also, the weights' gradients equal the sum over single rows, each with its own length."""
    case = Case(cell, T=6, B=5, reverse=reverse, ragged=True, P=4 if CELLS[cell].projects else 0)
    inputs = make_inputs(case)
    together = run(case, inputs, cpu_backend)
    assert inputs.lengths is not None
    assert len(set(inputs.lengths)) > 2
    totals = {name: np.zeros_like(together[name]) for name in together if name.startswith("d") and name[1] in "wb"}
    for b, length in enumerate(inputs.lengths.tolist()):
        alone = run(case, rows(inputs, [b], length), cpu_backend)
        assert_results(of_rows(together, [b], length), of_rows(alone, slice(None)))
        assert not together["y"][length:, b].any()
        assert not together["dx"][length:, b].any()
        for name in totals:
            totals[name] += alone[name]
    for name, total in totals.items():
        assert_close(name, together[name], total, "float64", "backward")


@ALL_CELLS
@BOTH_WAYS
def test_results_do_not_depend_on_the_order_of_rows(cell: str, reverse: bool, cpu_backend: str) -> None:
    case = Case(cell, T=5, B=6, reverse=reverse)
    inputs = replace(make_inputs(case), lengths=np.array([0, 3, 5, 1, 4, 2]))
    order = [4, 0, 5, 2, 1, 3]
    want = of_rows(run(case, inputs, cpu_backend), order)
    assert_results(of_rows(run(case, rows(inputs, order), cpu_backend), slice(None)), want)


@ALL_CELLS
@BOTH_WAYS
@pytest.mark.parametrize("where", ["x", "h0"])
def test_nan_stays_in_its_row(cell: str, reverse: bool, where: str, cpu_backend: str) -> None:
    case = Case(cell, T=6, B=4, reverse=reverse)
    inputs = make_inputs(case)
    clean = run(case, inputs, cpu_backend)
    bad, t = 2, 3
    if where == "x":
        inputs.x[t, bad, 1] = np.nan
        reached = slice(0, t + 1) if reverse else slice(t, None)
    else:
        inputs.state0[0][bad, 1] = np.nan
        reached = slice(None)
    got = run(case, inputs, cpu_backend)
    others = [b for b in range(case.B) if b != bad]
    assert_same(of_rows(got, others), of_rows(clean, others))
    assert np.isnan(got["y"][reached, bad]).all()
    assert np.isnan(got["h_n"][bad]).all()
    before = np.setdiff1d(np.arange(case.T), np.arange(case.T)[reached])
    np.testing.assert_array_equal(got["y"][before, bad], clean["y"][before, bad])


def _every_other(a: np.ndarray) -> np.ndarray:
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def _negative(a: np.ndarray) -> np.ndarray:
    return np.flip(np.ascontiguousarray(np.flip(a)))


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a: np.ndarray) -> np.ndarray:
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every other element": _every_other,
    "negative strides": _negative,
    "Fortran order": np.asfortranarray,
    "read-only": _read_only,
    "unaligned": _unaligned,
}


@ALL_CELLS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_results_do_not_depend_on_the_memory_layout(cell: str, layout: str, ragged: bool, cpu_backend: str) -> None:
    case = Case(cell, T=4, B=5, ragged=ragged, reverse=ragged, P=3 if CELLS[cell].projects else 0)
    inputs, put = make_inputs(case), LAYOUTS[layout]
    given = Inputs(
        put(inputs.x),
        tuple(map(put, inputs.state0)),
        Weights(*(None if w is None else put(w) for w in inputs.weights)),
        None if inputs.lengths is None else _read_only(np.repeat(inputs.lengths, 2))[::2],
        put(inputs.dy),
        tuple(map(put, inputs.dstate_n)),
    )
    assert_results(run(case, given, cpu_backend), run(case, inputs, cpu_backend))
    for name in ("x", "dy"):
        np.testing.assert_array_equal(getattr(given, name), getattr(inputs, name), err_msg=f"{name} was changed")
    for was, now in zip(
        (*inputs.state0, *inputs.dstate_n, *inputs.weights),
        (*given.state0, *given.dstate_n, *given.weights),
        strict=True,
    ):
        np.testing.assert_array_equal(now, was)


@ALL_CELLS
@BOTH_WAYS
def test_empty_inputs(cell: str, reverse: bool, cpu_backend: str) -> None:
    """T = 0, B = 0 or all lengths 0: empty or zero outputs, unchanged states, zero gradients."""
    for T, B, lengths in ((0, 3, None), (0, 3, [0, 0, 0]), (4, 0, None), (4, 0, []), (4, 3, [0, 0, 0]), (0, 0, None)):
        case = Case(cell, T=T, B=B, reverse=reverse, P=4 if CELLS[cell].projects else 0)
        inputs = make_inputs(case, "float32")
        inputs = replace(inputs, lengths=None if lengths is None else np.array(lengths, int))
        if lengths:
            inputs.x[...] = np.nan
            inputs.dy[...] = np.nan
        got = run(case, inputs, cpu_backend)
        assert got["y"].shape == (T, B, 4 if case.P else case.H)
        assert got["dx"].shape == (T, B, case.I)
        for name, s, d in zip(CELLS[cell].states, inputs.state0, inputs.dstate_n, strict=True):
            np.testing.assert_array_equal(got[f"{name}_n"], s, strict=True)
            np.testing.assert_array_equal(got[f"d{name}0"], d, strict=True)
        for name, w in inputs.weights._asdict().items():
            if w is not None:
                np.testing.assert_array_equal(got[f"d{name}"], np.zeros_like(w), strict=True)
        assert not got["y"].any()
        assert not got["dx"].any()


def assert_cut_in_two(case: Case, cut_at: int, backend: str) -> None:
    """Two runs, with the states passed forward and their gradients passed back, equal one run."""
    inputs, states = make_inputs(case), CELLS[case.cell].states
    early, late = slice(0, cut_at), slice(cut_at, None)
    first, second = (late, early) if case.reverse else (early, late)

    def part(steps: slice, state0: Any, dstate_n: Any) -> dict[str, Any]:
        cut = replace(inputs, x=inputs.x[steps], dy=inputs.dy[steps], state0=state0, dstate_n=dstate_n)
        return run(case, cut, backend)

    middle = tuple(part(first, inputs.state0, inputs.dstate_n)[f"{s}_n"] for s in states)
    end = part(second, middle, inputs.dstate_n)
    start = part(first, inputs.state0, tuple(end[f"d{s}0"] for s in states))
    got = {}
    want = run(case, inputs, backend)
    for name in want:
        if name in ("y", "dx"):
            got[name] = np.concatenate([(start, end)[case.reverse][name], (end, start)[case.reverse][name]])
        elif name.endswith("_n"):
            got[name] = end[name]
        elif name.endswith("0"):
            got[name] = start[name]
        else:
            got[name] = start[name] + end[name]
    assert_results(got, want)


@ALL_CELLS
@BOTH_WAYS
def test_a_sequence_split_in_two_equals_the_sequence(cell: str, reverse: bool, cpu_backend: str) -> None:
    """Streaming and truncated backpropagation rely on this."""
    assert_cut_in_two(Case(cell, T=7, reverse=reverse), 3, cpu_backend)


@ONE_BACKEND
@pytest.mark.parametrize("cell", slow_except(CELLS, "rnn_tanh", "lstm"))
@BOTH_WAYS
def test_seventy_thousand_steps(cell: str, reverse: bool, cpu_backend: str) -> None:
    """More steps than 16-bit counters and some grid dimensions allow equal two halves with fewer."""
    if cpu_backend == "numpy" and (cell != "rnn_tanh" or reverse):
        pytest.skip("takes seconds, and the oracle's Python loop cannot overflow")
    assert_cut_in_two(Case(cell, T=70_000, B=2, I=1, H=2, reverse=reverse), 35_000, cpu_backend)


# The exponential gates of the sLSTM do not saturate: tests/cpu/test_slstm.py.
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "slstm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saturated_gates(cell: str, dtype: str, cpu_backend: str) -> None:
    """Pre-activations in the hundreds: gates of exactly 0 and 1, without overflow."""
    case = Case(cell, T=3)
    inputs = make_inputs(case, dtype)
    oracle = make_inputs(case)
    for i in (inputs, oracle):
        i.x[...] *= 512
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        got = run(case, inputs, cpu_backend)
    assert all(np.isfinite(a).all() for a in got.values())
    assert_results(got, run(case, oracle, "numpy"), dtype)


def test_the_comparison_detects_differences(cpu_backend: str) -> None:
    """A wrong value, a NaN and a wrong shape each fail the comparison that all tests above use."""
    case = Case("lstm")
    assert max(parity(cpu_backend, case, "float64").values()) <= 1
    good = run(case, make_inputs(case), "numpy")["y"]
    for spoiled in (good + 1e-6, np.where(good == good.max(), np.nan, good), good[:, :1]):
        with pytest.raises(AssertionError):
            assert_close("y", spoiled, good, "float64")
