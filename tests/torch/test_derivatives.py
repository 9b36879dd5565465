"""Derivatives of every kind and order: gradcheck, gradgradcheck, torch.func, forward mode, batched gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap  # noqa: E402

import rnnkit.torch  # noqa: E402
from tests.torch.pairs import CELLS, close, label, pair, states, tensors, total  # noqa: E402

pytestmark = pytest.mark.peers
F64 = torch.float64

# Small: T, B, I, H = 3, 2, 2, 2.
SMALL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "bias": False}),
    ("GRU", {"reset_after": False, "num_layers": 2, "bidirectional": True}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 1}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
)
EACH = pytest.mark.parametrize(("kind", "options"), SMALL, ids=label)
# One layer without and with lengths, among them zero; several with lengths.
WITH_LENGTHS = pytest.mark.parametrize(
    ("kind", "options", "lengths"),
    [
        (kind, options, lengths)
        for kind, options in SMALL
        for lengths in ([[1, 3]] if "num_layers" in options else [None, [0, 2]])
    ],
    ids=label,
)
EACH_LAYER = pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {}), ("GRU", {}), ("GRU", {"reset_after": False}), ("LSTM", {})], ids=label
)


def small(kind: str, options: dict[str, Any], T: int = 3, B: int | None = 2) -> tuple[Any, Any, Any, dict[str, Any]]:
    """A layer, an input and states that ask for gradients, and the weights by name."""
    torch.manual_seed(4)
    layer = getattr(rnnkit.torch, kind)(2, 2, dtype=F64, **options)
    x = torch.randn(*((T, 2) if B is None else (T, B, 2)), dtype=F64, requires_grad=True)
    return layer, x, states(layer, B, requires_grad=True), dict(layer.named_parameters())


def as_function(layer: Any, hx: Any, names: Any, lengths: Any = None) -> Callable[..., tuple[Any, ...]]:
    """The layer as a function of flat tensors: x, the states, the weights."""
    pairs = isinstance(hx, tuple)
    options = {} if lengths is None else {"lengths": lengths}

    def function(x: Any, *rest: Any) -> tuple[Any, ...]:
        given = tuple(rest[:2]) if pairs else rest[0]
        weights = dict(zip(names, rest[2 if pairs else 1 :], strict=True))
        return tuple(tensors(functional_call(layer, weights, (x, given), options)))

    return function


@WITH_LENGTHS
def test_gradcheck(kind: str, options: dict[str, Any], lengths: Any) -> None:
    layer, x, hx, weights = small(kind, options)
    inputs = (x, *tensors(hx), *weights.values())
    assert torch.autograd.gradcheck(as_function(layer, hx, weights, lengths), inputs)


@WITH_LENGTHS
def test_gradgradcheck(kind: str, options: dict[str, Any], lengths: Any) -> None:
    layer, x, hx, weights = small(kind, options)
    inputs = (x, *tensors(hx), *weights.values())
    function = as_function(layer, hx, weights, lengths)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@WITH_LENGTHS
def test_forward_mode(kind: str, options: dict[str, Any], lengths: Any) -> None:
    layer, x, hx, weights = small(kind, options)
    inputs = (x, *tensors(hx), *weights.values())
    function = as_function(layer, hx, weights, lengths)
    assert torch.autograd.gradcheck(
        function,
        inputs,
        fast_mode=True,
        check_forward_ad=True,
        check_backward_ad=False,
        check_batched_forward_grad=True,
    )


@EACH_LAYER
def test_dropout_is_differentiated(kind: str, options: dict[str, Any]) -> None:
    """The masks are the same for every evaluation; the numeric derivatives are those of the layer with them."""
    layer, x, hx, weights = small(kind, {**options, "num_layers": 2, "dropout": 0.4})
    function = as_function(layer, hx, weights)

    def seeded(*inputs: Any) -> Any:
        torch.manual_seed(11)
        return function(*inputs)

    inputs = (x, *tensors(hx), *weights.values())
    assert torch.autograd.gradgradcheck(seeded, inputs, fast_mode=True)


@pytest.mark.parametrize(
    ("kind", "options"), [*((c, {}) for c in CELLS), ("GRUCell", {"reset_after": False})], ids=label
)
def test_cells(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(4)
    cell = getattr(rnnkit.torch, kind)(2, 2, dtype=F64, **options)
    x = torch.randn(2, 2, dtype=F64, requires_grad=True)
    hx = states(cell, 2, requires_grad=True)
    weights = dict(cell.named_parameters())
    inputs = (x, *tensors(hx), *weights.values())
    function = as_function(cell, hx, weights)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@EACH_LAYER
def test_functional_transforms_agree(kind: str, options: dict[str, Any]) -> None:
    """grad, vjp, jvp, jacrev, jacfwd and hessian beside torch.autograd's answers."""
    layer, x, hx, weights = small(kind, options)
    inputs = [t.detach() for t in (x, *tensors(hx), *weights.values())]
    recorded = [t.clone().requires_grad_(True) for t in inputs]
    function = as_function(layer, hx, weights)

    def loss(*given: Any) -> Any:
        return total(function(*given))

    argnums = tuple(range(len(inputs)))
    want = torch.autograd.grad(loss(*recorded), recorded)
    close(grad(loss, argnums=argnums)(*inputs), want, "backward")
    close(vjp(loss, *inputs)[1](torch.ones((), dtype=F64)), want, "backward")
    close(jacrev(loss, argnums=argnums)(*inputs), want, "backward")
    close(jacfwd(loss, argnums=argnums)(*inputs), want, "backward")
    tangents = [torch.randn_like(t) for t in inputs]
    value, slope = jvp(loss, tuple(inputs), tuple(tangents))
    close(value, loss(*inputs))
    close(slope, sum((g * t).sum() for g, t in zip(want, tangents, strict=True)), "backward")

    def of_weight(w: Any) -> Any:
        return loss(inputs[0], *inputs[1:-1], w)

    last = inputs[-1]
    second = hessian(of_weight)(last)
    close(second, torch.autograd.functional.hessian(of_weight, last), "backward")
    close(jacrev(jacrev(of_weight))(last), second, "backward")
    close(jacfwd(grad(of_weight))(last), second, "backward")


@EACH_LAYER
def test_vmap(kind: str, options: dict[str, Any]) -> None:
    """Over inputs, over states, over an ensemble of weights, and gradients per sample."""
    layer, _, hx, weights = small(kind, options)
    function = as_function(layer, hx, weights)
    fixed = [t.detach() for t in (*tensors(hx), *weights.values())]
    xs = torch.randn(4, 3, 2, 2, dtype=F64)
    close(vmap(lambda x: function(x, *fixed))(xs), stacked(lambda k: function(xs[k], *fixed)))
    inner = xs.movedim(0, 2)
    close(vmap(lambda x: function(x, *fixed), in_dims=2)(inner), stacked(lambda k: function(xs[k], *fixed)))

    ensemble = [torch.randn(4, *t.shape, dtype=F64) for t in fixed]
    close(
        vmap(function, in_dims=(None, *[0] * len(ensemble)))(xs[0], *ensemble),
        stacked(lambda k: function(xs[0], *[t[k] for t in ensemble])),
    )

    def loss(x: Any, *rest: Any) -> Any:
        return total(function(x, *rest))

    argnums = tuple(range(1 + len(fixed)))
    each = grad(loss, argnums=argnums)
    close(
        vmap(each, in_dims=(0, *[None] * len(fixed)))(xs, *fixed),
        stacked(lambda k: each(xs[k], *fixed)),
        "backward",
    )
    close(
        vmap(each, in_dims=(0, *[0] * len(ensemble)))(xs, *ensemble),
        stacked(lambda k: each(xs[k], *[t[k] for t in ensemble])),
        "backward",
    )
    summed = grad(lambda x: vmap(lambda one: loss(one, *fixed))(x).sum())(xs)
    close(summed, torch.stack([each(x, *fixed)[0] for x in xs]), "backward")
    nested = vmap(vmap(lambda x: function(x, *fixed)))(xs.reshape(2, 2, 3, 2, 2))
    close(nested, [t.reshape(2, 2, *t.shape[1:]) for t in stacked(lambda k: function(xs[k], *fixed))])


def stacked(of: Callable[[int], Any]) -> list[Any]:
    """The results for 0 to 3, each stacked."""
    return [torch.stack(parts) for parts in zip(*[tensors(of(k)) for k in range(4)], strict=True)]


@EACH_LAYER
def test_vmap_without_gradients(kind: str, options: dict[str, Any]) -> None:
    """One call of the kernels for all inputs; over lengths and states too, nested, and with dropout."""
    layer, _, _, _ = small(kind, {**options, "num_layers": 2, "bidirectional": True, "dropout": 0.5})
    layer.eval()
    xs = torch.randn(4, 3, 2, 2, dtype=F64)
    many = [torch.tensor(given) for given in ([2, 0], [1, 3], [3, 3], [0, 0])]
    hs = [states(layer, 2) for _ in range(4)]
    hx = tuple(torch.stack(parts) for parts in zip(*map(tensors, hs), strict=True))

    def call(x: Any, lengths: Any = None, *h: Any) -> Any:
        given = None if not h else h if len(h) == 2 else h[0]
        return tuple(tensors(layer(x, given, lengths=lengths)))

    with torch.no_grad():
        close(vmap(call)(xs), stacked(lambda k: call(xs[k])))
        close(vmap(lambda x: call(x, [2, 0]))(xs), stacked(lambda k: call(xs[k], [2, 0])))
        close(vmap(call)(xs, torch.stack(many), *hx), stacked(lambda k: call(xs[k], many[k], *tensors(hs[k]))))
        close(vmap(lambda *h: call(xs[0], None, *h))(*hx), stacked(lambda k: call(xs[0], None, *tensors(hs[k]))))
        nested = vmap(vmap(call, in_dims=2))(xs.reshape(2, 2, 3, 2, 2).movedim(1, 3))
        whole = stacked(lambda k: call(xs[k]))
        close(nested, [t.reshape(2, 2, *t.shape[1:]) for t in whole])
        layer.train()
        with pytest.raises(RuntimeError, match="randomness"):
            vmap(call)(xs)
        dropped = vmap(call, randomness="different")(xs[:1].expand(xs.shape))[0]
        assert not torch.equal(dropped[0], dropped[1])
        same = vmap(call, randomness="same")(xs[:1].expand(xs.shape))[0]
        close(same[0], same[1])


@EACH
def test_batched_gradients(kind: str, options: dict[str, Any]) -> None:
    """`torch.autograd.grad(is_grads_batched=True)`, and a jacobian by it."""
    layer, x, hx, weights = small(kind, options)
    y = layer(x, hx)[0]
    inputs = [x, *tensors(hx), *weights.values()]
    vectors = torch.randn(3, *y.shape, dtype=F64)
    # c of the initial state of an LSTM is used, so that every input has a gradient.
    got = torch.autograd.grad(y, inputs, vectors, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(y, inputs, v, retain_graph=True) for v in vectors]
    close(got, [torch.stack(parts) for parts in zip(*want, strict=True)], "backward")


@EACH_LAYER
def test_create_graph(kind: str, options: dict[str, Any]) -> None:
    """A gradient penalty: the gradients of a norm of gradients, beside torch.nn's where it has the cell."""
    if options:
        layer, x, hx, weights = small(kind, options)
        function = as_function(layer, hx, weights)
        inputs = (x, *tensors(hx), *weights.values())

        def penalty(*given: Any) -> Any:
            of = torch.autograd.grad(total(function(*given)), given[0], create_graph=True)[0]
            return of.square().sum()

        assert torch.autograd.gradcheck(penalty, inputs, fast_mode=True)
        return
    ours, theirs = pair(kind, 4, 6, num_layers=2, bidirectional=True)
    x = torch.randn(5, 3, 4, dtype=F64, requires_grad=True)
    hx = states(ours, 3, requires_grad=True)
    found = []
    for module in (ours, theirs):
        wanted = [x, *tensors(hx), *module.parameters()]
        of = torch.autograd.grad(total(module(x, hx)), wanted, create_graph=True)
        penalty_of = sum(g.square().sum() for g in of)
        found.append((of, torch.autograd.grad(penalty_of, wanted)))
    close(found[0][0], found[1][0], "backward")
    close(found[0][1], found[1][1], "backward")


@EACH_LAYER
def test_third_order(kind: str, options: dict[str, Any]) -> None:
    layer, x, hx, weights = small(kind, options, T=2, B=None)
    function = as_function(layer, hx, weights)
    fixed = [t.detach() for t in (*tensors(hx), *weights.values())]

    def loss(given: Any) -> Any:
        return total(function(given, *fixed))

    third = jacfwd(jacrev(grad(loss)))(x.detach())
    step = 1e-5
    second = jacrev(grad(loss))
    shift = torch.zeros_like(x)
    shift[1, 0] = step
    numeric = (second(x.detach() + shift) - second(x.detach() - shift)) / (2 * step)
    torch.testing.assert_close(third[..., 1, 0], numeric, rtol=1e-4, atol=1e-7)
