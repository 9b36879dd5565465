"""sLSTM, pointwise: the equations of `_slstm_forward` in rnnkit/core/cells.py.

With lead = a_i - p, i is 1 and f is exp(-|lead|) where lead >= 0, else the reverse; but in the first step of a unit i
is 1, and f is 1 where lead < 0. exp(-|lead|) is s / (1 - s) with s = sigmoid(-|lead|). Saved for backward: lead,
sigmoid(-a_f), tanh(a_z) and o; backward computes i, f, c and n again. A row has three states beside h: `states` is
(c', n', m'), and dstates the gradients of c, n and m.
"""

from __future__ import annotations

from types import SimpleNamespace

from rnnkit.kernels.cells.gates import curves


def make(jit, act) -> SimpleNamespace:
    """forward and backward of one unit. Each number is a scalar, or a vector of units."""
    sigmoid = act.sigmoid
    tanh = act.tanh
    one = act.one
    zero = act.number(0)
    where_lt = act.where_lt
    where_le = act.where_le
    negative_abs = act.negative_abs
    softplus, _ = curves(jit, act)["Softplus"]

    @jit
    def exponentials(lead, n_prev):
        """i, f, and a number that is below 0 where m is p. That is nowhere where n' = 0."""
        s = sigmoid(negative_abs(lead))
        e = s / (one - s)
        of_f = where_le(zero, negative_abs(n_prev), -negative_abs(lead), lead)
        return where_lt(of_f, zero, e, one), where_lt(lead, zero, one, e), of_f

    @jit
    def forward(x, u, h_prev, states):
        c_prev, n_prev, m_prev = states
        a_i = x[0] + u[0]
        a_f = x[1] + u[1]
        z = tanh(x[2] + u[2])
        o = sigmoid(x[3] + u[3])
        p = m_prev - softplus(-a_f, zero, zero)
        lead = a_i - p
        i, f, of_f = exponentials(lead, n_prev)
        c = f * c_prev + i * z
        total = f * n_prev + i
        n = where_lt(total, one, one, total)
        return (lead, sigmoid(-a_f), z, o), o * c / n, (c, n, where_lt(of_f, zero, p, a_i))

    @jit
    def backward(saved, h_prev, states, dh, dstates):
        lead, f_slope, z, o = saved
        c_prev, n_prev, _ = states
        dc, dn, dm = dstates
        i, f, of_f = exponentials(lead, n_prev)
        total = f * n_prev + i
        n = where_lt(total, one, one, total)
        mean = (f * c_prev + i * z) / n
        to_c = dh * o / n
        dc = dc + to_c
        dn = where_lt(total, one, zero, dn - to_c * mean)
        by_i = (dc * z + dn) * i
        by_f = where_lt(lead, of_f, zero, (dc * c_prev + dn * n_prev) * f)  # lead < of_f: f is at its limit
        dm = dm - by_i - by_f
        dp = by_f + where_lt(of_f, zero, dm, zero)
        da_i = by_i + where_lt(of_f, zero, zero, dm)
        da = (da_i, dp * f_slope, dc * i * (one - z * z), dh * mean * o * (one - o))
        return da, da, 0.0, (dc * f, dn * f, dp)

    return SimpleNamespace(forward=forward, backward=backward)
