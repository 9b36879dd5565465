"""GRU, pointwise, in both reset modes. One scalar source for every target, which supplies `jit` and `act`.

Reset after (`make`): r,z = sigmoid(x + u), n = tanh(x_n + r u_n), h = (1 - z) n + z h', with u = h' W_hh^T + b_hh.
Saved for backward: r,z,n and u_n. The gradient of n on the hidden side is r times that on the input side.

Reset before (`make_reset_before`): the product u_n = (r h') W_hn^T + b_hn needs r. So a step has two products with a
pointwise stage after each: `gates`, then `output`. Backward has `output_backward`, then `gates_backward`. Only `output`
needs z, so instead of `gates` a target may compute `reset` before it uses r h', and `update` at any time before
`output`. Saved for backward: r,z,n.
"""

from __future__ import annotations

from types import SimpleNamespace


def make(jit, act) -> SimpleNamespace:
    """forward and backward of one unit, reset after. Each number is a scalar, or a vector of units."""
    sigmoid = act.sigmoid
    tanh = act.tanh
    one = act.one

    @jit
    def forward(x, u, h_prev, c_prev):
        r = sigmoid(x[0] + u[0])
        z = sigmoid(x[1] + u[1])
        n = tanh(x[2] + r * u[2])
        return (r, z, n, u[2]), n + z * (h_prev - n), c_prev

    @jit
    def backward(saved, h_prev, c_prev, dh, dc):
        r, z, n, u_n = saved
        da_n = dh * (one - z) * (one - n * n)
        da_z = dh * (h_prev - n) * z * (one - z)
        da_r = da_n * u_n * r * (one - r)
        return (da_r, da_z, da_n), (da_r, da_z, da_n * r), dh * z, dc

    return SimpleNamespace(forward=forward, backward=backward)


def make_reset_before(jit, act) -> SimpleNamespace:
    """The stages of one unit, reset before. Each number is a scalar, or a vector of units."""
    sigmoid = act.sigmoid
    tanh = act.tanh
    one = act.one

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
