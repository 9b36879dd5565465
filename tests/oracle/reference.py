"""The equations of the cells in plain Python floats, one unit at a time: the reference for the NumPy oracle's forward.

It shares with the package only the names of the cells and PyTorch's layout of the weights. Without array operations, a
swapped gate, a wrong direction or a read of another row cannot go unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Row = list[float]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(p * q for p, q in zip(a, b, strict=True))


def _sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a)) if a >= 0 else math.exp(a) / (1 + math.exp(a))


def _step(cell: str, x: Row, state: list[Row], w: dict[str, Any], H: int) -> list[Row]:
    """The new states of one row after one step."""
    h = state[0]

    def x_side(gate: int, unit: int) -> float:
        k = gate * H + unit
        return _dot(w["w_ih"][k], x) + w["b_ih"][k]

    def h_side(gate: int, unit: int, h: Row = h) -> float:
        k = gate * H + unit
        return _dot(w["w_hh"][k], h) + w["b_hh"][k]

    def both(gate: int, unit: int) -> float:
        return x_side(gate, unit) + h_side(gate, unit)

    units = range(H)
    if cell == "rnn_tanh":
        return [[math.tanh(both(0, j)) for j in units]]
    if cell == "rnn_relu":
        return [[max(0.0, both(0, j)) for j in units]]
    if cell == "lstm":  # gates i, f, g, o
        c = state[1]
        c = [_sigmoid(both(1, j)) * c[j] + _sigmoid(both(0, j)) * math.tanh(both(2, j)) for j in units]
        m = [_sigmoid(both(3, j)) * math.tanh(c[j]) for j in units]
        return [m if w["w_hr"] is None else [_dot(row, m) for row in w["w_hr"]], c]
    if cell == "slstm":  # gates i, f, z, o
        units_after = [_slstm_unit([both(gate, j) for gate in range(4)], *(s[j] for s in state[1:])) for j in units]
        return [list(s) for s in zip(*units_after, strict=True)]
    r, z = [_sigmoid(both(0, j)) for j in units], [_sigmoid(both(1, j)) for j in units]  # gates r, z, n
    if cell == "gru":
        n = [math.tanh(x_side(2, j) + r[j] * h_side(2, j)) for j in units]
    else:
        rh = [r[j] * h[j] for j in units]
        n = [math.tanh(x_side(2, j) + h_side(2, j, rh)) for j in units]
    return [[(1 - z[j]) * n[j] + z[j] * h[j] for j in units]]


def _slstm_unit(a: Row, c: float, n: float, m: float) -> tuple[float, float, float, float]:
    """h, c, n and m of one unit of an sLSTM after a step."""
    a_i, a_f, a_z, a_o = a
    p = math.log(_sigmoid(a_f)) + m
    new = a_i if n == 0 else max(a_i, p)
    f = min(math.exp(p - new), 1)
    c = f * c + math.exp(a_i - new) * math.tanh(a_z)
    n = max(f * n + math.exp(a_i - new), 1)
    return _sigmoid(a_o) * c / n, c, n, new


def forward(
    cell: str, x: np.ndarray, state0: tuple[np.ndarray, ...], weights: Any, lengths: Any, reverse: bool
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """y (T, B, R) and the final states, as `rnnkit.functional.direction.forward` returns them, in float64."""
    T, B, _ = x.shape
    GH, R = weights.w_hh.shape
    H = GH // {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "slstm": 4}.get(cell, 3)
    w = {name: None if a is None else a.tolist() for name, a in weights._asdict().items()}
    w["b_ih"], w["b_hh"] = w["b_ih"] or [0.0] * GH, w["b_hh"] or [0.0] * GH
    y = np.zeros((T, B, R))
    state_n = tuple(np.zeros(s.shape) for s in state0)
    for b in range(B):
        state = [s[b].tolist() for s in state0]
        steps = list(range(T if lengths is None else int(lengths[b])))
        for t in reversed(steps) if reverse else steps:
            state = _step(cell, x[t, b].tolist(), state, w, H)
            y[t, b] = state[0]
        for end, s in zip(state_n, state, strict=True):
            end[b] = s
    return y, state_n
