"""Cells with layer normalisation against PyTorch: loops of torch.nn.functional.layer_norm in float64, with autograd."""

from __future__ import annotations

import pytest

from rnnkit.core.cells import Weights
from rnnkit.testing import Case, assert_close, kind_of, make_inputs, run
from tests.normalised import NORM_CASES

torch = pytest.importorskip("torch")


def step(kind: str, x, state, w, eps):  # type: ignore[no-untyped-def]
    norm = torch.nn.functional.layer_norm
    h = state[0]
    GH, H = w.w_hh.shape
    gain = w.w_unit.reshape(-1)
    if kind == "gru+layer_norm=dreamer":
        linear = torch.cat([h, x], 1) @ torch.cat([w.w_hh, w.w_ih], 1).T
        r, z, n = norm(linear, (GH,), gain, w.b_ih + w.b_hh, eps).chunk(3, 1)
        z = torch.sigmoid(z - 1)
        return (z * torch.tanh(torch.sigmoid(r) * n) + (1 - z) * h,)
    v = norm(x @ w.w_ih.T, (GH,), gain[:GH], w.b_ih, eps)
    u = norm(h @ w.w_hh.T, (GH,), gain[GH : 2 * GH], w.b_hh, eps)
    if kind == "gru+layer_norm=haste":
        (v_r, v_z, v_n), (u_r, u_z, u_n) = v.chunk(3, 1), u.chunk(3, 1)
        z = torch.sigmoid(v_z + u_z)
        return ((1 - z) * torch.tanh(v_n + torch.sigmoid(v_r + u_r) * u_n) + z * h,)
    i, f, g, o = (v + u).chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    normed = norm(c, (H,), w.w_unit[8], w.w_unit[9], eps)
    return torch.sigmoid(o) * torch.tanh(normed), normed if kind.endswith("torch") else c


@pytest.mark.parametrize("case", NORM_CASES, ids=str)
def test_results_and_gradients_are_those_of_a_loop_in_torch(case: Case) -> None:
    case = Case(case.cell, T=5, B=4, I=3, H=7, reverse=case.reverse, constants=case.constants)
    inputs = make_inputs(case)
    got = run(case, inputs, "numpy")
    leaf = {"x": inputs.x} | {f"{n}0": s for n, s in zip(("h", "c"), inputs.state0, strict=False)}
    leaf |= {name: w for name, w in inputs.weights._asdict().items() if w is not None}
    leaf = {name: torch.tensor(a, requires_grad=True) for name, a in leaf.items()}
    weights = Weights(**{name: leaf.get(name) for name in Weights._fields})
    state = tuple(leaf[f"{n}0"] for n in ("h", "c") if f"{n}0" in leaf)
    y = [None] * case.T
    for t in reversed(range(case.T)) if case.reverse else range(case.T):
        state = step(case.cell, leaf["x"][t], state, weights, case.constants[0])
        y[t] = state[0]
    loss = (torch.stack(y) * torch.tensor(inputs.dy)).sum()
    loss = loss + sum((s * torch.tensor(d)).sum() for s, d in zip(state, inputs.dstate_n, strict=True))
    loss.backward()
    want = {"y": torch.stack(y)} | {f"{n}_n": s for n, s in zip(("h", "c"), state, strict=False)}
    want |= {f"d{name}": a.grad for name, a in leaf.items()}
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert_close(name, got[name], value.detach().numpy(), "float64", kind_of(name))
