"""RNNCell, GRUCell, LSTMCell equal a layer of one step in values and gradients; a loop over a Cell equals a layer."""

from __future__ import annotations

import numpy as np
import pytest

import rnnkit
from rnnkit.testing import assert_close

KINDS = (
    (rnnkit.RNNCell, rnnkit.RNN, {}),
    (rnnkit.RNNCell, rnnkit.RNN, {"nonlinearity": "relu"}),
    (rnnkit.RNNCell, rnnkit.RNN, {"bias": False}),
    (rnnkit.GRUCell, rnnkit.GRU, {}),
    (rnnkit.GRUCell, rnnkit.GRU, {"reset_after": False}),
    (rnnkit.LSTMCell, rnnkit.LSTM, {}),
)
I, H, B, T = 5, 7, 3, 6


def pair_of(kind, layer_kind, options, dtype, backend):
    """A cell, and the float64 oracle layer with its weights."""
    cell = kind(I, H, dtype=dtype, backend=backend, rng=1, **options)
    layer = layer_kind(I, H, dtype="float64", backend="numpy", **options)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()}, cells=layer.cell.name)
    return cell, layer


def states(rng, cell, dtype, *lead):
    drawn = tuple(rng.standard_normal((*lead, H)).astype(dtype) for _ in cell.cell.states)
    return drawn if len(drawn) == 2 else drawn[0]


def mapped(function, state):
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "layer_kind", "options"), KINDS)
def test_values_and_gradients_equal_a_layer_of_one_step(kind, layer_kind, options, dtype, cpu_backend):
    cell, layer = pair_of(kind, layer_kind, options, dtype, cpu_backend)
    rng = np.random.default_rng(0)
    x, h0, dh = rng.standard_normal((B, I)).astype(dtype), states(rng, cell, dtype, B), states(rng, cell, dtype, B)
    got, want = cell(x, h0), layer(x[None].astype(float), mapped(lambda s: s[None].astype(float), h0))[1]
    for name, g, w in zip("hc", got if isinstance(got, tuple) else (got,), np.reshape(want, (-1, B, H)), strict=False):
        assert_close(name, g, w, dtype)
    dx, dh0 = cell.backward(dh)
    want_dx, want_dh0 = layer.backward(None, mapped(lambda s: s[None].astype(float), dh))
    assert_close("dx", dx, want_dx[0], dtype, "backward")
    assert_close("dstate", np.reshape(dh0, (-1, B, H)), np.reshape(want_dh0, (-1, B, H)), dtype, "backward")
    for name, grad in cell.grads.items():
        assert_close(name, grad, layer.grads[f"{name}_l0"], dtype, "backward")


@pytest.mark.parametrize(("kind", "layer_kind", "options"), KINDS)
def test_a_loop_over_the_cell_equals_the_layer(kind, layer_kind, options, cpu_backend):
    cell, layer = pair_of(kind, layer_kind, options, "float32", cpu_backend)
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    y, _ = layer(x.astype(float))
    state = None
    for t in range(T):
        state = cell(x[t], state)
        assert_close("h", state[0] if isinstance(state, tuple) else state, y[t], "float32")


def test_unbatched_input_equals_one_row():
    cell = rnnkit.LSTMCell(I, H, rng=0)
    rng = np.random.default_rng(0)
    x, h0 = rng.standard_normal(I).astype(np.float32), states(rng, cell, np.float32)
    h, c = cell(x, h0)
    assert h.shape == c.shape == (H,)
    batched = cell(x[None], mapped(lambda s: s[None], h0))
    np.testing.assert_array_equal(h, batched[0][0])
    cell.zero_grad()
    dx, (dh0, dc0) = cell(x, h0) and cell.backward((h, None))
    assert dx.shape == (I,)
    assert dh0.shape == dc0.shape == (H,)


def test_errors_of_bad_calls():
    cell = rnnkit.GRUCell(I, H)
    with pytest.raises(RuntimeError, match="backward needs a call of this GRUCell first"):
        cell.backward(np.zeros((B, H), np.float32))
    with pytest.raises(ValueError, match=r"x must have shape \(B, input_size=5\).*got \(3, 4\)"):
        cell(np.zeros((B, 4), np.float32))
    with pytest.raises(TypeError, match="x must have dtype float32, got float64"):
        cell(np.zeros((B, I)))
    with pytest.raises(ValueError, match=r"h0 must have shape \(B, H\) = \(3, 7\), got \(2, 7\)"):
        cell(np.zeros((B, I), np.float32), np.zeros((2, H), np.float32))
    with pytest.raises(TypeError, match="must be a pair"):
        rnnkit.LSTMCell(I, H)(np.zeros((B, I), np.float32), np.zeros((B, H), np.float32))
    with pytest.raises(ValueError, match="nonlinearity must be one of 'tanh', 'relu', got 'gelu'"):
        rnnkit.RNNCell(I, H, nonlinearity="gelu")


def test_gradients_accumulate_over_calls():
    cell = rnnkit.GRUCell(I, H, rng=0)
    cell(np.ones((B, I), np.float32), np.ones((B, H), np.float32))
    cell.backward(np.ones((B, H), np.float32))
    once = {name: grad.copy() for name, grad in cell.grads.items()}
    cell.backward(np.ones((B, H), np.float32))
    for name, grad in cell.grads.items():
        np.testing.assert_array_equal(grad, 2 * once[name])
        assert once[name].any()


@pytest.mark.parametrize("kind", [rnnkit.RNN, rnnkit.GRU, rnnkit.LSTM])
def test_rows_of_length_0_keep_their_state_in_a_layer_of_one_step(kind, cpu_backend):
    rng = np.random.default_rng(0)
    layer = kind(5, 20, backend=cpu_backend, rng=0)
    x = rng.standard_normal((1, 4, 5)).astype(np.float32)
    states = tuple(rng.standard_normal((1, 4, 20)).astype(np.float32) for _ in layer.cell.states)
    given = states if len(states) == 2 else states[0]
    whole, ragged = layer(x, given), layer(x, given, lengths=[0, 1, 0, 1])
    ends = [s if isinstance(s, tuple) else (s,) for s in (whole[1], ragged[1])]
    assert not ragged[0][:, ::2].any()
    np.testing.assert_array_equal(ragged[0][:, 1::2], whole[0][:, 1::2])
    for before, full, end in zip(states, *ends, strict=True):
        np.testing.assert_array_equal(end[:, ::2], before[:, ::2])
        np.testing.assert_array_equal(end[:, 1::2], full[:, 1::2])
