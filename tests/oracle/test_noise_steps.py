"""Zoneout, input, recurrent and weight dropout of the NumPy oracle, by the equations and by finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.random_masks import fixed_mask
from rnnkit.core import philox
from rnnkit.core.regularisation import HIDDEN, INPUT, WEIGHT, ZONEOUT_C, ZONEOUT_H, Noise
from tests.helpers import randn, slow_except

T, B, I, H = 5, 3, 3, 4
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RNN", {}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
)
RATES: tuple[dict[str, Any], ...] = (
    {"recurrent_dropout": 0.4},
    {"recurrent_dropout": 0.4, "mask_per_gate": True},
    {"zoneout": 0.4},
    {"zoneout": 0.3, "recurrent_dropout": 0.3, "input_dropout": 0.2, "weight_dropout": 0.2},
)
OF_C: tuple[dict[str, Any], ...] = (
    {"zoneout": (0.2, 0.4)},
    {"zoneout": (0.2, 0.4), "zoneout_output": "zoned", "recurrent_dropout": 0.3},
)


class Fixed:
    """A generator that gives one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def integers(self, *_: Any, **__: Any) -> int:
        return self.seed


def make(kind: str, seed: int = 12345, layers: int = 1, bidirectional: bool = False, **kwargs: Any) -> Any:
    layer = getattr(rnnkit, kind)(
        I, H, layers, bidirectional=bidirectional, dtype="float64", backend="numpy", rng=0, **kwargs
    )
    layer.rng = Fixed(seed)
    return layer


def zone(noise: Noise, kind: int, p: float, width: int) -> np.ndarray:
    return philox.hits(noise.seed, noise.stream(kind), p, T, np.arange(B), np.zeros(B, int), width) == 1  # type: ignore[arg-type]


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("output", ["raw", "zoned"])
@pytest.mark.parametrize("per_gate", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_an_lstm_written_out(output: str, per_gate: bool, training: bool, rng: Any) -> None:
    layer = make(
        "LSTM", input_dropout=0.3, recurrent_dropout=0.4, mask_per_gate=per_gate, weight_dropout=0.2,
        zoneout=(0.3, 0.5), zoneout_output=output,
    ).train(training)  # fmt: skip
    x, h, c = randn(rng, T, B, I), randn(rng, B, H), randn(rng, B, H)
    y, (h_n, c_n) = layer(x, (h[None], c[None]))
    noise = Noise(layer.regularisation, 12345)
    w = {name.removesuffix("_l0"): value for name, value in layer.params.items()}
    rows, ones = np.arange(B), np.ones((B, H))
    w_hh, masks = w["weight_hh"], [ones] * 4
    if training:
        x = x * fixed_mask(noise, INPUT, 0.3, rows, I, x)
        w_hh = w_hh * fixed_mask(noise, WEIGHT, 0.2, np.arange(4 * H), H, x)
        masks = [fixed_mask(noise, HIDDEN, 0.4, rows, H, x, gate if per_gate else 0) for gate in range(4)]
        zone_h, zone_c = zone(noise, ZONEOUT_H, 0.3, H), zone(noise, ZONEOUT_C, 0.5, H)
    else:
        zone_h, zone_c = np.full((T, B, H), 0.3), np.full((T, B, H), 0.5)
    for t in range(T):
        a = x[t] @ w["weight_ih"].T + w["bias_ih"] + w["bias_hh"]
        a = a + np.concatenate([(h * m) @ part.T for m, part in zip(masks, np.split(w_hh, 4), strict=True)], 1)
        i, f, g, o = np.split(a, 4, 1)
        raw = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        zoned = zone_c[t] * c + (1 - zone_c[t]) * raw
        new = sigmoid(o) * np.tanh(zoned if output == "zoned" else raw)
        h, c = zone_h[t] * h + (1 - zone_h[t]) * new, zoned
        np.testing.assert_allclose(y[t], h, rtol=0, atol=1e-12)
    np.testing.assert_allclose(c_n[0], c, rtol=0, atol=1e-12)
    np.testing.assert_allclose(h_n[0], h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_gru_mixes_the_unmasked_h(reset_after: bool, rng: Any) -> None:
    layer = make("GRU", recurrent_dropout=0.5, reset_after=reset_after)
    x, h = randn(rng, T, B, I), randn(rng, B, H)
    y, _ = layer(x, h[None])
    m = fixed_mask(Noise(layer.regularisation, 12345), HIDDEN, 0.5, np.arange(B), H, x)
    w = {name.removesuffix("_l0"): value for name, value in layer.params.items()}
    for t in range(T):
        x_r, x_z, x_n = np.split(x[t] @ w["weight_ih"].T + w["bias_ih"], 3, 1)
        w_r, w_z, w_n = np.split(w["weight_hh"], 3)
        b_r, b_z, b_n = np.split(w["bias_hh"], 3)
        r = sigmoid(x_r + (h * m) @ w_r.T + b_r)
        z = sigmoid(x_z + (h * m) @ w_z.T + b_z)
        hidden = r * ((h * m) @ w_n.T + b_n) if reset_after else (r * h * m) @ w_n.T + b_n
        h = (1 - z) * np.tanh(x_n + hidden) + z * h
        np.testing.assert_allclose(y[t], h, rtol=0, atol=1e-12)


def differences(layer: Any, x: Any, state: Any, dy: Any, dstate: Any, rng: Any, **call: Any) -> float:
    """The worst difference of backward from central differences, at three elements of each array."""
    parts = state if isinstance(state, tuple) else (state,)
    dparts = dstate if isinstance(dstate, tuple) else (dstate,)

    def loss() -> float:
        y, ends = layer(x, state, **call)
        ends = ends if isinstance(ends, tuple) else (ends,)
        return float((y * dy).sum() + sum((e * d).sum() for e, d in zip(ends, dparts, strict=True)))

    layer.zero_grad()
    loss()
    dx, dstart = layer.backward(dy, dstate)
    dstart = dstart if isinstance(dstart, tuple) else (dstart,)
    arrays = [(x, dx), *zip(parts, dstart, strict=True), *((layer.params[n], g) for n, g in layer.grads.items())]
    worst, step = 0.0, 1e-6
    for array, gradient in arrays:
        for _ in range(3):
            at = tuple(rng.integers(0, n) for n in array.shape)
            before = array[at]
            array[at] = before + step
            above = loss()
            array[at] = before - step
            below = loss()
            array[at] = before
            worst = max(worst, abs((above - below) / (2 * step) - gradient[at]))
    return worst


CASES = [(kind, extra | rates) for kind, extra in KINDS for rates in RATES]
CASES += [("LSTM", extra | rates) for extra in ({}, {"proj_size": 2}) for rates in OF_C]


QUICK = (CASES[7], CASES[-1])


@pytest.mark.parametrize(("kind", "arguments"), slow_except(CASES, *QUICK, unpack=True), ids=str)
@pytest.mark.parametrize("training", slow_except([True, False], True))
def test_gradients_by_differences(kind: str, arguments: dict[str, Any], training: bool, rng: Any) -> None:
    layer = make(kind, layers=2, bidirectional=True, **arguments).train(training)
    R = layer.proj_size or H
    x, dy = randn(rng, T, B, I), randn(rng, T, B, 2 * R)
    state: Any = randn(rng, 4, B, R)
    dstate: Any = randn(rng, 4, B, R)
    if kind == "LSTM":
        state, dstate = (state, randn(rng, 4, B, H)), (dstate, randn(rng, 4, B, H))
    assert differences(layer, x, state, dy, dstate, rng, lengths=[5, 0, 3]) < 1e-7


def test_gradients_through_resets_and_a_mask(rng: Any) -> None:
    layer = make("LSTM", recurrent_dropout=0.3, zoneout=(0.3, 0.2), input_dropout=0.2)
    resets, mask = np.zeros((T, B), bool), np.ones((T, B), bool)
    resets[2, 1] = resets[3, 0] = True
    mask[1, 1] = mask[2, 0] = False
    state = (randn(rng, 1, B, H), randn(rng, 1, B, H))
    dstate = (randn(rng, 1, B, H), randn(rng, 1, B, H))
    given = (randn(rng, T, B, I), state, randn(rng, T, B, H), dstate, rng)
    assert differences(layer, *given, resets=resets, mask=mask) < 1e-7
