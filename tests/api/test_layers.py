"""RNN, GRU and LSTM layers: shapes, layouts, defaults, initial parameters, accumulation of gradients, repr."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.functional import direction
from rnnkit.testing import assert_close
from tests.helpers import LAYERS, assert_same, parts, randn, random_state, train_step

EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


@EVERY_LAYER
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_names_and_shapes_are_torchs(
    name: str, num_layers: int, bidirectional: bool, cpu_backend: str, rng: Any
) -> None:
    gates = {"lstm": 4, "slstm": 4, "rnn_tanh": 1, "rnn_relu": 1}.get(name, 3)
    I, H, T, B, D = 3, 5, 4, 2, 1 + bidirectional
    for P in (0, 2) if name == "lstm" else (0,):
        kwargs = {"proj_size": P} if P else {}
        layer = LAYERS[name](I, H, num_layers, bidirectional=bidirectional, backend=cpu_backend, rng=0, **kwargs)
        R, want = P or H, {}
        for k in range(num_layers):
            for suffix in [f"_l{k}", f"_l{k}_reverse"][:D]:
                want["weight_ih" + suffix] = (gates * H, I if k == 0 else D * R)
                want["weight_hh" + suffix] = (gates * H, R)
                want["bias_ih" + suffix] = want["bias_hh" + suffix] = (gates * H,)
                if P:
                    want["weight_hr" + suffix] = (P, H)
        assert {n: p.shape for n, p in layer.params.items()} == want
        assert {n: g.shape for n, g in layer.grads.items()} == want
        y, state_n = layer(randn(rng, T, B, I, dtype="float32"))
        dx, dstate0 = layer.backward(y)
        assert y.shape == (T, B, D * R)
        assert y.dtype == dx.dtype == np.float32
        widths = {"lstm": (R, H), "slstm": (H, H, H, H)}.get(name, (R,))
        for state in (parts(state_n), parts(dstate0)):
            assert [s.shape for s in state] == [(num_layers * D, B, width) for width in widths]
        assert dx.shape == (T, B, I)


@EVERY_LAYER
def test_bias_false_has_no_biases_and_equals_zero_biases(name: str, cpu_backend: str, rng: Any) -> None:
    bare = LAYERS[name](3, 4, bias=False, dtype="float64", backend=cpu_backend, rng=1)
    assert not [n for n in bare.params if n.startswith("bias")]
    zeroed = LAYERS[name](3, 4, dtype="float64", backend=cpu_backend)
    for n, p in zeroed.params.items():
        p[...] = bare.params.get(n, 0)
    x, state = randn(rng, 5, 2, 3), random_state(bare, 2, rng)
    assert_close("y", bare(x, state)[0], zeroed(x, state)[0], "float64")


@EVERY_LAYER
def test_batch_first_equals_the_transposed_call(name: str, cpu_backend: str, rng: Any) -> None:
    results = []
    x, dy = randn(rng, 5, 3, 4), randn(rng, 5, 3, 12)
    for batch_first in (False, True):
        layer = LAYERS[name](
            4, 6, 2, batch_first=batch_first, bidirectional=True, dtype="float64", backend=cpu_backend, rng=2
        )
        drawn = np.random.default_rng(0)
        state, dstate = random_state(layer, 3, drawn), random_state(layer, 3, drawn)
        turn = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
        got = train_step(layer, turn(x), state, turn(dy), dstate, [5, 2, 0])
        results.append(got | {n: turn(got[n]) for n in ("y", "dx")})
    assert_same(results[1], results[0])


@EVERY_LAYER
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [None, 3])
def test_an_unbatched_call_equals_a_batch_of_one(
    name: str, batch_first: bool, length: int | None, cpu_backend: str, rng: Any
) -> None:
    layer = LAYERS[name](
        4, 6, 2, batch_first=batch_first, bidirectional=True, dtype="float64", backend=cpu_backend, rng=2
    )
    x, dy = randn(rng, 5, 4), randn(rng, 5, 12)
    state, dstate = random_state(layer, None, rng), random_state(layer, None, rng)
    lengths = None if length is None else [length]
    got = train_step(layer, x, state, dy, dstate, lengths)
    axis = 0 if batch_first else 1

    def batched(s: Any) -> Any:
        return tuple(a[:, None] for a in s) if isinstance(s, tuple) else s[:, None]

    want = train_step(
        layer, np.expand_dims(x, axis), batched(state), np.expand_dims(dy, axis), batched(dstate), lengths
    )
    for n in ("y", "dx"):
        want[n] = want[n].squeeze(axis)
    for n in want:
        if "state" in n:
            want[n] = want[n][:, 0]
    assert_same(got, want)


@EVERY_LAYER
def test_omitted_states_and_gradients_are_zero(name: str, cpu_backend: str, rng: Any) -> None:
    layer = LAYERS[name](4, 6, 2, bidirectional=True, dtype="float64", backend=cpu_backend, rng=2)
    x, dy, dstate = randn(rng, 5, 3, 4), randn(rng, 5, 3, 12), random_state(layer, 3, rng)

    def zeros(state: Any) -> Any:
        return tuple(map(np.zeros_like, state)) if isinstance(state, tuple) else np.zeros_like(state)

    nothing = zeros(dstate)
    assert_same(train_step(layer, x, None, dy, None), train_step(layer, x, nothing, dy, nothing))
    by_state = train_step(layer, x, None, None, dstate)
    assert np.abs(by_state["dx"]).max() > 1e-3
    assert_same(by_state, train_step(layer, x, nothing, np.zeros_like(dy), dstate))
    if name == "lstm":
        h, c = dstate
        assert_same(
            train_step(layer, x, (h, None), dy, (None, c)), train_step(layer, x, (h, nothing[1]), dy, (nothing[0], c))
        )


@EVERY_LAYER
def test_the_final_state_is_the_output_at_the_end_of_each_row(name: str, cpu_backend: str, rng: Any) -> None:
    """Forward: the last step of the row. Reverse: step 0. Ordered by layer, then forward before reverse."""
    layer = LAYERS[name](4, 6, 2, bidirectional=True, dtype="float64", backend=cpu_backend, rng=2)
    lengths, state = [3, 5, 0, 1], random_state(layer, 4, rng)
    y, state_n = layer(randn(rng, 5, 4, 4), state, lengths)
    h0, h_n = parts(state)[0], parts(state_n)[0]
    for b, length in enumerate(lengths):
        for d, half in enumerate((slice(0, 6), slice(6, 12))):
            slot = 2 + d
            end = h0[slot, b] if length == 0 else y[0 if d else length - 1, b, half]
            np.testing.assert_array_equal(h_n[slot, b], end)
    assert not np.array_equal(h_n[0], h_n[2])


@EVERY_LAYER
def test_a_bidirectional_layer_equals_two_layers_one_of_them_reversed(name: str, cpu_backend: str, rng: Any) -> None:
    both = LAYERS[name](4, 6, bidirectional=True, dtype="float64", backend=cpu_backend, rng=2)
    x, state = randn(rng, 5, 3, 4), random_state(both, 3, rng)
    y, state_n = both(x, state)
    for d, suffix in enumerate(("", "_reverse")):
        one = LAYERS[name](4, 6, dtype="float64", backend=cpu_backend)
        for n, p in one.params.items():
            p[...] = both.params[n + suffix]
        own = tuple(s[d : d + 1] for s in parts(state))
        y_one, end = one(np.flip(x, 0) if d else x, own if len(own) > 1 else own[0])
        assert_close("y", y[:, :, 6 * d :][:, :, :6], np.flip(y_one, 0) if d else y_one, "float64")
        for got, want in zip(parts(state_n), parts(end), strict=True):
            assert_close("state_n", got[d], want[0], "float64")


@EVERY_LAYER
@pytest.mark.parametrize("lengths", [None, [2, 5, 0]], ids=["whole", "ragged"])
def test_each_direction_has_the_gradients_of_a_separate_layer(
    name: str, lengths: Any, cpu_backend: str, rng: Any
) -> None:
    """The second layer is reversed. Each gets its half of dy."""
    both = LAYERS[name](4, 6, bidirectional=True, dtype="float64", backend=cpu_backend, rng=2)
    x, dy = randn(rng, 5, 3, 4), randn(rng, 5, 3, 12)
    state, dstate = random_state(both, 3, rng), random_state(both, 3, rng)
    both(x, state, lengths)
    dx, dstate0 = both.backward(dy, dstate)
    total = np.zeros_like(dx)
    for d, suffix in enumerate(("", "_reverse")):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = direction.Weights(*(both.params[f"{n}_l0{suffix}"] for n in names))
        own = tuple(s[d] for s in parts(state))
        _, _, saved = direction.forward(
            both.cell.name, x, own, weights, lengths=lengths, reverse=d == 1, backend="numpy"
        )
        half = np.ascontiguousarray(dy[:, :, 6 * d :][:, :, :6])
        dx_one, dstart, grads = direction.backward(saved, half, tuple(ends[d] for ends in parts(dstate)), weights)
        total += dx_one
        for n, want in zip(names, grads, strict=False):
            assert_close("d" + n, both.grads[f"{n}_l0{suffix}"], want, "float64", "backward")
        for got, want in zip(parts(dstate0), dstart, strict=True):
            assert_close("dh0", got[d], want, "float64", "backward")
    assert_close("dx", dx, total, "float64", "backward")


@EVERY_LAYER
def test_stacked_layers_equal_single_layers_in_sequence(name: str, cpu_backend: str, rng: Any) -> None:
    stacked = LAYERS[name](4, 6, 3, dtype="float64", backend=cpu_backend, rng=2)
    x, state = randn(rng, 5, 3, 4), random_state(stacked, 3, rng)
    y, state_n = stacked(x, state)
    for k in range(3):
        one = LAYERS[name](x.shape[2], 6, dtype="float64", backend=cpu_backend)
        for n, p in one.params.items():
            p[...] = stacked.params[n.replace("_l0", f"_l{k}")]
        own = tuple(s[k : k + 1] for s in parts(state))
        x, end = one(x, own if len(own) > 1 else own[0])
        for got, want in zip(parts(state_n), parts(end), strict=True):
            assert_close("state_n", got[k], want[0], "float64")
    assert_close("y", y, x, "float64")


@EVERY_LAYER
def test_initial_parameters_are_uniform_and_seeded(name: str) -> None:
    kwargs = {"proj_size": 20} if name == "lstm" else {}
    layer = LAYERS[name](40, 50, 2, bidirectional=True, dtype="float64", backend="numpy", rng=7, **kwargs)
    k = 1 / math.sqrt(50)
    for n, p in layer.params.items():
        assert np.abs(p).max() <= k, n
        assert np.abs(p).max() > 0.9 * k, n
        # Five standard errors of the mean and of the mean square of U(-k, k).
        assert abs(p.mean()) < 5 * k / math.sqrt(3 * p.size), n
        assert abs((p * p).mean() - k * k / 3) < 5 * k * k * math.sqrt(4 / 45 / p.size), n
    values = np.concatenate([p.ravel() for p in layer.params.values()])
    assert len(np.unique(values)) == values.size
    again = LAYERS[name](
        40, 50, 2, bidirectional=True, dtype="float64", backend="numpy", rng=np.random.default_rng(7), **kwargs
    )
    assert_same(again.params, layer.params)
    single = LAYERS[name](40, 50, 2, bidirectional=True, backend="numpy", rng=7, **kwargs)
    assert_same(dict(single.params), {n: p.astype("float32") for n, p in layer.params.items()})
    other = LAYERS[name](40, 50, 2, bidirectional=True, dtype="float64", backend="numpy", rng=8, **kwargs)
    assert not any(np.array_equal(other.params[n], p) for n, p in layer.params.items())
    fresh = [LAYERS[name](2, 3, backend="numpy").params["weight_ih_l0"] for _ in range(2)]
    assert not np.array_equal(*fresh)


@EVERY_LAYER
def test_a_seed_gives_the_same_parameters_on_every_backend(name: str, cpu_backend: str) -> None:
    assert_same(
        LAYERS[name](3, 4, backend=cpu_backend, rng=5).params, LAYERS[name](3, 4, backend="numpy", rng=5).params
    )


@EVERY_LAYER
def test_gradients_accumulate_until_zero_grad(name: str, cpu_backend: str, rng: Any) -> None:
    layer = LAYERS[name](3, 4, 2, dtype="float64", backend=cpu_backend, rng=1)
    arrays = dict(layer.grads)
    assert not any(g.any() for g in arrays.values())
    x, dy, dstate = randn(rng, 5, 2, 3), randn(rng, 5, 2, 4), random_state(layer, 2, rng)
    one = train_step(layer, x, None, dy, dstate)
    dx, _ = layer.backward(dy, dstate)
    np.testing.assert_array_equal(dx, one["dx"])
    for n, g in layer.grads.items():
        np.testing.assert_array_equal(g, 2 * one[f"grad {n}"], err_msg=n)
    layer(2 * x)
    layer.backward(dy)
    summed = {n: g.copy() for n, g in layer.grads.items()}
    second = train_step(layer, 2 * x, None, dy, None)
    for n, g in summed.items():
        assert_close(n, g, 2 * one[f"grad {n}"] + second[f"grad {n}"], "float64", "backward")
    layer.zero_grad()
    assert not any(g.any() for g in layer.grads.values())
    assert all(layer.grads[n] is g for n, g in arrays.items()), "a gradient was replaced, not updated in place"


@pytest.mark.parametrize("name", [*LAYERS, "lstm_projected"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_accumulate_in_place(name: str, dtype: str, cpu_backend: str, rng: Any) -> None:
    """With enough steps for several blocks of a sum. A call without steps adds nothing and loses nothing."""
    sizes = {"proj_size": 4} if name == "lstm_projected" else {}
    kind = LAYERS[name.removesuffix("_projected")]
    layer = kind(3, 7, dtype=dtype, backend=cpu_backend, rng=1, **sizes)
    oracle = kind(3, 7, dtype="float64", backend="numpy", **sizes)
    oracle.load_state_dict({n: p.astype("float64") for n, p in layer.params.items()}, cells=layer.cell.name)
    T, B, R = 180, 3, layer.output_size
    x, dy = (0.3 * randn(rng, T, B, width, dtype=dtype) for width in (3, R))
    before = {n: randn(rng, *g.shape, dtype=dtype) for n, g in layer.grads.items()}
    layer.grads.update({n: g.copy() for n, g in before.items()})
    for each, cast in ((layer, dtype), (oracle, "float64")):
        each(x.astype(cast))
        each.backward(dy.astype(cast))
    for n, g in layer.grads.items():
        assert_close(n, g, before[n] + oracle.grads[n], dtype, "backward")
    held = {n: g.copy() for n, g in layer.grads.items()}
    layer(x, lengths=[0] * B)
    layer.backward(dy)
    assert_same(layer.grads, held)
    layer.grads["weight_hh_l0"].flags.writeable = False
    layer(x)
    with pytest.raises(ValueError, match="read-only"):
        layer.backward(dy)


@pytest.mark.parametrize(
    ("layer", "want"),
    [
        (rnnkit.RNN(2, 3, backend="numpy"), "RNN(2, 3, dtype=float32)"),
        (rnnkit.RNN(2, 3, 2, "relu", backend="numpy"), "RNN(2, 3, num_layers=2, nonlinearity='relu', dtype=float32)"),
        (rnnkit.GRU(2, 3, bias=False, backend="numpy"), "GRU(2, 3, bias=False, dtype=float32)"),
        (rnnkit.GRU(2, 3, reset_after=False, backend="numpy"), "GRU(2, 3, reset_after=False, dtype=float32)"),
        (
            rnnkit.LSTM(2, 3, 2, True, True, 0.5, True, 1, dtype="float64", backend="numpy"),
            "LSTM(2, 3, num_layers=2, batch_first=True, dropout=0.5, bidirectional=True, proj_size=1, dtype=float64)",
        ),
        (
            rnnkit.RNNCell(2, 3, False, "relu", backend="numpy"),
            "RNNCell(2, 3, nonlinearity='relu', bias=False, dtype=float32)",
        ),
        (rnnkit.GRUCell(2, 3, reset_after=False, backend="numpy"), "GRUCell(2, 3, reset_after=False, dtype=float32)"),
        (rnnkit.LSTMCell(2, 3, backend="numpy"), "LSTMCell(2, 3, dtype=float32)"),
    ],
    ids=str,
)
def test_repr_lists_arguments_that_differ_from_the_defaults(layer: Any, want: str) -> None:
    assert repr(layer) == want


def test_the_slope_of_relu_is_zero_at_zero_and_one_at_nan(cpu_backend: str) -> None:
    """As in PyTorch: the gradient passes through a NaN."""
    layer = rnnkit.RNN(1, 3, nonlinearity="relu", bias=False, dtype="float64", backend=cpu_backend, rng=1)
    w = layer.params["weight_ih_l0"]
    w[...] = [[2.0], [-3.0], [0.0]]
    layer(np.array([[[1.0], [np.nan]]]))
    dx, _ = layer.backward(np.array([[[10.0, 100.0, 1000.0], [1.0, 1.0, 1.0]]]))
    np.testing.assert_array_equal(dx, [[[20.0], [-1.0]]])
