"""Options, layer_norm and zoneout of rnnkit.torch's Cells: those of rnnkit's Cells, with all derivatives; refusals."""

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
    "lstm haste": ("LSTM", {"layer_norm": "haste", "norm_eps": 1e-2}),
    "lstm torch": ("LSTM", {"layer_norm": "torch", "bias": False}),
    "gru": ("GRU", {"clip": 0.5, "activations": ("Softplus", ("ScaledTanh", 1.2, 0.7)), "zoneout": 0.3}),
    "gru haste": ("GRU", {"layer_norm": "haste"}),
    "gru dreamer": ("GRU", {"layer_norm": "dreamer"}),
    "reset before": ("GRU", {"reset_after": False, "clip": 0.5, "activations": ("Sigmoid", ("Affine", 0.6, 0.1))}),
    "rnn": ("RNN", {"clip": 0.9, "activations": (("LeakyRelu", 0.1),)}),
    "relu": ("RNN", {"nonlinearity": "relu", "clip": 0.9, "zoneout": 0.5}),
}
NORMALISED = [name for name, (_, options) in CELLS.items() if "layer_norm" in options]
F64 = torch.float64


def both(name: str) -> tuple[Any, Any]:
    """A Cell of rnnkit.torch and one of rnnkit, with equal weights, in float64."""
    kind, options = CELLS[name]
    torch.manual_seed(0)
    ours = getattr(rnnkit.torch, f"{kind}Cell")(4, 6, dtype=F64, backend="numpy", **options)
    with torch.no_grad():
        for p in ours.parameters():  # gains of 1 and biases of 0 would hide some errors
            p.add_(0.3 * torch.randn_like(p))
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


def as_function(cell: Any) -> Any:
    """The Cell as a function of flat tensors, x, the states and the weights, and these for one row."""
    x, state = tensors(cell)
    given = (x[:2], *(s[:2] for s in parts(state)), *cell.parameters())
    names = [name for name, _ in cell.named_parameters()]
    count = len(parts(state))

    def call(x: Any, *rest: Any) -> Any:
        weights = dict(zip(names, rest[count:], strict=True))
        hx = rest[:count] if count > 1 else rest[0]
        return parts(torch.func.functional_call(cell, weights, (x, hx)))

    return call, tuple(g.detach().requires_grad_() for g in given)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "coupled", "reset before"])
def test_first_and_second_derivatives(name: str) -> None:
    ours, _ = both(name)
    call, given = as_function(ours)
    assert torch.autograd.gradcheck(call, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)


@pytest.mark.parametrize("name", NORMALISED)
def test_derivatives_with_layer_norm(name: str) -> None:
    """gradcheck, gradgradcheck and forward mode of every input, state and parameter; torch.func.grad under vmap."""
    ours, _ = both(name)
    call, given = as_function(ours)
    assert torch.autograd.gradcheck(call, given, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)

    def loss(*given: Any) -> Any:
        return sum((part * torch.linspace(-1, 1, part.numel()).view(part.shape)).sum() for part in call(*given))

    each = torch.func.grad(loss, argnums=tuple(range(len(given))))
    xs = torch.randn(3, 2, 4, dtype=F64)
    fixed = [g.detach() for g in given[1:]]
    found = torch.vmap(each, in_dims=(0, *[None] * len(fixed)))(xs, *fixed)
    for k in range(3):
        recorded = [g.clone().requires_grad_() for g in (xs[k], *fixed)]
        for got, want in zip(found, torch.autograd.grad(loss(*recorded), recorded), strict=True):
            torch.testing.assert_close(got[k], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NORMALISED)
def test_steps_with_layer_norm_are_the_layer(name: str) -> None:
    """Every h_t, and the gradients of x, the state and all parameters through the loop."""
    kind, options = CELLS[name]
    cell, _ = both(name)
    layer = getattr(rnnkit.torch, kind)(4, 6, dtype=F64, backend="numpy", **options)
    layer.load_state_dict({f"{n}_l0": p for n, p in cell.state_dict().items()})
    x, dy = torch.randn(5, 3, 4, dtype=F64, requires_grad=True), torch.randn(5, 3, 6, dtype=F64)
    _, state = tensors(cell)
    y, ends = layer(x, tuple(s[None] for s in state) if isinstance(state, tuple) else state[None])
    now, steps = state, []
    for one in x:
        now = cell(one, now)
        steps.append(parts(now)[0])
    outputs = torch.stack(steps)
    torch.testing.assert_close(outputs, y, rtol=0, atol=1e-14)
    for got, want in zip(parts(now), parts(ends), strict=True):
        torch.testing.assert_close(got, want[0], rtol=0, atol=1e-14)
    given = [x, *parts(state)]
    found = torch.autograd.grad(
        [outputs, *parts(now)], [*given, *cell.parameters()], [dy, *(dy[0] for _ in parts(now))]
    )
    wanted = torch.autograd.grad([y, *parts(ends)], [*given, *layer.parameters()], [dy, *(dy[:1] for _ in parts(now))])
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_parameters_and_copies_with_layer_norm() -> None:
    cell = rnnkit.torch.LSTMCell(4, 6, layer_norm="torch", norm_eps=1e-3, backend="numpy")
    plain = rnnkit.LSTMCell(4, 6, layer_norm="torch", norm_eps=1e-3)
    assert {n: tuple(p.shape) for n, p in cell.state_dict().items()} == {n: p.shape for n, p in plain.params.items()}
    for name, p in cell.named_parameters():
        if name.startswith(("bias", "weight_layer_norm")):
            assert np.array_equal(p.detach().numpy(), plain.params[name]), name
    assert repr(cell) == "LSTMCell(4, 6, layer_norm='torch', norm_eps=0.001, backend='numpy')"
    x = torch.randn(3, 4)
    assert "layer_norm='torch'" in rnnkit.torch.explain(cell, x).layer
    with torch.no_grad():
        for p in cell.parameters():
            p.add_(0.3)
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert torch.equal(twin(x)[0], cell(x)[0])
    drawn = cell.weight_ih.clone()
    cell.reset_parameters()
    assert not torch.equal(cell.weight_ih, drawn)
    assert (cell.weight_layer_norm[:9] == 1).all()
    assert not cell.weight_layer_norm[9].any()
    assert not cell.bias_hh.any()
    cell.weight_layer_norm = torch.nn.Parameter(torch.ones(9, 6))
    with pytest.raises(RuntimeError, match=r"weight_layer_norm_l0 must have the shape \(10, 6\), got \(9, 6\)"):
        cell(x)


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
    for name in ("lstm", "lstm zoneout", *NORMALISED):
        ours, _ = both(name)
        x, state = tensors(ours)
        compiled = torch.compile(ours.eval(), backend="aot_eager", fullgraph=True)
        given = [x, *parts(state), *ours.parameters()]
        new, want = parts(compiled(x, state)), parts(ours(x, state))
        grads = [torch.randn(3, 6, dtype=F64) for _ in new]
        found, wanted = (torch.autograd.grad(s, given, grads) for s in (new, want))
        for got, value in zip((*new, *found), (*want, *wanted), strict=True):
            torch.testing.assert_close(got, value, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "options", "error", "said"),
    [
        ("LSTMCell", {"recurrent_dropout": 0.2}, TypeError, "LSTMCell has no recurrent_dropout: its mask is one for"),
        ("GRUCell", {"weight_dropout": 0.2}, TypeError, "takes one step. GRU has it"),
        ("RNNCell", {"peephole": True}, TypeError, "unexpected keyword argument 'peephole'"),
        ("GRUCell", {"zoneout": (0.1, 0.2)}, ValueError, "zoneout must be one rate for a layer without c"),
        ("GRUCell", {"clip": -1.0}, ValueError, "clip must be finite and above 0"),
        ("LSTMCell", {"layer_norm": "dreamer"}, ValueError, "layer_norm must be one of 'haste', 'torch'"),
        ("GRUCell", {"layer_norm": "haste", "reset_after": False}, ValueError, "layer_norm must be None with reset"),
        ("LSTMCell", {"layer_norm": "haste", "zoneout": 0.1}, ValueError, "zoneout must be off with layer_norm"),
        ("LSTMCell", {"layer_norm": "haste", "peephole": True}, ValueError, "peephole must be off with layer_norm"),
        ("GRUCell", {"norm_eps": 0.1}, ValueError, "norm_eps must be None without layer_norm"),
        ("RNNCell", {"layer_norm": "haste"}, TypeError, "unexpected keyword argument 'layer_norm'"),
        ("LSTMCell", {"zoneout": (0.1, 0.1), "peephole": True}, ValueError, "zoneout of c must be 0 with peephole"),
        ("LSTMCell", {"strict": True, "backend": "numpy"}, ValueError, "has no compiled kernels"),
    ],
)
def test_bad_arguments(kind: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        getattr(rnnkit.torch, kind)(4, 6, **options)
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: gelu"):
        rnnkit.torch.RNNCell(4, 6, nonlinearity="gelu")(torch.zeros(3, 4))
