"""SLSTM as a layer: four states, what wraps and files do with them, and what refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import rnnkit
from rnnkit.parity import check_layer
from tests.helpers import assert_same, random_state, refused, train_step

I, H, T, B = 3, 4, 5, 2


def layer_of(**arguments: Any) -> rnnkit.SLSTM:
    return rnnkit.SLSTM(I, H, backend="numpy", **({"rng": 1} | arguments))


def x_of(layer: Any, rng: np.random.Generator, steps: int = T) -> np.ndarray:
    return rng.standard_normal((steps, B, I)).astype(layer.dtype)


def test_the_state_is_four_arrays(rng: np.random.Generator) -> None:
    layer = layer_of()
    x, state = x_of(layer, rng), random_state(layer, B, rng)
    y, state_n = layer(x, state)
    assert [s.shape for s in state_n] == [(1, B, H)] * 4
    h, c, n, m = state
    with refused(TypeError, "the state of this layer must be 4 arrays (h0, c0, n0, m0), got 2 arrays"):
        layer(x, (h, c))
    with refused(TypeError, "must be 4 arrays", "got ndarray"):
        layer(x, h)
    with refused(ValueError, "n0 must have shape", f"got (1, {B + 1}, {H})"):
        layer(x, (h, c, np.ones((1, B + 1, H), np.float32), m))
    with refused(TypeError, "m of reset_state must have dtype float32, got float64"):
        layer(x, resets=np.ones((T, B), bool), reset_state=(h, c, n, m.astype("float64")))
    layer.zero_grad()
    layer(x, state)
    with refused(TypeError, "must be 4 arrays (dh_n, dc_n, dn_n, dm_n), got 3 arrays"):
        layer.backward(y, (h, c, n))
    by_parts = train_step(layer, x, (h, None, n, None), y, (None, c, None, m))
    zero = np.zeros_like(h)
    assert_same(by_parts, train_step(layer, x, (h, zero, n, zero), y, (zero, c, zero, m)))


def test_a_sequence_in_two_calls_is_the_whole_call(rng: np.random.Generator) -> None:
    """Without initial states too: only a row's first step has n = 0, which its equations depend on."""
    layer = layer_of(dtype="float64", num_layers=2)
    x = x_of(layer, rng)
    y, state_n = layer(x)
    first, state = layer(x[:2])
    second, ends = layer(x[2:], state)
    np.testing.assert_array_equal(np.concatenate([first, second]), y)
    for got, want in zip(ends, state_n, strict=True):
        np.testing.assert_array_equal(got, want)


def test_wrappers_take_it(rng: np.random.Generator) -> None:
    both = rnnkit.Bidirectional(layer_of(dtype="float64"))
    merged = layer_of(dtype="float64", bidirectional=True)
    for name, p in merged.params.items():
        own = both.forward_layer if not name.endswith("_reverse") else both.reverse_layer
        own.params[name.removesuffix("_reverse")][...] = p
    x, state = x_of(merged, rng), random_state(merged, B, rng)
    y, state_n = both(x, state, [5, 2])
    want, want_n = merged(x, state, [5, 2])
    np.testing.assert_allclose(y, want, rtol=1e-12)
    for got, end in zip(state_n, want_n, strict=True):
        np.testing.assert_allclose(got, end, rtol=1e-12)
    dx, dstate0 = both.backward(y, state)
    want_dx, want_dstate0 = merged.backward(want, state)
    np.testing.assert_allclose(dx, want_dx, rtol=1e-10)
    for got, d in zip(dstate0, want_dstate0, strict=True):
        np.testing.assert_allclose(got, d, rtol=1e-10, atol=1e-12)
    last = rnnkit.LastState(merged)
    out = last(x)
    assert out.shape == (B, 2 * H)
    dx = last.backward(out)
    merged(x)
    dh = np.zeros((2, B, H))
    dh[0], dh[1] = out[:, :H], out[:, H:]
    np.testing.assert_allclose(dx, merged.backward(None, (dh, None, None, None))[0], rtol=1e-12)
    assert rnnkit.summary(merged, (T, None, I)).total == 2 * 4 * H * (I + H + 2)


def test_files_keep_the_cell_and_weights_of_an_lstm_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    layer, other = layer_of(), layer_of(rng=2)
    rnnkit.save(layer, tmp_path / "layer.safetensors")
    other.load_state_dict(rnnkit.load(tmp_path / "layer.safetensors"))
    x = x_of(layer, rng)
    np.testing.assert_array_equal(other(x)[0], layer(x)[0])
    lstm = rnnkit.LSTM(I, H, backend="numpy")
    with refused(ValueError, "those of a lstm cell, and it is a slstm"):
        layer.load_state_dict(lstm.state_dict())
    with refused(ValueError, "those of a slstm cell, and it is a lstm"):
        lstm.load_state_dict(layer.state_dict())
    with refused(ValueError, "this layer is a slstm cell, and weights of an LSTM have the same names", "cells='slstm'"):
        layer.load_state_dict(dict(lstm.state_dict()))
    layer.load_state_dict(dict(lstm.state_dict()), cells="slstm")


def test_what_does_not_serve_it_says_so() -> None:
    with refused(TypeError, "proj_size"):
        rnnkit.SLSTM(I, H, proj_size=2)


def test_the_parity_tool_checks_it(rng: np.random.Generator) -> None:
    layer = rnnkit.SLSTM(I, H, 2, bidirectional=True, backend="numpy", rng=1)
    outcome = check_layer(layer, x_of(layer, rng), random_state(layer, B, rng), [4, 2])
    assert outcome.status == "ok", outcome.why
    assert {"c_n", "n_n", "m_n", "dc0", "dn0", "dm0"} <= set(outcome.arrays)
