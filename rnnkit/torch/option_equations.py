"""The steps of cells with options in PyTorch's own operators, beside rnnkit/torch/equations.py.

The equations are those of rnnkit/core/option_steps.py; the gradient at a limit is 1, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rnnkit.core.cell_options import ROLES, activations_of
from rnnkit.core.cells import Cell, Weights
from rnnkit.torch import norm_equations
from rnnkit.torch.arrays import Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Weights], State]
F: Any = torch.nn.functional

# value(a, alpha, beta)
CURVES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "Relu": lambda a, _, __: torch.relu(a),
    "Tanh": lambda a, _, __: torch.tanh(a),
    "Sigmoid": lambda a, _, __: torch.sigmoid(a),
    "Affine": lambda a, alpha, beta: alpha * a + beta,
    "LeakyRelu": lambda a, alpha, _: F.leaky_relu(a, alpha),
    "ThresholdedRelu": lambda a, alpha, _: F.threshold(a, alpha, 0.0),
    "ScaledTanh": lambda a, alpha, beta: alpha * torch.tanh(beta * a),
    "HardSigmoid": lambda a, alpha, beta: F.hardtanh(alpha * a + beta, 0.0, 1.0),
    "Elu": lambda a, alpha, _: F.elu(a, alpha),
    "Softsign": lambda a, _, __: a / (1 + a.abs()),
    "Softplus": lambda a, _, __: torch.logaddexp(a, torch.zeros_like(a)),
}


def step_of(cell: Cell, constants: tuple[float, ...]) -> Step:
    """One step of a cell with options, with the numbers that `cell.constants` names."""
    if cell.normalises:
        return norm_equations.step_of(cell, *constants)
    named = dict(zip(cell.constants, constants, strict=True))
    gates = []
    for role, name in zip(ROLES, activations_of(cell.name, cell.options), strict=False):
        clip = named.get("clip") if role != "h" else None
        gates.append(_gate(name, named.get(f"alpha_{role}", 0.0), named.get(f"beta_{role}", 0.0), clip))
    if cell.name == "lstm":
        return _lstm(cell, gates, named.get("cell_clip"))
    if cell.name == "gru":
        return _gru(gates)
    return _gru_reset_before(gates) if cell.name == "gru_reset_before" else _rnn(gates)


def _limited(a: Tensor, limit: float) -> Tensor:
    """a in [-limit, limit]. Releases of PyTorch differ in the gradient of `clamp` at a limit."""
    return torch.where(a > limit, limit, torch.where(a < -limit, -limit, a))


def _gate(name: str, alpha: float, beta: float, clip: float | None) -> Callable[[Tensor], Tensor]:
    curve = CURVES[name]
    return lambda a: curve(a if clip is None else _limited(a, clip), alpha, beta)


def _hidden_side(h: Tensor, w: Weights, first: int = 0, end: int | None = None) -> Tensor:
    product = h @ w.w_hh[first:end].T
    return product if w.b_hh is None else product + w.b_hh[first:end]


def _rnn(gates: list[Any]) -> Step:
    (act,) = gates
    return lambda x_side, state, w: (act(x_side + _hidden_side(state[0], w)),)


def _gru(gates: list[Any]) -> Step:
    gate, gate_n = gates

    def step(x_side: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        x_r, x_z, x_n = x_side.chunk(3, -1)
        h_r, h_z, h_n = _hidden_side(h, w).chunk(3, -1)
        z = gate(x_z + h_z)
        n = gate_n(x_n + gate(x_r + h_r) * h_n)
        return ((1 - z) * n + z * h,)

    return step


def _gru_reset_before(gates: list[Any]) -> Step:
    gate, gate_n = gates

    def step(x_side: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        H = h.shape[-1]
        x_r, x_z, x_n = x_side.chunk(3, -1)
        h_r, h_z = _hidden_side(h, w, 0, 2 * H).chunk(2, -1)
        z = gate(x_z + h_z)
        n = gate_n(x_n + _hidden_side(gate(x_r + h_r) * h, w, 2 * H))
        return ((1 - z) * n + z * h,)

    return step


def _lstm(cell: Cell, gates: list[Any], cell_clip: float | None) -> Step:
    gate, gate_g, gate_h = gates
    peephole, coupled = cell.options.peephole, cell.options.coupled

    def step(x_side: Tensor, state: State, w: Weights) -> State:
        h, c = state
        a_i, a_f, a_g, a_o = (x_side + _hidden_side(h, w)).chunk(4, -1)
        if peephole:
            p_i, p_f, p_o = w.w_unit  # type: ignore[misc]
            a_i = a_i + p_i * c
            a_f = a_f + p_f * c
        i = gate(a_i)
        f = 1 - i if coupled else gate(a_f)
        c = f * c + i * gate_g(a_g)
        c = c if cell_clip is None else _limited(c, cell_clip)
        m = gate(a_o + p_o * c if peephole else a_o) * gate_h(c)
        return (m if w.w_hr is None else m @ w.w_hr.T, c)

    return step
