"""Modules of every kind, calls of them, and the expected results of backward: for tests of calls in several threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import rnnkit
from tests.api.test_modules import leaves
from tests.helpers import randn

T, B, I, H = 4, 3, 2, 2
F64 = {"dtype": "float64"}
RECURRENT = {"backend": "numpy", **F64}


class Use(NamedTuple):
    """One call of a module: its arguments, and the gradients for its backward."""

    inputs: tuple[Any, ...]
    gradients: tuple[Any, ...]


class Kind(NamedTuple):
    """A kind of module: functions that create one and draw a random use."""

    make: Callable[[], Any]
    use: Callable[[np.random.Generator], Use]


def _layer_use(width: int, states: Callable[[np.random.Generator], Any]) -> Callable[[np.random.Generator], Use]:
    return lambda rng: Use((randn(rng, T, B, I), states(rng)), (randn(rng, T, B, width), states(rng)))


def _state(*shape: int, pair: bool = False) -> Callable[[np.random.Generator], Any]:
    return lambda rng: (randn(rng, *shape), randn(rng, *shape)) if pair else randn(rng, *shape)


def _cell_use(pair: bool) -> Callable[[np.random.Generator], Use]:
    state = _state(B, H, pair=pair)
    return lambda rng: Use((randn(rng, B, I), state(rng)), (state(rng),))


def _plain_use(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Callable[[np.random.Generator], Use]:
    return lambda rng: Use((randn(rng, *inputs),), (randn(rng, *outputs),))


def net() -> rnnkit.Sequential:
    return rnnkit.Sequential(
        rnnkit.Linear(I, I, rng=1, **F64),
        rnnkit.Activation("tanh"),
        rnnkit.Bidirectional(rnnkit.GRU(I, H, rng=2, **RECURRENT), "mul"),
        rnnkit.Sequential(rnnkit.LastState(rnnkit.LSTM(H, H, rng=3, **RECURRENT)), rnnkit.Linear(H, 1, rng=4, **F64)),
    )


KINDS = {
    "RNN": Kind(lambda: rnnkit.RNN(I, H, rng=1, **RECURRENT), _layer_use(H, _state(1, B, H))),
    "GRU compiled": Kind(lambda: rnnkit.GRU(I, H, backend="numba", rng=1, **F64), _layer_use(H, _state(1, B, H))),
    "LSTM": Kind(
        lambda: rnnkit.LSTM(I, H, 2, bidirectional=True, rng=1, **RECURRENT),
        _layer_use(2 * H, _state(4, B, H, pair=True)),
    ),
    "RNNCell": Kind(lambda: rnnkit.RNNCell(I, H, rng=1, **RECURRENT), _cell_use(False)),
    "GRUCell compiled": Kind(lambda: rnnkit.GRUCell(I, H, backend="numba", rng=1, **F64), _cell_use(False)),
    "LSTMCell": Kind(lambda: rnnkit.LSTMCell(I, H, rng=1, **RECURRENT), _cell_use(True)),
    "Linear": Kind(lambda: rnnkit.Linear(I, H, rng=1, **F64), _plain_use((B, I), (B, H))),
    "Activation": Kind(lambda: rnnkit.Activation("sigmoid"), _plain_use((B, I), (B, I))),
    "Embedding": Kind(
        lambda: rnnkit.Embedding(5, H, rng=1, **F64),
        lambda rng: Use((rng.integers(0, 5, (T, B)),), (randn(rng, T, B, H),)),
    ),
    "Bidirectional": Kind(
        lambda: rnnkit.Bidirectional(rnnkit.LSTM(I, H, rng=1, **RECURRENT), "ave"),
        _layer_use(H, _state(2, B, H, pair=True)),
    ),
    "LastState": Kind(lambda: rnnkit.LastState(rnnkit.GRU(I, H, rng=1, **RECURRENT)), _plain_use((T, B, I), (B, H))),
    "Sequential": Kind(net, _plain_use((T, B, I), (B, 1))),
    "MSELoss": Kind(rnnkit.MSELoss, lambda rng: Use((randn(rng, B, I), randn(rng, B, I)), ())),
    "CrossEntropyLoss": Kind(rnnkit.CrossEntropyLoss, lambda rng: Use((randn(rng, B, I), rng.integers(0, I, B)), ())),
    "BCEWithLogitsLoss": Kind(rnnkit.BCEWithLogitsLoss, lambda rng: Use((randn(rng, B, I), rng.random((B, I))), ())),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def answer(got: Any) -> list[np.ndarray]:
    return [leaf for leaf in leaves(got) if leaf is not None]


def alone(kind: str, use: Use) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The result of backward for one use of a new module, and the parameters' gradients."""
    module = KINDS[kind].make()
    module(*use.inputs)
    return answer(module.backward(*use.gradients)), dict(getattr(module, "grads", {}))


def assert_answers(kind: str, module: Any, uses: list[Use], answers: list[list[np.ndarray]]) -> None:
    """Each result equals that of its use alone, and the parameters' gradients are the sums."""
    totals: dict[str, Any] = {}
    for use, got in zip(uses, answers, strict=True):
        want, grads = alone(kind, use)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
        totals = {name: totals.get(name, 0) + grad for name, grad in grads.items()}
    for name, total in totals.items():
        np.testing.assert_allclose(module.grads[name], total, rtol=1e-12, atol=1e-12, err_msg=name)
