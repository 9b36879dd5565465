"""The sLSTM against PyTorch: its equations as a loop of torch in float64, with autograd.

They are FlashRNN's vanilla form. In the first step of a unit its kernels limit f to 1, and so do the equations here.
At a limit the gradient passes. That of `torch.clamp` does so in some releases alone, so the loop has `torch.where`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import Weights
from rnnkit.testing import Case, assert_close, kind_of, make_inputs, run

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.peers
NAMES = ("h", "c", "n", "m")


def step(x: Any, state: Any, w: Any) -> Any:
    h, c, n, m = state
    a = x @ w.w_ih.T + h @ w.w_hh.T
    a = a if w.b_ih is None else a + w.b_ih + w.b_hh
    a_i, a_f, a_z, a_o = a.chunk(4, 1)
    p = torch.nn.functional.logsigmoid(a_f) + m
    m = torch.where(n == 0, a_i, torch.maximum(a_i, p))
    i, f = torch.exp(a_i - m), torch.exp(torch.where(p > m, 0.0, p - m))
    c, total = f * c + i * torch.tanh(a_z), f * n + i
    n = torch.where(total < 1, 1.0, total)
    return torch.sigmoid(a_o) * c / n, c, n, m


def scan(x: Any, state: Any, w: Any, lengths: Any, reverse: bool) -> tuple[Any, Any]:
    """One direction: y, zero past each row's end, and the states at each row's end."""
    y: list[Any] = [None] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        live = (t < torch.tensor(lengths))[:, None]
        new = step(torch.where(live, x[t], 0), state, w)
        state = tuple(torch.where(live, n, s) for n, s in zip(new, state, strict=True))
        y[t] = torch.where(live, new[0], 0)
    return torch.stack(y), state


@pytest.mark.parametrize("starts", ["states", "zeros", "some"])
@pytest.mark.parametrize(
    ("reverse", "ragged", "bias"), [(False, False, True), (True, True, True), (False, True, False)]
)
def test_results_and_gradients_are_those_of_a_loop_in_torch(
    starts: str, reverse: bool, ragged: bool, bias: bool
) -> None:
    case = Case("slstm", T=6, B=5, I=3, H=7, reverse=reverse, ragged=ragged, bias=bias)
    inputs = make_inputs(case)
    if starts == "zeros":
        inputs.state0 = tuple(np.zeros_like(s) for s in inputs.state0)
    elif starts == "some":  # every second row has had no step, but has c, which f is limited for
        inputs.state0[2][::2] = 0
    got = run(case, inputs, "numpy")
    lengths = np.full(case.B, case.T) if inputs.lengths is None else inputs.lengths
    leaf = {"x": np.nan_to_num(inputs.x)} | {f"{n}0": s for n, s in zip(NAMES, inputs.state0, strict=True)}
    leaf |= {name: w for name, w in inputs.weights._asdict().items() if w is not None}
    leaf = {name: torch.tensor(a, requires_grad=True) for name, a in leaf.items()}
    weights = Weights(**{name: leaf.get(name) for name in Weights._fields})
    y, state = scan(leaf["x"], tuple(leaf[f"{n}0"] for n in NAMES), weights, lengths, reverse)
    loss = (y * torch.tensor(np.nan_to_num(inputs.dy))).sum()
    loss = loss + sum((s * torch.tensor(d)).sum() for s, d in zip(state, inputs.dstate_n, strict=True))
    loss.backward()
    want = {"y": y} | {f"{n}_n": s for n, s in zip(NAMES, state, strict=True)}
    want |= {f"d{name}": a.grad for name, a in leaf.items()}
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert_close(name, got[name], value.detach().numpy(), "float64", kind_of(name))


def test_two_bidirectional_layers_with_lengths() -> None:
    T, B, I, H, lengths = 5, 4, 3, 6, [5, 2, 0, 4]
    layer = rnnkit.SLSTM(I, H, 2, bidirectional=True, dtype="float64", backend="numpy", rng=3)
    drawn = np.random.default_rng(4)
    x, dy = drawn.standard_normal((T, B, I)), drawn.standard_normal((T, B, 2 * H))
    state, dstate = (tuple(drawn.standard_normal((4, B, H)) for _ in NAMES) for _ in range(2))
    state[2][...] = 1 + np.abs(state[2])
    y, state_n = layer(x, state, lengths)
    dx, dstate0 = layer.backward(dy, dstate)
    leaf = {name: torch.tensor(p, requires_grad=True) for name, p in layer.params.items()}
    start = tuple(torch.tensor(s, requires_grad=True) for s in state)
    x0 = torch.tensor(x, requires_grad=True)
    want, ends = x0, []
    for k in range(2):
        both = []
        for d, suffix in enumerate((f"_l{k}", f"_l{k}_reverse")):
            w = Weights(*(leaf[name + suffix] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
            out, end = scan(want, tuple(s[2 * k + d] for s in start), w, lengths, d == 1)
            both.append(out)
            ends.append(end)
        want = torch.cat(both, 2)
    end_of = tuple(torch.stack(s) for s in zip(*ends, strict=True))
    loss = (want * torch.tensor(dy)).sum()
    loss = loss + sum((s * torch.tensor(d)).sum() for s, d in zip(end_of, dstate, strict=True))
    loss.backward()
    assert_close("y", y, want.detach().numpy(), "float64")
    assert_close("dx", dx, x0.grad.numpy(), "float64", "backward")
    for name, got, end, got0, start0 in zip(NAMES, state_n, end_of, dstate0, start, strict=True):
        assert_close(f"{name}_n", got, end.detach().numpy(), "float64")
        assert_close(f"d{name}0", got0, start0.grad.numpy(), "float64", "backward")
    for name, p in leaf.items():
        assert_close(name, layer.grads[name], p.grad.numpy(), "float64", "backward")
