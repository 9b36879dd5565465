"""Single operations under pytest-benchmark, so that two commits can be compared on one machine.

    pytest bench/test_ops_benchmark.py --benchmark-enable --benchmark-autosave                       on the first
    pytest bench/test_ops_benchmark.py --benchmark-enable --benchmark-compare                        on the second

The sizes are small, so the suite takes seconds. Without --benchmark-enable every operation runs once, as a test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from bench.grid import BENCHED as CELLS
from bench.grid import Point
from bench.problem import make_layer
from rnnkit.backends import BACKENDS, available
from rnnkit.functional import direction
from rnnkit.testing import Case, Inputs, make_inputs

CPU_BACKENDS = [name for name, row in BACKENDS.items() if row.arrays == "numpy" and available(name)]
MAIN_CELLS = ("rnn_tanh", "gru", "lstm")
T = 32
B = 32
H = 128


def scan(cell: str, backend: str, keep: bool) -> tuple[Inputs, Any]:
    """The functional forward of one layer-direction as a function without arguments."""
    inputs = make_inputs(Case(cell, T, B, H, H), "float32")

    def call() -> Any:
        return direction.forward(cell, inputs.x, inputs.state0, inputs.weights, backend=backend, keep=keep)

    return inputs, call


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_scan_forward(benchmark: Any, backend: str, cell: str) -> None:
    _, forward = scan(cell, backend, keep=False)
    y, _, saved = benchmark(forward)
    assert saved is None
    assert np.isfinite(y).all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_scan_forward_backward(benchmark: Any, backend: str, cell: str) -> None:
    inputs, forward = scan(cell, backend, keep=True)

    def forward_backward() -> Any:
        _, _, saved = forward()
        return direction.backward(saved, inputs.dy, inputs.dstate_n, inputs.weights)

    dx, _, _ = benchmark(forward_backward)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("cell", MAIN_CELLS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_layer_call_of_one_step(benchmark: Any, backend: str, cell: str) -> None:
    """T = 1, B = 1 and few units: the overhead of a call."""
    layer: Any = make_layer(Point(cell, 1, 1, 8, 8), backend, "float32")
    x = np.ones((1, 1, 8), np.float32)
    with rnnkit.no_grad():
        y, _ = benchmark(layer, x)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("cell", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cell_step(benchmark: Any, cell: str) -> None:
    """One row and one step."""
    step = getattr(rnnkit, cell)(128, 128, rng=0)
    x = np.ones((1, 128), np.float32)
    with rnnkit.no_grad():
        benchmark(step, x)


def test_linear(benchmark: Any) -> None:
    linear = rnnkit.Linear(H, 4 * H, rng=0)
    x = np.ones((T, B, H), np.float32)
    dy = np.ones((T, B, 4 * H), np.float32)

    def forward_backward() -> Any:
        linear(x)
        return linear.backward(dy)

    assert np.isfinite(benchmark(forward_backward)).all()


def test_embedding_backward(benchmark: Any) -> None:
    """Many indices, most of them repeated: the scatter-add."""
    embedding = rnnkit.Embedding(1000, H, rng=0)
    indices = np.random.default_rng(0).integers(0, 1000, (T, B))
    embedding(indices)
    dy = np.ones((T, B, H), np.float32)
    benchmark(embedding.backward, dy)
    assert embedding.grads["weight"].any()
