"""LSTM, pointwise: i,f,o = sigmoid(a), g = tanh(a), a = x_side + h_side; c = f c' + i g; h = o tanh(c).

One scalar source for every target; `jit` and `act` come from it. Kept for backward: i,f,g,o; c and tanh(c) are computed
again, which costs less than writing and reading them. Under projection "h" here is what W_hr multiplies.
"""

from __future__ import annotations

from types import SimpleNamespace

GATES, KEPT, SPLIT = 4, 4, False


def make(jit, act) -> SimpleNamespace:
    """forward and backward of one unit; a number may be a scalar or a vector of units."""
    sigmoid, tanh, one = act.sigmoid, act.tanh, act.one

    @jit
    def forward(x, u, h_prev, c_prev):
        i, f = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        g, o = tanh(x[2] + u[2]), sigmoid(x[3] + u[3])
        c = f * c_prev + i * g
        return (i, f, g, o), o * tanh(c), c

    @jit
    def backward(kept, h_prev, c_prev, dh, dc):
        i, f, g, o = kept
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
