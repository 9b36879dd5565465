"""Cells with layer normalisation in NumPy: every gradient against finite differences, and arguments of layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cells import cell_of
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, make_inputs, run
from tests.helpers import parts, randn, random_state, slow_except
from tests.normalised import NORM_CASES
from tests.oracle.test_oracle import difference


@pytest.mark.parametrize(
    ("case", "bias"),
    slow_except([(case, bias) for case in NORM_CASES for bias in (True, False)], (NORM_CASES[3], True), unpack=True),
    ids=str,
)
def test_every_gradient_equals_the_finite_difference(case: Case, bias: bool) -> None:
    case = replace(case, T=3, B=3, I=2, H=3, bias=bias, constants=(0.3,))
    inputs = make_inputs(case)
    got = run(case, inputs, "numpy")
    dy = np.nan_to_num(inputs.dy)
    given = {"lengths": inputs.lengths, "reverse": case.reverse, "backend": "numpy", "constants": case.constants}

    def loss() -> float:
        y, state_n, _ = direction.forward(case.cell, inputs.x, inputs.state0, inputs.weights, keep=False, **given)
        return float((y * dy).sum() + sum((s * d).sum() for s, d in zip(state_n, inputs.dstate_n, strict=True)))

    moved = {"dx": inputs.x}
    moved |= {f"d{name}0": s for name, s in zip(cell_of(case.cell).states, inputs.state0, strict=True)}
    moved |= {f"d{name}": w for name, w in inputs.weights._asdict().items() if w is not None}
    assert moved.keys() == {name for name in got if name.startswith("d")}
    for name, a in moved.items():
        assert np.abs(got[name]).max() > 1e-3, f"{name} is zero"
        assert_close(name, got[name], difference(loss, a), "float64", "backward")


LAYERS: list[tuple[Any, dict[str, Any]]] = [
    (rnnkit.LSTM, {"layer_norm": "torch", "norm_eps": 0.3}),
    (rnnkit.GRU, {"layer_norm": "dreamer", "norm_eps": 0.3}),
]


@pytest.mark.parametrize(("kind", "options"), slow_except(LAYERS, LAYERS[1], unpack=True), ids=str)
def test_gradients_of_two_bidirectional_layers_with_resets(kind: Any, options: dict[str, Any]) -> None:
    layer = kind(2, 3, 2, bidirectional=True, dtype="float64", backend="numpy", rng=3, **options)
    rng = np.random.default_rng(4)
    for name in layer.params:
        if "norm" in name or "bias" in name:
            layer.params[name] += 0.3 * randn(rng, *layer.params[name].shape)
    T, B = 3, 2
    x, state, dy = randn(rng, T, B, 2), random_state(layer, B, rng), randn(rng, T, B, layer.output_size)
    resets = np.array([[False, False], [False, True], [True, False]])

    def loss() -> float:
        with rnnkit.no_grad():
            y, _ = layer(x, state, resets=resets)
        return float((y * dy).sum())

    layer(x, state, resets=resets)
    dx, dstate0 = layer.backward(dy)
    moved = {"x": (dx, x)} | {f"state[{k}]": p for k, p in enumerate(zip(parts(dstate0), parts(state), strict=True))}
    moved |= {
        name: (layer.grads[name].copy(), layer.params[name]) for name in ("weight_layer_norm_l1_reverse", "bias_hh_l0")
    }
    for name, (grad, a) in moved.items():
        assert np.abs(grad).max() > 1e-6, name
        assert_close(name, grad, difference(loss, a), "float64", "backward")


def test_new_layers_have_gains_of_one_and_no_shift() -> None:
    layer: Any = rnnkit.LSTM(3, 4, layer_norm="torch", rng=0)
    assert layer.cell.unit_weights[0] == "g_x_i"
    assert layer.cell.unit_weights[7:] == ("g_u_o", "g_c", "b_c")
    np.testing.assert_array_equal(layer.params["weight_layer_norm_l0"], [[1] * 4] * 9 + [[0] * 4])
    assert not layer.params["bias_ih_l0"].any()
    assert repr(layer) == "LSTM(3, 4, layer_norm='torch', dtype=float32)"


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (rnnkit.LSTM, {"layer_norm": "dreamer"}, "layer_norm must be one of 'haste', 'torch', got 'dreamer'"),
        (rnnkit.GRU, {"layer_norm": "torch"}, "layer_norm must be one of 'haste', 'dreamer', got 'torch'"),
        (rnnkit.LSTM, {"layer_norm": True}, "layer_norm must be one of 'haste', 'torch', got True"),
        (rnnkit.LSTM, {"norm_eps": 1e-3}, "norm_eps must be None without layer_norm, got 0.001"),
        (rnnkit.LSTM, {"layer_norm": "haste", "norm_eps": 0}, "norm_eps must be finite and above 0, got 0"),
        (rnnkit.LSTM, {"layer_norm": "haste", "proj_size": 2}, "proj_size must be 0 with layer_norm, got 2"),
        (rnnkit.LSTM, {"layer_norm": "haste", "peephole": True}, "peephole must be off with layer_norm"),
        (rnnkit.GRU, {"layer_norm": "haste", "clip": 1.0}, "clip must be off with layer_norm"),
        (rnnkit.LSTM, {"layer_norm": "torch", "zoneout": 0.1}, "zoneout must be off with layer_norm"),
        (
            rnnkit.GRU,
            {"layer_norm": "haste", "recurrent_dropout": 0.1},
            "recurrent_dropout must be off with layer_norm",
        ),
        (rnnkit.GRU, {"layer_norm": "haste", "reset_after": False}, "layer_norm must be None with reset_after=False"),
    ],
)
def test_bad_arguments(kind: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        kind(3, 4, **options)
    assert text in str(error.value)


def test_compress_refuses() -> None:
    with pytest.raises(ValueError, match="without options of cells, got GRU"):
        rnnkit.compress(rnnkit.GRU(3, 4, layer_norm="haste"), "int8")
