"""Outputs, states and gradients against Keras' recurrent layers with random weights, converted by `from_keras`.

Keras computes in float32, because its type promotion reduces float64. rnnkit computes in float64 here. The tolerance is
float32's, for Keras' rounding. The backend of Keras is PyTorch, which gives the gradients.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

from typing import Any, NamedTuple

import numpy as np
import pytest

import rnnkit
from rnnkit.io import from_keras
from rnnkit.nn.containers import Bidirectional, LastState
from rnnkit.testing import assert_close
from tests.helpers import parts, randn

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
pytestmark = pytest.mark.peers

I, U, T, B = 3, 4, 6, 5
LENGTHS = np.array([6, 1, 4, 3, 5])


class Config(NamedTuple):
    """A Keras layer, its arguments of from_keras, and the equivalent rnnkit layer."""

    kind: str
    keras: dict[str, Any]
    arguments: dict[str, Any]
    layer: Any
    ours: dict[str, Any]


CONFIGS = {
    "SimpleRNN": Config("SimpleRNN", {}, {}, rnnkit.RNN, {}),
    "SimpleRNN relu": Config(
        "SimpleRNN", {"activation": "relu"}, {"activation": "relu"}, rnnkit.RNN, {"nonlinearity": "relu"}
    ),
    "LSTM": Config("LSTM", {}, {}, rnnkit.LSTM, {}),
    "LSTM, no bias": Config("LSTM", {"use_bias": False}, {}, rnnkit.LSTM, {"bias": False}),
    "GRU": Config("GRU", {}, {}, rnnkit.GRU, {}),
    "GRU, reset before": Config("GRU", {"reset_after": False}, {}, rnnkit.GRU, {"reset_after": False}),
    "GRU, reset after, no bias": Config("GRU", {"use_bias": False}, {"reset_after": True}, rnnkit.GRU, {"bias": False}),
    "GRU, reset before, no bias": Config(
        "GRU",
        {"use_bias": False, "reset_after": False},
        {"reset_after": False},
        rnnkit.GRU,
        {"bias": False, "reset_after": False},
    ),
}
# One of each cell, for tests that vary something else.
CELLS = ("SimpleRNN", "SimpleRNN relu", "LSTM", "GRU", "GRU, reset before")


def keras_layer(config: Config, rng: np.random.Generator, wrap: Any = None, **more: Any) -> Any:
    """The Keras layer with random weights and biases. wrap: the merge mode of a Bidirectional around it."""
    arguments = {"return_sequences": True, "return_state": True, **config.keras, **more}
    layer = getattr(keras.layers, config.kind)(U, **arguments)
    if wrap is not None:
        layer = keras.layers.Bidirectional(layer, **wrap)
    layer.build((B, T, I))
    layer.set_weights([0.6 * randn(rng, *w.shape) for w in layer.get_weights()])
    return layer


def rnnkit_layer(config: Config, dtype: str = "float64", **more: Any) -> Any:
    return config.layer(I, U, dtype=dtype, backend="numpy", rng=0, batch_first=True, **config.ours, **more)


def converted(config: Config, layer: Any, dtype: str = "float64") -> Any:
    """The rnnkit layer with the Keras layer's weights."""
    ours = rnnkit_layer(config, dtype)
    ours.load_state_dict(from_keras(layer.get_weights(), config.kind, **config.arguments))
    return ours


def numpy(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def keras_state(config: Config, rng: np.random.Generator, dtype: str = "float64") -> list[np.ndarray]:
    return [0.5 * randn(rng, B, U, dtype=dtype) for _ in range(2 if config.kind == "LSTM" else 1)]


def ours_state(states: list[np.ndarray]) -> Any:
    """Keras' states of one direction, (B, U) each, in the format of a rnnkit layer."""
    stacked = tuple(s[None] for s in states)
    return stacked if len(stacked) == 2 else stacked[0]


def gradients(
    layer: Any, x: np.ndarray, states: list[np.ndarray], outputs_gradient: list[np.ndarray], **more: Any
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """(outputs), (gradients of x and states), (gradients of the weights) of a Keras layer, through torch."""
    given = [torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in (x, *states)]
    outputs = layer(given[0], **({"initial_state": given[1:]} if states else {}), **more)
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    for weight in layer.trainable_weights:
        weight.value.grad = None
    torch.autograd.backward(outputs, [torch.tensor(d, dtype=torch.float32) for d in outputs_gradient])
    weights = [w.value.grad.numpy() for w in layer.trainable_weights]
    return [numpy(o) for o in outputs], [a.grad.numpy() for a in given], weights


def assert_gradients(config: Config, ours: Any, weights: list[np.ndarray], prefix: str = "") -> None:
    """Compares Keras' weight gradients, converted like weights. A single bias has the gradient of both of ours."""
    single = config.kind != "GRU" or config.keras.get("reset_after") is False
    for name, want in from_keras(weights, config.kind, **config.arguments, prefix=prefix).items():
        if single and "bias_hh" in name:
            want = ours.grads[name.replace("bias_hh", "bias_ih")]
        assert_close(name, ours.grads[name], want, "float32", "backward")


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_states_and_every_gradient(name: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    layer = keras_layer(config, rng)
    ours = converted(config, layer)
    x, states = randn(rng, B, T, I), keras_state(config, rng)
    dy, dstates = randn(rng, B, T, U), [randn(rng, B, U) for _ in states]
    outputs, inputs_gradient, weights_gradient = gradients(layer, x, states, [dy, *dstates])
    y, end = ours(x, ours_state(states))
    for label, got, want in zip(("y", "h_n", "c_n"), (y, *(s[0] for s in parts(end))), outputs, strict=False):
        assert_close(label, got, want, "float32")
    dx, dstart = ours.backward(dy, ours_state(dstates))
    for label, got, want in zip(
        ("dx", "dh0", "dc0"), (dx, *(s[0] for s in parts(dstart))), inputs_gradient, strict=False
    ):
        assert_close(label, got, want, "float32", "backward")
    assert_gradients(config, ours, weights_gradient)


@pytest.mark.parametrize("name", CELLS)
def test_float32(name: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    layer = keras_layer(config, rng)
    ours = converted(config, layer, "float32")
    x, states = randn(rng, B, T, I, dtype="float32"), keras_state(config, rng, "float32")
    outputs = [numpy(o) for o in layer(x, initial_state=states)]
    y, end = ours(x, ours_state(states))
    for got, want in zip((y, *(s[0] for s in parts(end))), outputs, strict=True):
        assert got.dtype == np.float32
        assert_close("float32", got, want, "float32")


@pytest.mark.parametrize("name", CELLS)
def test_go_backwards_equals_a_call_on_the_reversed_sequence(name: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    layer = keras_layer(config, rng, go_backwards=True)
    x = randn(rng, B, T, I)
    want = [numpy(o) for o in layer(x)]
    y, end = converted(config, layer)(np.ascontiguousarray(x[:, ::-1]))
    for got, expected in zip((y, *(s[0] for s in parts(end))), want, strict=True):
        assert_close(name, got, expected, "float32")


@pytest.mark.parametrize("name", CELLS)
def test_without_return_sequences_keras_equals_last_state(name: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    layer = keras_layer(config, rng, return_sequences=False, return_state=False)
    last = LastState(converted(config, layer))
    x, dout = randn(rng, B, T, I), randn(rng, B, U)
    (want,), (dx,), weights = gradients(layer, x, [], [dout])
    assert want.shape == (B, U)
    assert_close("last", last(x), want, "float32")
    assert_close("dx", last.backward(dout), dx, "float32", "backward")
    assert_gradients(config, last, weights)


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_a_mask_equals_lengths(name: str, zeros: bool, rng: np.random.Generator) -> None:
    """In the padding Keras repeats the last output, or writes zeros with zero_output_for_mask; rnnkit writes zeros."""
    config = CONFIGS[name]
    layer = keras_layer(config, rng, zero_output_for_mask=zeros)
    ours = converted(config, layer)
    x, states = randn(rng, B, T, I), keras_state(config, rng)
    mask = np.arange(T) < LENGTHS[:, None]
    dy, dstates = randn(rng, B, T, U) * mask[:, :, None], [randn(rng, B, U) for _ in states]
    outputs, inputs_gradient, weights = gradients(layer, x, states, [dy, *dstates], mask=torch.from_numpy(mask))
    x[~mask] = np.nan
    y, end = ours(x, ours_state(states), LENGTHS)
    want = outputs[0] if zeros else np.where(mask[:, :, None], outputs[0], 0)
    assert zeros or np.abs(outputs[0][~mask]).max() > 0
    for got, expected in zip((y, *(s[0] for s in parts(end))), (want, *outputs[1:]), strict=True):
        assert_close(name, got, expected, "float32")
    dx, dstart = ours.backward(dy, ours_state(dstates))
    for got, expected in zip((dx, *(s[0] for s in parts(dstart))), inputs_gradient, strict=True):
        assert_close(name, got, expected, "float32", "backward")
    assert_gradients(config, ours, weights)


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_any_mask(name: str, zeros: bool, rng: np.random.Generator) -> None:
    """Also rows that begin or end masked, and one without a live step. Outputs that repeat have gradients too."""
    config = CONFIGS[name]
    layer = keras_layer(config, rng, zero_output_for_mask=zeros)
    ours = converted(config, layer)
    x, states = randn(rng, B, T, I), keras_state(config, rng)
    mask = any_mask(rng)
    dy, dstates = randn(rng, B, T, U), [randn(rng, B, U) for _ in states]
    outputs, inputs_gradient, weights = gradients(layer, x, states, [dy, *dstates], mask=torch.from_numpy(mask))
    x[~mask] = np.nan
    y, end = ours(x, ours_state(states), mask=mask, zero_output_for_mask=zeros)
    for got, expected in zip((y, *(s[0] for s in parts(end))), outputs, strict=True):
        assert_close(name, got, expected, "float32")
    dx, dstart = ours.backward(dy, ours_state(dstates))
    for got, expected in zip((dx, *(s[0] for s in parts(dstart))), inputs_gradient, strict=True):
        assert_close(name, got, expected, "float32", "backward")
    assert_gradients(config, ours, weights)


def any_mask(rng: np.random.Generator) -> np.ndarray:
    mask = rng.random((B, T)) < 0.6
    mask[0] = False
    mask[1, [0, -1]] = False
    mask[2, [0, -1]] = True
    return mask


@pytest.mark.parametrize("name", CELLS)
def test_any_mask_of_both_directions(name: str, rng: np.random.Generator) -> None:
    """With repeated outputs, which Keras' Bidirectional does not have: its layers in both directions, concatenated."""
    config = CONFIGS[name]
    there = keras_layer(config, rng, return_state=False)
    back = keras_layer(config, rng, return_state=False, go_backwards=True)
    x, mask = randn(rng, B, T, I), any_mask(rng)
    dy = randn(rng, B, T, 2 * U)
    given = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    sides = [layer(given, mask=torch.from_numpy(mask)) for layer in (there, back)]
    want = torch.cat([sides[0], sides[1].flip(1)], -1)
    torch.autograd.backward(want, torch.tensor(dy, dtype=torch.float32))
    ours = rnnkit_layer(config, bidirectional=True)
    weights = [*there.get_weights(), *back.get_weights()]
    ours.load_state_dict(from_keras(weights, config.kind, **config.arguments, bidirectional=True))
    y, _ = ours(x, mask=mask)
    assert_close("y", y, numpy(want), "float32")
    assert_close("dx", ours.backward(dy)[0], given.grad.numpy(), "float32", "backward")


@pytest.mark.parametrize("name", CELLS)
def test_any_mask_of_stacked_bidirectional_layers(name: str, rng: np.random.Generator) -> None:
    """Keras' Bidirectional always writes zeros. The mask is the second layer's too."""
    config = CONFIGS[name]
    first = keras_layer(config, rng, wrap={}, return_state=False)
    second = keras.layers.Bidirectional(getattr(keras.layers, config.kind)(U, return_sequences=True, **config.keras))
    second.build((B, T, 2 * U))
    second.set_weights([0.6 * randn(rng, *w.shape) for w in second.get_weights()])
    x, dy, mask = randn(rng, B, T, I), randn(rng, B, T, 2 * U), any_mask(rng)
    given = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    masked = torch.from_numpy(mask)
    want = second(first(given, mask=masked), mask=masked)
    torch.autograd.backward(want, torch.tensor(dy, dtype=torch.float32))
    ours = rnnkit_layer(config, num_layers=2, bidirectional=True)
    state, above = (
        from_keras(layer.get_weights(), config.kind, **config.arguments, bidirectional=True, layer=k)
        for k, layer in enumerate((first, second))
    )
    ours.load_state_dict(state | above)
    y, _ = ours(x, mask=mask, zero_output_for_mask=True)
    assert_close("y", y, numpy(want), "float32")
    assert_close("dx", ours.backward(dy)[0], given.grad.numpy(), "float32", "backward")


MERGES = ("concat", "sum", "mul", "ave", None)


def bidirectional(config: Config, layer: Any, merge: str | None) -> Any:
    """rnnkit's container with the weights of a Keras Bidirectional, converted per direction."""
    weights = layer.get_weights()
    half = len(weights) // 2
    ours = Bidirectional(rnnkit_layer(config), merge=merge)
    ours.load_state_dict(
        from_keras(weights[:half], config.kind, **config.arguments, prefix="forward.")
        | from_keras(weights[half:], config.kind, **config.arguments, prefix="reverse.")
    )
    return ours


def both_states(config: Config, rng: np.random.Generator) -> tuple[list[np.ndarray], Any]:
    """States of both directions in Keras' order (forward, then backward), and stacked as in rnnkit."""
    halves = [keras_state(config, rng) for _ in range(2)]
    stacked = tuple(np.stack(pair) for pair in zip(*halves, strict=True))
    return halves[0] + halves[1], stacked if len(stacked) == 2 else stacked[0]


def as_keras(state: Any) -> list[np.ndarray]:
    """rnnkit's (2, B, U) states in Keras' order: forward, then backward."""
    return [s[direction] for direction in range(2) for s in parts(state)]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", CELLS)
def test_bidirectional(name: str, merge: str | None, ragged: bool, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    layer = keras_layer(config, rng, wrap={"merge_mode": merge})
    ours = bidirectional(config, layer, merge)
    x, (states, h0) = randn(rng, B, T, I), both_states(config, rng)
    dstates, dh_n = both_states(config, rng)
    mask = (np.arange(T) < LENGTHS[:, None]) if ragged else np.ones((B, T), bool)
    width = 2 * U if merge == "concat" else U
    dy = [randn(rng, B, T, width) * mask[:, :, None] for _ in range(2 if merge is None else 1)]
    masked = {"mask": torch.from_numpy(mask)} if ragged else {}
    outputs, inputs_gradient, weights = gradients(layer, x, states, [*dy, *dstates], **masked)
    y, end = ours(x, h0, LENGTHS if ragged else None)
    y = list(y) if merge is None else [y]
    want = [np.where(mask[:, :, None], o, 0) for o in outputs[: len(y)]]
    for got, expected in zip([*y, *as_keras(end)], want + outputs[len(y) :], strict=True):
        assert_close(name, got, expected, "float32")
    dx, dstart = ours.backward(tuple(dy) if merge is None else dy[0], dh_n)
    for got, expected in zip([dx, *as_keras(dstart)], inputs_gradient, strict=True):
        assert_close(name, got, expected, "float32", "backward")
    half = len(weights) // 2
    assert_gradients(config, ours, weights[:half], "forward.")
    assert_gradients(config, ours, weights[half:], "reverse.")


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("name", CELLS)
def test_bidirectional_last_state(name: str, merge: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    layer = keras_layer(config, rng, wrap={"merge_mode": merge}, return_sequences=False, return_state=False)
    last = LastState(bidirectional(config, layer, merge))
    x, dout = randn(rng, B, T, I), randn(rng, B, 2 * U if merge == "concat" else U)
    (want,), (dx,), weights = gradients(layer, x, [], [dout])
    assert_close("last", last(x), want, "float32")
    assert_close("dx", last.backward(dout), dx, "float32", "backward")
    half = len(weights) // 2
    assert_gradients(config, last, weights[:half], "forward.")
    assert_gradients(config, last, weights[half:], "reverse.")


@pytest.mark.parametrize("name", CELLS)
def test_stacked_bidirectional_layers_equal_one_layer(name: str, rng: np.random.Generator) -> None:
    config = CONFIGS[name]
    first = keras_layer(config, rng, wrap={}, return_state=False)
    second = keras.layers.Bidirectional(getattr(keras.layers, config.kind)(U, return_sequences=True, **config.keras))
    second.build((B, T, 2 * U))
    second.set_weights([0.6 * randn(rng, *w.shape) for w in second.get_weights()])
    x = randn(rng, B, T, I)
    want = numpy(second(first(x)))
    ours = rnnkit_layer(config, num_layers=2, bidirectional=True)
    state, above = (
        from_keras(layer.get_weights(), config.kind, **config.arguments, bidirectional=True, layer=k)
        for k, layer in enumerate((first, second))
    )
    ours.load_state_dict(state | above)
    assert_close("y", ours(x)[0], want, "float32")


def test_a_layer_with_dropout_has_the_same_weights(rng: np.random.Generator) -> None:
    """The variables of such a Keras layer include a seed, which get_weights() omits."""
    config = CONFIGS["LSTM"]
    layer = keras_layer(config, rng, dropout=0.5, recurrent_dropout=0.5)
    x = randn(rng, B, T, I)
    assert_close("y", converted(config, layer)(x)[0], numpy(layer(x, training=False)[0]), "float32")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_from_keras_accepts_the_names_of_get_config(kind: str) -> None:
    """The names of activations in get_config() are those of the arguments. Other functions are rejected."""
    sound = getattr(keras.layers, kind)(U)
    sound.build((B, T, I))
    config = sound.get_config()
    arguments = {name: config[name] for name in ("activation", "recurrent_activation")}
    assert len(from_keras(sound.get_weights(), kind, **arguments)) == 4
    hard = getattr(keras.layers, kind)(U, recurrent_activation="hard_sigmoid")
    hard.build((B, T, I))
    with pytest.raises(ValueError, match="recurrent_activation 'hard_sigmoid' cannot be converted"):
        from_keras(hard.get_weights(), kind, recurrent_activation=hard.get_config()["recurrent_activation"])
