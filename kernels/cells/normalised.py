"""Cells with layer normalisation, pointwise: the equations of rnnkit/core/norm_steps.py after the rows are normalised.

v and u are the scaled and shifted sides. What the kernels save of a unit: the gates, then x_hat and u_hat of each gate,
then c_hat. `unit_gradients` gives the summands of `Cell.n_unit_sums` gradients from these and from the gradients of v,
of u where it differs, and of the shifted c.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rnnkit.core.cells import Cell


def _make_lstm(jit: Any, act: Any) -> SimpleNamespace:
    sigmoid = act.sigmoid
    tanh = act.tanh
    one = act.one

    @jit
    def gates(v, c_prev):
        i = sigmoid(v[0])
        f = sigmoid(v[1])
        g = tanh(v[2])
        return (i, f, g, sigmoid(v[3])), f * c_prev + i * g

    @jit
    def output(o, shifted):
        return o * tanh(shifted)

    @jit
    def output_backward(o, shifted, dh):
        tanh_c = tanh(shifted)
        return dh * tanh_c * o * (one - o), dh * o * (one - tanh_c * tanh_c)

    @jit
    def gates_backward(i, f, g, c_prev, dc):
        return dc * g * i * (one - i), dc * c_prev * f * (one - f), dc * i * (one - g * g), dc * f

    @jit
    def unit_gradients(s, c_prev, d, k):
        of_x = (d[0] * s[4], d[1] * s[5], d[2] * s[6], d[3] * s[7])
        of_u = (d[0] * s[8], d[1] * s[9], d[2] * s[10], d[3] * s[11])
        biases = (d[0], d[1], d[2], d[3])
        return (*of_x, *of_u, d[4] * s[12], d[4], *biases, *biases)

    return SimpleNamespace(
        gates=gates,
        output=output,
        output_backward=output_backward,
        gates_backward=gates_backward,
        unit_gradients=unit_gradients,
    )


def _make_gru(jit: Any, act: Any) -> SimpleNamespace:
    sigmoid = act.sigmoid
    tanh = act.tanh
    one = act.one

    @jit
    def forward(v, u, h_prev):
        r = sigmoid(v[0] + u[0])
        z = sigmoid(v[1] + u[1])
        n = tanh(v[2] + r * u[2])
        return (r, z, n), n + z * (h_prev - n)

    @jit
    def backward(r, z, n, u_n, h_prev, dh):
        da_n = dh * (one - z) * (one - n * n)
        da_z = dh * (h_prev - n) * z * (one - z)
        da_r = da_n * u_n * r * (one - r)
        return (da_r, da_z, da_n, da_n * r), dh * z

    @jit
    def unit_gradients(s, c_prev, d, k):
        of_x = (d[0] * s[3], d[1] * s[4], d[2] * s[5])
        of_u = (d[0] * s[6], d[1] * s[7], d[3] * s[8])
        return (*of_x, *of_u, d[0], d[1], d[2], d[0], d[1], d[3])

    return SimpleNamespace(forward=forward, backward=backward, unit_gradients=unit_gradients)


def _make_dreamer(jit: Any, act: Any) -> SimpleNamespace:
    sigmoid = act.sigmoid
    tanh = act.tanh
    one = act.one

    @jit
    def forward(v, u, h_prev):
        r = sigmoid(v[0])
        z = sigmoid(v[1] - one)
        n = tanh(r * v[2])
        return (r, z, n), h_prev + z * (n - h_prev)

    @jit
    def backward(r, z, n, v_n, h_prev, dh):
        da_n = dh * z * (one - n * n)
        da_z = dh * (n - h_prev) * z * (one - z)
        da_r = da_n * v_n * r * (one - r)
        return (da_r, da_z, da_n * r), dh * (one - z)

    @jit
    def unit_gradients(s, c_prev, d, k):
        return d[0] * s[3], d[1] * s[4], d[2] * s[5], d[0], d[1], d[2], d[0], d[1], d[2]

    return SimpleNamespace(forward=forward, backward=backward, unit_gradients=unit_gradients)


_MAKE = {
    ("lstm", "haste"): _make_lstm,
    ("lstm", "torch"): _make_lstm,
    ("gru", "haste"): _make_gru,
    ("gru", "dreamer"): _make_dreamer,
}


def make(jit: Any, act: Any, cell: Cell) -> SimpleNamespace:
    """The functions of a cell, and prepared(k) as of other cells with options."""
    made = _MAKE[cell.name, cell.options.layer_norm](jit, act)
    made.prepared = jit(lambda k: k)
    return made
