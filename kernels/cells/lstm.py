"""LSTM, pointwise: i,f,o = sigmoid(a), g = tanh(a), a = x_side + h_side; c = f c' + i g; h = o tanh(c).

One scalar source for every target, which supplies `jit` and `act`. Saved for backward: i,f,g,o. backward computes c and
tanh(c) again: that costs less than writing and reading them. Under projection, h here is m, the operand of W_hr.
"""

from __future__ import annotations

from types import SimpleNamespace


def make(jit, act) -> SimpleNamespace:
    """forward and backward of one unit. Each number is a scalar, or a vector of units."""
    sigmoid = act.sigmoid
    tanh = act.tanh
    one = act.one

    @jit
    def forward(x, u, h_prev, c_prev):
        i = sigmoid(x[0] + u[0])
        f = sigmoid(x[1] + u[1])
        g = tanh(x[2] + u[2])
        o = sigmoid(x[3] + u[3])
        c = f * c_prev + i * g
        return (i, f, g, o), o * tanh(c), c

    @jit
    def backward(saved, h_prev, c_prev, dh, dc):
        i, f, g, o = saved
        tanh_c = tanh(f * c_prev + i * g)
        dc = dc + dh * o * (one - tanh_c * tanh_c)
        da = (
            dc * g * i * (one - i),
            dc * c_prev * f * (one - f),
            dc * i * (one - g * g),
            dh * tanh_c * o * (one - o),
        )
        return da, da, 0.0, dc * f

    return SimpleNamespace(forward=forward, backward=backward)
