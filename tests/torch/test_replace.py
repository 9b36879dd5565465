"""replace() makes the layers of a model rnnkit's, restore() torch.nn's again, and nothing else changes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import rnnkit.torch  # noqa: E402
from rnnkit.core.dtypes import DTYPES  # noqa: E402

nn = torch.nn
pytestmark = pytest.mark.peers

LAYERS = {
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {"bidirectional": True}),
    "lstm": (nn.LSTM, {"proj_size": 3, "batch_first": True}),
    "bare lstm": (nn.LSTM, {"bias": False, "num_layers": 2}),
}
CELLS = {"rnn": (nn.RNNCell, {"nonlinearity": "relu"}), "gru": (nn.GRUCell, {"bias": False}), "lstm": (nn.LSTMCell, {})}
BOUND = DTYPES["float64"].backward
OURS = {name: getattr(rnnkit.torch, name) for name in rnnkit.torch.__all__ if hasattr(nn, name)}


class Model(nn.Module):
    """Recurrent layers and cells at several depths: one at two places, two with a common parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"rnn": nn.LSTM(4, 6, 2, bidirectional=True)}))
        self.cells = nn.ModuleList([nn.RNNCell(12, 6), nn.GRUCell(6, 6), nn.LSTMCell(6, 6)])
        self.decoder = nn.GRU(6, 6)
        self.same = self.decoder
        self.tied = nn.GRU(6, 6)
        self.tied.weight_hh_l0 = self.decoder.weight_hh_l0

    def forward(self, words: Any) -> Any:
        y, _ = self.encoder[1]["rnn"](self.encoder[0](self.embedding(words)))
        h = self.cells[1](self.cells[0](y[-1]))
        h, _ = self.cells[2](h)
        return self.tied(self.same(self.decoder(h[None])[0])[0])[0]


def model() -> Model:
    torch.manual_seed(0)
    return Model().double()


def words() -> Any:
    return torch.randint(9, (5, 3), generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module) -> dict[str, Any]:
    module.zero_grad()
    y = module(words())
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {"y": y.detach(), **{name: p.grad.clone() for name, p in module.named_parameters()}}


def record(module: nn.Module) -> Any:
    """All that a module holds, by identity: for each submodule its class and all attributes."""

    def held(value: Any) -> Any:
        if isinstance(value, dict):
            return [(key, held(v)) for key, v in value.items()]
        return [held(v) for v in value] if isinstance(value, list | tuple) else id(value)

    return [(name, type(part), held(vars(part))) for name, part in module.named_modules(remove_duplicate=False)]


def assert_close(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=BOUND.rtol, atol=BOUND.atol)


@pytest.mark.parametrize("subclasses", [False, True])
def test_a_model_computes_the_same_with_our_layers(subclasses: bool) -> None:
    module = model()
    want = gradients(module)
    report = rnnkit.torch.replace(module, subclasses=subclasses)
    for part in module.modules():
        if isinstance(part, nn.RNNBase | nn.RNNCellBase):
            assert isinstance(part, OURS[type(part).__name__])
            assert type(part).__module__.startswith("rnnkit.torch.")
            assert isinstance(part, getattr(nn, type(part).__name__)) == (subclasses or "Cell" in type(part).__name__)
    assert_close(gradients(module), want)
    prefix = "rnnkit.torch.subclasses" if subclasses else "rnnkit.torch"
    assert [(s.names, s.before, s.after) for s in report.swapped] == [
        (("encoder.1.rnn",), "torch.nn.LSTM", f"{prefix}.LSTM"),
        (("cells.0",), "torch.nn.RNNCell", "rnnkit.torch.RNNCell"),
        (("cells.1",), "torch.nn.GRUCell", "rnnkit.torch.GRUCell"),
        (("cells.2",), "torch.nn.LSTMCell", "rnnkit.torch.LSTMCell"),
        (("decoder", "same"), "torch.nn.GRU", f"{prefix}.GRU"),
        (("tied",), "torch.nn.GRU", f"{prefix}.GRU"),
    ]
    assert report.left == ()


def test_our_operator_runs_and_torchs_no_more() -> None:
    module = model()
    rnnkit.torch.replace(module)
    with torch.profiler.profile() as profile:
        module(words())
    names = [event.name for event in profile.events()]
    assert names.count("rnnkit::forward") == 7  # the decoder is called twice
    assert not {"aten::lstm", "aten::gru", "aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell"} & set(names)


@pytest.mark.parametrize("subclasses", [False, True])
def test_a_round_trip_leaves_every_object_and_bit(subclasses: bool) -> None:
    module = model()
    want = gradients(module)
    before = record(module)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    swapped = rnnkit.torch.replace(module, backend="numpy", subclasses=subclasses).swapped
    report = rnnkit.torch.restore(module)
    assert [(s.names, s.after, s.before) for s in report.swapped] == [(s.names, s.before, s.after) for s in swapped]
    assert report.left == ()
    assert record(module) == before
    assert list(module.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    again = gradients(module)
    assert all(torch.equal(again[name], value) for name, value in want.items())
    assert rnnkit.torch.restore(module) == rnnkit.torch.Report((), ())


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_by_itself_keeps_its_arguments(name: str) -> None:
    kind, options = LAYERS[name]
    layer = kind(4, 6, **options, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    want = layer(x)[0]
    said = repr(layer)
    (swap,) = rnnkit.torch.replace(layer).swapped
    assert swap.names == ("",)
    assert type(layer) is getattr(rnnkit.torch, kind.__name__)
    assert repr(layer) == said
    torch.testing.assert_close(layer(x)[0], want)
    rnnkit.torch.restore(layer)
    assert type(layer) is kind
    assert torch.equal(layer(x)[0], want)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_by_itself_keeps_its_arguments(name: str) -> None:
    kind, options = CELLS[name]
    cell = kind(4, 6, **options, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)
    want = cell(x)
    rnnkit.torch.replace(cell)
    assert type(cell) is getattr(rnnkit.torch, kind.__name__)
    torch.testing.assert_close(cell(x), want)
    rnnkit.torch.restore(cell)
    assert type(cell) is kind


def test_the_backend_is_that_which_was_named() -> None:
    module = model()
    rnnkit.torch.replace(module, backend="numpy")
    assert [m.backend for m in module.modules() if hasattr(m, "backend")] == ["numpy"] * 6


# What is kept


def test_an_optimizer_made_before_goes_on() -> None:
    module = model()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    other = copy.deepcopy(module)
    other_optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    for step in range(4):
        if step == 1:
            rnnkit.torch.replace(module)
        if step == 3:
            rnnkit.torch.restore(module)
        gradients(module)
        gradients(other)
        optimizer.step()
        other_optimizer.step()
    assert_close(dict(module.named_parameters()), dict(other.named_parameters()))
    assert module.tied.weight_hh_l0 is module.decoder.weight_hh_l0


def test_hooks_modes_and_attributes_are_kept() -> None:
    layer = nn.LSTM(4, 6).eval().requires_grad_(False)
    layer.bias_hh_l0.requires_grad_(True)
    layer.register_buffer("scale", torch.ones(2))
    layer.note = "mine"
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: seen.append("state_dict"))
    layer.register_load_state_dict_pre_hook(lambda *_: seen.append("load_state_dict"))
    layer.bias_hh_l0.register_hook(lambda _: seen.append("gradient"))
    for change in (lambda _: None, rnnkit.torch.replace, rnnkit.torch.restore):
        change(layer)
        seen.clear()
        layer(torch.ones(5, 3, 4, requires_grad=True))[0].sum().backward()
        layer.load_state_dict(layer.state_dict())
        assert seen[:2] == ["before", "after"]
        assert sorted(seen[2:]) == ["backward", "gradient", "load_state_dict", "state_dict"]
        assert not layer.training
        assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["bias_hh_l0"]
        assert layer.note == "mine"
        assert "scale" in layer.state_dict()


def weight_norm(layer: Any) -> None:
    nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")


def old_weight_norm(layer: Any) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer, "weight_hh_l0")


def prune(layer: Any) -> None:
    import torch.nn.utils.prune

    torch.nn.utils.prune.l1_unstructured(layer, "weight_hh_l0", 0.5)


@pytest.mark.parametrize("prepare", [weight_norm, old_weight_norm, prune])
def test_weights_that_are_computed_stay_computed(prepare: Any) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(4, 6, dtype=torch.float64)
    prepare(layer)
    x = torch.randn(5, 3, 4, dtype=torch.float64)

    def results() -> dict[str, Any]:
        layer.zero_grad()
        y = layer(x)[0]
        (y**2).sum().backward()
        return {"y": y.detach(), **{name: p.grad.clone() for name, p in layer.named_parameters()}}

    want = results()
    ids = {name: id(p) for name, p in layer.named_parameters()}
    (swap,) = rnnkit.torch.replace(layer).swapped
    assert isinstance(layer, rnnkit.torch.LSTM)
    assert not isinstance(layer, nn.LSTM)
    assert swap.after.startswith("rnnkit.torch.LSTM")
    assert_close(results(), want)
    rnnkit.torch.restore(layer)
    assert isinstance(layer, nn.LSTM)
    assert {name: id(p) for name, p in layer.named_parameters()} == ids
    again = results()
    assert all(torch.equal(again[name], value) for name, value in want.items())


def test_parametrizations_are_added_and_removed_as_before() -> None:
    layer, other = nn.LSTM(4, 6), nn.LSTM(4, 6)
    rnnkit.torch.replace(layer)
    weight_norm(layer)
    weight_norm(other)
    rnnkit.torch.replace(other)
    assert isinstance(copy.deepcopy(other), rnnkit.torch.LSTM)
    for one in (layer, other):
        nn.utils.parametrize.remove_parametrizations(one, "weight_hh_l0")
        assert type(one) is rnnkit.torch.LSTM
        rnnkit.torch.restore(one)
        assert type(one) is nn.LSTM
        one(torch.ones(5, 3, 4))


def test_copies_and_files_of_a_replaced_model_can_be_restored() -> None:
    module = model()
    want = gradients(module)
    rnnkit.torch.replace(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert isinstance(other.decoder, rnnkit.torch.GRU)
        rnnkit.torch.restore(other)
        assert type(other.decoder) is nn.GRU
        assert other.same is other.decoder
        assert other.tied.weight_hh_l0 is other.decoder.weight_hh_l0
        assert all(torch.equal(value, want[name]) for name, value in gradients(other).items())
    assert isinstance(module.decoder, rnnkit.torch.GRU), "the original is none of the copies"


def test_a_compiled_model_compiles_our_layer_instead_of_breaking_its_graph() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 6))
    x = torch.ones(5, 3, 4)
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, backend=keep)
    want = compiled(x)[0]
    (swap,) = rnnkit.torch.replace(compiled).swapped
    assert swap.names == ("_orig_mod.1",)
    graphs.clear()
    torch.testing.assert_close(compiled(x)[0], want)
    assert len(graphs) == 1, "the class of the layer is a guard of the compiled code"
    assert "torch.ops.rnnkit.forward" in graphs[0].print_readable(print_output=False)


# What is left


class Plain(nn.LSTM):
    pass


class OwnForward(nn.GRUCell):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return input


class OwnLayer(nn.RNNBase):
    def __init__(self) -> None:
        super().__init__("LSTM", 4, 6)


def with_forward() -> nn.Module:
    layer = nn.LSTM(4, 6)
    layer.forward = lambda *_: None  # type: ignore[method-assign]
    return layer


def with_attribute(name: str) -> nn.Module:
    layer = nn.GRU(4, 6)
    setattr(layer, name, 1)
    return layer


def lazy() -> nn.Module:
    layer = nn.LSTM(4, 6)
    layer.weight_ih_l0 = nn.UninitializedParameter()
    return layer


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 6)), {nn.LSTM})[0]


HERE = __name__
LEFT = {
    "ours": (lambda: rnnkit.torch.GRU(4, 6), "rnnkit.torch.GRU", "is rnnkit's already"),
    "ours, as a subclass": (
        lambda: rnnkit.torch.subclasses.GRU(4, 6),
        "rnnkit.torch.subclasses.GRU",
        "is rnnkit's already",
    ),
    "a subclass": (
        lambda: Plain(4, 6),
        f"{HERE}.Plain",
        "its class is derived from torch.nn.LSTM: derive it from rnnkit.torch.LSTM instead",
    ),
    "a forward": (
        lambda: OwnForward(4, 6),
        f"{HERE}.OwnForward",
        "its class is derived from torch.nn.GRUCell, and has a forward of its own",
    ),
    "another layer": (
        OwnLayer,
        f"{HERE}.OwnLayer",
        "its class is derived from torch.nn.RNNBase, and defines another layer",
    ),
    "a forward that was set": (with_forward, "torch.nn.LSTM", "a forward was set on it"),
    "an attribute": (
        lambda: with_attribute("backend"),
        "torch.nn.GRU",
        "an attribute 'backend' was set on it, which rnnkit's class has too",
    ),
    "a hidden attribute": (
        lambda: with_attribute("cell_name"),
        "torch.nn.GRU",
        "an attribute 'cell_name' was set on it, which rnnkit's class has too",
    ),
    "lazy": (lazy, "torch.nn.LSTM", "has parameters that are not initialised: call the model once before"),
    "complex": (
        lambda: nn.LSTM(4, 6, dtype=torch.complex64),
        "torch.nn.LSTM",
        "no backend can run lstm in complex64 on cpu: numba: does not serve complex64; numpy: does not serve complex64",
    ),
    "scripted": (lambda: torch.jit.script(nn.GRU(4, 6)), "RecursiveScriptModule of GRU", "is compiled by TorchScript"),
    "quantized": (quantized, "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM", "is quantized"),
    "quantizable": (
        lambda: torch.ao.nn.quantizable.LSTM(4, 6),
        "torch.ao.nn.quantizable.modules.rnn.LSTM",
        "is quantized",
    ),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_swapped_is_left_and_named(case: str) -> None:
    make, kind, why = LEFT[case]
    module = nn.Sequential(nn.GRU(4, 6), make())
    before = record(module[1])
    report = rnnkit.torch.replace(module)
    assert [s.names for s in report.swapped] == [("0",)]
    assert [(entry.names, entry.kind, entry.why) for entry in report.left] == [(("1",), kind, why)]
    assert record(module[1]) == before
    assert f"  1  {kind}: {why}" in str(report).splitlines()


def test_parameters_on_other_devices_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.GRU(4, 6)

    class Elsewhere(nn.Parameter):
        device = torch.device("mps")

    layer.bias_hh_l0 = Elsewhere(layer.bias_hh_l0.data)
    (left,) = rnnkit.torch.replace(layer).left
    assert left.why == "its parameters are on mps, and rnnkit runs on cpu and cuda"


def test_a_backend_that_does_not_serve_a_layer_leaves_it() -> None:
    module = nn.Sequential(nn.GRU(4, 6), nn.GRU(6, 6, dtype=torch.complex64))
    report = rnnkit.torch.replace(module, backend="numba")
    assert [s.names for s in report.swapped] == [("0",)]
    assert "backend 'numba' serves" in report.left[0].why


def test_replacing_twice_swaps_nothing_more() -> None:
    module = model()
    rnnkit.torch.replace(module)
    before = record(module)
    report = rnnkit.torch.replace(module, subclasses=True)
    assert report.swapped == ()
    assert {entry.why for entry in report.left} == {"is rnnkit's already"}
    assert record(module) == before


def test_restore_leaves_what_was_built_as_ours() -> None:
    module = nn.Sequential(rnnkit.torch.GRU(4, 6), nn.GRU(6, 6), nn.LSTM(6, 6))
    rnnkit.torch.replace(module)
    module[1].reset_after = False
    report = rnnkit.torch.restore(module)
    assert [s.names for s in report.swapped] == [("2",)]
    assert [(entry.names, entry.why) for entry in report.left] == [
        (("0",), "was built as rnnkit's"),
        (("1",), "has reset_after=False, which torch.nn does not have"),
    ]
    assert type(module[0]) is type(module[1]) is rnnkit.torch.GRU


def test_restore_leaves_a_class_that_was_changed_since() -> None:
    layer = nn.GRU(4, 6)
    rnnkit.torch.replace(layer)
    layer.__class__ = type("FSDPGRU", (rnnkit.torch.GRU,), {})
    (left,) = rnnkit.torch.restore(layer).left
    assert left.why == "its class was changed after replace"
    assert type(layer).__name__ == "FSDPGRU"


# Bad arguments, and the report


def test_bad_arguments() -> None:
    layer = nn.GRU(4, 6)
    for function in (rnnkit.torch.replace, rnnkit.torch.restore):
        with pytest.raises(TypeError, match=r"^module must be a torch.nn.Module, got OrderedDict$"):
            function(layer.state_dict())
    with pytest.raises(ValueError, match=r"backend must be None or one of 'numba', 'numpy'.*got 'fast'"):
        rnnkit.torch.replace(layer, backend="fast")
    with pytest.raises(TypeError, match="subclasses must be"):
        rnnkit.torch.replace(layer, subclasses=1)
    assert type(layer) is nn.GRU


def test_the_report_is_a_table() -> None:
    module = nn.ModuleDict({"encoder": nn.LSTM(4, 6), "head": nn.Linear(6, 1), "own": OwnForward(4, 6)})
    module["again"] = module["encoder"]
    assert str(rnnkit.torch.replace(module)) == (
        "swapped\n"
        "  encoder, again  torch.nn.LSTM -> rnnkit.torch.LSTM\n"
        "left\n"
        f"  own             {HERE}.OwnForward: its class is derived from torch.nn.GRUCell, and has a forward of its own"
    )
    assert str(rnnkit.torch.replace(nn.Linear(1, 1))) == "no recurrent layer"
