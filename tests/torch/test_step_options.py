"""Options and zoneout of rnnkit.torch's Cells: those of rnnkit's Cells, with all derivatives, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import rnnkit  # noqa: E402
import rnnkit.torch  # noqa: E402

pytestmark = pytest.mark.peers

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {"peephole": True, "clip": 0.7, "cell_clip": 0.5}),
    "coupled": (
        "LSTM",
        {"peephole": True, "coupled": True, "bias": False, "activations": ("HardSigmoid", "Softsign", ("Elu", 0.7))},
    ),
    "lstm zoneout": ("LSTM", {"zoneout": (0.3, 0.2), "zoneout_output": "zoned"}),
    "gru": ("GRU", {"clip": 0.5, "activations": ("Softplus", ("ScaledTanh", 1.2, 0.7)), "zoneout": 0.3}),
    "reset before": ("GRU", {"reset_after": False, "clip": 0.5, "activations": ("Sigmoid", ("Affine", 0.6, 0.1))}),
    "rnn": ("RNN", {"clip": 0.9, "activations": (("LeakyRelu", 0.1),)}),
    "relu": ("RNN", {"nonlinearity": "relu", "clip": 0.9, "zoneout": 0.5}),
}
F64 = torch.float64


def both(name: str) -> tuple[Any, Any]:
    """A Cell of rnnkit.torch and one of rnnkit, with equal weights, in float64."""
    kind, options = CELLS[name]
    torch.manual_seed(0)
    ours = getattr(rnnkit.torch, f"{kind}Cell")(4, 6, dtype=F64, backend="numpy", **options)
    plain = getattr(rnnkit, f"{kind}Cell")(4, 6, dtype="float64", backend="numpy", **options)
    plain.load_state_dict({n: p.detach() for n, p in ours.named_parameters()}, cells=plain.cell.name)
    return ours, plain


def tensors(cell: Any) -> tuple[Any, Any]:
    """x and the state of a call, which record gradients."""
    x, *state = (torch.randn(3, width, dtype=F64, requires_grad=True) for width in (4, 6, 6))
    return x, tuple(state) if isinstance(cell, torch.nn.LSTMCell) else state[0]


def parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


class Seeded:
    """A generator whose next seed is PyTorch's."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.seed = int(torch.randint(-(2**63), 2**63 - 1, (1,))) % 2**64

    def integers(self, *_: Any, **__: Any) -> int:
        return self.seed


@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_those_of_rnnkit(name: str) -> None:
    ours, plain = both(name)
    x, state = tensors(ours)
    for training in (True, False):
        ours.train(training), plain.train(training)
        plain.rng = Seeded(7)
        torch.manual_seed(7)
        ours.zero_grad(), plain.zero_grad()
        new = parts(ours(x, state))
        given = tuple(s.detach().numpy() for s in parts(state))
        want = plain(x.detach().numpy(), given if len(given) > 1 else given[0])
        grads = [torch.randn(3, 6, dtype=F64) for _ in new]
        found = torch.autograd.grad(new, [x, *parts(state), *ours.parameters()], grads)
        arrays = tuple(g.numpy() for g in grads)
        dx, dstate = plain.backward(arrays if len(arrays) > 1 else arrays[0])
        expected = [dx, *parts(dstate), *plain.grads.values()]
        for got, value in zip((*new, *found), (*parts(want), *expected), strict=True):
            np.testing.assert_array_equal(got.detach().numpy(), value)
    names = [n for n, _ in ours.named_parameters()]
    assert names == list(plain.params)
    unbatched = ours.eval()(x[0], tuple(s[0] for s in state) if isinstance(state, tuple) else state[0])
    torch.testing.assert_close(parts(unbatched)[0], parts(ours(x, state))[0][0], rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "coupled", "reset before"])
def test_first_and_second_derivatives(name: str) -> None:
    ours, _ = both(name)
    x, state = tensors(ours)
    given = (x[:1].detach().requires_grad_(), *(s[:1].detach().requires_grad_() for s in parts(state)))

    def call(x: Any, *state: Any) -> Any:
        return ours(x, state if len(state) > 1 else state[0])

    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


def test_zoneout_has_first_derivatives_alone() -> None:
    ours, _ = both("lstm zoneout")
    x, state = tensors(ours)

    def call(x: Any) -> Any:
        torch.manual_seed(3)
        return ours(x, state)

    assert torch.autograd.gradcheck(call, (x,))
    with pytest.raises(NotImplementedError, match="double backward and forward mode of a layer with zoneout"):
        torch.autograd.gradgradcheck(call, (x,))
    assert not torch.equal(ours(x, state)[0], ours(x, state)[0])
    ours.eval()
    assert torch.equal(ours(x, state)[0], ours(x, state)[0])


def test_the_weights_and_options_of_a_layer() -> None:
    """A layer in a loop, and copies and files."""
    options = {"peephole": True, "clip": 0.7, "zoneout": 0.3}
    layer = rnnkit.torch.LSTM(4, 6, dtype=F64, backend="numpy", **options).eval()
    cell = rnnkit.torch.LSTMCell(4, 6, dtype=F64, backend="numpy", **options).eval()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    x = torch.randn(5, 3, 4, dtype=F64)
    y, _ = layer(x)
    for step in (cell, copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        state = None
        for t in range(5):
            state = step(x[t], state)
            torch.testing.assert_close(state[0], y[t], rtol=0, atol=1e-14)
    assert repr(cell) == "LSTMCell(4, 6, peephole=True, clip=0.7, zoneout=0.3, backend='numpy')"
    assert "clip=0.7" in rnnkit.torch.explain(cell, x[0]).layer
    changed = rnnkit.torch.RNNCell(4, 6, clip=0.1, dtype=F64, backend="numpy")
    changed.nonlinearity = "relu"  # torch.nn's cells read it in each call
    assert (changed(x[0]) >= 0).all()
    assert changed(x[0]).max() <= 0.1


@pytest.mark.slow
def test_compiled() -> None:
    for name in ("lstm", "lstm zoneout"):
        ours, _ = both(name)
        x, state = tensors(ours)
        compiled = torch.compile(ours.eval(), backend="aot_eager", fullgraph=True)
        for got, want in zip(compiled(x, state), ours(x, state), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "options", "error", "said"),
    [
        ("LSTMCell", {"recurrent_dropout": 0.2}, TypeError, "LSTMCell has no recurrent_dropout: its mask is one for"),
        ("GRUCell", {"weight_dropout": 0.2}, TypeError, "takes one step. GRU has it"),
        ("RNNCell", {"peephole": True}, TypeError, "unexpected keyword argument 'peephole'"),
        ("GRUCell", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout must be one rate for a layer without c"),
        ("GRUCell", {"clip": -1.0}, ValueError, "clip must be finite and above 0"),
        ("LSTMCell", {"zoneout": (0.1, 0.1), "peephole": True}, ValueError, "zoneout of c must be 0 with peephole"),
        ("LSTMCell", {"strict": True, "backend": "numpy"}, ValueError, "has no compiled kernels"),
    ],
)
def test_bad_arguments(kind: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        getattr(rnnkit.torch, kind)(4, 6, **options)
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: gelu"):
        rnnkit.torch.RNNCell(4, 6, nonlinearity="gelu")(torch.zeros(3, 4))
