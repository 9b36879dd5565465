"""Every CPU backend against the float64 oracle, for all cases of the table, in every dtype that it serves."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from rnnkit.backends import BACKENDS
from rnnkit.core.cells import CELLS
from rnnkit.testing import CASES, Case, assert_close, make_inputs, parity, run
from tests.helpers import CPU_BACKENDS, LAYERS, assert_same, randn, random_state, train_step

Poison = Callable[[], AbstractContextManager[None]]

needs_ml_dtypes = pytest.mark.skipif(
    importlib.util.find_spec("ml_dtypes") is None, reason="bfloat16 needs the package ml_dtypes"
)
# float64 on the NumPy backend is the oracle itself.
PAIRS = [
    (backend, dtype)
    for backend in CPU_BACKENDS
    for dtype in BACKENDS[backend].dtypes
    if (backend, dtype) != ("numpy", "float64")
]


def marks(backend: str, dtype: str, case: Case) -> list[pytest.MarkDecorator]:
    """`make test` compiles 16-bit kernels in test_sixteen_bits.py, those of the LSTM."""
    found = [needs_ml_dtypes] if dtype == "bfloat16" else []
    in_16_bits = backend == "numba" and dtype in ("float16", "bfloat16")
    return [*found, pytest.mark.slow] if in_16_bits else found


def assert_within(worst: dict[str, float]) -> None:
    over = {name: f"{ratio:.3g} x tolerance" for name, ratio in worst.items() if not ratio <= 1}
    assert not over, over


@pytest.mark.parametrize(
    ("case", "backend", "dtype"),
    [
        pytest.param(case, *pair, marks=marks(*pair, case), id=f"{case}-{'-'.join(pair)}")
        for case in CASES
        for pair in PAIRS
    ],
)
def test_every_output_and_gradient_equals_the_oracles(case: Case, backend: str, dtype: str) -> None:
    assert_within(parity(backend, case, dtype))


@pytest.mark.parametrize("cell", CELLS)
def test_no_uninitialised_memory_is_read(cell: str, cpu_backend: str, poison: Poison) -> None:
    projections = (0, 4) if CELLS[cell].projects else (0,)
    for case in [Case(cell, P=P, ragged=on, reverse=on) for P in projections for on in (False, True)]:
        inputs = make_inputs(case, "float32")
        clean = run(case, inputs, cpu_backend)
        with poison():
            poisoned = run(case, inputs, cpu_backend)
        assert all(np.isfinite(a).all() for a in poisoned.values())
        assert_same(poisoned, clean)


@pytest.mark.parametrize("name", LAYERS)
def test_no_layer_reads_uninitialised_memory(name: str, cpu_backend: str, poison: Poison, rng: Any) -> None:
    layer = LAYERS[name](3, 4, 2, bidirectional=True, backend=cpu_backend, rng=1)
    x, state = randn(rng, 5, 3, 3, dtype="float32"), random_state(layer, 3, rng)
    dy, dstate = randn(rng, 5, 3, 8, dtype="float32"), random_state(layer, 3, rng)
    clean = train_step(layer, x, state, dy, dstate, [2, 0, 5])
    with poison():
        poisoned = train_step(layer, x, state, dy, dstate, [2, 0, 5])
    assert_same(poisoned, clean)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_equal_the_oracle(name: str, dtype: str, cpu_backend: str) -> None:
    """Two bidirectional layers, ragged, with dropout: masks are the same on every backend and in every dtype."""
    results = []
    for backend, kind in ((cpu_backend, dtype), ("numpy", "float64")):
        layer = LAYERS[name](3, 9, 2, dropout=0.4, bidirectional=True, dtype=kind, backend=backend, rng=3)
        drawn = np.random.default_rng(4)
        for parameter in layer.params.values():
            parameter[...] = randn(drawn, *parameter.shape) * np.float32(0.3)
        x, state = randn(drawn, 6, 4, 3, dtype=kind), random_state(layer, 4, drawn)
        dy, dstate = randn(drawn, 6, 4, 18, dtype=kind), random_state(layer, 4, drawn)
        results.append(train_step(layer, x, state, dy, dstate, [3, 6, 0, 5]))
    got, want = results
    for what in want:
        forward = what == "y" or what.startswith("state_n")
        assert_close(what, got[what], want[what], dtype, "forward" if forward else "backward")


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_no_features(cell: str, ragged: bool, cpu_backend: str) -> None:
    """I = 0: h depends only on the biases and the state."""
    assert_within(parity(cpu_backend, Case(cell, T=4, B=3, I=0, H=5, ragged=ragged), "float32"))
