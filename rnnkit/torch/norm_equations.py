"""The steps of cells with layer normalisation in PyTorch's own operators: those of rnnkit/core/norm_steps.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rnnkit.core.cells import Cell, Weights
from rnnkit.torch.arrays import Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Weights], State]
F: Any = torch.nn.functional


def step_of(cell: Cell, eps: float) -> Step:
    """One step of a cell with layer normalisation. Its x_side has no bias."""
    kind = cell.options.layer_norm
    if cell.name == "lstm":
        return _lstm(kind == "torch", eps)
    return _dreamer(eps) if kind == "dreamer" else _gru(eps)


def _side(a: Tensor, gains: Any, bias: Tensor | None, eps: float) -> Tensor:
    """LN(a) gains + bias. gains: (G, H) or (H,)."""
    return F.layer_norm(a, a.shape[-1:], gains.reshape(-1), bias, eps)


def _lstm(carries: bool, eps: float) -> Step:
    def step(x_side: Tensor, state: State, w: Weights) -> State:
        h, c = state
        unit: Any = w.w_unit
        v = _side(x_side, unit[:4], w.b_ih, eps) + _side(h @ w.w_hh.T, unit[4:8], w.b_hh, eps)
        i, f, g, o = v.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        shifted = _side(c, unit[8], unit[9], eps)
        return (torch.sigmoid(o) * torch.tanh(shifted), shifted if carries else c)

    return step


def _gru(eps: float) -> Step:
    def step(x_side: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        unit: Any = w.w_unit
        v_r, v_z, v_n = _side(x_side, unit[:3], w.b_ih, eps).chunk(3, -1)
        u_r, u_z, u_n = _side(h @ w.w_hh.T, unit[3:], w.b_hh, eps).chunk(3, -1)
        z = torch.sigmoid(v_z + u_z)
        n = torch.tanh(v_n + torch.sigmoid(v_r + u_r) * u_n)
        return ((1 - z) * n + z * h,)

    return step


def _dreamer(eps: float) -> Step:
    def step(x_side: Tensor, state: State, w: Weights) -> State:
        (h,) = state
        bias = None if w.b_ih is None else w.b_ih + w.b_hh
        v_r, v_z, v_n = _side(x_side + h @ w.w_hh.T, w.w_unit, bias, eps).chunk(3, -1)
        z = torch.sigmoid(v_z - 1)
        return (z * torch.tanh(torch.sigmoid(v_r) * v_n) + (1 - z) * h,)

    return step
