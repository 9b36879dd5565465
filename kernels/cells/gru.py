"""GRU, pointwise, in both reset modes. One scalar source for every target; `jit` and `act` come from it.

Reset after (`make`): r,z = sigmoid(x + u), n = tanh(x_n + r u_n), h = (1 - z) n + z h', with u = h' W_hh^T +
b_hh. Kept: r,z,n and u_n. The hidden side's gradient differs from the input side's in n, by the factor r: hence
SPLIT.

Reset before (`make_reset_before`): u_n = (r h') W_hn^T + b_hn waits for r, so a step is two products with a
pointwise stage after each: `gates` and `output` forward, `output_backward` and `gates_backward` back. z waits for
nothing and nothing but `output` for it: `gates` may as well be `reset` before r h' is used and `update` at any time.
"""

from __future__ import annotations

from types import SimpleNamespace

GATES, KEPT, SPLIT = 3, 4, True


def make(jit, act) -> SimpleNamespace:
    """forward and backward of one unit, reset after; a number may be a scalar or a vector of units."""
    sigmoid, tanh, one = act.sigmoid, act.tanh, act.one

    @jit
    def forward(x, u, h_prev, c_prev):
        r, z = sigmoid(x[0] + u[0]), sigmoid(x[1] + u[1])
        n = tanh(x[2] + r * u[2])
        return (r, z, n, u[2]), n + z * (h_prev - n), c_prev

    @jit
    def backward(kept, h_prev, c_prev, dh, dc):
        r, z, n, u_n = kept
        da_n = dh * (one - z) * (one - n * n)
        da_z = dh * (h_prev - n) * z * (one - z)
        da_r = da_n * u_n * r * (one - r)
        return (da_r, da_z, da_n), (da_r, da_z, da_n * r), dh * z, dc

    return SimpleNamespace(forward=forward, backward=backward)


def make_reset_before(jit, act) -> SimpleNamespace:
    """The stages of one unit, reset before; a number may be a scalar or a vector of units."""
    sigmoid, tanh, one = act.sigmoid, act.tanh, act.one

    @jit
    def reset(a_r, h_prev):
        r = sigmoid(a_r)
        return r, r * h_prev

    @jit
    def gates(a_r, a_z, h_prev):
        r, rh = reset(a_r, h_prev)
        return r, sigmoid(a_z), rh

    @jit
    def output(a_n, z, h_prev):
        n = tanh(a_n)
        return n, n + z * (h_prev - n)

    @jit
    def output_backward(z, n, h_prev, dh):
        da_n = dh * (one - z) * (one - n * n)
        return dh * (h_prev - n) * z * (one - z), da_n

    @jit
    def gates_backward(r, z, h_prev, dh, drh):
        return drh * h_prev * r * (one - r), dh * z + drh * r

    return SimpleNamespace(
        reset=reset,
        update=sigmoid,
        gates=gates,
        output=output,
        output_backward=output_backward,
        gates_backward=gates_backward,
    )
