"""torch.func.vmap: one call for a batch of inputs, with derivatives too.

One call per element for weights that differ, or whose gradients each element asks for.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.func import functional_call, grad, stack_module_state, vmap  # noqa: E402

import rnnkit.torch as rt  # noqa: E402
from tests.torch.tracing import LAYERS, Calls, assert_same, inputs, leaves, made  # noqa: E402

pytestmark = pytest.mark.peers
V = 3


def several(layer: Any) -> tuple[Any, Any]:
    """x (V, T, B, I) and hx with a dimension V in front."""
    of_each = [inputs(layer, 5, 2, seed) for seed in range(V)]
    xs = torch.stack([x for x, _ in of_each])
    if isinstance(of_each[0][1], tuple):
        return xs, tuple(torch.stack(s) for s in zip(*[hx for _, hx in of_each], strict=True))
    return xs, torch.stack([hx for _, hx in of_each])


def element(hx: Any, k: int) -> Any:
    return tuple(s[k] for s in hx) if isinstance(hx, tuple) else hx[k]


def stacked(of_each: list[Any]) -> list[Any]:
    return [torch.stack(parts) for parts in zip(*map(leaves, of_each), strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_and_states(name: str) -> None:
    layer = made(name)
    xs, hxs = several(layer)
    with Calls() as calls:
        ours = vmap(lambda x, hx: layer(x, hx))(xs, hxs)
    assert calls.counts == {"forward": 1}
    assert_same(ours, stacked([layer(xs[k], element(hxs, k)) for k in range(V)]))


@torch.no_grad()
@pytest.mark.parametrize("batched", ["x", "hx", "lengths", "x and lengths"])
def test_any_of_the_inputs(batched: str) -> None:
    """The others are the same for all elements. Dimension V of x is its last one."""
    layer = made("lstm_bidirectional")
    xs, hxs = several(layer)
    lengths = torch.tensor([[5, 2], [0, 3], [1, 5]])
    which = ("x" in batched.split(), "hx" in batched, "lengths" in batched)
    given = (xs if which[0] else xs[0], hxs if which[1] else element(hxs, 0), lengths if which[2] else lengths[0])
    with Calls() as calls:
        moved = (given[0].movedim(0, -1) if which[0] else given[0], *given[1:])
        dims = (3 if which[0] else None, 0 if which[1] else None, 0 if which[2] else None)
        ours = vmap(lambda x, hx, n: layer(x, hx, lengths=n), in_dims=dims)(*moved)
    assert calls.counts == {"forward": 1}
    of_each = [
        layer(
            given[0][k] if which[0] else given[0],
            element(given[1], k) if which[1] else given[1],
            lengths=given[2][k] if which[2] else given[2],
        )
        for k in range(V)
    ]
    assert_same(ours, stacked(of_each))


@torch.no_grad()
def test_ensemble() -> None:
    """Weights that differ: one call a model."""
    models = []
    for seed in range(V):
        torch.manual_seed(seed)
        models.append(rt.GRU(4, 6, 2, dtype=torch.float64))
    parameters, buffers = stack_module_state(models)
    x, hx = inputs(models[0], 5, 2)
    with Calls() as calls:
        ours = vmap(lambda p, b: functional_call(models[0], (p, b), (x, hx)))(parameters, buffers)
    assert calls.counts == {"forward": V}
    assert_same(ours, stacked([model(x, hx) for model in models]))


@torch.no_grad()
def test_vmap_of_vmap() -> None:
    layer = made("gru_reset_before")
    xs, hxs = several(layer)
    pairs = torch.stack([xs, 2 * xs])
    with Calls() as calls:
        ours = vmap(vmap(lambda x, hx: layer(x, hx)), in_dims=(0, None))(pairs, hxs)
    assert calls.counts == {"forward": 1}
    of_each = [stacked([layer(xs[k], hxs[k]) for k in range(V)]) for xs in pairs]
    assert_same(ours, stacked(of_each))


@torch.no_grad()
def test_dropout_differs_or_not_by_randomness() -> None:
    torch.manual_seed(0)
    layer = rt.LSTM(4, 6, 2, dropout=0.5, dtype=torch.float64)
    x, hx = inputs(layer, 5, 2)
    xs = torch.stack([x, x])
    for randomness in ("same", "different"):
        with Calls() as calls:
            y = vmap(lambda x: layer(x, hx)[0], randomness=randomness)(xs)
        assert calls.counts == {"forward": 1}
        assert torch.equal(y[0], y[1]) == (randomness == "same")


def test_backward_operator_by_element() -> None:
    layer = made("gru_two_layers")
    x, h = inputs(layer, 5, 2)
    weights = [w.detach() for w in layer._flat_weights]
    options = {"cell": "gru", "backend": None, "bidirectional": True}
    y, _, reserve = torch.ops.rnnkit.forward(x, [h], weights, [], None, keep=True, **options)
    dys = torch.stack([torch.full_like(y, k + 1.0) * y for k in range(V)])

    def backward(dy: Any) -> Any:
        return torch.ops.rnnkit.backward(dy, [None], x, [h], weights, [], None, reserve, **options)

    with Calls() as calls:
        ours = vmap(backward)(dys)
    assert calls.counts == {"backward": V}
    assert_same(ours, stacked([backward(dy) for dy in dys]))


# With derivatives

LENGTHS = torch.tensor([[5, 2], [0, 3], [1, 5]])


def loss(layer: Any, hx: Any) -> Any:
    """A function of x and lengths."""

    def of(x: Any, n: Any) -> Any:
        y, state_n = layer(x, hx, lengths=n)
        return y.pow(2).sum() + sum(s.pow(3).sum() for s in leaves(state_n))

    return of


def by_loop(function: Any, xs: Any) -> Any:
    return torch.stack([function(xs[k], LENGTHS[k]) for k in range(V)])


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_each_input(name: str) -> None:
    """One call forward and one backward. The gradients of these, to the inputs and the weights, are right too."""
    layer = made(name)
    xs, hxs = several(layer)
    of = loss(layer, element(hxs, 0))
    with Calls() as calls:
        ours = vmap(grad(of))(xs, LENGTHS)
    assert calls.counts == {"forward": 1, "backward": 1}
    theirs = by_loop(grad(of), xs)
    assert_same(ours, theirs)
    to_weights = [torch.autograd.grad(g.pow(2).sum(), list(layer.parameters())) for g in (ours, theirs)]
    assert_same(*to_weights, rtol=1e-8, atol=1e-9)

    def second(x: Any, n: Any) -> Any:
        return grad(lambda x: grad(of)(x, n).pow(2).sum())(x)

    assert_same(vmap(second)(xs, LENGTHS), by_loop(second, xs), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_the_weights_of_all_elements(name: str) -> None:
    """Of a recorded vmap, and of torch.func.grad around it: one call. Inside of it, per element, one call each."""
    layer = made(name)
    xs, hxs = several(layer)
    weights = dict(layer.named_parameters())

    def of(weights: Any, x: Any, n: Any) -> Any:
        return functional_call(layer, weights, (x, element(hxs, 0)), {"lengths": n})[0].pow(2).sum()

    def of_all(weights: Any) -> Any:
        return vmap(lambda x, n: of(weights, x, n))(xs, LENGTHS).sum()

    each = [grad(of)(weights, xs[k], LENGTHS[k]) for k in range(V)]
    expected = [sum(e[name] for e in each) for name in weights]
    with Calls() as calls:
        recorded = torch.autograd.grad(of_all(weights), list(weights.values()))
        around = grad(of_all)(weights)
    assert calls.counts == {"forward": 2, "backward": 2}
    assert_same(recorded, expected)
    assert_same([around[name] for name in weights], expected)
    with Calls() as calls:
        inside = vmap(grad(of), in_dims=(None, 0, 0))(weights, xs, LENGTHS)
    assert calls.counts == {"forward": V, "backward": V}
    assert_same([inside[name] for name in weights], [torch.stack([e[name] for e in each]) for name in weights])


def test_gradients_in_a_vmap_of_a_vmap() -> None:
    layer = made("lstm_projected")
    xs, hxs = several(layer)
    of = loss(layer, element(hxs, 0))
    pairs = torch.stack([xs, 2 * xs]).movedim(1, -1)
    with Calls() as calls:
        ours = vmap(vmap(grad(of), in_dims=(-1, 0), out_dims=-1), in_dims=(0, None))(pairs, LENGTHS)
    assert calls.counts == {"forward": 1, "backward": 1}
    assert_same(ours, torch.stack([by_loop(grad(of), p.movedim(-1, 0)).movedim(0, -1) for p in pairs]))


def test_gradients_of_dropout_and_of_an_ensemble() -> None:
    torch.manual_seed(0)
    layer = rt.LSTM(4, 6, 2, dropout=0.5, dtype=torch.float64)
    x, hx = inputs(layer, 5, 2)
    of = lambda x: layer(x, hx)[0].pow(2).sum()  # noqa: E731
    with Calls() as calls:
        dx = vmap(grad(of), randomness="same")(torch.stack([x, x]))
    assert calls.counts == {"forward": 1, "backward": 1}
    assert torch.equal(dx[0], dx[1])
    models = [rt.GRU(4, 6, dtype=torch.float64) for _ in range(V)]
    weights, buffers = stack_module_state(models)
    h = inputs(models[0], 5, 2)[1]
    ours = vmap(grad(lambda w, b: functional_call(models[0], (w, b), (x, h))[0].pow(2).sum()))(weights, buffers)
    for k, model in enumerate(models):
        expected = torch.autograd.grad(model(x, h)[0].pow(2).sum(), list(model.parameters()))
        assert_same([ours[name][k] for name, _ in model.named_parameters()], expected)
