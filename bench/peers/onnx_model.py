"""The network of a point as an ONNX model: one node RNN, GRU or LSTM per layer, weights as initialisers.

ONNX orders gates as i,o,f,c and z,r,h where torch has i,f,g,o and r,z,n, and returns y as (T, D, B, H).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.grid import Point
from bench.problem import Problem
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES

OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "gru_reset_before": "GRU", "lstm": "LSTM"}
GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}  # ONNX's gates as positions among torch's
OPSET = 17
IR_VERSION = 8


def build_model(problem: Problem) -> onnx.ModelProto:
    """The network of a problem as an ONNX model: inputs x, h0 (c0, lengths), outputs y (T, B, D*H), h_n (c_n)."""
    point = problem.point
    element = helper.np_dtype_to_tensor_dtype(DTYPES[point.dtype].storage)
    names = CELLS[point.cell].states
    D = point.directions
    H = point.H
    initializers = [numpy_helper.from_array(np.array([point.T, point.B, D * H], np.int64), "flat")]
    nodes: list[Any] = []
    inputs = [helper.make_tensor_value_info("x", element, list(problem.x.shape))]
    for name, s in zip(names, problem.state0, strict=True):
        inputs.append(helper.make_tensor_value_info(f"{name}0", element, list(s.shape)))
        # The model's states are (L*D, B, H), a layer's node has (D, B, H).
        parts = [f"{name}0_l{layer}" for layer in range(point.layers)]
        nodes.append(helper.make_node("Split", [f"{name}0"], parts, axis=0))
    if problem.lengths is not None:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [point.B]))
    carried = "x"
    for layer in range(point.layers):
        weights = _layer_weights(problem, layer)
        initializers += [numpy_helper.from_array(a, f"{key}{layer}") for key, a in weights.items()]
        nodes.append(_layer_node(point, layer, carried))
        carried = "y" if layer == point.layers - 1 else f"y{layer}"
        nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"transposed{layer}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"transposed{layer}", "flat"], [carried]))
    outputs = [helper.make_tensor_value_info("y", element, [point.T, point.B, D * H])]
    for name, s in zip(names, problem.state0, strict=True):
        ends = [f"{name}_n_l{layer}" for layer in range(point.layers)]
        nodes.append(helper.make_node("Concat", ends, [f"{name}_n"], axis=0))
        outputs.append(helper.make_tensor_value_info(f"{name}_n", element, list(s.shape)))
    graph = helper.make_graph(nodes, point.shape, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model


def _layer_node(point: Point, layer: int, x: str) -> Any:
    names = CELLS[point.cell].states
    D = point.directions
    kind = OPERATORS[point.cell]
    attributes: dict[str, Any] = {"hidden_size": point.H, "direction": "bidirectional" if D == 2 else "forward"}
    if kind == "RNN":
        attributes["activations"] = ["Relu" if point.cell == "rnn_relu" else "Tanh"] * D
    if kind == "GRU":
        attributes["linear_before_reset"] = int(point.cell == "gru")
    weights = [f"{key}{layer}" for key in ("W", "R", "B")]
    states = [f"{name}0_l{layer}" for name in names]
    ends = [f"{name}_n_l{layer}" for name in names]
    lengths = "lengths" if point.ragged else ""
    return helper.make_node(kind, [x, *weights, lengths, *states], [f"Y{layer}", *ends], **attributes)


def _layer_weights(problem: Problem, layer: int) -> dict[str, np.ndarray]:
    """W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H) of a layer, gates in ONNX's order."""
    point = problem.point
    order = GATES[OPERATORS[point.cell]]

    def gates(name: str) -> np.ndarray:
        p = problem.params[name]
        return p.reshape(len(order), point.H, *p.shape[1:])[list(order)].reshape(p.shape)

    ends = [f"_l{layer}" + suffix for suffix in ("", "_reverse")[: point.directions]]
    return {
        "W": np.stack([gates(f"weight_ih{end}") for end in ends]),
        "R": np.stack([gates(f"weight_hh{end}") for end in ends]),
        "B": np.stack([np.concatenate([gates(f"bias_ih{end}"), gates(f"bias_hh{end}")]) for end in ends]),
    }
