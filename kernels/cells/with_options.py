"""Cells with options, pointwise: the equations of rnnkit/core/option_steps.py, for both Numba targets.

As the functions of lstm.py, gru.py and rnn.py, with two more arguments: w, the weights per unit, and k, the constants
of the call (`gates.py`). What is saved of a gate is its value, or infinity beyond the clip. An LSTM that limits c
saves a fifth value: 1 where c is inside, 0 where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from rnnkit.core.cells import Cell
from rnnkit.kernels.cells.gates import constant_of, roles


def make_rnn(jit: Any, act: Any, cell: Cell) -> SimpleNamespace:
    """forward and backward of one unit of an RNN."""
    of = roles(jit, act, cell)
    gate = of.f.gate
    opened = of.f.opened

    @jit
    def forward(x, u, h_prev, c_prev, w, k):
        h, saved = gate(x[0] + u[0], k)
        return (saved,), h, c_prev

    @jit
    def backward(saved, h_prev, c_prev, dh, dc, w, k):
        _, slope = opened(saved[0], k)
        da = dh * slope
        return (da,), (da,), 0.0, dc

    return SimpleNamespace(forward=forward, backward=backward, prepared=of.prepared)


def make_gru(jit: Any, act: Any, cell: Cell) -> SimpleNamespace:
    """forward and backward of one unit of a GRU that resets after the product."""
    of = roles(jit, act, cell)
    gate, opened = of.f.gate, of.f.opened
    gate_n, opened_n = of.g.gate, of.g.opened
    one = act.one

    @jit
    def forward(x, u, h_prev, c_prev, w, k):
        r, r_saved = gate(x[0] + u[0], k)
        z, z_saved = gate(x[1] + u[1], k)
        n, n_saved = gate_n(x[2] + r * u[2], k)
        return (r_saved, z_saved, n_saved, u[2]), n + z * (h_prev - n), c_prev

    @jit
    def backward(saved, h_prev, c_prev, dh, dc, w, k):
        r, slope_r = opened(saved[0], k)
        z, slope_z = opened(saved[1], k)
        n, slope_n = opened_n(saved[2], k)
        da_n = dh * (one - z) * slope_n
        da_z = dh * (h_prev - n) * slope_z
        da_r = da_n * saved[3] * slope_r
        return (da_r, da_z, da_n), (da_r, da_z, da_n * r), dh * z, dc

    return SimpleNamespace(forward=forward, backward=backward, prepared=of.prepared)


def make_gru_reset_before(jit: Any, act: Any, cell: Cell) -> SimpleNamespace:
    """The stages of one unit of a GRU that resets before the product. z passes between them as it is saved."""
    of = roles(jit, act, cell)
    gate, opened = of.f.gate, of.f.opened
    gate_n, opened_n = of.g.gate, of.g.opened
    one = act.one

    @jit
    def reset(a_r, h_prev, k):
        r, saved = gate(a_r, k)
        return saved, r * h_prev

    @jit
    def update(a_z, k):
        _, saved = gate(a_z, k)
        return saved

    @jit
    def gates(a_r, a_z, h_prev, k):
        r_saved, rh = reset(a_r, h_prev, k)
        return r_saved, update(a_z, k), rh

    @jit
    def output(a_n, z_saved, h_prev, k):
        z, _ = opened(z_saved, k)
        n, saved = gate_n(a_n, k)
        return saved, n + z * (h_prev - n)

    @jit
    def output_backward(z_saved, n_saved, h_prev, dh, k):
        z, slope_z = opened(z_saved, k)
        n, slope_n = opened_n(n_saved, k)
        return dh * (h_prev - n) * slope_z, dh * (one - z) * slope_n

    @jit
    def gates_backward(r_saved, z_saved, h_prev, dh, drh, k):
        r, slope_r = opened(r_saved, k)
        z, _ = opened(z_saved, k)
        return drh * h_prev * slope_r, dh * z + drh * r

    return SimpleNamespace(
        reset=reset,
        update=update,
        gates=gates,
        output=output,
        output_backward=output_backward,
        gates_backward=gates_backward,
        prepared=of.prepared,
    )


def make_lstm(jit: Any, act: Any, cell: Cell) -> SimpleNamespace:
    """forward and backward of one unit of an LSTM; and unit_gradients, what a row-step adds to those of w."""
    of = roles(jit, act, cell)
    gate, opened = of.f.gate, of.f.opened
    gate_g, opened_g = of.g.gate, of.g.opened
    value_h, slope_h = of.h.value, of.h.slope
    PEEPHOLE = cell.options.peephole
    COUPLED = cell.options.coupled
    CLIPS_C = cell.options.cell_clip
    one = act.one
    zero = act.number(0)
    where_lt = act.where_lt
    most = constant_of(jit, act, cell.constants, "cell_clip")

    @jit
    def limited(c, k):
        limit = most(k)
        return where_lt(limit, c, limit, where_lt(c, -limit, -limit, c))

    @jit
    def inside(c, k):
        limit = most(k)
        return where_lt(limit, c, zero, where_lt(c, -limit, zero, one))

    @jit
    def forget(a_f, i, k):
        if COUPLED:
            f = one - i
            return f, f
        return gate(a_f, k)

    @jit
    def opened_forget(f_saved, k):
        if COUPLED:
            return f_saved, zero
        return opened(f_saved, k)

    @jit
    def values(i, f, g, o, c_raw, k):
        if CLIPS_C:
            return i, f, g, o, inside(c_raw, k)
        return i, f, g, o

    @jit
    def forward(x, u, h_prev, c_prev, w, k):
        a_i = x[0] + u[0]
        a_f = x[1] + u[1]
        a_o = x[3] + u[3]
        if PEEPHOLE:
            a_i = a_i + w[0] * c_prev
            a_f = a_f + w[1] * c_prev
        i, i_saved = gate(a_i, k)
        f, f_saved = forget(a_f, i, k)
        g, g_saved = gate_g(x[2] + u[2], k)
        c_raw = f * c_prev + i * g
        c = limited(c_raw, k) if CLIPS_C else c_raw
        if PEEPHOLE:
            a_o = a_o + w[2] * c
        o, o_saved = gate(a_o, k)
        return values(i_saved, f_saved, g_saved, o_saved, c_raw, k), o * value_h(c, k), c

    @jit
    def cell_state(saved, c_prev, k):
        i, _ = opened(saved[0], k)
        f, _ = opened_forget(saved[1], k)
        g, _ = opened_g(saved[2], k)
        c = f * c_prev + i * g
        return limited(c, k) if CLIPS_C else c

    @jit
    def backward(saved, h_prev, c_prev, dh, dc, w, k):
        i, slope_i = opened(saved[0], k)
        f, slope_f = opened_forget(saved[1], k)
        g, slope_g = opened_g(saved[2], k)
        o, slope_o = opened(saved[3], k)
        h_c = value_h(cell_state(saved, c_prev, k), k)
        da_o = dh * h_c * slope_o
        dc = dc + dh * o * slope_h(h_c, k)
        if PEEPHOLE:
            dc = dc + da_o * w[2]
        if CLIPS_C:
            dc = dc * saved[4]
        di = dc * (g - c_prev) if COUPLED else dc * g
        da_i = di * slope_i
        da_f = dc * c_prev * slope_f
        da = (da_i, da_f, dc * i * slope_g, da_o)
        dc_prev = dc * f
        if PEEPHOLE:
            dc_prev = dc_prev + (da_i * w[0] + da_f * w[1])
        return da, da, 0.0, dc_prev

    @jit
    def unit_gradients(saved, c_prev, da, k):
        return da[0] * c_prev, da[1] * c_prev, da[3] * cell_state(saved, c_prev, k)

    return SimpleNamespace(forward=forward, backward=backward, prepared=of.prepared, unit_gradients=unit_gradients)


MAKE: dict[str, Callable[[Any, Any, Cell], SimpleNamespace]] = {
    "rnn_tanh": make_rnn,
    "rnn_relu": make_rnn,
    "gru": make_gru,
    "gru_reset_before": make_gru_reset_before,
    "lstm": make_lstm,
}
