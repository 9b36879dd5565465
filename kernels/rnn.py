"""RNN, pointwise: h = act(a), a = x_side + h_side. One scalar source for every target; `jit` and `act` come from it."""

from __future__ import annotations

from types import SimpleNamespace

GATES, KEPT, SPLIT = 1, 0, False


def make(jit, act, nonlinearity: str) -> SimpleNamespace:
    """forward and backward of one unit; a number may be a scalar or a vector of units."""
    activation = act.tanh if nonlinearity == "tanh" else act.relu
    positive = act.positive
    tanh = nonlinearity == "tanh"

    @jit
    def forward(x, u, h_prev, c_prev):
        return (), activation(x[0] + u[0]), c_prev

    if tanh:

        @jit
        def backward(kept, h_prev, c_prev, h, c, dh, dc):
            da = dh * (1.0 - h * h)
            return (da,), (da,), 0.0, dc

    else:

        @jit
        def backward(kept, h_prev, c_prev, h, c, dh, dc):
            da = dh * positive(h)
            return (da,), (da,), 0.0, dc

    return SimpleNamespace(forward=forward, backward=backward)
