"""RNN, pointwise: h = act(a), a = x_side + h_side. One scalar source for every target; `jit` and `act` come from it.

Kept for backward: h itself, from which both slopes follow: 1 - h^2, and whether h <= 0 (which a NaN is not).
"""

from __future__ import annotations

from types import SimpleNamespace

GATES, KEPT, SPLIT = 1, 1, False


def make(jit, act, nonlinearity: str) -> SimpleNamespace:
    """forward and backward of one unit; a number may be a scalar or a vector of units."""
    activation = act.tanh if nonlinearity == "tanh" else act.relu
    passed, one = act.passed, act.one

    @jit
    def forward(x, u, h_prev, c_prev):
        h = activation(x[0] + u[0])
        return (h,), h, c_prev

    @jit
    def backward_tanh(kept, h_prev, c_prev, dh, dc):
        da = dh * (one - kept[0] * kept[0])
        return (da,), (da,), 0.0, dc

    @jit
    def backward_relu(kept, h_prev, c_prev, dh, dc):
        da = passed(kept[0], dh)
        return (da,), (da,), 0.0, dc

    return SimpleNamespace(forward=forward, backward=backward_tanh if nonlinearity == "tanh" else backward_relu)
