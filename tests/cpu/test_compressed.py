"""Layers with compressed weights compute what the weights that these stand for do, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as backend
from rnnkit.backends.numba import memory
from rnnkit.testing import assert_close
from tests.helpers import CPU_BACKENDS, LAYERS, parts, random_state, share_everything, slow_except

KINDS = ("bfloat16", "int8")
# T, B, I, H and options: single steps and scans, sums in several blocks, sizes that are no multiple of a vector, a
# tile or a pair.
SHAPES: tuple[tuple[int, int, int, int, dict[str, Any]], ...] = (
    (1, 1, 9, 20, {}),
    (1, 7, 67, 35, {"bias": False}),
    (1, 5, 32, 64, {}),
    (4, 3, 9, 21, {"num_layers": 2, "bidirectional": True}),
    (3, 2, 301, 70, {}),
    (3, 13, 70, 130, {}),
)
PROJECTED = ((3, 4, 9, 33, {"proj_size": 17}), (1, 2, 9, 20, {"proj_size": 5}))
CASES = [(name, weights, b) for name in LAYERS for weights in KINDS for b in CPU_BACKENDS]
QUICK = [(name, weights, "numpy") for name in LAYERS for weights in KINDS] + [("lstm", "int8", "numba")]


def oracle_of(small: Any, **options: Any) -> Any:
    """The layer in float64, with the weights that the compressed ones stand for."""
    kind = next(make for name, make in LAYERS.items() if name == small.cell.name)
    oracle = kind(small.input_size, small.hidden_size, backend="numpy", dtype="float64", rng=0, **options)
    for name, p in oracle.params.items():
        p[...] = small._weight(name).astype(np.float64)
    return oracle


def same(got: Any, want: Any) -> None:
    for a, b in zip((got[0], *parts(got[1])), (want[0], *parts(want[1])), strict=True):
        assert_close("a result", a, b, "float32")


def wide(state: Any) -> Any:
    found = tuple(s.astype(np.float64) for s in parts(state))
    return found if isinstance(state, tuple) else found[0]


@pytest.mark.parametrize(("name", "weights", "cpu_backend"), slow_except(CASES, *QUICK, unpack=True))
def test_results_are_those_of_the_float64_oracle(
    name: str, weights: str, cpu_backend: str, rng: np.random.Generator
) -> None:
    for T, B, I, H, options in SHAPES + (PROJECTED if name == "lstm" else ()):
        small = rnnkit.compress(LAYERS[name](I, H, backend=cpu_backend, rng=1, **options), weights)
        oracle = oracle_of(small, **options)
        x = rng.standard_normal((T, B, I)).astype(np.float32)
        state = random_state(small, B, rng)
        for lengths in (None, rng.integers(0, T + 1, B)):
            if lengths is not None:
                x[np.arange(T)[:, None] >= lengths] = np.nan
            want = oracle(x.astype(np.float64), wide(state), lengths)
            same(small(x, state, lengths), want)
            with rnnkit.no_grad():
                same(small(x, state, lengths), want)


@pytest.mark.parametrize("cpu_backend", slow_except(CPU_BACKENDS, "numpy"))
def test_resets_and_masks(cpu_backend: str, rng: np.random.Generator) -> None:
    small = rnnkit.compress(rnnkit.LSTM(9, 21, backend=cpu_backend, rng=1))
    x = rng.standard_normal((7, 4, 9)).astype(np.float32)
    flags = {"resets": rng.random((7, 4)) < 0.3, "mask": rng.random((7, 4)) < 0.7}
    state = random_state(small, 4, rng)
    same(small(x, state, **flags), oracle_of(small)(x.astype(np.float64), wide(state), **flags))


@pytest.mark.parametrize("weights", slow_except(KINDS, "int8"))
def test_a_cell_is_a_layer_of_one_step(weights: str, rng: np.random.Generator) -> None:
    layer = rnnkit.LSTM(9, 20, backend="numba", rng=1)
    cell = rnnkit.LSTMCell(9, 20, backend="numba")
    for name, p in cell.params.items():
        p[...] = layer.params[name + "_l0"]
    layer, cell = rnnkit.compress(layer, weights), rnnkit.compress(cell, weights)
    x = rng.standard_normal((3, 9)).astype(np.float32)
    h, c = random_state(layer, 3, rng)
    (h1, c1), (y, (h_n, c_n)) = cell(x, (h[0], c[0])), layer(x[None], (h, c))
    for a, b in ((h1, y[0]), (h1, h_n[0]), (c1, c_n[0])):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("weights", slow_except(KINDS, "int8"))
@pytest.mark.parametrize("T", [1, 3])
def test_a_row_depends_neither_on_the_batch_nor_on_threads(
    T: int, weights: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = rnnkit.compress(rnnkit.LSTM(37, 70, backend="numba", rng=1), weights)
    x = rng.standard_normal((T, 9, 37)).astype(np.float32)
    h, c = random_state(small, 9, rng)
    want, _ = small(x, (h, c))
    for rows in (slice(2, 3), slice(4, 9), slice(0, 7)):
        y, _ = small(x[:, rows], (h[:, rows], c[:, rows]))
        np.testing.assert_array_equal(y, want[:, rows])
    for threads in (2, 3):
        share_everything(monkeypatch, threads)
        np.testing.assert_array_equal(small(x, (h, c))[0], want)


def test_packed_weights_of_other_scales_are_stale(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are twice as large have the same whole numbers; only the scales behind them differ."""
    monkeypatch.setattr(memory, "MIN_CACHED_PACKED", 0)
    monkeypatch.setattr(backend, "id", lambda a: 0, raising=False)  # as if a new array had the id of a freed one
    backend.packed_weights.clear()
    x = rng.standard_normal((2, 1, 9)).astype(np.float32)
    layer = rnnkit.LSTM(9, 20, backend="numba", rng=1)
    small = rnnkit.compress(layer)
    for p in layer.params.values():
        p *= 2 if p.ndim == 2 else 1
    twice = rnnkit.compress(layer)
    np.testing.assert_array_equal(twice.params["weight_hh_l0"], small.params["weight_hh_l0"])
    for _ in range(2):
        same(small(x), oracle_of(small)(x.astype(np.float64)))
        same(twice(x), oracle_of(twice)(x.astype(np.float64)))
    assert len(backend.packed_weights._entries) == 1
    backend.packed_weights.clear()
