"""The inputs of a point, the same for every peer, and the check that a result passes before it is timed.

Inputs and weights come from a seeded NumPy generator in float32, so every dtype and every peer has equal numbers.
Weights have PyTorch's initial distribution, U(-1/sqrt(H), 1/sqrt(H)).

The oracle is rnnkit's NumPy backend in float64. A large point is checked on a few rows spread over the batch. Rows are
independent, so their outputs need no other row. Gradients flow into these rows alone (dy and the final states'
gradients are zero elsewhere), so the weight gradients need no other row either. The peer always runs the whole batch,
in the same call that is timed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import rnnkit
from bench.grid import Point
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.testing import error_ratio

FORWARD_NAMES = ("y", "h_n", "c_n")
CHECKED_ROWS = 8
WHOLE_ORACLE_FLOP = 2e9  # forward+backward; below it the oracle takes a fraction of a second and checks every row


@dataclass
class Problem:
    """The inputs of a point, in its dtype.

    x (T, B, I), zero past each row's length; state0 h0 (L*D, B, R) and for LSTM c0 (L*D, B, H); params by torch's
    names; dy (T, B, D*R) and dstate_n as state0: the gradients that flow in. rows: those checked, None for all.
    """

    point: Point
    x: np.ndarray
    state0: tuple[np.ndarray, ...]
    params: dict[str, np.ndarray]
    lengths: np.ndarray | None
    dy: np.ndarray
    dstate_n: tuple[np.ndarray, ...]
    rows: np.ndarray | None


def make_layer(point: Point, backend: str | None, dtype: str, device: str | None = None, rng: Any = 0) -> rnnkit.Module:
    """The rnnkit layer of a point; its weights are set by `load_state_dict`."""
    common: Any = {"dtype": dtype, "backend": backend, "device": device, "rng": rng}
    common["bidirectional"] = point.bidirectional
    sizes = (point.I, point.H, point.layers)
    if point.cell.startswith("rnn_"):
        return rnnkit.RNN(*sizes, nonlinearity=point.cell.removeprefix("rnn_"), **common)
    if point.cell.startswith("gru"):
        return rnnkit.GRU(*sizes, reset_after=point.cell == "gru", **common)
    return rnnkit.LSTM(*sizes, proj_size=point.P, **common)


def param_shapes(point: Point) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, in torch's order, names and layout."""
    G = CELLS[point.cell].n_gates
    H = point.H
    R = point.P or point.H
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(point.layers):
        I = point.I if layer == 0 else R * point.directions
        for direction in range(point.directions):
            end = f"_l{layer}" + ("_reverse" if direction else "")
            shapes |= {f"weight_ih{end}": (G * H, I), f"weight_hh{end}": (G * H, R)}
            shapes |= {f"bias_ih{end}": (G * H,), f"bias_hh{end}": (G * H,)}
            if point.P:
                shapes[f"weight_hr{end}"] = (point.P, H)
    return shapes


def checked_rows(point: Point) -> np.ndarray | None:
    """The rows that the oracle checks: None for all, or a few rows over the batch where all would take too long."""
    if replace(point, passes="forward+backward").flop() <= WHOLE_ORACLE_FLOP or point.B <= CHECKED_ROWS:
        return None
    return np.linspace(0, point.B - 1, CHECKED_ROWS).astype(np.int64)


def make_problem(point: Point, dtype: str | None = None) -> Problem:
    """The inputs of a point, in `dtype` where it is given and otherwise in the point's own."""
    storage = DTYPES[dtype or point.dtype].storage
    rng = np.random.default_rng([point.T, point.B, point.I, point.H, point.layers, point.directions, point.P])
    T = point.T
    B = point.B
    R = point.P or point.H
    slots = point.layers * point.directions
    bound = 1 / math.sqrt(point.H)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32).astype(storage, copy=False)

    params = {
        name: rng.uniform(-bound, bound, shape).astype(np.float32).astype(storage, copy=False)
        for name, shape in param_shapes(point).items()
    }
    widths = (R, point.H)[: len(CELLS[point.cell].states)]
    # NumPy 2 makes float32 of a float32 scalar times 16-bit numbers.
    state0 = tuple((np.float32(0.5) * draw(slots, B, width)).astype(storage, copy=False) for width in widths)
    dstate_n = tuple(draw(slots, B, width) for width in widths)
    x = draw(T, B, point.I)
    dy = draw(T, B, R * point.directions)
    lengths = point.lengths()
    rows = checked_rows(point)
    if lengths is not None:
        past = np.arange(T)[:, None] >= lengths
        x[past] = dy[past] = 0
    if rows is not None:
        others = np.setdiff1d(np.arange(B), rows)
        for gradient in (dy, *dstate_n):
            gradient[:, others] = 0
    return Problem(point, x, state0, params, lengths, dy, dstate_n, rows)


def select_rows(results: dict[str, np.ndarray], rows: np.ndarray | None) -> dict[str, np.ndarray]:
    """The checked rows of a peer's results: axis 1 of every array but the parameters' gradients."""
    if rows is None:
        return results
    by_row = (*FORWARD_NAMES, "dx", "dh0", "dc0")
    return {name: a[:, rows] if name in by_row else a for name, a in results.items()}


class Oracle:
    """The float64 reference results of a shape. `wanted` computes the backward once, at its first use."""

    def __init__(self, point: Point) -> None:
        problem = make_problem(point, "float64")
        rows = slice(None) if problem.rows is None else problem.rows
        self.shape = point.shape
        self.rows = problem.rows
        self._names = CELLS[point.cell].states
        self._layer = make_layer(point, "numpy", "float64")
        self._layer.load_state_dict(problem.params, cells=problem.point.cell)
        self._dy = np.ascontiguousarray(problem.dy[:, rows])
        self._dstate_n = _as_given(tuple(np.ascontiguousarray(d[:, rows]) for d in problem.dstate_n))
        lengths = None if problem.lengths is None else problem.lengths[rows]
        x = np.ascontiguousarray(problem.x[:, rows])
        state0 = _as_given(tuple(np.ascontiguousarray(s[:, rows]) for s in problem.state0))
        y, state_n = self._layer(x, state0, lengths=lengths)
        self._forward = {"y": y, **name_states(self._names, state_n, "{}_n")}
        self._backward: dict[str, np.ndarray] = {}

    def wanted(self, point: Point) -> dict[str, np.ndarray]:
        """Every output of the point's pass by name, and every gradient where it has a backward."""
        if point.shape != self.shape:
            raise ValueError(f"this oracle is of {self.shape}, not of {point.shape}")
        if not point.backward:
            return self._forward
        if not self._backward:
            dx, dstate0 = self._layer.backward(self._dy, self._dstate_n)
            self._backward = {"dx": dx, **name_states(self._names, dstate0, "d{}0")}
            self._backward |= {f"d{name}": grad for name, grad in self._layer.grads.items()}
        return self._forward | self._backward


def check(point: Point, oracle: Oracle, got: dict[str, np.ndarray]) -> dict[str, float]:
    """Worst error of every wanted array as a share of its tolerance in DTYPES: at most 1 passes.

    An array that is missing, of another dtype or of another shape is infinitely wrong.
    """
    errors = {}
    for name, want in oracle.wanted(point).items():
        a = got.get(name)
        if a is None or a.shape != want.shape or a.dtype != DTYPES[point.dtype].storage:
            errors[name] = math.inf
        else:
            errors[name] = error_ratio(a, want, point.dtype, "forward" if name in FORWARD_NAMES else "backward")
    return errors


def name_states(names: tuple[str, ...], state: object, pattern: str) -> dict[str, np.ndarray]:
    """A state, one array or a pair, by name: {"h_n": ..., "c_n": ...} for the pattern "{}_n"."""
    arrays = state if isinstance(state, (tuple, list)) else (state,)
    return {pattern.format(name): np.asarray(a) for name, a in zip(names, arrays, strict=True)}


def _as_given(state: tuple[np.ndarray, ...]) -> np.ndarray | tuple[np.ndarray, ...]:
    return state[0] if len(state) == 1 else state
