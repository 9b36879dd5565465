"""rnnkit.torch.subclasses, for code that tests isinstance; and tools of PyTorch that go by the class of a module."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import rnnkit.torch  # noqa: E402
from rnnkit.core.dtypes import DTYPES  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.peers

BOUND = DTYPES["float64"].backward
NAMES = ("RNN", "GRU", "LSTM")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "RNN": [{"nonlinearity": "relu", "bias": False}, {"num_layers": 2, "bidirectional": True}],
    "GRU": [{"batch_first": True}, {"num_layers": 3, "bidirectional": True, "bias": False}],
    "LSTM": [{"proj_size": 3}, {"num_layers": 2, "bidirectional": True, "batch_first": True}],
}
CASES = [(name, options) for name in NAMES for options in OPTIONS[name]]


def both(name: str) -> tuple[Any, Any]:
    return getattr(rnnkit.torch.subclasses, name), getattr(nn, name)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_they_are_both_and_compute_what_torchs_compute(name: str, options: dict[str, Any]) -> None:
    ours, torchs = both(name)
    torch.manual_seed(0)
    layer = ours(4, 6, **options, dtype=torch.float64)
    assert isinstance(layer, torchs)
    assert isinstance(layer, getattr(rnnkit.torch, name))
    torch.manual_seed(0)
    other = torchs(4, 6, **options, dtype=torch.float64)
    assert repr(layer) == repr(other)
    assert list(layer.state_dict()) == list(other.state_dict())
    results = []
    for one in (layer, other):
        x = torch.linspace(-2, 2, 60, dtype=torch.float64).sin().view(5, 3, 4).requires_grad_()
        y, state = one(x)
        states = state if isinstance(state, tuple) else (state,)
        loss = sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in (y, *states))
        loss.backward()
        results.append([y, *states, x.grad, *(p.grad for p in one.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=BOUND.rtol, atol=BOUND.atol)


def test_our_own_arguments() -> None:
    layer = rnnkit.torch.subclasses.GRU(4, 6, reset_after=False, backend="numpy")
    other = rnnkit.torch.GRU(4, 6, reset_after=False)
    other.load_state_dict(layer.state_dict())
    y, _ = layer(torch.ones(5, 3, 4), lengths=[5, 0, 2])
    torch.testing.assert_close(y, other(torch.ones(5, 3, 4), lengths=[5, 0, 2])[0])
    assert y.shape == (5, 3, 6)
    assert repr(layer) == "GRU(4, 6, reset_after=False, backend='numpy')"


def test_arguments_by_position_and_bad_ones() -> None:
    layer = rnnkit.torch.subclasses.RNN(4, 6, 2, "relu", False, True, 0.5, True)
    assert repr(layer) == repr(nn.RNN(4, 6, 2, "relu", False, True, 0.5, True))
    assert layer.cell_name == "rnn_relu"
    for kind in (rnnkit.torch.subclasses.RNN, rnnkit.torch.subclasses.GRU):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            kind(4, 6, proj_size=2)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        rnnkit.torch.subclasses.LSTM(4, 6, reset_after=False)
    with pytest.raises(ValueError, match="backend must be None or one of"):
        rnnkit.torch.subclasses.LSTM(4, 6, backend="fast")


def test_a_class_between_ours_and_torchs_still_gets_the_arguments() -> None:
    seen: list[Any] = []

    class Mixin(nn.RNNBase):
        def extra_repr(self) -> str:
            seen.append(self)
            return super().extra_repr()

    class Mixed(rnnkit.torch.LSTM, Mixin):
        pass

    layer = Mixed(4, 6, num_layers=2)
    assert repr(layer) == "Mixed(4, 6, num_layers=2)"
    assert seen == [layer]


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_files(name: str) -> None:
    layer = both(name)[0](4, 6, backend="numpy")
    x = torch.ones(5, 3, 4)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is type(layer)
        assert other.backend == "numpy"
        assert torch.equal(other(x)[0], layer(x)[0])


# What tools do that go by the class


@pytest.mark.parametrize("name", NAMES)
def test_torch_compile_breaks_the_graph_at_subclasses_alone(name: str) -> None:
    x = torch.ones(5, 3, 4)
    model = nn.Sequential(nn.Linear(4, 4), getattr(rnnkit.torch, name)(4, 6))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x)[0], model(x)[0])
    model[1] = both(name)[0](4, 6)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="eager")(x)[0], model(x)[0])
    torch._dynamo.reset()  # the frame that broke is not compiled again
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"RNN, GRU,"):
        torch.compile(model, backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize("name", NAMES)
def test_torch_export_takes_them(name: str) -> None:
    x = torch.ones(5, 3, 4)
    layer = both(name)[0](4, 6)
    program = torch.export.export(layer, (x,))
    assert "rnnkit.forward" in str(program.graph)
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


@pytest.mark.parametrize("name", [*NAMES, "RNNCell", "GRUCell", "LSTMCell"])
def test_torchscript_is_refused_by_name(name: str) -> None:
    layer = getattr(rnnkit.torch, name)(4, 6)
    for model in (layer, nn.Sequential(nn.Linear(4, 4), layer)):
        with pytest.raises(NotImplementedError, match=f"torch.jit.script cannot compile {name} of rnnkit.torch: use"):
            torch.jit.script(model)
    model = nn.ModuleDict({"rnn": getattr(nn, name)(4, 6)})
    rnnkit.torch.replace(model, subclasses=True)
    with pytest.raises(NotImplementedError, match=r"rnnkit\.torch\.restore\(model\)"):
        torch.jit.script(model["rnn"])
    rnnkit.torch.restore(model)
    torch.jit.script(model["rnn"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantize_dynamic_leaves_them() -> None:
    model = nn.ModuleDict({"rnn": rnnkit.torch.subclasses.LSTM(4, 6), "head": nn.Linear(6, 1)})
    found = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.Linear})
    assert type(found["rnn"]) is rnnkit.torch.subclasses.LSTM
    assert "quantized" in type(found["head"]).__module__
    replaced = nn.ModuleDict({"rnn": nn.LSTM(4, 6)})
    rnnkit.torch.replace(replaced)
    rnnkit.torch.restore(replaced)
    found = torch.ao.quantization.quantize_dynamic(replaced, {nn.LSTM})
    assert "quantized" in type(found["rnn"]).__module__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_records_the_operator_without_gradients() -> None:
    layer = rnnkit.torch.LSTM(4, 6)
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        assert torch.equal(torch.jit.load(file)(2 * x)[0], layer(2 * x)[0])


class Leaves(torch.fx.Tracer):
    """As docs/from-torch.md writes it."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.RNNBase | nn.RNNCellBase) or super().is_leaf_module(module, name)


def test_fx_takes_them_as_leaves() -> None:
    model = nn.Sequential(nn.Linear(4, 4), rnnkit.torch.GRU(4, 6))
    x = torch.ones(5, 3, 4)
    with pytest.raises((TypeError, torch.fx.proxy.TraceError), match=r"got Proxy|symbolically traced"):
        torch.fx.symbolic_trace(model)
    traced = torch.fx.GraphModule(model, Leaves().trace(model))
    assert torch.equal(traced(x)[0], model(x)[0])
