"""Bidirectional against two layers and a merge by hand, a bidirectional=True layer, finite differences and published
numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close
from tests.api.test_modules import F64, LENGTHS, B, H, I, T, assert_gradients
from tests.helpers import LAYERS, THE_ORACLE, assert_same, parts, randn, refused, slow_except


def recurrent_gradients(layer: Any, x: np.ndarray, state: Any, lengths: Any, rng: np.random.Generator) -> None:
    named = {f"state[{k}]": s for k, s in enumerate(parts(state))}
    assert_gradients(layer, {"x": x, **named}, lambda: layer(x, state, lengths), lambda up: layer.backward(*up), rng)


def merge_by_hand(merge: str | None, forward: np.ndarray, reverse: np.ndarray) -> np.ndarray:
    by_hand = {
        "concat": lambda: np.concatenate([forward, reverse], axis=-1),
        "sum": lambda: forward + reverse,
        "mul": lambda: forward * reverse,
        "ave": lambda: (forward + reverse) / 2,
        None: lambda: np.stack([forward, reverse]),
    }
    return by_hand[merge]()


def reversed_by_hand(a: np.ndarray, lengths: list[int]) -> np.ndarray:
    turned = a.copy()
    for row, length in enumerate(lengths):
        turned[:length, row] = a[:length, row][::-1]
    return turned


@pytest.mark.parametrize("cell", slow_except(LAYERS, "gru", "lstm"))
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
def test_bidirectional_is_two_layers_and_a_merge(
    cell: str, merge: str | None, cpu_backend: str, rng: np.random.Generator
) -> None:
    both = rnnkit.Bidirectional(LAYERS[cell](I, H, 2, backend=cpu_backend, rng=rng, **F64), merge)
    forward, reverse = both.children().values()
    assert list(both.params) == [f"{way}.{name}" for way in ("forward", "reverse") for name in forward.params]
    x = randn(rng, T, B, I)
    states = [randn(rng, 4, B, H) for _ in forward.cell.states]
    as_given = states[0] if len(states) == 1 else tuple(states)

    def half(k: int) -> Any:
        found = tuple(np.stack([s[k], s[2 + k]]) for s in states)
        return found[0] if len(found) == 1 else found

    for lengths in (LENGTHS, [T] * B):
        y, state_n = both(x, as_given, lengths)
        y_f, n_f = forward(x, half(0), lengths)
        y_r, n_r = reverse(reversed_by_hand(x, lengths), half(1), lengths)
        assert_close("y", np.array(y), merge_by_hand(merge, y_f, reversed_by_hand(y_r, lengths)), "float64")
        for got, f, r in zip(parts(state_n), parts(n_f), parts(n_r), strict=True):
            assert_close("state_n", got, np.stack([f[0], r[0], f[1], r[1]]), "float64")


@pytest.mark.parametrize("cell", slow_except(LAYERS, "gru", "lstm"))
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_bidirectional_concat_is_the_bidirectional_layer(
    cell: str, batch_first: bool, lengths: Any, cpu_backend: str
) -> None:
    make = partial(LAYERS[cell], I, H, batch_first=batch_first, backend=cpu_backend, **F64)
    both, layer = rnnkit.Bidirectional(make(rng=7)), make(bidirectional=True, rng=7)
    names = {f"{way}.{n}": n + end for way, end in (("forward", ""), ("reverse", "_reverse")) for n in make().params}
    for name, theirs in names.items():
        np.testing.assert_array_equal(both.params[name], layer.params[theirs])
    rng = np.random.default_rng(3)
    x, dy = (randn(rng, *((B, T) if batch_first else (T, B)), width) for width in (I, 2 * H))
    state = tuple(randn(rng, 2, B, H) for _ in layer.cell.states)
    dstate = tuple(randn(rng, 2, B, H) for _ in layer.cell.states)
    if len(state) == 1:
        state, dstate = state[0], dstate[0]
    outs = []
    for module in (both, layer):
        y, state_n = module(x, state, lengths)
        dx, dstate0 = module.backward(dy, dstate)
        outs.append([y, dx, *parts(state_n), *parts(dstate0)])
    for got, want in zip(*outs, strict=True):
        assert_close("outputs and gradients", got, want, "float64")
    for name, theirs in names.items():
        assert_close(name, both.grads[name], layer.grads[theirs], "float64", "backward")


@pytest.mark.parametrize("merge", slow_except(["concat", "sum", "mul", "ave", None], "mul", None))
@pytest.mark.parametrize("cell", slow_except(["gru", "lstm"], "gru"))
@THE_ORACLE
def test_bidirectional_gradients_by_differences(
    merge: str | None, cell: str, cpu_backend: str, rng: np.random.Generator
) -> None:
    batch_first, layers = merge in ("sum", "mul"), 2 if merge == "sum" else 1
    layer = LAYERS[cell](I, H, layers, batch_first=batch_first, backend=cpu_backend, rng=rng, **F64)
    both = rnnkit.Bidirectional(layer, merge)
    x = randn(rng, *((B, T, I) if batch_first else (T, B, I)))
    state = tuple(randn(rng, 2 * layers, B, H) for _ in layer.cell.states)
    state = state if len(state) == 2 else state[0]
    recurrent_gradients(both, x, state, LENGTHS, rng)
    flat = tuple(randn(rng, 2 * layers, H) for _ in layer.cell.states)
    recurrent_gradients(both, randn(rng, T, I), flat if len(flat) == 2 else flat[0], [2], rng)


def test_bidirectional_accepts_none_for_any_gradient(rng: np.random.Generator) -> None:
    both = rnnkit.Bidirectional(rnnkit.LSTM(I, H, backend="numpy", rng=rng, **F64), None)
    x, zeros = randn(rng, T, B, I), np.zeros((T, B, H))
    dy, dh, dc = randn(rng, T, B, H), randn(rng, 2, B, H), np.zeros((2, B, H))
    both(x, (None, randn(rng, 2, B, H)))
    found = []
    for up, state in (((dy, None), (dh, None)), ((dy, zeros), (dh, dc)), (None, None)):
        both.zero_grad()
        dx, _ = both.backward(up, state)
        found.append({"dx": dx, **{name: grad.copy() for name, grad in both.grads.items()}})
    assert_same(found[0], found[1])
    assert not any(a.any() for a in found[2].values())


def test_the_reverse_layer_has_the_arguments_of_the_layer() -> None:
    layer = rnnkit.LSTM(3, 4, 2, False, True, 0.25, proj_size=2, backend="numpy", rng=1, **F64)
    layer.eval()
    mirror = rnnkit.Bidirectional(layer).reverse_layer
    assert repr(mirror) == repr(layer)
    assert mirror.backend == "numpy"
    assert mirror.rng is layer.rng
    assert not mirror.training
    assert all((mirror.params[name] != p).all() for name, p in layer.params.items())
    gru = rnnkit.Bidirectional(rnnkit.GRU(3, 4, reset_after=False, backend="numpy")).reverse_layer
    assert gru.reset_after is False
    rnn = rnnkit.Bidirectional(rnnkit.RNN(3, 4, nonlinearity="relu", backend="numpy")).reverse_layer
    assert rnn.nonlinearity == "relu"


class Square(rnnkit.GRU):
    """A user-defined GRU with I = H = size, which stores `size` or does not."""

    def __init__(self, size: int, keeps: bool = True, *, rng: Any = None) -> None:
        super().__init__(size, size, backend="numpy", rng=rng)
        if keeps:
            self.size, self.keeps = size, keeps


def test_bidirectional_of_a_user_defined_layer() -> None:
    mirror = rnnkit.Bidirectional(Square(3, rng=1)).reverse_layer
    assert type(mirror) is Square
    assert mirror.hidden_size == 3
    with refused(TypeError, "layer must store each constructor argument", "Square does not store size, keeps"):
        rnnkit.Bidirectional(Square(3, False))

    class Loose(rnnkit.GRU):
        def __init__(self, *sizes: int, **others: Any) -> None:
            super().__init__(*sizes, **others)

    with refused(TypeError, "layer must store each constructor argument", "Loose does not store sizes, others"):
        rnnkit.Bidirectional(Loose(3, 4, backend="numpy"))


def test_the_reverse_layer_does_not_repeat_the_warning() -> None:
    with pytest.warns(UserWarning, match="dropout acts between layers") as caught:
        both = rnnkit.Bidirectional(rnnkit.GRU(3, 4, dropout=0.5, backend="numpy"))
    assert len(caught) == 1
    assert both.reverse_layer.dropout == 0.5


def test_bidirectional_refuses_bad_input() -> None:
    lstm = rnnkit.LSTM(I, H, backend="numpy")
    with refused(ValueError, "merge", "'concat'", "None", "'max'"):
        rnnkit.Bidirectional(lstm, "max")
    with refused(TypeError, "layer", "Linear"):
        rnnkit.Bidirectional(rnnkit.Linear(2, 2))
    with refused(ValueError, "layer", "bidirectional"):
        rnnkit.Bidirectional(rnnkit.GRU(I, H, bidirectional=True, backend="numpy"))
    both = rnnkit.Bidirectional(lstm)
    x, h, c = np.zeros((T, B, I), np.float32), np.zeros((2, B, H), np.float32), np.zeros((2, B, H), np.float32)
    both(x)
    with refused(ValueError, "h0", f"(2, {B}, {H})", f"(3, {B}, {H})"):
        both(x, (np.zeros((3, B, H), np.float32), c))
    with refused(TypeError, "pair", "h0, c0"):
        both(x, h)
    with refused(ValueError, "lengths", "9"):
        both(x, lengths=[1, 9, 0])
    with refused(TypeError, "x", "float64"):
        both(x.astype(np.float64))
    with refused(ValueError, "dy", f"({T}, {B}, {2 * H})"):
        both.backward(np.ones((T, B, H), np.float32))
    with refused(ValueError, "dc_n", f"(2, {B}, {H})"):
        both.backward(np.ones((T, B, 2 * H), np.float32), (h, c[:1]))
    assert not any(grad.any() for grad in both.grads.values())
    pair = rnnkit.Bidirectional(rnnkit.GRU(I, H, backend="numpy"), None)
    pair(x)
    with refused(TypeError, "dy", "pair", "ndarray"):
        pair.backward(np.zeros((T, B, H), np.float32))
    with refused(ValueError, "dy[1]", f"({T}, {B}, {H})"):
        pair.backward((np.ones((T, B, H), np.float32), np.ones((T, B, I), np.float32)))
    assert not any(grad.any() for grad in pair.grads.values())


# The BiLSTM of a published Keras notebook: all kernels 0.1, biases 0 except the forget gate's 1.

GOLDEN_X = [
    [[0.1, 4.2, 1.5, 1.1, 2.8]],
    [[1.0, 3.1, 2.5, 0.7, 1.1]],
    [[0.3, 2.1, 1.5, 2.1, 0.1]],
    [[2.2, 1.4, 0.5, 0.9, 1.1]],
]
GOLDEN_FORWARD = [0.35906473, 0.55111325, 0.59115744, 0.6303138]
GOLDEN_REVERSE = [0.7038734, 0.58863586, 0.3951699, 0.21942244]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["Bidirectional", "bidirectional=True"])
def test_golden_bilstm(wrapped: bool, dtype: str, cpu_backend: str) -> None:
    make = partial(rnnkit.LSTM, 5, 3, dtype=dtype, backend=cpu_backend)
    layer = rnnkit.Bidirectional(make()) if wrapped else make(bidirectional=True)
    for name, p in layer.params.items():
        p[...] = 0.1 if "weight" in name else 0
        if "bias_ih" in name:
            p[3:6] = 1
    x = np.array(GOLDEN_X, dtype)
    y, (h_n, _) = layer(x)
    want = np.repeat(np.array([GOLDEN_FORWARD, GOLDEN_REVERSE]).T, 3, axis=1)
    # Published with seven digits, so the tolerance is float32's in both dtypes.
    assert_close("sequence", y[:, 0], want, "float32")
    assert_close("h_n", h_n[:, 0, 0], np.array([GOLDEN_FORWARD[-1], GOLDEN_REVERSE[0]]), "float32")
    last = np.array([[0.6303138] * 3 + [0.7038734] * 3])
    assert_close("last outputs", rnnkit.LastState(layer)(x), last, "float32")
