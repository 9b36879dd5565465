"""backward(..., dx=False): the gradient of x is not computed, and the others have the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import BackwardCall
from rnnkit.backends import numpy as oracle
from rnnkit.backends.numba import layer as numba
from rnnkit.functional import direction
from rnnkit.kernels.cpu.arguments import Shape
from rnnkit.testing import Case, make_inputs
from tests.helpers import assert_same, slow_except

T, B, I, H = 5, 3, 4, 6
LENGTHS = [5, 0, 2]
RESETS = np.arange(T * B).reshape(T, B) % 4 == 3

# name -> class, options of the layer, arguments of the call
LAYERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "lstm": (rnnkit.LSTM, {"num_layers": 2, "bidirectional": True}, {"lengths": LENGTHS}),
    "lstm, full": (rnnkit.LSTM, {}, {}),
    "rnn": (rnnkit.RNN, {"bias": False}, {}),
    "gru": (rnnkit.GRU, {"num_layers": 2, "dropout": 0.5}, {"lengths": LENGTHS}),
    "gru, reset before": (rnnkit.GRU, {"reset_after": False}, {}),
    "projected": (rnnkit.LSTM, {"proj_size": 2}, {}),
    "slstm": (rnnkit.SLSTM, {}, {}),
    "peepholes": (rnnkit.LSTM, {"peephole": True}, {}),
    "layer norm": (rnnkit.GRU, {"layer_norm": "haste"}, {}),
    "random masks": (rnnkit.LSTM, {"input_dropout": 0.5, "weight_dropout": 0.5, "zoneout": 0.5}, {}),
    "truncated": (rnnkit.LSTM, {}, {"truncate": 2}),
    "recomputed": (rnnkit.LSTM, {"num_layers": 2}, {"max_saved_bytes": 6000}),
    "resets": (rnnkit.LSTM, {"bidirectional": True}, {"resets": RESETS}),
    "truncated resets": (rnnkit.LSTM, {"bidirectional": True}, {"resets": RESETS, "truncate": 2}),
}
FAST = [("lstm", "numba"), ("lstm, full", "numba"), *((name, "numpy") for name in LAYERS)]
EACH = pytest.mark.parametrize(
    ("name", "backend"), slow_except([(name, b) for b in ("numba", "numpy") for name in LAYERS], *FAST, unpack=True)
)


def layer_of(name: str, backend: str | None, dtype: str = "float64") -> Any:
    kind, options, _ = LAYERS[name]
    return kind(I, H, dtype=dtype, backend=backend, rng=0, **options)


def gradients(layer: Any, rng: np.random.Generator, dx: bool, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """dx, and every other gradient by name, of one call."""
    layer.zero_grad()
    x = rng.standard_normal((T, B, I))
    several = len(layer.cell.states) > 1
    y, state_n = layer(x, **arguments)
    ends = tuple([rng.standard_normal(s.shape) for s in (state_n if several else (state_n,))])
    found, *states = layer.backward(rng.standard_normal(y.shape), ends if several else ends[0], dx=dx)
    named = {f"d{k}{j}": d for k, of in enumerate(states) for j, d in enumerate(of if several else (of,))}
    return found, named | {name: g.copy() for name, g in layer.grads.items()}


@EACH
def test_the_other_gradients_have_the_same_bits(name: str, backend: str, poison: Any) -> None:
    arguments = LAYERS[name][2]
    results = []
    for dx in (True, False):
        with poison():
            results.append(gradients(layer_of(name, backend), np.random.default_rng(1), dx, **arguments))
    (found, with_dx), (nothing, without) = results
    assert found.shape == (T, B, I)
    assert nothing is None
    assert_same(without, with_dx)


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64", "float16"], "float64"))
@pytest.mark.parametrize("case", slow_except([Case("lstm"), Case("gru", ragged=True)], Case("lstm")), ids=str)
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_each_gradient_alone(backend: str, case: Case, dtype: str) -> None:
    """The functional form also leaves out those of the weights."""
    inputs = make_inputs(case, dtype)
    given = (case.cell, inputs.x, inputs.state0, inputs.weights)
    _, _, saved = direction.forward(*given, lengths=inputs.lengths, backend=backend)
    back = (saved, inputs.dy, inputs.dstate_n, inputs.weights)
    dx, dstate0, dweights = direction.backward(*back)
    for wants in ({"dx": False}, {"dweights": False}, {"dx": False, "dweights": False}):
        found = direction.backward(*back, **wants)
        assert_same(
            _named(*found), _named(None if "dx" in wants else dx, dstate0, () if "dweights" in wants else dweights)
        )


def _named(dx: Any, dstate0: Any, dweights: Any) -> dict[str, Any]:
    """Those that are not None."""
    named = {"dx": dx} | {f"d{k}": d for k, d in enumerate(dstate0)} | {f"dw{k}": d for k, d in enumerate(dweights)}
    return {name: d for name, d in named.items() if d is not None}


def test_numpy_computes_no_product() -> None:
    """x W_ih^T and dx are what `by_scan` lays out in time."""
    counts = []
    for dx in (True, False):
        with mock.patch.object(oracle.by_scan, "_scatter", wraps=oracle.by_scan._scatter) as laid_out:
            gradients(layer_of("lstm, full", "numpy"), np.random.default_rng(1), dx)
        counts.append(laid_out.call_count)
    assert counts == [2, 1]


def test_numba_packs_no_weights_for_it() -> None:
    """The kernel packs W_ih into its workspace before the product, and is given no memory for the result."""
    touched = []
    for dx in (True, False):
        layer = layer_of("lstm, full", "numba")
        x = np.ones((T, B, I))
        y, _ = layer(x)
        layer.backward(y, dx=dx)
        (plan,) = layer._saved.saved.directions[0][0].ready.backward_plans.values()
        buffer = numba.workspaces.get(plan.workspace)
        buffer.memory[...] = 0xAB
        layer.backward(y, dx=dx)
        shape = Shape(*map(int, plan.words[: len(Shape._fields)]))
        packed = buffer.memory[shape.w_x :][: I * 4 * H * x.itemsize]
        touched.append(bool((packed != 0xAB).any()))
    assert touched == [True, False]


@pytest.fixture
def calls() -> Iterator[list[BackwardCall]]:
    """The calls of the NumPy backend's backward."""
    found: list[BackwardCall] = []
    original = oracle.backward

    def recorded(call: BackwardCall) -> Any:
        found.append(call)
        return original(call)

    with mock.patch.object(oracle, "backward", recorded):
        yield found


def test_the_layers_above_give_their_dx(calls: list[BackwardCall], rng: np.random.Generator) -> None:
    layer = rnnkit.LSTM(I, H, num_layers=3, bidirectional=True, dtype="float64", backend="numpy", rng=0)
    gradients(layer, rng, False)
    assert [call.wants_dx for call in calls] == [True] * 4 + [False] * 2
    assert all(call.wants_dweights for call in calls)


class Doubled(rnnkit.Module):
    """A module of a user, whose backward does not take dx."""

    def __call__(self, x: Any) -> Any:
        self._saved = ()
        return 2 * x

    def backward(self, dy: Any, *, call: Any = None) -> Any:
        self._recalled(call)
        return 2 * dy


def own(kind: Any) -> Any:
    return kind(I, H, dtype="float64", backend="numpy", rng=0)


MODELS: dict[str, tuple[Any, list[bool]]] = {
    "layers": (lambda: rnnkit.Sequential(own(rnnkit.LSTM), rnnkit.GRU(H, I, dtype="float64", backend="numpy")), [1, 0]),
    "last state": (lambda: rnnkit.Sequential(rnnkit.LastState(own(rnnkit.GRU))), [0]),
    "bidirectional": (lambda: rnnkit.Sequential(rnnkit.Bidirectional(own(rnnkit.LSTM))), [0, 0]),
    "nested": (
        lambda: rnnkit.Sequential(rnnkit.Sequential(own(rnnkit.GRU)), rnnkit.Linear(H, 2, dtype="float64")),
        [0],
    ),
    "of a user": (lambda: rnnkit.Sequential(Doubled("float64"), own(rnnkit.GRU)), [1]),
    "linear": (lambda: rnnkit.Sequential(rnnkit.Linear(I, I, dtype="float64", rng=0), own(rnnkit.GRU)), [1]),
}


@pytest.mark.parametrize("name", MODELS)
def test_containers(name: str, calls: list[BackwardCall], rng: np.random.Generator) -> None:
    """Only the first module of a Sequential leaves dx out."""
    make, wanted = MODELS[name]
    model = make()
    x = rng.standard_normal((T, B, I))
    y = model(x)
    dy = rng.standard_normal(y.shape)
    assert model.backward(dy).shape == x.shape
    assert all(call.wants_dx for call in calls)
    want = {key: g.copy() for key, g in model.grads.items()}
    calls.clear()
    model.zero_grad()
    assert model.backward(dy, dx=False) is None
    assert [call.wants_dx for call in calls] == [bool(w) for w in wanted]
    assert_same(dict(model.grads), want)


def test_an_embedding_needs_the_gradient_of_its_output(calls: list[BackwardCall]) -> None:
    model = rnnkit.Sequential(rnnkit.Embedding(5, I, dtype="float64", rng=0), own(rnnkit.LSTM))
    y = model(np.ones((T, B), np.int64))
    assert model.backward(y, dx=False) is None
    assert [call.wants_dx for call in calls] == [True]
    assert model.grads["0.weight"].any()


@pytest.mark.parametrize("kind", [rnnkit.RNNCell, rnnkit.LSTMCell])
def test_cells(kind: Any, rng: np.random.Generator) -> None:
    cell = kind(I, H, dtype="float64", backend="numpy", rng=0)
    state = cell(rng.standard_normal((B, I)))
    dx, dh0 = cell.backward(state)
    want = {key: g.copy() for key, g in cell.grads.items()}
    cell.zero_grad()
    nothing, same = cell.backward(state, dx=False)
    assert dx.shape == (B, I)
    assert nothing is None
    assert np.array_equal(np.stack(dh0), np.stack(same))
    assert_same(dict(cell.grads), want)


@pytest.mark.parametrize("unbatched", [False, True])
def test_layouts_and_reset_states(unbatched: bool, rng: np.random.Generator) -> None:
    layer = rnnkit.GRU(I, H, batch_first=True, dtype="float64", backend="numpy", rng=0)
    x = rng.standard_normal((T, I) if unbatched else (B, T, I))
    h = np.ones((1, H) if unbatched else (1, B, H))
    y, _ = layer(x, resets=np.ones(x.shape[:-1], bool), reset_state=h)
    found = layer.backward(y, dx=False)
    assert found[0] is None
    assert found[2].shape == h.shape
    assert np.array_equal(found[2], layer.backward(y)[2])


@pytest.mark.parametrize("make", [own, lambda kind: rnnkit.Linear(I, H), lambda kind: rnnkit.LastState(own(kind))])
def test_dx_is_a_truth_value(make: Any) -> None:
    module = make(rnnkit.LSTM)
    x = np.ones((T, B, I), module.dtype)
    found = module(x)
    y = found[0] if isinstance(found, tuple) else found
    with pytest.raises(TypeError, match="dx must be True or False, got 'no'"):
        module.backward(y, dx="no")
    module.backward(y)  # nothing was resolved or added


def test_a_layer_with_a_backward_of_its_own_that_takes_no_dx() -> None:
    """Containers leave the argument out, and return None all the same."""

    class Own(rnnkit.GRU):
        def backward(self, dy: Any, dh_n: Any = None, *, call: Any = None) -> Any:
            return super().backward(dy, dh_n, call=call)

    class Passed(rnnkit.GRU):
        def backward(self, *gradients: Any, **options: Any) -> Any:
            return super().backward(*gradients, **options)

    assert (Own.takes_dx, Passed.takes_dx, rnnkit.GRU.takes_dx) == (False, True, True)
    x = np.ones((4, 2, 3), np.float32)
    for make in (rnnkit.Sequential, rnnkit.LastState, rnnkit.Bidirectional):
        grads = []
        for kind in (Own, Passed, rnnkit.GRU):
            module: Any = make(kind(3, 5, rng=0, backend="numpy"))
            results = module(x)
            y = results[0] if make is rnnkit.Bidirectional else results
            found = module.backward(np.ones_like(y), dx=False)
            assert (found[0] if make is rnnkit.Bidirectional else found) is None
            grads.append(dict(module.grads))
        for name, grad in grads[2].items():
            assert grad.any()
            np.testing.assert_array_equal(grads[0][name], grad)
            np.testing.assert_array_equal(grads[1][name], grad)
