"""Keras weights without Keras: the converted layer against Keras' equations, implemented here in Keras' layout.

tests/peers/test_keras.py does the same against Keras itself.
"""

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.io import from_keras
from rnnkit.testing import assert_close
from tests.helpers import randn

I, U, T, B = 3, 4, 5, 2
GATES = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def keras_weights(
    rng: np.random.Generator, kind: str, bias: bool = True, reset_after: bool = False, inputs: int = I
) -> list[np.ndarray]:
    """A list as get_weights() returns it, of random numbers."""
    G = GATES[kind]
    weights = [randn(rng, inputs, G * U), randn(rng, U, G * U)]
    return [*weights, randn(rng, *([2] if reset_after else []), G * U)] if bias else weights


def keras_forward(
    kind: str, weights: list[np.ndarray], x: np.ndarray, reset_after: bool = False, activation: Any = np.tanh
) -> np.ndarray:
    """Outputs (T, B, U) for x (T, B, I), by the equations of Keras' documentation."""
    W, R, *rest = weights
    bias = rest[0] if rest else np.zeros((2, W.shape[1]) if reset_after else W.shape[1])
    b, b_h = bias if reset_after else (bias, 0.0)
    h = c = np.zeros((x.shape[1], U))
    outputs = []
    for x_t in x:
        a = x_t @ W + b
        if kind == "SimpleRNN":
            h = activation(a + h @ R)
        elif kind == "LSTM":
            i, f, cc, o = np.split(a + h @ R, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(cc)
            h = sigmoid(o) * np.tanh(c)
        else:
            a_z, a_r, a_h = np.split(a, 3, axis=1)
            s_z, s_r, s_h = np.split(h @ R + b_h, 3, axis=1)
            z, r = sigmoid(a_z + s_z), sigmoid(a_r + s_r)
            inner = r * s_h if reset_after else (r * h) @ R[:, 2 * U :]
            h = z * h + (1 - z) * np.tanh(a_h + inner)
        outputs.append(h)
    return np.stack(outputs)


def layer_for(kind: str, cell: str, **arguments: Any) -> Any:
    common = {"dtype": "float64", "backend": "numpy", **arguments}
    if kind == "SimpleRNN":
        return rnnkit.RNN(I, U, nonlinearity=cell.removeprefix("rnn_"), **common)
    return rnnkit.LSTM(I, U, **common) if kind == "LSTM" else rnnkit.GRU(I, U, reset_after=cell == "gru", **common)


CONFIGS = [
    ("SimpleRNN", "rnn_tanh", False),
    ("SimpleRNN", "rnn_relu", False),
    ("LSTM", "lstm", False),
    ("GRU", "gru", True),
    ("GRU", "gru_reset_before", False),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "cell", "reset_after"), CONFIGS)
def test_the_layer_computes_what_the_keras_layer_does(
    rng: np.random.Generator, kind: str, cell: str, reset_after: bool, bias: bool
) -> None:
    relu = cell == "rnn_relu"
    weights = keras_weights(rng, kind, bias, reset_after)
    if relu:
        weights[1] *= 0.3  # with large recurrent weights relu diverges
    x = randn(rng, T, B, I)
    reset = reset_after if kind == "GRU" and not bias else None
    state = from_keras(weights, kind, reset_after=reset, activation="relu" if relu else "tanh")
    layer = layer_for(kind, cell, bias=bias)
    layer.load_state_dict(state)
    want = keras_forward(kind, weights, x, reset_after, (lambda a: np.maximum(a, 0)) if relu else np.tanh)
    assert_close("y", layer(x)[0], want, "float64")


@pytest.mark.parametrize(("kind", "cell", "reset_after"), CONFIGS)
def test_both_directions_and_a_stack(rng: np.random.Generator, kind: str, cell: str, reset_after: bool) -> None:
    options = {"activation": "relu"} if cell == "rnn_relu" else {}
    act = (lambda a: np.maximum(a, 0)) if options else np.tanh
    first, second = (
        [0.3 * w for d in range(2) for w in keras_weights(rng, kind, True, reset_after, inputs)]
        for inputs in (I, 2 * U)
    )
    x = randn(rng, T, B, I)
    state = from_keras(first, kind, bidirectional=True, **options) | from_keras(
        second, kind, bidirectional=True, layer=1, **options
    )
    layer = layer_for(kind, cell, num_layers=2, bidirectional=True)
    layer.load_state_dict(state)
    want = x
    for weights in (first, second):
        ahead = keras_forward(kind, weights[:3], want, reset_after, act)
        back = keras_forward(kind, weights[3:], want[::-1], reset_after, act)[::-1]
        want = np.concatenate([ahead, back], axis=2)
    assert_close("y", layer(x)[0], want, "float64")


def test_names_dtypes_and_copies(rng: np.random.Generator) -> None:
    weights = [w.astype(np.float32) for w in keras_weights(rng, "LSTM")]
    state = from_keras(weights, "LSTM", layer=2, prefix="0.")
    assert list(state) == ["0.weight_ih_l2", "0.weight_hh_l2", "0.bias_ih_l2", "0.bias_hh_l2"]
    assert state.layers == {"0.": {"cell": "lstm"}}
    assert all(value.dtype == np.float32 for value in state.values())
    assert not state["0.bias_hh_l2"].any()
    for value in state.values():
        assert value.flags.c_contiguous
        assert not any(np.shares_memory(value, w) for w in weights)
    bare = from_keras(weights[:2], "LSTM", bidirectional=False)
    assert list(bare) == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize("reset_after", [True, False])
def test_one_gru_does_not_load_into_the_other(rng: np.random.Generator, reset_after: bool) -> None:
    state = from_keras(keras_weights(rng, "GRU", True, reset_after), "GRU")
    layer = rnnkit.GRU(I, U, reset_after=not reset_after, backend="numpy", rng=0)
    before = layer.state_dict()
    with pytest.raises(ValueError, match="the weights for this layer are those of a gru"):
        layer.load_state_dict(state)
    assert all(np.array_equal(layer.params[name], value) for name, value in before.items())


RNG = np.random.default_rng(0)
LSTM_LIST, GRU_AFTER, GRU_BEFORE = (
    keras_weights(RNG, "LSTM"),
    keras_weights(RNG, "GRU", True, True),
    keras_weights(RNG, "GRU", True, False),
)


@pytest.mark.parametrize(
    ("weights", "kind", "arguments", "message"),
    [
        (LSTM_LIST, "ConvLSTM", {}, "kind must be one of 'SimpleRNN', 'LSTM', 'GRU', got 'ConvLSTM'"),
        (LSTM_LIST, ["LSTM"], {}, "kind must be one of"),
        (LSTM_LIST, "LSTM", {"activation": "relu"}, "activation 'relu' cannot be converted.*LSTM with tanh alone"),
        (GRU_AFTER, "GRU", {"activation": "linear"}, "activation 'linear' cannot be converted"),
        (LSTM_LIST, "SimpleRNN", {"activation": "gelu"}, "activation 'gelu'.*SimpleRNN with tanh or relu alone"),
        (LSTM_LIST, "LSTM", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation 'hard_sigmoid' cannot"),
        (GRU_AFTER, "GRU", {"recurrent_activation": "tanh"}, "recurrent_activation 'tanh' cannot"),
        (LSTM_LIST, "LSTM", {"reset_after": True}, "reset_after is an argument of GRU; for LSTM it must be None"),
        (GRU_BEFORE, "GRU", {"reset_after": True}, r"reset_after=True does not fit: a bias of shape \(12,\).*another"),
        (GRU_AFTER, "GRU", {"reset_after": False}, r"reset_after=False does not fit: a bias of shape \(2, 12\)"),
        (GRU_AFTER[:2], "GRU", {}, "reset_after must be True or False for a GRU without bias"),
        (LSTM_LIST, "GRU", {}, r"recurrent kernel of a GRU must have shape \(U, 3\*U\), got \(4, 16\)"),
        (LSTM_LIST, "SimpleRNN", {}, r"recurrent kernel of a SimpleRNN must have shape \(U, 1\*U\)"),
        (LSTM_LIST[:1], "LSTM", {}, "must be 3 arrays, or 2 with use_bias=False, for bidirectional=False, got 1"),
        (LSTM_LIST * 2, "LSTM", {}, "bidirectional=False, got 6"),
        (LSTM_LIST, "LSTM", {"bidirectional": True}, "must be 6 arrays, or 4 .*bidirectional=True, got 3"),
        (LSTM_LIST * 2 + [LSTM_LIST[0]], "LSTM", {"bidirectional": True}, "got 7"),
        (dict(enumerate(LSTM_LIST)), "LSTM", {}, "the list that get_weights\\(\\) returns, got dict"),
        (LSTM_LIST[0], "LSTM", {}, "the list that get_weights\\(\\) returns, got ndarray"),
        ([LSTM_LIST[0].T, *LSTM_LIST[1:]], "LSTM", {}, r"kernel of a LSTM of 4 units must have shape \(I, 4\*U\)"),
        ([LSTM_LIST[0], LSTM_LIST[1].T, LSTM_LIST[2]], "LSTM", {}, "recurrent kernel"),
        ([LSTM_LIST[0], LSTM_LIST[1][0], LSTM_LIST[2]], "LSTM", {}, r"recurrent kernel.*got \(16,\)"),
        ([*LSTM_LIST[:2], np.zeros((2, 16))], "LSTM", {}, r"bias of a LSTM of 4 units must have shape \(16,\)"),
        ([*GRU_AFTER[:2], np.zeros(9)], "GRU", {}, r"bias of a GRU of 4 units must have shape \(2, 3\*U\)"),
        ([np.zeros((3, 16), int), *LSTM_LIST[1:]], "LSTM", {}, r"layer_weights\[0\] must hold real numbers"),
        (GRU_AFTER + GRU_BEFORE, "GRU", {"bidirectional": True}, "the same reset_after in both directions"),
        (
            LSTM_LIST + keras_weights(RNG, "LSTM", inputs=I + 1),
            "LSTM",
            {"bidirectional": True},
            "the same sizes in both directions",
        ),
        (LSTM_LIST, "LSTM", {"layer": -1}, "layer must be a whole number of at least 0, got -1"),
        (LSTM_LIST, "LSTM", {"layer": 1.0}, "layer must be a whole number of at least 0, got 1.0"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(
    weights: Any, kind: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_keras(weights, kind, **arguments)


@pytest.mark.parametrize("flag", ["reset_after", "bidirectional"])
def test_flags_are_true_or_false(flag: str) -> None:
    for bad in ("before", 1):
        with pytest.raises(TypeError, match=f"{flag} must be True or False, got {bad!r}"):
            from_keras(GRU_AFTER, "GRU", **{flag: bad})
