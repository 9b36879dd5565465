"""The sLSTM of the oracle where its equations have a case of their own. tests/oracle/test_oracle.py has the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkit.functional import direction
from rnnkit.testing import Case, Inputs, assert_close, make_inputs, run
from tests.oracle.test_oracle import difference

CASE = Case("slstm", T=4, B=3, I=2, H=3)
SEED = 3  # with which no difference crosses a kink


def with_states(inputs: Inputs, **states: Any) -> Inputs:
    """The inputs with initial states replaced by name."""
    named = dict(zip("hcnm", inputs.state0, strict=True)) | states
    inputs.state0 = tuple(named.values())
    return inputs


def test_a_unit_without_a_step_takes_m_from_its_input_gate() -> None:
    """Row 0 begins with zeros, row 1 with one unit that has had no step, row 2 with states. No row reads another's."""
    inputs = make_inputs(CASE)
    h0, c0, n0, m0 = (np.array(s) for s in inputs.state0)
    for s in (h0, c0, n0, m0):
        s[0] = 0
    n0[1, 1] = c0[1, 1] = 0
    w = inputs.weights._replace(b_ih=inputs.weights.b_ih - np.repeat([5, 0, 0, 0], 3))  # m would be p
    y, (_, c, n, m), _ = direction.forward("slstm", inputs.x[:1], (h0, c0, n0, m0), w, backend="numpy")
    a_i, a_f, a_z, a_o = np.split(inputs.x[0] @ w.w_ih.T + w.b_ih + h0 @ w.w_hh.T + w.b_hh, 4, axis=1)
    first = n0 == 0
    assert first.sum() == 4
    later = np.maximum(a_i, m0 - np.log1p(np.exp(-a_f)))
    assert (later > a_i)[first].all()
    np.testing.assert_allclose(m[first], a_i[first], rtol=1e-13)
    np.testing.assert_allclose(n[first], 1, rtol=1e-13)
    np.testing.assert_allclose(c[first], np.tanh(a_z)[first], rtol=1e-13)
    np.testing.assert_allclose(y[0][first], (np.tanh(a_z) / (1 + np.exp(-a_o)))[first], rtol=1e-13)
    np.testing.assert_allclose(m[~first], later[~first], rtol=1e-13)


def test_results_depend_on_c_and_n_times_e_to_the_m() -> None:
    """m alone is a scale, as long as n stays above 1: y and the gradient of the weights do not change with it."""
    inputs = make_inputs(CASE)
    inputs.dstate_n = tuple(np.zeros_like(d) for d in inputs.dstate_n)
    _, c0, n0, m0 = inputs.state0
    want = run(CASE, with_states(inputs, c=4 * c0, n=4 * n0), "numpy")
    got = run(CASE, with_states(inputs, c=c0, n=n0, m=m0 + np.log(4)), "numpy")
    for name in ("y", "dx", "dh0", "dw_ih", "dw_hh", "db_ih", "db_hh"):
        assert_close(name, got[name], want[name], "float64", "backward")
    np.testing.assert_allclose(got["dc0"], 4 * want["dc0"], rtol=1e-9)


def test_no_gradient_of_m_is_left_without_one_of_the_final_state() -> None:
    """Then dm0 = c0 dc0 + n0 dn0, what follows from the scale; and dm0 = 0 for a state of zeros."""
    inputs = make_inputs(CASE)
    inputs.dstate_n = tuple(np.zeros_like(d) for d in inputs.dstate_n)
    got = run(CASE, inputs, "numpy")
    _, c0, n0, _ = inputs.state0
    assert np.abs(got["dm0"]).max() > 1e-3
    np.testing.assert_allclose(got["dm0"], c0 * got["dc0"] + n0 * got["dn0"], rtol=1e-9, atol=1e-12)
    zero = np.zeros_like(c0)
    got = run(CASE, with_states(inputs, h=zero, c=zero, n=zero, m=zero), "numpy")
    np.testing.assert_allclose(got["dm0"], 0, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_below_the_least_n_are_finite_differences(reverse: bool) -> None:
    """n0 below 1: some sums are below it, and n = 1 has no gradient there."""
    case = Case("slstm", T=2, B=3, I=2, H=3, reverse=reverse)
    inputs = make_inputs(case, seed=SEED)
    n0 = np.linspace(0.05, 0.6, 9).reshape(3, 3)
    inputs = with_states(inputs, n=n0, m=inputs.state0[3] + 2)
    got = run(case, inputs, "numpy")
    assert (got["dn0"] == 0).sum() >= 2, "no sum was below 1"
    assert (got["dn0"] != 0).sum() >= 2, "no sum was above 1"

    def loss() -> float:
        y, state_n, _ = direction.forward(
            "slstm", inputs.x, inputs.state0, inputs.weights, reverse=reverse, backend="numpy", keep=False
        )
        return float((y * inputs.dy).sum() + sum((s * d).sum() for s, d in zip(state_n, inputs.dstate_n, strict=True)))

    moved = {"dx": inputs.x} | {f"d{name}0": s for name, s in zip("hcnm", inputs.state0, strict=True)}
    moved |= {f"d{name}": w for name, w in inputs.weights._asdict().items() if w is not None}
    for name, a in moved.items():
        assert_close(name, got[name], difference(loss, a), "float64", "backward")


def test_no_pre_activation_overflows() -> None:
    """Input gates of e^-1000 and e^1000, forget gates closed and open: results and gradients stay finite."""
    for a_i in (-1000.0, 1000.0):
        for a_f in (-1000.0, 1000.0):
            inputs = make_inputs(CASE)
            bias = np.repeat([a_i, a_f, 0.0, 0.0], CASE.H)
            inputs.weights = inputs.weights._replace(b_ih=bias)
            for state0 in (inputs.state0, tuple(np.zeros_like(s) for s in inputs.state0)):
                inputs.state0 = state0
                with np.errstate(all="raise", under="ignore"):
                    got = run(CASE, inputs, "numpy")
                assert all(np.isfinite(a).all() for a in got.values())
