"""Cells with layer normalisation against PyTorch: loops of torch.nn.functional.layer_norm in float64, with autograd."""

from __future__ import annotations

import pytest

from rnnkit.core.cells import Weights
from rnnkit.testing import Case, assert_close, kind_of, make_inputs, run
from tests.normalised import NORM_CASES

torch = pytest.importorskip("torch")

from tests.normalised_loop import step  # noqa: E402

pytestmark = pytest.mark.peers


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
