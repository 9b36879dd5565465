"""Gradients that nobody asks for are not computed: of an x that is data, of weights that are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

torch = pytest.importorskip("torch")

import rnnkit.torch as rt  # noqa: E402
from rnnkit.backends import BackwardCall  # noqa: E402
from rnnkit.backends import numpy as oracle  # noqa: E402
from tests.torch.tracing import leaves  # noqa: E402

pytestmark = pytest.mark.peers

T, B, I, H = 4, 3, 5, 6


@pytest.fixture
def calls() -> Iterator[list[tuple[bool, bool]]]:
    """What each backward of the NumPy backend is asked for: dx, and the weights' gradients."""
    found: list[tuple[bool, bool]] = []
    original = oracle.backward

    def recorded(call: BackwardCall) -> Any:
        found.append((call.wants_dx, call.wants_dweights))
        return original(call)

    with mock.patch.object(oracle, "backward", recorded):
        yield found


def made(kind: str = "LSTM", **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(rt, kind)(I, H, dtype=torch.float64, backend="numpy", **options)


def gradients(layer: Any, of_x: bool, of_weights: bool, run: Any = None) -> dict[str, Any]:
    """The gradients of x, of the initial states and of the weights that there are."""
    torch.manual_seed(1)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=of_x)
    slots = layer.num_layers * (2 if layer.bidirectional else 1)
    hx = [torch.randn(slots, B, H, dtype=torch.float64, requires_grad=True) for _ in layer.state_names]
    layer.requires_grad_(of_weights).zero_grad()
    for p in layer.parameters():
        p.grad = None
    y, state_n = (layer if run is None else run)(x, tuple(hx) if len(hx) > 1 else hx[0])
    total = sum([(a * torch.randn_like(a)).sum() for a in leaves((y, state_n))])
    total.backward()
    named = {"x": x, **{f"h{k}": h for k, h in enumerate(hx)}, **dict(layer.named_parameters())}
    return {name: t.grad for name, t in named.items() if t.grad is not None}


def assert_rest_has_the_bits(layer: Any, run: Any = None) -> None:
    whole = gradients(layer, True, True, run)
    for of_x, of_weights in [(False, True), (True, False), (False, False)]:
        part = gradients(layer, of_x, of_weights, run)
        kept = [n for n in whole if {"x": of_x, "h": True}.get(n[: 1 if n[0] in "xh" else 0], of_weights)]
        assert list(part) == kept
        assert all(torch.equal(part[name], whole[name]) for name in kept)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {"num_layers": 2, "bidirectional": True}), ("GRU", {}), ("SLSTM", {}), ("GRU", {"layer_norm": "haste"})],
    ids=str,
)
def test_eager(kind: str, options: dict[str, Any], calls: list[tuple[bool, bool]]) -> None:
    assert_rest_has_the_bits(made(kind, **options))
    assert {(True, True), (False, True), (True, False), (False, False)} == set(calls)


def test_only_the_first_layer_leaves_dx_out(calls: list[tuple[bool, bool]]) -> None:
    gradients(made(num_layers=3), False, True)
    assert calls == [(True, True), (True, True), (False, True)]


def test_one_weight_that_is_trained_is_enough(calls: list[tuple[bool, bool]]) -> None:
    layer = made()
    layer.requires_grad_(False)
    layer.bias_hh_l0.requires_grad_(True)
    layer(torch.ones(T, B, I, dtype=torch.float64))[0].sum().backward()
    assert calls == [(False, True)]
    assert layer.bias_hh_l0.grad is not None
    assert layer.weight_ih_l0.grad is None


def test_compiled(calls: list[tuple[bool, bool]]) -> None:
    """In a compiled model too, where each is one node."""
    layer = made(num_layers=2)
    assert_rest_has_the_bits(layer, torch.compile(layer, backend="aot_eager", fullgraph=True))
    assert calls[-2:] == [(True, False), (False, False)]
    assert calls[2:4] == [(True, True), (False, True)]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed(use_reentrant: bool, calls: list[tuple[bool, bool]]) -> None:
    from torch.utils.checkpoint import checkpoint

    layer = made("GRU")
    run = lambda x, h: checkpoint(layer, x, h, use_reentrant=use_reentrant)  # noqa: E731
    assert_rest_has_the_bits(layer, run)
    assert (False, True) in calls


@pytest.mark.parametrize(("of_x", "of_weights"), [(False, True), (True, False)])
def test_to_second_order(of_x: bool, of_weights: bool) -> None:
    torch.manual_seed(0)
    layer = rt.GRU(2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=of_x)
    h = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = {name: w.detach().requires_grad_(of_weights) for name, w in layer.named_parameters()}
    given = [h, *([x] if of_x else []), *(weights.values() if of_weights else [])]

    def function(h: Any, *_: Any) -> Any:
        return torch.func.functional_call(layer, weights, (x, h))

    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


def test_torch_func(calls: list[tuple[bool, bool]]) -> None:
    """torch.func.grad follows some of the arguments alone."""
    layer = made("GRU")
    weights = {name: w.detach() for name, w in layer.named_parameters()}
    x = torch.randn(2, T, B, I, dtype=torch.float64)

    h = torch.randn(1, B, H, dtype=torch.float64)

    def loss(weights: Any, x: Any, h: Any) -> Any:
        return torch.func.functional_call(layer, weights, (x, h))[0].square().sum()

    whole = torch.func.grad(loss, (0, 1, 2))(weights, x[0], h)
    assert calls == [(True, True)]
    of_each = [torch.func.grad(loss, k)(weights, x[0], h) for k in range(3)]
    assert calls[1:] == [(False, True), (True, False), (False, False)]
    for one, of_whole in zip(leaves(of_each), leaves(whole), strict=True):
        assert torch.equal(one, of_whole)
    calls.clear()
    by_element = torch.vmap(torch.func.grad(loss, 0), (None, 0, None))(weights, x, h)
    assert calls == [(False, True)] * 2
    torch.testing.assert_close(by_element["weight_ih_l0"][0], of_each[0]["weight_ih_l0"], rtol=1e-12, atol=1e-12)
    layer.backend = None  # one call for all elements
    for k in (1, 2):
        mapped = torch.vmap(torch.func.grad(lambda x, h: loss(dict(layer.named_parameters()), x, h), k - 1), (0, None))
        torch.testing.assert_close(mapped(x, h)[0], of_each[k], rtol=1e-12, atol=1e-12)


def test_is_grads_batched() -> None:
    layer = made()
    layer.requires_grad_(False)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x)
    dys = torch.randn(2, *y.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, x, dys, retain_graph=True, is_grads_batched=True)
    (first,) = torch.autograd.grad(y, x, dys[0])
    torch.testing.assert_close(batched[0], first, rtol=1e-10, atol=1e-12)


def test_compiled_with_resets(calls: list[tuple[bool, bool]]) -> None:
    layer = made("LSTM")
    resets = torch.arange(T * B).reshape(T, B) % 3 == 2
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_rest_has_the_bits(layer, lambda x, hx: compiled(x, hx, resets=resets))
    assert set(calls) == {(True, True), (False, True), (True, False), (False, False)}


def test_resets_and_cells(calls: list[tuple[bool, bool]]) -> None:
    layer = made("GRU")
    x = torch.randn(T, B, I, dtype=torch.float64)
    layer(x, resets=torch.arange(T * B).reshape(T, B) % 3 == 2)[0].sum().backward()
    assert set(calls) == {(False, True)}
    calls.clear()
    cell = rt.LSTMCell(I, H, dtype=torch.float64, backend="numpy")
    h, c = cell(x[0])
    h, c = cell(x[1], (h, c))
    h.sum().backward()
    assert calls == [(False, True)] * 2
    assert cell.weight_ih.grad.any()
