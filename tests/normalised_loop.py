"""One step of each cell with layer normalisation by torch.nn.functional.layer_norm, which autograd differentiates."""

from __future__ import annotations

from typing import Any

import torch


def step(kind: str, x: Any, state: Any, w: Any, eps: float) -> tuple[Any, ...]:
    """The new state. kind: `Cell.key`; x (B, I); w: a `Weights` of tensors."""
    norm = torch.nn.functional.layer_norm
    h = state[0]
    GH, H = w.w_hh.shape
    gain = w.w_unit.reshape(-1)
    if kind == "gru+layer_norm=dreamer":
        linear = torch.cat([h, x], 1) @ torch.cat([w.w_hh, w.w_ih], 1).T
        r, z, n = norm(linear, (GH,), gain, w.b_ih + w.b_hh, eps).chunk(3, 1)
        z = torch.sigmoid(z - 1)
        return (z * torch.tanh(torch.sigmoid(r) * n) + (1 - z) * h,)
    v = norm(x @ w.w_ih.T, (GH,), gain[:GH], w.b_ih, eps)
    u = norm(h @ w.w_hh.T, (GH,), gain[GH : 2 * GH], w.b_hh, eps)
    if kind == "gru+layer_norm=haste":
        (v_r, v_z, v_n), (u_r, u_z, u_n) = v.chunk(3, 1), u.chunk(3, 1)
        z = torch.sigmoid(v_z + u_z)
        return ((1 - z) * torch.tanh(v_n + torch.sigmoid(v_r + u_r) * u_n) + z * h,)
    i, f, g, o = (v + u).chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    normed = norm(c, (H,), w.w_unit[8], w.w_unit[9], eps)
    return torch.sigmoid(o) * torch.tanh(normed), normed if kind.endswith("torch") else c
