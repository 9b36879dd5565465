"""torch.library.opcheck on `rnnkit::forward` and `rnnkit::backward`: schema, fake results, autograd, traced calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import rnnkit.torch as rt  # noqa: E402
from tests.torch.tracing import assert_same, inputs  # noqa: E402

pytestmark = pytest.mark.peers

# cell, options of the layer, lengths, dtype, whether with dropout masks
SAMPLES: dict[str, tuple[Any, dict[str, Any], list[int] | None, str, bool]] = {
    "rnn_relu": (rt.RNN, {"nonlinearity": "relu", "bias": False}, [4, 1, 0], "float32", False),
    "gru_masks": (rt.GRU, {"num_layers": 2, "bidirectional": True}, [2, 4, 3], "float32", True),
    "gru_reset_before": (rt.GRU, {"reset_after": False}, None, "float64", False),
    "lstm": (rt.LSTM, {"bidirectional": True}, None, "float32", False),
    "lstm_projected": (rt.LSTM, {"num_layers": 2, "proj_size": 5}, [4, 1, 2], "float64", True),
}


def sample(name: str, gradients: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `rnnkit::forward`, without `keep`."""
    torch.manual_seed(0)
    kind, options, lengths, dtype, dropout = SAMPLES[name]
    layer = kind(4, 6, dtype=getattr(torch, dtype), **options)
    x, hx = inputs(layer, 4, 3)
    states = list(hx) if isinstance(hx, tuple) else [hx]
    weights = [w.detach().clone() for w in layer._flat_weights]
    width = (layer.proj_size or 6) * (2 if layer.bidirectional else 1)
    masks = [2.0 * (torch.rand(4, 3, width, dtype=x.dtype) > 0.5)] if dropout else []
    for tensor in (x, *states, *weights):
        tensor.requires_grad_(gradients)
    n = None if lengths is None else torch.tensor(lengths)
    arguments = (x, states, weights, masks, n)
    return arguments, {"cell": layer.cell_name, "backend": None, "bidirectional": layer.bidirectional}


@pytest.fixture(autouse=True)
def _filled_memory() -> Iterator[None]:
    """Fills new tensors with the same numbers each time: opcheck compares the parts of the reserve that nobody uses."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_forward(name: str, gradients: bool, keep: bool) -> None:
    arguments, options = sample(name, gradients)
    torch.library.opcheck(torch.ops.rnnkit.forward.default, arguments, {**options, "keep": keep})


@pytest.mark.parametrize("name", SAMPLES)
def test_backward(name: str) -> None:
    (x, states, weights, masks, lengths), options = sample(name, False)
    of_forward = (x, states, weights, masks, lengths)
    y, *state_n, reserve = torch.ops.rnnkit.forward(*of_forward, keep=True, **options)
    grads = [torch.randn_like(a) for a in (y, *state_n)]
    arguments = (grads[0], [None, *grads[2:]], *of_forward, reserve)
    torch.library.opcheck(torch.ops.rnnkit.backward.default, arguments, options)


@pytest.mark.parametrize("wants", [(False, True), (True, False), (False, False)])
def test_part_of_backward(wants: tuple[bool, bool]) -> None:
    """What is not wanted is not in the list."""
    (x, states, weights, masks, lengths), options = sample("lstm_projected", False)
    of_forward = (x, states, weights, masks, lengths)
    y, *state_n, reserve = torch.ops.rnnkit.forward(*of_forward, keep=True, **options)
    arguments = (torch.randn_like(y), [None] * len(state_n), *of_forward, reserve)
    dx, dh0, dc0, *dweights = torch.ops.rnnkit.backward(*arguments, **options)
    wanted = {"wants_dx": wants[0], "wants_dweights": wants[1]}
    torch.library.opcheck(torch.ops.rnnkit.backward.default, arguments, {**options, **wanted})
    found = torch.ops.rnnkit.backward(*arguments, **options, **wanted)
    assert_same(found, [*[dx] * wants[0], dh0, dc0, *dweights * wants[1]], 0, 0)


@pytest.mark.parametrize("name", ["gru_masks", "lstm_projected"])
def test_operators_called_by_themselves_have_gradients(name: str) -> None:
    """To second order, whatever `keep` says: those of the layers, which do not call the operators in this way."""
    (x, states, weights, masks, lengths), options = sample(name, True)
    x = x.detach().double().requires_grad_()
    states, weights, masks = ([t.detach().double().requires_grad_() for t in of] for of in (states, weights, masks))
    inputs_ = [x, *states, *weights]

    def second_order(function: Any) -> Any:
        results = function()
        first = torch.autograd.grad(sum(r.pow(2).sum() for r in results), inputs_, create_graph=True)
        return first, torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs_)

    def by_equations() -> Any:
        from rnnkit.torch import equations
        from rnnkit.torch.dispatch import Stack

        stack = Stack(options["cell"], None, options["bidirectional"], len(masks), len(states))
        return equations.run(stack, lengths, x, *states, *masks, *weights)

    ours = second_order(lambda: torch.ops.rnnkit.forward(x, states, weights, masks, lengths, keep=False, **options))
    assert_same(ours, second_order(by_equations), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("keep", [False, True])
def test_number_of_results_with_gradients(keep: bool) -> None:
    arguments, options = sample("lstm", True)
    results = torch.ops.rnnkit.forward(*arguments, keep=keep, **options)
    assert len(results) == 3 + keep
    assert all(r.requires_grad for r in results[:3])


def test_nested_transforms() -> None:
    """Each level of torch.func's transforms records the operators for itself."""
    (x, states, weights, masks, _), options = sample("gru_reset_before", False)

    def of_operator(x: Any) -> Any:
        return torch.ops.rnnkit.forward(x, states, weights, masks, None, keep=False, **options)[0].pow(2).sum()

    torch.manual_seed(0)  # as `sample`: the same weights
    layer = rt.GRU(4, 6, reset_after=False, dtype=torch.float64)

    def of_layer(x: Any) -> Any:
        return layer(x, states[0])[0].pow(2).sum()

    def second(function: Any) -> Any:
        return torch.func.grad(lambda x: torch.func.grad(function)(x).pow(2).sum())(x)

    assert_same(second(of_operator), second(of_layer), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_without_initial_states(name: str, keep: bool) -> None:
    """No state0 is zeros: the same results, the same gradients, and none of the states."""
    (x, states, weights, masks, lengths), options = sample(name, True)
    torch.library.opcheck(torch.ops.rnnkit.forward.default, (x, [], weights, masks, lengths), {**options, "keep": keep})
    zeros = [torch.zeros_like(s) for s in states]

    def results_and_gradients(state0: Any) -> Any:
        results = torch.ops.rnnkit.forward(x, state0, weights, masks, lengths, keep=keep, **options)[: 1 + len(states)]
        loss = sum((k + 1) * r.pow(2).sum() for k, r in enumerate(results))
        return results, torch.autograd.grad(loss, [x, *weights])

    assert_same(results_and_gradients([]), results_and_gradients(zeros), rtol=0, atol=0)


def test_states_that_do_not_fit_are_refused() -> None:
    (x, states, weights, masks, lengths), options = sample("lstm", False)
    h, c = states
    for bad in ([h[:, :2], c], [h, c[..., :5]], [h], [h[:1], c]):
        with pytest.raises(RuntimeError, match=r"state0 must have the shapes .*\(2, 3, 6\).*, got "):
            torch.ops.rnnkit.forward(x, bad, weights, masks, lengths, keep=False, **options)
