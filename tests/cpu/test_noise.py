"""Random masks of the Numba backend: the oracle's bits, results and gradients, and the same on any threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core import philox
from rnnkit.core.thread_pool import get_num_threads, set_num_threads
from rnnkit.testing import assert_close
from tests.helpers import parts, randn, slow_except, train_step

pytest.importorskip("numba")

EVERYTHING = {"recurrent_dropout": 0.4, "zoneout": (0.3, 0.2)}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", EVERYTHING),
    ("LSTM", EVERYTHING | {"proj_size": 5}),
    ("LSTM", EVERYTHING | {"mask_per_gate": True}),
    ("LSTM", {"zoneout": (0.3, 0.2), "zoneout_output": "zoned"}),
    ("GRU", {"recurrent_dropout": 0.4, "zoneout": 0.3}),
    ("GRU", {"recurrent_dropout": 0.4, "zoneout": 0.3, "mask_per_gate": True}),
    ("GRU", {"recurrent_dropout": 0.4, "zoneout": 0.3, "reset_after": False}),
    ("GRU", {"recurrent_dropout": 0.4, "zoneout": 0.3, "reset_after": False, "mask_per_gate": True}),
    ("RNN", {"recurrent_dropout": 0.4, "zoneout": 0.3, "nonlinearity": "relu"}),
]


def both(kind: str, arguments: dict[str, Any], dtype: str, H: int) -> tuple[Any, Any]:
    """The layer on the Numba backend, and the oracle in float64 with the same weights and seeds."""
    layers = []
    for backend, used in (("numba", dtype), ("numpy", "float64")):
        layers.append(getattr(rnnkit, kind)(5, H, dtype=used, backend=backend, rng=3, **arguments))
    for name, value in layers[1].params.items():
        value[...] = layers[0].params[name].astype("float64")
    return layers[0], layers[1]


def check(kind: str, arguments: dict[str, Any], dtype: str, rng: Any, H: int = 21, T: int = 6, B: int = 5) -> None:
    layer, oracle = both(kind, arguments, dtype, H)
    R = layer.proj_size or H
    x, dy = randn(rng, T, B, 5, dtype=layer.dtype), randn(rng, T, B, R, dtype=layer.dtype)
    state: Any = randn(rng, 1, B, R, dtype=layer.dtype)
    if kind == "LSTM":
        state = (state, randn(rng, 1, B, H, dtype=layer.dtype))

    def wide(a: Any) -> Any:
        return tuple(p.astype("float64") for p in a) if isinstance(a, tuple) else a.astype("float64")

    for training in (True, False):
        got = train_step(layer.train(training), x, state, dy, state, [6, 2, 4, 0, 5])
        want = train_step(oracle.train(training), wide(x), wide(state), wide(dy), wide(state), [6, 2, 4, 0, 5])
        assert len(parts(state)) == len(layer.cell.states)
        for name, value in want.items():
            assert_close(name, got[name], value, dtype)


@pytest.mark.parametrize(("kind", "arguments"), slow_except(CASES, CASES[0], unpack=True), ids=str)
def test_results_are_those_of_the_oracle(kind: str, arguments: dict[str, Any], rng: Any) -> None:
    check(kind, arguments, "float32", rng)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype: str, rng: Any) -> None:
    check(*CASES[1], dtype, rng)


@pytest.mark.slow
def test_one_step_and_the_reverse_direction(rng: Any) -> None:
    """A call of one step runs the time loop, which draws; and a reversed direction draws by the step's own time."""
    for T in (1, 4):
        one, two = (
            rnnkit.LSTM(5, 21, bidirectional=True, backend=backend, rng=3, **EVERYTHING)
            for backend in ("numba", "numpy")
        )
        x = randn(rng, T, 3, 5, dtype="float32")
        dy = randn(rng, T, 3, 42, dtype="float32")
        got, want = (train_step(layer, x, None, dy, None) for layer in (one, two))
        for name, value in want.items():
            assert_close(name, got[name], value, "float32")


def test_threads_and_members_change_no_bit(rng: Any) -> None:
    before = get_num_threads()
    x = randn(rng, 30, 3, 5, dtype="float32")
    found = []
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            layer = rnnkit.LSTM(5, 160, backend="numba", rng=3, **EVERYTHING)
            found.append(train_step(layer, x, None, np.ones((30, 3, 160), np.float32), None, [30, 7, 12]))
    finally:
        set_num_threads(before)
    for name, value in found[0].items():
        assert np.array_equal(value, found[1][name]), name


@pytest.mark.parametrize("units", [1, 3, 4, 67])
def test_the_compiled_draw_has_the_bits_of_the_oracle(units: int, rng: Any) -> None:
    from rnnkit.kernels.cpu.random_hits import draw_hits

    seed, stream = int(rng.integers(0, 2**64 - 1, dtype=np.uint64)), 4_000_000_123
    rows, times = rng.integers(0, 2**32, 5), rng.integers(0, 2**31, 5)
    for p in (0.0, 0.3, 1.0):
        out = np.full((3, 5, units), 9, np.uint8)
        draw_hits(out, rows, times, *philox.keys_of(seed), stream, philox.threshold(p))
        assert np.array_equal(out, philox.hits(seed, stream, p, 3, rows, times, units))
