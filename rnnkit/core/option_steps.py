"""The steps of cells with options in NumPy, forward beside backward: what every backend is held to.

A gate is `act(limit(a))` of its pre-activation a. `limit` is to [-clip, clip]: its gradient is 1 inside and at the
limits, and 0 beyond them, as torch.clamp's. Slopes are written in terms of the value y = act(a), as the kernels need
them: those save y. They are one-sided at a corner: 0 at the corner of Relu, ThresholdedRelu and HardSigmoid; alpha at
that of LeakyRelu and Elu.

ONNX (operators RNN, GRU and LSTM): `clip`, `activations`, `input_forget` (coupled) and the peepholes P. As in ONNX
Runtime, `clip` does not act on c before the output's activation. `cell_clip` is TensorFlow's (LSTMCell) and cuDNN's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.cell_options import ROLES, Options, activations_of, constants_of
from rnnkit.core.cells import (
    Array,
    Cell,
    Kept,
    State,
    StepGradients,
    Steps,
    Weights,
    sigmoid,
)
from rnnkit.core.cells import _hidden_side as hidden_side
from rnnkit.core.devices import array_module
from rnnkit.core.mixed_precision import narrow, wide


class Curve(NamedTuple):
    """An activation: value(a, alpha, beta), and slope(y, alpha, beta) at a value y."""

    value: Callable[[Array, float, float], Array]
    slope: Callable[[Array, float, float], Array]


CURVES: dict[str, Curve] = {
    "Relu": Curve(lambda a, _, __: np.maximum(a, 0), lambda y, _, __: np.where(y <= 0, 0, 1)),
    "Tanh": Curve(lambda a, _, __: np.tanh(a), lambda y, _, __: 1 - y * y),
    "Sigmoid": Curve(lambda a, _, __: sigmoid(a), lambda y, _, __: y * (1 - y)),
    "Affine": Curve(lambda a, alpha, beta: alpha * a + beta, lambda y, alpha, _: np.full_like(y, alpha)),
    "LeakyRelu": Curve(
        lambda a, alpha, _: np.where(a <= 0, alpha * a, a), lambda y, alpha, _: np.where(y <= 0, alpha, 1)
    ),
    "ThresholdedRelu": Curve(lambda a, alpha, _: np.where(a <= alpha, 0, a), lambda y, _, __: np.where(y == 0, 0, 1)),
    "ScaledTanh": Curve(
        lambda a, alpha, beta: alpha * np.tanh(beta * a), lambda y, alpha, beta: beta * (alpha - y * (y / alpha))
    ),
    "HardSigmoid": Curve(
        lambda a, alpha, beta: np.minimum(np.maximum(alpha * a + beta, 0), 1),
        lambda y, alpha, _: np.where((y <= 0) | (y >= 1), 0, alpha),
    ),
    "Elu": Curve(
        lambda a, alpha, _: np.where(a <= 0, alpha * np.expm1(np.minimum(a, 0)), a),
        lambda y, alpha, _: np.where(y <= 0, y + alpha, 1),
    ),
    "Softsign": Curve(lambda a, _, __: a / (1 + np.abs(a)), lambda y, _, __: (1 - np.abs(y)) ** 2),
    "Softplus": Curve(lambda a, _, __: np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))), lambda y, _, __: -np.expm1(-y)),
}


class Gate:
    """A role's activation with its numbers, behind the clip."""

    def __init__(self, name: str, alpha: float, beta: float, clip: float | None) -> None:
        self.curve = CURVES[name]
        self.numbers = (alpha, beta)
        self.clip = clip

    def value(self, a: Array) -> Array:
        """y of the pre-activation a."""
        return self.curve.value(limited(a, self.clip), *self.numbers)

    def slope(self, a: Array, y: Array) -> Array:
        """dy / da. 16-bit arrays never come here, so Python's floats keep the dtype of a."""
        slope = self.curve.slope(y, *self.numbers).astype(a.dtype, copy=False)
        return slope if self.clip is None else np.where(np.abs(a) > self.clip, 0, slope)


def limited(a: Array, most: float | None) -> Array:
    """a in [-most, most]; NaN stays NaN."""
    return a if most is None else np.clip(a, -most, most)


class Numbers(NamedTuple):
    """The numbers of a call as the steps use them: the roles' gates, and the limit of c or None."""

    gates: dict[str, Gate]
    cell_clip: float | None


def numbers_of(cell: str, options: Options, constants: tuple[float, ...]) -> Numbers:
    """constants: in the order of `constants_of`."""
    named = dict(zip(constants_of(cell, options), constants, strict=True))
    gates = {}
    for role, name in zip(ROLES, activations_of(cell, options), strict=False):
        clip = named.get("clip") if role != "h" else None
        gates[role] = Gate(name, named.get(f"alpha_{role}", 0.0), named.get(f"beta_{role}", 0.0), clip)
    return Numbers(gates, named.get("cell_clip"))


def gates_at_limits(cell: Cell, constants: tuple[float, ...], gates: Kept) -> Kept:
    """Gates of any steps, by name, from what the kernels saved of them: infinity stands for the value at a limit.

    Beyond the clip a kernel saves infinity with the sign of the pre-activation. The value is act(clip) or act(-clip).
    """
    if not cell.options.clip:
        return gates
    numbers = numbers_of(cell.name, cell.options, constants)
    found = {}
    for name, saved in gates.items():
        gate = numbers.gates["g" if name in _CANDIDATES else "f"]
        ends = np.array([gate.clip, -gate.clip], np.float64)  # type: ignore[operator]
        most, least = gate.value(ends)
        xp: Any = array_module(saved)
        a = wide(saved)
        of_end = xp.where(a > 0, a.dtype.type(most), a.dtype.type(least))
        found[name] = narrow(xp.where(xp.isinf(a), of_end, a), saved.dtype)
    return found


# The gates whose activation is g; that of all others is f.
_CANDIDATES = ("g", "n")


def values_to_save(row: Cell, options: Options) -> tuple[str, ...]:
    """`Cell.saved`: that of the row, and whether c was inside its limit."""
    return (*row.saved, "c_inside") if options.cell_clip else row.saved


def steps_of(cell: str, options: Options) -> Callable[[tuple[float, ...]], Steps]:
    """`Cell.steps_at` of a cell with options."""
    kind = "rnn" if cell.startswith("rnn") else cell
    forward, backward = _STEPS[kind]

    def at(constants: tuple[float, ...]) -> Steps:
        numbers = numbers_of(cell, options, constants)
        return Steps(partial(forward, options, numbers), partial(backward, options, numbers))

    return at


def _rnn_forward(_: Options, n: Numbers, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    (h_prev,) = state
    a = x_side + hidden_side(h_prev, weights)
    h = n.gates["f"].value(a)
    return (h,), {"h_prev": h_prev, "h": h, "a": a}


def _rnn_backward(_: Options, n: Numbers, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    da = dstate[0] * n.gates["f"].slope(kept["a"], kept["h"])
    return StepGradients(da, da, (da @ weights.w_hh,))


def _lstm_forward(options: Options, n: Numbers, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    h_prev, c_prev = state
    f_gate, g_gate, h_gate = (n.gates[role] for role in ROLES)
    a_i, a_f, a_g, a_o = np.split(x_side + hidden_side(h_prev, weights), 4, axis=1)
    if options.peephole:
        p_i, p_f, p_o = weights.w_unit  # type: ignore[misc]
        a_i = a_i + p_i * c_prev
        a_f = a_f + p_f * c_prev
    i = f_gate.value(a_i)
    f = 1 - i if options.coupled else f_gate.value(a_f)
    g = g_gate.value(a_g)
    c_raw = f * c_prev + i * g
    c = limited(c_raw, n.cell_clip)
    if options.peephole:
        a_o = a_o + p_o * c
    o = f_gate.value(a_o)
    h_c = h_gate.value(c)
    m = o * h_c
    h = m if weights.w_hr is None else m @ weights.w_hr.T
    kept = {"h_prev": h_prev, "c_prev": c_prev, "i": i, "f": f, "g": g, "o": o, "c": c, "m": m}
    return (h, c), kept | {"a_i": a_i, "a_f": a_f, "a_g": a_g, "a_o": a_o, "c_raw": c_raw, "h_c": h_c}


def _lstm_backward(options: Options, n: Numbers, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    dh, dc = dstate
    f_gate, g_gate, h_gate = (n.gates[role] for role in ROLES)
    i, f, g, o, c, c_prev = (kept[name] for name in ("i", "f", "g", "o", "c", "c_prev"))
    dm = dh if weights.w_hr is None else dh @ weights.w_hr
    da_o = dm * kept["h_c"] * f_gate.slope(kept["a_o"], o)
    dc = dc + dm * o * h_gate.slope(c, kept["h_c"])
    if options.peephole:
        p_i, p_f, p_o = weights.w_unit  # type: ignore[misc]
        dc = dc + da_o * p_o
    if n.cell_clip is not None:
        dc = np.where(np.abs(kept["c_raw"]) > n.cell_clip, 0, dc)
    di = dc * (g - c_prev) if options.coupled else dc * g
    da_i = di * f_gate.slope(kept["a_i"], i)
    da_f = np.zeros_like(dc) if options.coupled else dc * c_prev * f_gate.slope(kept["a_f"], f)
    da_g = dc * i * g_gate.slope(kept["a_g"], g)
    dc_prev = dc * f
    dunit = None
    if options.peephole:
        dc_prev = dc_prev + da_i * p_i + da_f * p_f
        dunit = np.concatenate([da_i * c_prev, da_f * c_prev, da_o * c], axis=1)
    da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
    dprojected = None if weights.w_hr is None else dh
    return StepGradients(da, da, (da @ weights.w_hh, dc_prev), dprojected, dunit)


def _gru_forward(_: Options, n: Numbers, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    (h_prev,) = state
    f_gate, g_gate = n.gates["f"], n.gates["g"]
    x_r, x_z, x_n = np.split(x_side, 3, axis=1)
    h_r, h_z, h_n = np.split(hidden_side(h_prev, weights), 3, axis=1)
    a_r, a_z = x_r + h_r, x_z + h_z
    r, z = f_gate.value(a_r), f_gate.value(a_z)
    a_n = x_n + r * h_n
    new = g_gate.value(a_n)
    h = (1 - z) * new + z * h_prev
    return (h,), {
        "h_prev": h_prev, "r": r, "z": z, "n": new, "h_side_n": h_n, "a_r": a_r, "a_z": a_z, "a_n": a_n
    }  # fmt: skip


def _gru_backward(_: Options, n: Numbers, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    (dh,) = dstate
    f_gate, g_gate = n.gates["f"], n.gates["g"]
    r, z, new = kept["r"], kept["z"], kept["n"]
    da_n = dh * (1 - z) * g_gate.slope(kept["a_n"], new)
    da_z = dh * (kept["h_prev"] - new) * f_gate.slope(kept["a_z"], z)
    da_r = da_n * kept["h_side_n"] * f_gate.slope(kept["a_r"], r)
    dx_side = np.concatenate([da_r, da_z, da_n], axis=1)
    dh_side = np.concatenate([da_r, da_z, da_n * r], axis=1)
    return StepGradients(dx_side, dh_side, (dh * z + dh_side @ weights.w_hh,))


def _gru_before_forward(_: Options, n: Numbers, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    (h_prev,) = state
    H = h_prev.shape[1]
    f_gate, g_gate = n.gates["f"], n.gates["g"]
    x_r, x_z, x_n = np.split(x_side, 3, axis=1)
    h_r, h_z = np.split(hidden_side(h_prev, weights, 0, 2 * H), 2, axis=1)
    a_r, a_z = x_r + h_r, x_z + h_z
    r, z = f_gate.value(a_r), f_gate.value(a_z)
    rh = r * h_prev
    a_n = x_n + hidden_side(rh, weights, 2 * H)
    new = g_gate.value(a_n)
    h = (1 - z) * new + z * h_prev
    return (h,), {"h_prev": h_prev, "r": r, "z": z, "n": new, "rh": rh, "a_r": a_r, "a_z": a_z, "a_n": a_n}


def _gru_before_backward(_: Options, n: Numbers, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    (dh,) = dstate
    f_gate, g_gate = n.gates["f"], n.gates["g"]
    r, z, new, h_prev = kept["r"], kept["z"], kept["n"], kept["h_prev"]
    H = h_prev.shape[1]
    da_n = dh * (1 - z) * g_gate.slope(kept["a_n"], new)
    da_z = dh * (h_prev - new) * f_gate.slope(kept["a_z"], z)
    drh = da_n @ weights.w_hh[2 * H :]
    da_r = drh * h_prev * f_gate.slope(kept["a_r"], r)
    da = np.concatenate([da_r, da_z, da_n], axis=1)
    dh_prev = dh * z + drh * r + da[:, : 2 * H] @ weights.w_hh[: 2 * H]
    return StepGradients(da, da, (dh_prev,))


_STEPS = {
    "rnn": (_rnn_forward, _rnn_backward),
    "lstm": (_lstm_forward, _lstm_backward),
    "gru": (_gru_forward, _gru_backward),
    "gru_reset_before": (_gru_before_forward, _gru_before_backward),
}
