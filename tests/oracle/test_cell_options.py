"""Cells with options in NumPy: every gradient against finite differences, outputs against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.cell_options import ACTIVATIONS
from rnnkit.core.cells import Weights, cell_of
from rnnkit.core.option_steps import CURVES
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, make_inputs, run
from tests.helpers import parts, randn, random_state, slow_except
from tests.options import ACTIVATION_CASES, NUMBERS, OPTION_CASES

T, B, I, H = 7, 5, 4, 6
SIDES = {"forward": 1, "bidirectional": 2}


STEP = 1e-6
AT_ONCE = 12  # entries of each array whose difference is computed


def assert_finite_differences(case: Case) -> None:
    """Every gradient at random entries. Small steps: a large one would cross the corners of limits and activations."""
    inputs = make_inputs(case)
    got = run(case, inputs, "numpy")
    dy = np.nan_to_num(inputs.dy)
    given = {"lengths": inputs.lengths, "reverse": case.reverse, "backend": "numpy", "constants": case.constants}

    def loss() -> float:
        y, state_n, _ = direction.forward(case.cell, inputs.x, inputs.state0, inputs.weights, **given)
        return float((y * dy).sum() + sum((s * d).sum() for s, d in zip(state_n, inputs.dstate_n, strict=True)))

    moved = {"dx": inputs.x}
    moved |= {f"d{name}0": s for name, s in zip(cell_of(case.cell).states, inputs.state0, strict=True)}
    moved |= {f"d{name}": w for name, w in inputs.weights._asdict().items() if w is not None}
    assert moved.keys() == {name for name in got if name.startswith("d")}
    rng = np.random.default_rng(1)
    for name, a in moved.items():
        live = np.argwhere(np.isfinite(a))
        for at in map(tuple, live[rng.integers(0, len(live), AT_ONCE)]):
            value = a[at]
            a[at] = value + STEP
            above = loss()
            a[at] = value - STEP
            difference = (above - loss()) / (2 * STEP)
            a[at] = value
            assert got[name][at] == pytest.approx(difference, rel=1e-5, abs=1e-7), (name, at)


@pytest.mark.parametrize("case", slow_except([*OPTION_CASES, *ACTIVATION_CASES], OPTION_CASES[0]), ids=str)
def test_every_gradient_equals_the_finite_difference(case: Case) -> None:
    assert_finite_differences(case)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_of_an_activation_is_that_of_its_values(name: str) -> None:
    curve = CURVES[name]
    alpha, beta = (*NUMBERS.get(name, ()), 0.0, 0.0)[:2]
    a = np.linspace(-4.03, 4.03, 200)
    step = 1e-6
    slope = curve.slope(curve.value(a, alpha, beta), alpha, beta)
    np.testing.assert_allclose(
        slope, (curve.value(a + step, alpha, beta) - curve.value(a - step, alpha, beta)) / (2 * step), atol=1e-8
    )


@pytest.mark.parametrize(("a", "slope"), [(0.5, 1.0), (np.nextafter(0.5, 1), 0.0), (-0.5, 1.0), (-0.6, 0.0)])
def test_the_gradient_passes_at_the_clip_and_not_beyond(a: float, slope: float) -> None:
    forward, backward = cell_of("rnn_relu+clip+activations=Affine").steps((0.5, 1.0, 0.0))
    weights = Weights(np.zeros((1, 1)), np.ones((1, 1)))
    _, kept = forward(np.array([[a]]), (np.zeros((1, 1)),), weights)
    assert backward(kept, (np.ones((1, 1)),), weights).dx_side[0, 0] == slope


# layer, its arguments, ONNX's attributes
LAYERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "peephole": (rnnkit.LSTM, {"peephole": True}, {}),
    "clip": (rnnkit.LSTM, {"clip": 0.4}, {"clip": 0.4}),
    "coupled": (rnnkit.LSTM, {"coupled": True}, {"input_forget": 1}),
    "all of an LSTM": (
        rnnkit.LSTM,
        {"peephole": True, "clip": 0.5, "coupled": True, "activations": ("HardSigmoid", "Softsign", "Elu")},
        {
            "clip": 0.5,
            "input_forget": 1,
            "activations": ["HardSigmoid", "Softsign", "Elu"],
            "activation_alpha": [0.2, 1.0],
            "activation_beta": [0.5],
        },
    ),
    "clip of a GRU": (rnnkit.GRU, {"clip": 0.3}, {"clip": 0.3, "linear_before_reset": 1}),
    "GRU": (
        rnnkit.GRU,
        {"clip": 0.6, "reset_after": False, "activations": (("Affine", 0.5, 0.2), ("ScaledTanh", 1.2, 0.7))},
        {
            "clip": 0.6,
            "linear_before_reset": 0,
            "activations": ["Affine", "ScaledTanh"],
            "activation_alpha": [0.5, 1.2],
            "activation_beta": [0.2, 0.7],
        },
    ),
}
for _name, _row in ACTIVATIONS.items():
    _numbers = NUMBERS.get(_name, ())
    _attributes: dict[str, Any] = {"activations": [_name]}
    _attributes |= {f"activation_{n}": [v] for n, v in zip(("alpha", "beta"), _numbers, strict=False)}
    LAYERS[_name] = (rnnkit.RNN, {"clip": 1.5, "activations": ((_name, *_numbers),)}, {"clip": 1.5, **_attributes})
ORDER = {rnnkit.LSTM: (0, 3, 1, 2), rnnkit.GRU: (1, 0, 2), rnnkit.RNN: (0,)}


def onnx_run(layer: Any, attributes: dict[str, Any], x: np.ndarray, lengths: list[int], state: Any) -> list[np.ndarray]:
    """Y, Y_h and for an LSTM Y_c of one node with the layer's weights, on ONNX Runtime's CPU provider."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    D = layer.num_directions
    suffixes = ["", "_reverse"][:D]

    def stacked(name: str) -> np.ndarray:
        def in_order(a: np.ndarray) -> np.ndarray:
            blocks = np.split(a, len(ORDER[type(layer)]))
            return np.concatenate([blocks[k] for k in ORDER[type(layer)]])

        return np.stack([in_order(layer.params[f"{name}_l0{suffix}"]) for suffix in suffixes])

    feeds = {"X": x, "W": stacked("weight_ih"), "R": stacked("weight_hh")}
    feeds["B"] = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
    feeds["sequence_lens"] = np.array(lengths, np.int32)
    feeds |= dict(zip(("initial_h", "initial_c"), parts(state), strict=False))
    if layer.cell.unit_weights:
        unit = [layer.params[f"weight_peephole_l0{suffix}"] for suffix in suffixes]
        feeds["P"] = np.stack([p[[0, 2, 1]].ravel() for p in unit])
    inputs = ["X", "W", "R", "B", "sequence_lens", *(n for n in ("initial_h", "initial_c", "P") if n in feeds)]
    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(layer.cell.states)]
    repeated = {key: value * D if isinstance(value, list) else value for key, value in attributes.items()}
    sides = {1: "forward", 2: "bidirectional"}[D]
    kind = type(layer).__name__
    node = onnx.helper.make_node(kind, inputs, outputs, hidden_size=H, direction=sides, **repeated)

    def info(name: str) -> Any:
        tensor = onnx.TensorProto.INT32 if name == "sequence_lens" else onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_value_info(name, tensor, feeds[name].shape if name in feeds else None)

    graph = onnx.helper.make_graph([node], "one", [info(n) for n in inputs], [info(n) for n in outputs])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_states_equal_those_of_onnx_runtime(name: str, sides: str) -> None:
    kind, arguments, attributes = LAYERS[name]
    rng = np.random.default_rng(len(name))
    layer = kind(I, H, bidirectional=SIDES[sides] == 2, backend="numpy", **arguments)
    for p in layer.params.values():
        p[...] = 0.5 * randn(rng, *p.shape)
    x, state, lengths = randn(rng, T, B, I, dtype="float32"), random_state(layer, B, rng), [3, 7, 1, 5, 2]
    want_y, *want_n = onnx_run(layer, attributes, x, lengths, state)
    y, state_n = layer(x, state, lengths)
    assert_close("Y", y.reshape(T, B, SIDES[sides], H).swapaxes(1, 2), want_y, "float32")
    for what, got, want in zip(("Y_h", "Y_c"), parts(state_n), want_n, strict=False):
        assert_close(what, got, want, "float32")
