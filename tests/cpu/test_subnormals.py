"""Subnormal numbers: compiled calls read and write them as zero, in any floating-point mode of the caller's thread."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.system import JOB_MODE, float_mode, set_float_mode
from tests.helpers import LAYERS, assert_same, parts, randn, random_state, share_everything, train_step

DEFAULT = 0x1F80  # of x86: all exceptions masked, round to nearest, gradual underflow
FLUSHING, ROUNDING_DOWN = DEFAULT | 0x8040, DEFAULT | 0x2000


@entry(("test", "mode"))
def mode_now() -> int:
    return float_mode()


@entry(("test", "set-mode"))
def set_mode(mode: int) -> None:
    set_float_mode(mode)


pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="needs the floating-point modes of x86-64"
)


@contextmanager
def mode(value: int) -> Iterator[None]:
    """Sets this thread's floating-point mode for a `with` block."""
    before = mode_now()
    set_mode(value)
    try:
        yield
    finally:
        set_mode(before)


def tiny(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Subnormal numbers of a dtype, all different."""
    smallest = np.finfo(dtype).smallest_subnormal
    return (np.arange(1, 1 + int(np.prod(shape))).reshape(shape) * smallest).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_subnormal_weights_states_and_gradients_count_as_zero(name: str, dtype: str, rng: Any) -> None:
    """On x86 a product with a subnormal number takes about a hundred cycles, so they count as zero."""
    results = []
    for subnormal in (True, False):
        layer = LAYERS[name](9, 20, dtype=dtype, backend="numba", rng=1)
        w = layer.params["weight_hh_l0"]
        w[::3] = tiny(w[::3].shape, dtype) if subnormal else 0
        generator = np.random.default_rng(2)
        x = randn(generator, 7, 4, 9, dtype=dtype)
        x[2] = tiny(x[2].shape, dtype) if subnormal else 0
        state = random_state(layer, 4, generator)
        dy = randn(generator, 7, 4, 20, dtype=dtype)
        dy[5] = tiny(dy[5].shape, dtype) if subnormal else 0
        results.append(train_step(layer, x, state, dy, random_state(layer, 4, generator)))
    assert_same(*results)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_results_are_flushed_to_zero(dtype: str) -> None:
    layer = rnnkit.RNN(3, 20, nonlinearity="relu", dtype=dtype, bias=False, backend="numba", rng=0)
    layer.params["weight_hh_l0"][...] = 0
    layer.params["weight_ih_l0"][...] = np.finfo(dtype).tiny
    y, _ = layer(np.full((2, 4, 3), 0.25, dtype))  # each product is subnormal
    assert not y.any()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("callers", [FLUSHING, ROUNDING_DOWN])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_bits_do_not_depend_on_the_callers_mode(
    name: str, callers: int, threads: int, rng: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_everything(monkeypatch, threads)
    layer = LAYERS[name](9, 70, backend="numba", rng=1)
    # Only the final state has a gradient, which decays to subnormal numbers over many steps.
    x, state = randn(rng, 200, 6, 9, dtype="float32"), random_state(layer, 6, rng)
    dstate = random_state(layer, 6, rng)

    def results() -> dict[str, np.ndarray]:
        layer.zero_grad()
        y, state_n = layer(x, state)
        dx, dstate0 = layer.backward(None, dstate)
        found = {"y": y, "dx": dx, **{f"grad {key}": g.copy() for key, g in layer.grads.items()}}
        found |= {f"state_n {k}": s for k, s in enumerate(parts(state_n))}
        return found | {f"dstate0 {k}": s for k, s in enumerate(parts(dstate0))}

    want = results()
    with mode(callers):
        got = results()
        assert mode_now() & 0xFFC0 == callers & 0xFFC0  # and is restored
    assert_same(got, want)
    dx = want["dx"]
    assert not ((dx != 0) & (np.abs(dx) < np.finfo(np.float32).tiny)).any()


def test_job_mode_flushes_and_rounds_to_nearest() -> None:
    with mode(JOB_MODE):
        assert mode_now() & 0xFFC0 == FLUSHING & 0xFFC0
