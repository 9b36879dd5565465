"""No steps, no rows, or neither: outputs have the usual shapes, and only the states have gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import rnnkit
from tests.api.test_modules import leaves, like
from tests.helpers import randn

I, H = 4, 3
EMPTY = pytest.mark.parametrize(("T", "B"), [(0, 2), (3, 0), (0, 0)])

LSTM3 = partial(rnnkit.LSTM, I, H, 3, dropout=0.5, bidirectional=True, proj_size=2)
# name -> (constructor, shape of the output from T and B)
Shape = tuple[int, ...]
RECURRENT: dict[str, tuple[Callable[..., Any], Callable[[int, int], Any]]] = {
    "lstm": (LSTM3, lambda T, B: (T, B, 4)),
    "gru batch_first": (partial(rnnkit.GRU, I, H, batch_first=True), lambda T, B: (B, T, H)),
}
for _merge in ("concat", "sum", "mul", "ave", None):
    _width = 2 * H if _merge == "concat" else H
    RECURRENT[f"both {_merge}"] = (
        lambda merge=_merge, **kw: rnnkit.Bidirectional(rnnkit.GRU(I, H, 2, **kw), merge),
        lambda T, B, merge=_merge, width=_width: ((T, B, width),) * 2 if merge is None else (T, B, width),
    )


def shapes(tree: Any) -> Any:
    return tuple(map(shapes, tree)) if isinstance(tree, tuple) else tree.shape


def no_gradients(module: Any) -> bool:
    return not any(grad.any() for grad in module.grads.values())


@EMPTY
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("ragged", [False, True])
def test_recurrent(name: str, ragged: bool, T: int, B: int, cpu_backend: str, rng: np.random.Generator) -> None:
    make, y_shape = RECURRENT[name]
    layer = make(backend=cpu_backend, rng=1)
    x = randn(rng, *((B, T, I) if "batch_first" in name else (T, B, I)), dtype="float32")
    with rnnkit.no_grad():
        _, state_n = layer(x)
    state = like(state_n, rng)
    state = tuple(s.astype("float32") for s in state) if isinstance(state, tuple) else state.astype("float32")
    y, state_n = layer(x, state, [0] * B if ragged else None)
    assert shapes(y) == y_shape(T, B)
    for got, want in zip(leaves(state_n), leaves(state), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)  # without steps, states and gradients pass through
    dx, dstate0 = layer.backward(y, state)
    assert dx.shape == x.shape
    for got, want in zip(leaves(dstate0), leaves(state), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
    assert no_gradients(layer)


@EMPTY
@pytest.mark.parametrize("name", RECURRENT)
def test_last_state_and_sequential(name: str, T: int, B: int, cpu_backend: str, rng: np.random.Generator) -> None:
    make, y_shape = RECURRENT[name]
    x = randn(rng, *((B, T, I) if "batch_first" in name else (T, B, I)), dtype="float32")
    last = rnnkit.LastState(make(backend=cpu_backend, rng=1))
    width = 2 * H if "concat" in name else 4 if name == "lstm" else H
    out = last(x)
    assert shapes(out) == (((B, H),) * 2 if "None" in name else (B, width))
    assert not any(part.any() for part in leaves(out))
    assert last.backward(out).shape == x.shape
    model = rnnkit.Sequential(rnnkit.Linear(I, I, rng=2), make(backend=cpu_backend, rng=1))
    y = model(x, [0] * B)
    assert shapes(y) == y_shape(T, B)
    assert model.backward(y).shape == x.shape
    assert no_gradients(last)
    assert no_gradients(model)
