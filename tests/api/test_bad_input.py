"""Bad input to a layer raises one error that names the argument, what it was and what it should be; nothing changes.

`refused` (tests/helpers.py) checks the exact type, the words, and that parameters, gradients, generator and the result
of `backward` are unchanged. Bad arguments of constructors are in test_bad_arguments.py, bad input to the
functional form is in test_bad_functional.py.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rnnkit
from tests.helpers import LAYERS, assert_same, layer_after_a_call, randn, random_state, record, refused

NAN = float("nan")
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)
T, B, I, H = 4, 3, 5, 6


def x_of(*shape: int, dtype: Any = "float32") -> np.ndarray:
    return randn(np.random.default_rng(3), *(shape or (T, B, I)), dtype=dtype)


X_CASES = [
    (ValueError, x_of(I), ("x must have shape (T, B, input_size=5)", "got (5,)")),
    (ValueError, x_of(2, T, B, I), ("x must have shape (T, B, input_size=5)", "got (2, 4, 3, 5)")),
    (ValueError, x_of(T, B, I + 1), ("x must have shape (T, B, input_size=5)", "got (4, 3, 6)")),
    (ValueError, x_of(T, I - 1), ("or (T, input_size=5)", "got (4, 4)")),
    (ValueError, np.ones((), "float32"), ("x must have shape (T, B, input_size=5)", "got ()")),
    (TypeError, x_of(dtype="float64"), ("x must have dtype float32, got float64", "x.astype")),
    (TypeError, x_of(dtype="float16"), ("x must have dtype float32, got float16",)),
    (TypeError, x_of().astype(int), ("x must have dtype float32, got int64",)),
    (TypeError, x_of().astype(">f4"), ("x must have dtype float32, got >f4",)),
    (TypeError, x_of().tolist(), ("x must be a NumPy or CuPy array, got list",)),
    (TypeError, None, ("x must be a NumPy or CuPy array, got NoneType",)),
]


@EVERY_LAYER
@pytest.mark.parametrize(("error", "x", "words"), X_CASES, ids=lambda v: v[-1] if isinstance(v, tuple) else "")
def test_x(name: str, error: type[Exception], x: Any, words: tuple[str, ...]) -> None:
    layer = layer_after_a_call(name)
    with refused(error, *words, by=layer):
        layer(x)


def test_the_error_for_x_names_the_batch_first_layout() -> None:
    layer = layer_after_a_call("gru", batch_first=True)
    with refused(ValueError, "x must have shape (B, T, input_size=5)", "got (3, 4, 6)", by=layer):
        layer(x_of(B, T, I + 1))


def _wrong_states(layer: Any) -> list[tuple[type[Exception], Any, tuple[str, ...]]]:
    """(error, wrong h, words of the message after the argument's name)."""
    slots, R = layer.num_layers * layer.num_directions, layer.hidden_size
    good = f"shape (L*D, B, width) = ({slots}, {B}, {R}), got"
    return [
        (ValueError, x_of(slots, B + 1, R), (good, f"({slots}, {B + 1}, {R})")),
        (ValueError, x_of(slots - 1, B, R), (good, f"({slots - 1}, {B}, {R})")),
        (ValueError, x_of(slots, B, R + 1), (good, f"({slots}, {B}, {R + 1})")),
        (ValueError, x_of(B, slots, R), (good, f"({B}, {slots}, {R})")),
        (ValueError, x_of(slots, R), (good, f"({slots}, {R})")),
        (TypeError, x_of(slots, B, R, dtype="float64"), ("must have dtype float32, got float64",)),
        (TypeError, x_of(slots, B, R).tolist(), ("must be a NumPy or CuPy array, got list",)),
    ]


@EVERY_LAYER
def test_states_and_their_gradients(name: str) -> None:
    layer = layer_after_a_call(name, bidirectional=True)
    states = layer.cell.states
    several = len(states) > 1
    x, good = x_of(), x_of(4, B, H)
    for error, bad, words in _wrong_states(layer):
        for k, state in enumerate(states):
            given: Any = tuple([bad if j == k else good for j in range(len(states))])
            with refused(error, f"{state}0 must", *words, by=layer):
                layer(x, given if several else bad)
            with refused(error, f"d{state}_n must", *words, by=layer):
                layer.backward(None, given if several else bad)
    if several:
        count = "a pair" if len(states) == 2 else f"{len(states)} arrays"
        for bad, was in ((good, "ndarray"), ((good,), "1 arrays"), ((good,) * 3, "3 arrays")):
            with refused(TypeError, f"must be {count} ({', '.join(f'{s}0' for s in states)})", was, by=layer):
                layer(x, bad)
            with refused(TypeError, f"must be {count} ({', '.join(f'd{s}_n' for s in states)})", was, by=layer):
                layer.backward(None, bad)
    else:
        with refused(TypeError, "h0 must be a NumPy or CuPy array, got tuple", by=layer):
            layer(x, (good,))


@EVERY_LAYER
def test_states_of_an_unbatched_call(name: str) -> None:
    layer = layer_after_a_call(name)
    batched = random_state(layer, 1, np.random.default_rng(0))
    with refused(ValueError, f"h0 must have shape (L*D, width) = (2, {H}), got (2, 1, {H})", by=layer):
        layer(x_of(T, I), batched)


def test_states_under_projection() -> None:
    layer = layer_after_a_call("lstm", proj_size=2)
    h, c = x_of(2, B, 2), x_of(2, B, H)
    with refused(ValueError, f"h0 must have shape (L*D, B, width) = (2, {B}, 2), got (2, {B}, {H})", by=layer):
        layer(x_of(), (c, c))
    with refused(ValueError, f"c0 must have shape (L*D, B, width) = (2, {B}, {H}), got (2, {B}, 2)", by=layer):
        layer(x_of(), (h, h))


BETWEEN = f"lengths must be between 0 and T = {T}, got"
LENGTHS = [
    (ValueError, [2, -1, 3], (BETWEEN, "-1 in row 1")),
    (ValueError, [2, 3, T + 1], (BETWEEN, "5 in row 2")),
    (ValueError, np.array([2, 3, 2**40]), (BETWEEN, f"{2**40} in row 2")),
    (ValueError, np.array([255, 3, 2], np.uint8), (BETWEEN, "255 in row 0")),
    (ValueError, [2, 3], ("lengths must have shape (B,) = (3,), got (2,)",)),
    (ValueError, [[2, 3, 4]], ("lengths must have shape (B,) = (3,), got (1, 3)",)),
    (ValueError, [[2], [3, 4]], ("lengths must have shape (B,) = (3,), got", "[[2], [3, 4]]")),
    (ValueError, 3, ("lengths must have shape (B,) = (3,), got ()",)),
    (ValueError, [], ("lengths must have shape (B,) = (3,), got (0,)",)),
    (TypeError, [2.5, 3, 4], ("lengths must be whole numbers, got dtype float64",)),
    (TypeError, [2.0, 3.0, 4.0], ("lengths must be whole numbers, got dtype float64",)),
    (TypeError, [NAN, 3, 4], ("lengths must be whole numbers, got dtype float64",)),
    (TypeError, [True, True, False], ("lengths must be whole numbers, got dtype bool",)),
    (TypeError, ["2", "3", "4"], ("lengths must be whole numbers, got dtype <U1",)),
    (TypeError, [2, None, 4], ("lengths must be whole numbers, got dtype object",)),
    (TypeError, [2**64, 1.5, 4], ("lengths must be whole numbers, got dtype",)),
    (ValueError, [10**30, 1, 2], (BETWEEN, f"{10**30} in row 0")),
]
ONE = "lengths must be a whole number or have shape (1,), got"
UNBATCHED_LENGTHS = [
    (ValueError, [[3]], (ONE, "(1, 1)")),
    (ValueError, [[3], [1, 2]], (ONE, "[[3], [1, 2]]")),
    (ValueError, [3, 1], (ONE, "(2,)")),
    (ValueError, [], (ONE, "(0,)")),
    (ValueError, 10**30, (BETWEEN, f"{10**30} in row 0")),
    (ValueError, -1, (BETWEEN, "-1 in row 0")),
    (TypeError, 1.5, ("lengths must be whole numbers, got dtype float64",)),
    (TypeError, True, ("lengths must be whole numbers, got dtype bool",)),
]


@EVERY_LAYER
@pytest.mark.parametrize(("error", "lengths", "words"), LENGTHS, ids=lambda v: v[-1] if isinstance(v, tuple) else "")
def test_lengths(name: str, error: type[Exception], lengths: Any, words: tuple[str, ...]) -> None:
    layer = layer_after_a_call(name)
    with refused(error, *words, by=layer):
        layer(x_of(), None, lengths)


@EVERY_LAYER
@pytest.mark.parametrize(
    ("error", "lengths", "words"), UNBATCHED_LENGTHS, ids=lambda v: v[-1] if isinstance(v, tuple) else ""
)
def test_lengths_of_an_unbatched_call(name: str, error: type[Exception], lengths: Any, words: tuple[str, ...]) -> None:
    layer = layer_after_a_call(name)
    with refused(error, *words, by=layer):
        layer(x_of(T, I), None, lengths)
    both = rnnkit.Bidirectional(LAYERS[name](I, H, backend="numpy"))
    with refused(error, *words):
        both(x_of(T, I), None, lengths)


@EVERY_LAYER
def test_an_unbatched_length_is_a_number_or_a_sequence_of_one(name: str) -> None:
    layer = LAYERS[name](I, H, backend="numpy", rng=1)
    for module in (layer, rnnkit.Bidirectional(layer)):
        want = module(x_of(T, I)[:2])[0]
        for given in (2, np.int64(2), np.array(2), [2], (2,), np.array([2]), np.array([2], object)):
            y, _ = module(x_of(T, I), None, given)
            np.testing.assert_array_equal(y[:2], want)
            assert not y[2:].any()


@EVERY_LAYER
def test_backward_before_forward(name: str) -> None:
    layer = LAYERS[name](I, H, backend="numpy", rng=1)
    with refused(RuntimeError, "backward needs a call of this", "first", by=layer):
        layer.backward(x_of(T, B, H))
    with rnnkit.no_grad():
        layer(x_of())
    with refused(RuntimeError, "outside rnnkit.no_grad()", by=layer):
        layer.backward(x_of(T, B, H))


@EVERY_LAYER
@pytest.mark.parametrize("batch_first", [False, True])
def test_dy(name: str, batch_first: bool) -> None:
    layer = layer_after_a_call(name, batch_first=batch_first)
    good = (B, T, H) if batch_first else (T, B, H)
    wrong: list[tuple[int, ...]] = [(good[1], good[0], H), (T + 1, B + 1, H), (T, H)]
    for shape in wrong:
        with refused(ValueError, "dy must have y's shape", str(good), f"got {shape}", by=layer):
            layer.backward(x_of(*shape))
    for shape in ((*good[:2], H + 1), (H,), (1, *good)):
        with refused(ValueError, "dy must have shape", f"width of y={H}", f"got {shape}", by=layer):
            layer.backward(x_of(*shape))
    with refused(TypeError, "dy must have dtype float32, got float64", by=layer):
        layer.backward(x_of(*good, dtype="float64"))
    with refused(TypeError, "dy must be a NumPy or CuPy array, got float", by=layer):
        layer.backward(1.0)


@EVERY_LAYER
def test_dy_of_an_unbatched_call(name: str) -> None:
    layer = layer_after_a_call(name)
    layer(x_of(T, I))
    for shape in ((T, 1, H), (T + 1, H)):
        with refused(ValueError, f"dy must have y's shape ({T}, {H})", f"got {shape}", by=layer):
            layer.backward(x_of(*shape))


@EVERY_LAYER
def test_arrays_on_another_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CuPy, so that no GPU is needed: only the array's type and device are read."""
    layer = layer_after_a_call(name)

    class Elsewhere:
        def __init__(self, array: np.ndarray) -> None:
            self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
            self.device = SimpleNamespace(id=1)

    stand_in = ModuleType("cupy")
    stand_in.ndarray = Elsewhere  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    message = "must be on device cpu, got an array on cuda:1"
    with refused(ValueError, f"x {message}", by=layer):
        layer(Elsewhere(x_of()))
    with refused(ValueError, f"dy {message}", by=layer):
        layer.backward(Elsewhere(x_of(T, B, H)))
    h = Elsewhere(x_of(2, B, H))
    with refused(ValueError, f"h0 {message}", by=layer):
        layer(x_of(), {"lstm": (h, h), "slstm": (h, h, h, h)}.get(name, h))


def test_the_record_of_a_layer_detects_changes() -> None:
    """`record`, which `refused` relies on, detects every kind of change."""

    def first_element(array: np.ndarray) -> None:
        array.flat[0] += 1

    spoilings = (
        lambda layer: first_element(layer.params["bias_ih_l1"]),
        lambda layer: first_element(layer.grads["bias_ih_l1"]),
        lambda layer: layer.rng.random(),
        lambda layer: layer.eval(),
        lambda layer: layer.eval()(x_of()),
    )
    for spoil in spoilings:
        layer = layer_after_a_call("lstm")
        clean = record(layer)
        assert_same(record(layer), clean)
        spoil(layer)
        with pytest.raises(AssertionError):
            assert_same(record(layer), clean)
