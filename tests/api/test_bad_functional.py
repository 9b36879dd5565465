"""Bad input to the functional form raises one error that names the argument, what it was and what it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkit.core.cells import CELLS, Weights
from rnnkit.functional import direction
from rnnkit.testing import Case, Inputs, make_inputs, run
from tests.helpers import assert_same, refused

T, B, I, H = 5, 3, 4, 6
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)


def forward(name: str, inputs: Inputs, **changed: Any) -> Any:
    given = {"cell": name, "x": inputs.x, "state0": inputs.state0, "weights": inputs.weights, "backend": "numpy"}
    return direction.forward(**(given | changed))


@EVERY_CELL
def test_forward(cell: str) -> None:
    inputs = make_inputs(Case(cell), "float32")
    G, w = CELLS[cell].n_gates, inputs.weights
    x, h0 = inputs.x, inputs.state0[0]
    others = inputs.state0[1:]
    GH = G * H
    cases: list[tuple[type[Exception], dict[str, Any], tuple[str, ...]]] = [
        (ValueError, {"cell": "elman"}, ("cell must be one of", "'lstm'", "got 'elman'")),
        (TypeError, {"x": x.tolist()}, ("x must be a NumPy or CuPy array, got list",)),
        (TypeError, {"x": x.astype(int)}, ("x must have dtype float64 or float32 or float16 or bfloat16, got int64",)),
        (TypeError, {"x": x.astype(">f4")}, ("x must have dtype float64 or float32 or float16 or bfloat16, got >f4",)),
        (ValueError, {"x": x[0]}, ("x must have shape (T, B, I), got (3, 4)",)),
        (ValueError, {"x": x[:, :, 1:]}, ("w_ih must have shape (G*H, I)", f"({GH}, 3), got ({GH}, 4)")),
        (TypeError, {"x": x.astype("float64")}, ("w_hh must have dtype float64, got float32",)),
        (ValueError, {"state0": (h0[1:], *others)}, ("h0 must have shape", f"= (3, {H}), got (2, {H})")),
        (ValueError, {"state0": (h0[:, 1:], *others)}, ("h0 must have shape", f"= (3, {H}), got (3, {H - 1})")),
        (TypeError, {"state0": (h0.astype("float64"), *others)}, ("h0 must have dtype float32, got float64",)),
        (ValueError, {"state0": (h0,) * (2 + len(others))}, ("state0 must be", f"got {2 + len(others)}")),
        (ValueError, {"lengths": [1, -1, 2]}, ("lengths must be between 0 and T = 5, got -1 in row 1",)),
        (ValueError, {"lengths": [1, 6, 2]}, ("lengths must be between 0 and T = 5, got 6 in row 1",)),
        (TypeError, {"lengths": [1, 1.5, 2]}, ("lengths must be whole numbers, got dtype float64",)),
        (ValueError, {"backend": "fast"}, ("backend must be None or one of", "got 'fast'")),
        (ValueError, {"backend": ["numpy"]}, ("backend must be None or one of", "got ['numpy']")),
        (ValueError, {"cell": np.array(["lstm", "gru"])}, ("cell must be one of", "'lstm'", "got array")),
        (TypeError, {"reverse": "no"}, ("reverse must be True or False, got 'no'",)),
        (TypeError, {"keep": 1}, ("keep must be True or False, got 1",)),
        (TypeError, {"weights": w._asdict()}, ("weights must be a tuple (w_ih, w_hh,", "got dict")),
        (TypeError, {"weights": None}, ("weights must be a tuple (w_ih, w_hh,", "got NoneType")),
        (TypeError, {"weights": (w.w_ih,)}, ("weights must be a tuple (w_ih, w_hh,", "got 1 of them")),
        (TypeError, {"weights": (*w, None)}, ("weights must be a tuple (w_ih, w_hh,", "got 7 of them")),
        *(
            (error, {"weights": w._replace(**{name: bad})}, words)
            for name, error, bad, words in (
                ("w_hh", TypeError, None, ("w_hh must be a NumPy or CuPy array, got NoneType",)),
                ("w_hh", ValueError, w.w_hh[0], ("w_hh must have shape (G*H, R)", f"got ({H},)")),
                ("w_hh", ValueError, w.w_hh[:0], ("w_hh must have shape (G*H, R)", f"got (0, {H})")),
                ("w_hh", ValueError, w.w_hh[:, :-1], ("w_hh must have shape (G*H, H) without w_hr", f"got ({GH}, 5)")),
                ("w_hh", TypeError, w.w_hh.astype("float64"), ("w_hh must have dtype float32, got float64",)),
                ("w_ih", ValueError, w.w_ih[1:], ("w_ih must have shape", f"({GH}, 4), got ({GH - 1}, 4)")),
                ("w_ih", TypeError, None, ("w_ih must be a NumPy or CuPy array, got NoneType",)),
                ("b_ih", ValueError, w.b_ih[1:], ("b_ih must have shape (G*H,)", f"got ({GH - 1},)")),
                ("b_hh", TypeError, w.b_hh.astype("float64"), ("b_hh must have dtype float32, got float64",)),
                ("b_hh", ValueError, w.b_hh[None], ("b_hh must have shape (G*H,)", f"got (1, {GH})")),
            )
        ),
    ]
    if G > 1:
        short = w._replace(w_hh=w.w_hh[:-1])
        cases.append(
            (ValueError, {"weights": short}, ("w_hh must have shape (G*H, R)", f"G = {G}", f"got ({GH - 1}, {H})"))
        )
    if not CELLS[cell].projects:
        projected = w._replace(w_hr=w.w_hh[:H])
        cases.append((ValueError, {"weights": projected}, (f"w_hr must be None for {cell}",)))
    want = forward(cell, inputs)
    for error, changed, words in cases:
        with refused(error, *words):
            forward(cell, inputs, **changed)
    np.testing.assert_array_equal(forward(cell, inputs)[0], want[0])


def test_projection_weights() -> None:
    inputs = make_inputs(Case("lstm", P=2))
    w = inputs.weights
    h0, c0 = inputs.state0
    with refused(ValueError, "w_hr must have shape (P, H) = (2, 6), got (6, 2)"):
        forward("lstm", inputs, weights=w._replace(w_hr=np.ascontiguousarray(w.w_hr.T)))
    with refused(ValueError, "h0 must have shape", "= (3, 2), got (3, 6)"):
        forward("lstm", inputs, state0=(c0, c0))
    with refused(ValueError, "c0 must have shape", "= (3, 6), got (3, 2)"):
        forward("lstm", inputs, state0=(h0, h0))


@EVERY_CELL
def test_backward(cell: str) -> None:
    case = Case(cell)
    inputs = make_inputs(case, "float32")
    want = run(case, inputs, "numpy")
    saved = forward(cell, inputs)[2]
    dy, (dh, *others) = inputs.dy, inputs.dstate_n
    cases: list[tuple[type[Exception], dict[str, Any], tuple[str, ...]]] = [
        (ValueError, {"saved": None}, ("saved is None", "keep=False")),
        (ValueError, {"dy": dy[1:]}, ("dy must have shape (T, B, R)", f"got (4, 3, {H})")),
        (ValueError, {"dy": dy[:, :, 1:]}, ("dy must have shape (T, B, R)", f"got (5, 3, {H - 1})")),
        (TypeError, {"dy": dy.astype("float64")}, ("dy must have dtype float32, got float64",)),
        (TypeError, {"dy": 1.0}, ("dy must be a NumPy or CuPy array, got float",)),
        (ValueError, {"dstate_n": (dh[1:], *others)}, ("dh_n must have shape", f"= (3, {H}), got (2, {H})")),
        (TypeError, {"dstate_n": (dh.astype("float64"), *others)}, ("dh_n must have dtype float32, got float64",)),
        (ValueError, {"dstate_n": (dh,) * (2 + len(others))}, ("dstate_n must be", f"got {2 + len(others)}")),
        (ValueError, {"dstate_n": ()}, ("dstate_n must be", "got 0")),
        (TypeError, {"weights": inputs.weights._asdict()}, ("weights must be a tuple (w_ih, w_hh,", "got dict")),
        (TypeError, {"weights": inputs.weights[:1]}, ("weights must be a tuple (w_ih, w_hh,", "got 1 of them")),
        *(
            (error, {"weights": inputs.weights._replace(**{name: bad})}, words)
            for name, error, bad, words in (
                ("w_hh", ValueError, inputs.weights.w_hh[:-1], ("w_hh must have shape its shape in forward", "got")),
                ("w_ih", ValueError, inputs.weights.w_ih[:, 1:], ("w_ih must have shape its shape in forward", "got")),
                ("b_hh", TypeError, None, ("b_hh must be a NumPy or CuPy array, got NoneType",)),
                ("w_hr", ValueError, dh, ("w_hr must be None, as in forward, got ndarray",)),
                ("w_ih", TypeError, inputs.weights.w_ih.astype("float64"), ("w_ih must have dtype float32",)),
            )
        ),
    ]
    for error, changed, words in cases:
        given = {"saved": saved, "dy": dy, "dstate_n": inputs.dstate_n, "weights": inputs.weights} | changed
        with refused(error, *words):
            direction.backward(**given)
    dx, dstate0, dweights = direction.backward(saved, dy, inputs.dstate_n, inputs.weights)
    got = {"dx": dx, "dh0": dstate0[0], "dw_hh": dweights.w_hh}
    assert_same(got, {name: want[name] for name in got})


@EVERY_CELL
def test_backward_accepts_the_states_that_forward_accepts(cell: str) -> None:
    """A single array for one state; None for zeros, in place of one state or of all."""
    inputs = make_inputs(Case(cell))
    saved = forward(cell, inputs)[2]
    zeros = tuple(map(np.zeros_like, inputs.dstate_n))
    wants = {
        "none": direction.backward(saved, inputs.dy, zeros, inputs.weights)[0],
        "first": direction.backward(saved, inputs.dy, (inputs.dstate_n[0], *zeros[1:]), inputs.weights)[0],
    }
    np.testing.assert_array_equal(direction.backward(saved, inputs.dy, None, inputs.weights)[0], wants["none"])
    first: Any = inputs.dstate_n[0] if len(zeros) == 1 else (inputs.dstate_n[0], *[None] * (len(zeros) - 1))
    np.testing.assert_array_equal(direction.backward(saved, inputs.dy, first, inputs.weights)[0], wants["first"])
    if len(zeros) == 1:
        np.testing.assert_array_equal(forward(cell, inputs, state0=inputs.state0[0])[0], forward(cell, inputs)[0])
    np.testing.assert_array_equal(
        direction.backward(saved, None, inputs.dstate_n, Weights(*inputs.weights))[0],
        direction.backward(saved, np.zeros_like(inputs.dy), inputs.dstate_n, inputs.weights)[0],
    )
