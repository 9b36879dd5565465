"""Where a call with CUDA tensors waits for the device: nowhere with a PackedSequence, once with `lengths` on it.

With tensors that say they are on a device (tests/torch/on_card.py). The kernels' part is in test_cuda_path.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

import rnnkit.torch as rt  # noqa: E402
from tests.torch.on_card import Card, OnCard, from_card, on_card  # noqa: E402
from tests.torch.tracing import LAYERS, assert_same, inputs, leaves, made  # noqa: E402

pytestmark = pytest.mark.peers
T, B = 5, 3
RAGGED = [2, 5, 1]
COPY = "aten._to_copy.default from the device"


@pytest.fixture(autouse=True)
def _cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch for the CPU lacks."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)


def moved(layer: Any) -> Any:
    """A copy of the layer whose weights are on the card."""
    made = copy.deepcopy(layer).requires_grad_(False)
    for name, weight in list(made.named_parameters()):
        setattr(made, name, torch.nn.Parameter(on_card(weight), requires_grad=False))
    return made


def packed(x: Any, enforce_sorted: bool) -> Any:
    lengths = sorted(RAGGED, reverse=True) if enforce_sorted else RAGGED
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)


def put(tree: Any) -> Any:
    """Nested tensors on the card; of a PackedSequence all but batch_sizes, as `PackedSequence.to` moves it."""
    if isinstance(tree, PackedSequence):
        data, sizes, *orders = tree
        return PackedSequence(on_card(data), sizes, *[None if o is None else on_card(o) for o in orders])
    return tuple(map(put, tree)) if isinstance(tree, tuple) else on_card(tree)


def assert_equal_to(ours: Any, theirs: Any) -> None:
    assert all(isinstance(t, OnCard) for t in leaves(ours) if t.is_floating_point())
    assert_same([from_card(t) for t in leaves(ours)], leaves(theirs))


@torch.no_grad()
@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_sequence_waits_for_nothing(name: str, enforce_sorted: bool, with_states: bool) -> None:
    """Its batch_sizes, one number per step, are sent to the device."""
    layer = made(name)
    x, hx = inputs(layer, T, B)
    given = packed(x, enforce_sorted)
    expected = layer(given, hx if with_states else None)
    on_device = moved(layer)
    with Card() as card:
        ours = on_device(put(given), put(hx) if with_states else None)
    assert card.waits == []
    assert card.uploads == T
    assert_equal_to(ours, expected)


@torch.no_grad()
def test_dropout_of_a_packed_sequence_waits_for_nothing() -> None:
    layer = moved(rt.LSTM(4, 6, 3, dropout=0.5))
    with Card() as card:
        layer(put(packed(torch.randn(T, B, 4), False)))
    assert (card.waits, card.uploads) == ([], T)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("where", ["host", "list", "device"])
def test_lengths_on_the_device_are_copied_once(where: str, dtype: Any) -> None:
    layer = made("lstm_bidirectional")
    x, hx = inputs(layer, T, B)
    lengths = torch.tensor(RAGGED, dtype=dtype)
    given = {"host": lengths, "list": RAGGED, "device": on_card(lengths)}[where]
    on_device = moved(layer)
    with Card() as card:
        ours = on_device(put(x), put(hx), lengths=given)
    assert card.waits == [COPY] * (where == "device")
    assert_equal_to(ours, layer(x, hx, lengths=lengths))


@torch.no_grad()
def test_a_plain_call_waits_for_nothing() -> None:
    layer = moved(made("gru_two_layers"))
    x, hx = inputs(layer, T, B)
    with Card() as card:
        layer(put(x)), layer(put(x), put(hx))
    assert (card.waits, card.uploads) == ([], 0)


def test_a_traced_call_copies_lengths_before_the_operator() -> None:
    """So the operator and its backward have the same copy."""
    layer = made("gru_two_layers")
    x, _ = inputs(layer, T, B)
    graphs: list[Any] = []

    def noting(module: Any, _: Any) -> Any:
        graphs.append(module.graph)
        return module

    lengths = torch.tensor(RAGGED)
    compiled = torch.compile(layer, backend=noting, fullgraph=True)
    assert_same(compiled(x, lengths=lengths), layer(x, lengths=lengths))
    (copied,) = [node for node in graphs[0].nodes if node.target == "to"]
    (forward,) = [node for node in graphs[0].nodes if "rnnkit" in str(node.target)]
    assert copied.args[1:] == ("cpu", torch.int64)
    assert forward.args[4] is copied


def test_explain_says_that_lengths_are_copied() -> None:
    from rnnkit.torch.explain import _copy_of_lengths

    assert _copy_of_lengths(on_card(torch.tensor(RAGGED))) == (
        "lengths on cuda:0 are copied to the host once, which waits for the device",
    )
    assert _copy_of_lengths(torch.tensor(RAGGED)) == _copy_of_lengths(RAGGED) == _copy_of_lengths(None) == ()


@torch.no_grad()
@pytest.mark.parametrize("what", ["lengths", "a PackedSequence", "resets", "mask", "resets or a mask of an input"])
def test_inside_a_capture_they_are_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, before anything is copied. Lengths on the host are left to the backend, which takes those that are T."""
    layer = made("gru_reset_before")
    x, _ = inputs(layer, T, B)
    flags = on_card(torch.zeros(T, B, dtype=torch.bool))
    options: Any = {"lengths": {"lengths": on_card(torch.tensor(RAGGED))}, "resets": {"resets": flags}}
    options["mask"] = {"mask": flags}
    options["resets or a mask of an input"] = {"mask": torch.arange(T * B).reshape(T, B) > 2}
    given = put(packed(x, True)) if what == "a PackedSequence" else put(x)
    on_device = moved(layer)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with (
        Card() as card,
        pytest.raises(RuntimeError, match=f"^{what} on cuda:0 must not be given while a CUDA graph is"),
    ):
        on_device(given, **options.get(what, {}))
    assert card.waits == []
    with Card() as card:
        on_device(put(x))
    assert card.waits == []
