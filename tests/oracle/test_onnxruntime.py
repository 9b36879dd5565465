"""Outputs and final states against ONNX Runtime: forward, reverse and bidirectional, ragged rows, both GRUs.

The gate orders are those of the ONNX operators' specification: i,o,f,c (LSTM) and z,r,h (GRU). All lengths are at least
1, because the final state of a row of length 0 is zero in ONNX Runtime and the initial state in rnnkit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnkit.core.cells import Weights
from rnnkit.functional import direction
from rnnkit.testing import assert_close
from tests.helpers import LAYERS, parts, randn, random_state

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

T, B, I, H = 7, 5, 4, 6

# For each gate in ONNX's order, its index in rnnkit's order (i,f,g,o and r,z,n).
ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "gru_reset_before": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
OPERATOR = {"lstm": "LSTM", "gru": "GRU", "gru_reset_before": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}
DIRECTIONS = {"forward": [""], "reverse": [""], "bidirectional": ["", "_reverse"]}


def reordered(name: str, parameter: np.ndarray) -> np.ndarray:
    blocks = np.split(parameter, len(ORDER[name]))
    return np.concatenate([blocks[place] for place in ORDER[name]])


def weights(name: str, layer: Any, suffixes: list[str]) -> dict[str, np.ndarray]:
    def stacked(what: str) -> np.ndarray:
        return np.stack([reordered(name, layer.params[f"{what}_l0{suffix}"]) for suffix in suffixes])

    return {
        "W": stacked("weight_ih"),
        "R": stacked("weight_hh"),
        "B": np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1),
    }


def onnx_run(name: str, sides: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Runs one node on the CPU provider. Returns Y, Y_h and, for LSTM, Y_c."""
    attributes: dict[str, Any] = {"hidden_size": H, "direction": sides}
    if name.startswith("gru"):
        attributes["linear_before_reset"] = int(name == "gru")
    if name == "rnn_relu":
        attributes["activations"] = ["Relu"] * len(DIRECTIONS[sides])
    inputs = ["X", "W", "R", "B", "sequence_lens", "initial_h"] + (["initial_c"] if name == "lstm" else [])
    outputs = ["Y", "Y_h"] + (["Y_c"] if name == "lstm" else [])
    node = onnx.helper.make_node(OPERATOR[name], inputs, outputs, **attributes)

    def info(what: str) -> Any:
        integer = what == "sequence_lens"
        kind = onnx.TensorProto.INT32 if integer else onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_value_info(what, kind, feeds[what].shape if what in feeds else None)

    graph = onnx.helper.make_graph([node], "one", [info(n) for n in inputs], [info(n) for n in outputs])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


@pytest.mark.parametrize("name", ORDER)
@pytest.mark.parametrize("sides", DIRECTIONS)
@pytest.mark.parametrize("lengths", [[T] * B, [3, 7, 1, 5, 2]], ids=["full", "ragged"])
def test_outputs_and_states(name: str, sides: str, lengths: list[int], cpu_backend: str) -> None:
    rng = np.random.default_rng([len(name), len(sides), sum(lengths)])
    suffixes = DIRECTIONS[sides]
    layer = LAYERS[name](I, H, bidirectional=len(suffixes) == 2, backend=cpu_backend)
    for p in layer.params.values():
        p[...] = 0.5 * randn(rng, *p.shape)
    x, state = randn(rng, T, B, I, dtype="float32"), random_state(layer, B, rng)
    feeds = {"X": x, "sequence_lens": np.array(lengths, np.int32)} | weights(name, layer, suffixes)
    feeds |= dict(zip(("initial_h", "initial_c"), parts(state), strict=False))
    want_y, *want_n = onnx_run(name, sides, feeds)
    if sides == "reverse":  # a layer has no reverse-only mode; the functional form does
        own = Weights(*layer.params.values())
        first = tuple(s[0] for s in parts(state))
        y, ends, _ = direction.forward(name, x, first, own, lengths=lengths, reverse=True, backend=cpu_backend)
        state_n = tuple(s[None] for s in ends)
    else:
        y, state_n = layer(x, state, lengths)
    assert_close("Y", y.reshape(T, B, len(suffixes), H).swapaxes(1, 2), want_y, "float32")
    for what, got, want in zip(("Y_h", "Y_c")[: len(want_n)], parts(state_n), want_n, strict=True):
        assert_close(what, got, want, "float32")
