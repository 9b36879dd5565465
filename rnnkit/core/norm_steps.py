"""The steps of cells with layer normalisation (Ba et al., arXiv 1607.06450) in NumPy, forward beside backward.

LN(a) = (a - mean(a)) / sqrt(var(a) + norm_eps), over all features of a row; var is the mean square of a - mean(a). The
gains and the shift of c are the rows of w_unit; biases are added after the gains. With the gains g_x of the input side,
g_u of the hidden side, and g_c, b_c of c:

    lstm, haste    v = LN(x W_ih^T) g_x + LN(h' W_hh^T) g_u + b_ih + b_hh; i,f,o = sigmoid, g = tanh of v;
                   c = f c' + i g; h = o tanh(LN(c) g_c + b_c). The state is c itself. As LayerNormLSTM of Haste
    lstm, torch    the same, but the state is LN(c) g_c + b_c. As LayerNormLSTMCell of PyTorch's benchmark fastrnns and,
                   with norm_eps=1e-3, of TensorFlow Addons
    gru, haste     v = LN(x W_ih^T) g_x + b_ih; u = LN(h' W_hh^T) g_u + b_hh; r,z = sigmoid(v + u);
                   n = tanh(v_n + r u_n); h = (1 - z) n + z h'. As LayerNormGRU of Haste
    gru, dreamer   v = LN(x W_ih^T + h' W_hh^T) g + b_ih + b_hh; r = sigmoid(v_r); z = sigmoid(v_z - 1);
                   n = tanh(r v_n); h = z n + (1 - z) h'. The GRU of Dreamer (Hafner et al., arXiv 2010.02193), whose
                   update gate z selects the new value

`x_side` has no bias here. The gradients of v, then of u where it differs, then of the shifted c, are the blocks of
`Cell.n_norm_gradients` in the compiled kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rnnkit.core.cell_options import Options
from rnnkit.core.cells import Array, Cell, Kept, State, StepGradients, Steps, Weights, sigmoid


def norm_fields(row: Cell, options: Options) -> dict[str, Any]:
    """The fields of the row that layer normalisation replaces."""
    two_sides = options.layer_norm != "dreamer"
    sides = ("x", "u") if two_sides else ("x",)
    hats = [f"{side}_{gate}" for side in sides for gate in row.gates]
    gains = [f"g_{hat}" for hat in hats]
    forward, backward = _STEPS[row.name, options.layer_norm]

    def at(constants: tuple[float, ...]) -> Steps:
        return Steps(partial(forward, constants[0]), partial(backward, constants[0]))

    of_c = row.has_c
    steps = at((1.0,))
    return {
        "forward": steps.forward,
        "backward": steps.backward,
        "steps_at": at,
        "saved": (*row.gates, *hats, *(("c_hat",) if of_c else ())),
        "unit_weights": (*gains, *(("g_c", "b_c") if of_c else ())),
        "splits_sides": two_sides,
        "projects": False,
    }


def _normed(a: Array, eps: float) -> tuple[Array, Array]:
    """LN(a), and what it divides by, inverted."""
    centred = a - a.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)
    return centred * scale, scale


def _normed_backward(d: Array, hat: Array, scale: Array) -> Array:
    """The gradient of a, from that of hat = LN(a)."""
    return scale * (d - d.mean(axis=1, keepdims=True) - hat * (d * hat).mean(axis=1, keepdims=True))


def _biases(weights: Weights) -> tuple[Array | float, Array | float]:
    return tuple(0.0 if b is None else b for b in (weights.b_ih, weights.b_hh))  # type: ignore[return-value]


def _gains(weights: Weights, G: int, first: int) -> Array:
    """(G*H,) the rows [first, first + G) of w_unit."""
    return weights.w_unit[first : first + G].reshape(-1)  # type: ignore[index]


def _lstm_forward(carries: bool, eps: float, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    h_prev, c_prev = state
    b_ih, b_hh = _biases(weights)
    x_hat, x_scale = _normed(x_side, eps)
    u_hat, u_scale = _normed(h_prev @ weights.w_hh.T, eps)
    v = x_hat * _gains(weights, 4, 0) + u_hat * _gains(weights, 4, 4) + b_ih + b_hh
    i, f, g, o = np.split(v, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c_prev + i * g
    c_hat, c_scale = _normed(c, eps)
    shifted = c_hat * weights.w_unit[8] + weights.w_unit[9]  # type: ignore[index]
    h = o * np.tanh(shifted)
    kept = {"h_prev": h_prev, "c_prev": c_prev, "i": i, "f": f, "g": g, "o": o, "c": shifted if carries else c}
    scales = {"x_scale": x_scale, "u_scale": u_scale, "c_scale": c_scale}
    return (h, kept["c"]), kept | scales | {"x_hat": x_hat, "u_hat": u_hat, "c_hat": c_hat, "shifted": shifted}


def _lstm_backward(carries: bool, _: float, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    dh, dc = dstate
    i, f, g, o, c_prev = (kept[name] for name in ("i", "f", "g", "o", "c_prev"))
    x_hat, u_hat, c_hat = kept["x_hat"], kept["u_hat"], kept["c_hat"]
    tanh_c = np.tanh(kept["shifted"])
    dshifted = dh * o * (1 - tanh_c * tanh_c) + (dc if carries else 0)
    dc_raw = _normed_backward(dshifted * weights.w_unit[8], c_hat, kept["c_scale"])  # type: ignore[index]
    dc_raw = dc_raw + (0 if carries else dc)
    dv = np.concatenate(
        [
            dc_raw * g * i * (1 - i),
            dc_raw * c_prev * f * (1 - f),
            dc_raw * i * (1 - g * g),
            dh * tanh_c * o * (1 - o),
        ],
        axis=1,
    )
    dx_side = _normed_backward(dv * _gains(weights, 4, 0), x_hat, kept["x_scale"])
    dh_side = _normed_backward(dv * _gains(weights, 4, 4), u_hat, kept["u_scale"])
    dunit = np.concatenate([dv * x_hat, dv * u_hat, dshifted * c_hat, dshifted, dv, dv], axis=1)
    return StepGradients(dx_side, dh_side, (dh_side @ weights.w_hh, dc_raw * f), None, dunit)


def _gru_forward(eps: float, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    (h_prev,) = state
    b_ih, b_hh = _biases(weights)
    x_hat, x_scale = _normed(x_side, eps)
    u_hat, u_scale = _normed(h_prev @ weights.w_hh.T, eps)
    v_r, v_z, v_n = np.split(x_hat * _gains(weights, 3, 0) + b_ih, 3, axis=1)
    u_r, u_z, u_n = np.split(u_hat * _gains(weights, 3, 3) + b_hh, 3, axis=1)
    r, z = sigmoid(v_r + u_r), sigmoid(v_z + u_z)
    n = np.tanh(v_n + r * u_n)
    kept = {"h_prev": h_prev, "r": r, "z": z, "n": n, "u_n": u_n, "x_scale": x_scale, "u_scale": u_scale}
    return ((1 - z) * n + z * h_prev,), kept | {"x_hat": x_hat, "u_hat": u_hat}


def _gru_backward(_: float, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    (dh,) = dstate
    r, z, n, x_hat, u_hat = (kept[name] for name in ("r", "z", "n", "x_hat", "u_hat"))
    da_n = dh * (1 - z) * (1 - n * n)
    da_z = dh * (kept["h_prev"] - n) * z * (1 - z)
    da_r = da_n * kept["u_n"] * r * (1 - r)
    dv = np.concatenate([da_r, da_z, da_n], axis=1)
    du = np.concatenate([da_r, da_z, da_n * r], axis=1)
    dx_side = _normed_backward(dv * _gains(weights, 3, 0), x_hat, kept["x_scale"])
    dh_side = _normed_backward(du * _gains(weights, 3, 3), u_hat, kept["u_scale"])
    dunit = np.concatenate([dv * x_hat, du * u_hat, dv, du], axis=1)
    return StepGradients(dx_side, dh_side, (dh * z + dh_side @ weights.w_hh,), None, dunit)


def _dreamer_forward(eps: float, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    (h_prev,) = state
    b_ih, b_hh = _biases(weights)
    x_hat, x_scale = _normed(x_side + h_prev @ weights.w_hh.T, eps)
    v_r, v_z, v_n = np.split(x_hat * _gains(weights, 3, 0) + b_ih + b_hh, 3, axis=1)
    r, z = sigmoid(v_r), sigmoid(v_z - 1)
    n = np.tanh(r * v_n)
    kept = {"h_prev": h_prev, "r": r, "z": z, "n": n, "v_n": v_n, "x_scale": x_scale, "x_hat": x_hat}
    return (z * n + (1 - z) * h_prev,), kept


def _dreamer_backward(_: float, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    (dh,) = dstate
    r, z, n, x_hat = (kept[name] for name in ("r", "z", "n", "x_hat"))
    da_n = dh * z * (1 - n * n)
    da_z = dh * (n - kept["h_prev"]) * z * (1 - z)
    da_r = da_n * kept["v_n"] * r * (1 - r)
    dv = np.concatenate([da_r, da_z, da_n * r], axis=1)
    da = _normed_backward(dv * _gains(weights, 3, 0), x_hat, kept["x_scale"])
    dunit = np.concatenate([dv * x_hat, dv, dv], axis=1)
    return StepGradients(da, da, (dh * (1 - z) + da @ weights.w_hh,), None, dunit)


_STEPS: dict[tuple[str, str], tuple[Callable[..., Any], Callable[..., Any]]] = {
    ("lstm", "haste"): (partial(_lstm_forward, False), partial(_lstm_backward, False)),
    ("lstm", "torch"): (partial(_lstm_forward, True), partial(_lstm_backward, True)),
    ("gru", "haste"): (_gru_forward, _gru_backward),
    ("gru", "dreamer"): (_dreamer_forward, _dreamer_backward),
}
