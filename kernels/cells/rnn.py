"""RNN, pointwise: h = act(a), a = x_side + h_side. One scalar source for every target, which supplies `jit` and `act`.

Saved for backward: h, which gives the slope of both activations: 1 - h^2, and 0 where h <= 0. A NaN is not <= 0.
"""

from __future__ import annotations

from types import SimpleNamespace


def make(jit, act, nonlinearity: str) -> SimpleNamespace:
    """forward and backward of one unit. Each number is a scalar, or a vector of units."""
    activation = act.tanh if nonlinearity == "tanh" else act.relu
    passed = act.passed
    one = act.one

    @jit
    def forward(x, u, h_prev, c_prev):
        h = activation(x[0] + u[0])
        return (h,), h, c_prev

    @jit
    def backward_tanh(saved, h_prev, c_prev, dh, dc):
        da = dh * (one - saved[0] * saved[0])
        return (da,), (da,), 0.0, dc

    @jit
    def backward_relu(saved, h_prev, c_prev, dh, dc):
        da = passed(saved[0], dh)
        return (da,), (da,), 0.0, dc

    return SimpleNamespace(forward=forward, backward=backward_tanh if nonlinearity == "tanh" else backward_relu)
