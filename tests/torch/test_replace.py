"""replace() makes the layers of a model rnnkit's, restore() torch.nn's again, and nothing else changes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import rnnkit.torch  # noqa: E402
from rnnkit.core.dtypes import DTYPES  # noqa: E402
from tests.torch.models import gradients, model, record, words  # noqa: E402

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
