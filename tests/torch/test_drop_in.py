"""rnnkit.torch's modules have torch.nn's constructors, attributes, repr and state_dict."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import rnnkit.torch  # noqa: E402
from tests.torch.pairs import CELLS, CONFIGS, LAYERS, close, label, pair, states  # noqa: E402

pytestmark = pytest.mark.peers

POSITIONAL: dict[str, tuple[Any, ...]] = {
    "RNN": (3, 5, 2, "relu", False, True, 0.25, True),  # torch.nn has device and dtype by keyword only
    "GRU": (3, 5, 2, False, True, 0.25, True),
    "LSTM": (3, 5, 2, False, True, 0.25, True, 4, "cpu", torch.float64),
    "RNNCell": (3, 5, False, "relu", "cpu", torch.float64),
    "GRUCell": (3, 5, False, "cpu", torch.float64),
    "LSTMCell": (3, 5, False, "cpu", torch.float64),
}


@pytest.mark.parametrize("kind", POSITIONAL)
def test_all_arguments_by_position(kind: str) -> None:
    ours, theirs = (getattr(library, kind)(*POSITIONAL[kind]) for library in (rnnkit.torch, torch.nn))
    assert repr(ours) == repr(theirs)
    for name in theirs.__constants__:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert [(n, p.shape, p.dtype) for n, p in ours.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in theirs.named_parameters()
    ]


@pytest.mark.parametrize("kind", POSITIONAL)
def test_own_arguments_are_by_keyword_only(kind: str) -> None:
    own = {"backend", "reset_after", "unknown"}
    parameters = inspect.signature(getattr(rnnkit.torch, kind)).parameters.values()
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    device_and_dtype = 2 if kind in ("RNN", "GRU") else 0
    assert len(by_position) == len(POSITIONAL[kind]) + device_and_dtype
    assert own.isdisjoint(by_position)


@pytest.mark.parametrize(("kind", "options"), CONFIGS, ids=label)
def test_attributes(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 4, 6, **options)
    assert repr(ours) == repr(theirs)
    assert ours.mode == theirs.mode
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours._all_weights == theirs._all_weights
    for mine, other in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert [w.shape for w in mine] == [w.shape for w in other]
        assert all(isinstance(w, torch.nn.Parameter) for w in mine)
    assert all(w is getattr(ours, n) for w, n in zip(ours._flat_weights, ours._flat_weights_names, strict=True))
    assert ours.flatten_parameters() is None
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    sizes = torch.tensor([3, 1])
    assert ours.get_expected_hidden_size(x[0], sizes) == theirs.get_expected_hidden_size(x[0], sizes)
    hx = states(ours, 2 if ours.batch_first else 3)
    ours.check_forward_args(x, hx, None)
    order = torch.tensor([1, 0])
    close(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
    assert ours.permute_hidden(hx, None) is hx
    if kind == "LSTM":
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_initial_weights_are_torch_s(kind: str) -> None:
    made = []
    for library in (rnnkit.torch, torch.nn):
        torch.manual_seed(3)
        made.append(getattr(library, kind)(4, 6).state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[1])


@pytest.mark.parametrize(("kind", "options"), [*CONFIGS, *((c, {}) for c in CELLS)], ids=label)
def test_state_dict_both_ways(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 4, 6, **options)  # loads theirs into ours
    other = getattr(torch.nn, kind)(4, 6, dtype=torch.float64, **options)
    other.load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(5, 3, 4, dtype=torch.float64) if kind in LAYERS else torch.randn(3, 4, dtype=torch.float64)
    close(ours(x), other(x))


@pytest.mark.parametrize("kind", ["GRU", "GRUCell"])
def test_state_dicts_of_the_two_grus_refuse_each_other(kind: str) -> None:
    before = getattr(rnnkit.torch, kind)(4, 6, reset_after=False)
    again = getattr(rnnkit.torch, kind)(4, 6, reset_after=False)
    again.load_state_dict(before.state_dict(), strict=True)
    x = torch.randn(3, 4)
    assert torch.equal(before(x)[0], again(x)[0])
    for other in (getattr(torch.nn, kind)(4, 6), getattr(rnnkit.torch, kind)(4, 6)):
        with pytest.raises(RuntimeError, match=r"Unexpected key.*reset_before"):
            other.load_state_dict(before.state_dict())
        with pytest.raises(RuntimeError, match=r"Missing key.*reset_before"):
            before.load_state_dict(other.state_dict())
    inside = torch.nn.Sequential(before)
    assert "0.reset_before" in inside.state_dict()


def test_repr_shows_own_arguments() -> None:
    assert repr(rnnkit.torch.GRU(4, 6, reset_after=False, backend="numpy")) == (
        "GRU(4, 6, reset_after=False, backend='numpy')"
    )
    assert repr(rnnkit.torch.GRUCell(4, 6, reset_after=False, backend="numpy")) == (
        "GRUCell(4, 6, reset_after=False, backend='numpy')"
    )
    assert repr(rnnkit.torch.LSTM(4, 6)) == "LSTM(4, 6)"


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_named_backend_runs(kind: str) -> None:
    ours, theirs = pair(kind, 4, 6)
    ours.backend = "numpy"
    x = torch.randn(5, 3, 4, dtype=torch.float64) if kind in LAYERS else torch.randn(3, 4, dtype=torch.float64)
    close(ours(x), theirs(x))
    with pytest.raises(ValueError, match="backend"):
        getattr(rnnkit.torch, kind)(4, 6, backend="cudnn")


def test_warns_of_dropout_in_one_layer_as_torch_does() -> None:
    for library in (rnnkit.torch, torch.nn):
        with pytest.warns(UserWarning, match="num_layers greater than 1, but got dropout=0.5 and num_layers=1"):
            library.GRU(4, 6, dropout=0.5)


def test_calls_by_keyword() -> None:
    ours, theirs = pair("LSTM", 4, 6)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    hx = states(ours, 3)
    close(ours(input=x, hx=hx), theirs(input=x, hx=hx))
    close(ours(x, list(hx)), theirs(x, list(hx)))
