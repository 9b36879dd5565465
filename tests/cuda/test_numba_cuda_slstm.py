"""The sLSTM on `numba_cuda`, in greenlets, against the float64 oracle. Its states beside h are three: c, n and m."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.core.dtypes import DTYPES
from rnnkit.kernels.numba_cuda.launch_shape import THREADS
from rnnkit.testing import Case, assert_close, errors, kind_of, make_inputs, parity, run, widened
from tests.api.resets import inputs
from tests.cuda.test_numba_cuda import device, on_device
from tests.cuda.test_resets_on_device import assert_oracle
from tests.helpers import parts, randn, random_state, slow_except
from tests.tools import greenlets

pytestmark = pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))

SMALL = Case("slstm", T=4, B=5, I=3, H=7, ragged=True)
CASES = [SMALL, replace(SMALL, reverse=True, bias=False, ragged=False), replace(SMALL, T=1, B=1, H=1, ragged=False)]


def assert_parity(case: Case, dtype: str, seed: int = 1, watch: bool = False) -> None:
    with device(seed, watch):
        worst = parity("numba_cuda", case, dtype, device="cuda:0")
    over = {name: ratio for name, ratio in worst.items() if not ratio <= 1}
    assert not over, (case, over)


def assert_equals_the_oracle(case: Case, given: Any, dtype: str = "float32", growth: float = 1.0) -> None:
    with device(1):
        got = run(case, on_device(given), "numba_cuda")
    for name, value in run(case, widened(given), "numpy").items():
        assert errors(got[name], value, dtype, kind_of(name), growth).worst <= 1, name


@pytest.mark.parametrize("dtype", slow_except(["float32", "float64", "float16"], "float32"))
def test_every_output_and_gradient_equals_the_oracles(dtype: str) -> None:
    """Without races."""
    for case in CASES:
        assert_parity(case, dtype, watch=True)


@pytest.mark.slow
def test_more_units_than_threads() -> None:
    assert_parity(replace(SMALL, T=2, B=1, I=2, H=THREADS + 5, ragged=False), "float32")


@pytest.mark.parametrize("reverse", slow_except([False, True], False))
def test_units_without_a_step_and_below_the_least_n(reverse: bool) -> None:
    """n' = 0 in all units, in some, and between 0 and 1. The first row has no step at all."""
    rng = np.random.default_rng(0)
    shape = (SMALL.B, SMALL.H)
    for n0 in (np.zeros(shape), rng.integers(0, 2, shape), rng.uniform(0.05, 0.9, shape)):
        given = make_inputs(SMALL, "float32")
        given.lengths = np.array([0, 1, 4, 3, 2])
        given.state0 = (*given.state0[:2], n0.astype(np.float32), given.state0[3])
        assert_equals_the_oracle(replace(SMALL, reverse=reverse), given)


@pytest.mark.parametrize("zeros", slow_except([False, True], True))
def test_pre_activations_far_from_zero(zeros: bool) -> None:
    """Gates that are open and closed to the last bit, from states and from zeros."""
    for a_i in (-200.0, 200.0):
        for a_f in (-200.0, 200.0):
            given = make_inputs(replace(SMALL, T=2, ragged=False), "float32")
            bias = np.repeat([a_i, a_f, 0.0, 0.0], SMALL.H).astype(np.float32)
            given.weights = given.weights._replace(b_ih=bias)
            if zeros:
                given.state0 = tuple(np.zeros_like(s) for s in given.state0)
            assert_equals_the_oracle(SMALL, given, growth=DTYPES["float32"].growth(200))


def test_resets_and_masks(rng: np.random.Generator) -> None:
    """A reset starts anew: from zeros, whose n says so, or from the given state."""
    for kinds in ("resets mask lengths", "resets given"):
        with device(1):
            here = rnnkit.SLSTM(4, 5, backend="numpy", rng=1)
            there = rnnkit.SLSTM(4, 5, device="cuda", backend="numba_cuda", rng=1)
            assert_oracle(there, here, inputs(here, rng, T=4, B=3, kinds=kinds), rng)


@pytest.mark.parametrize("bidirectional", slow_except([False, True], True))
def test_layers_equal_the_oracle(bidirectional: bool, rng: np.random.Generator) -> None:
    """Two layers with dropout between, ragged rows, and gradients of all four final states."""
    shape: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional, "dropout": 0.4}
    here = rnnkit.SLSTM(3, 4, dtype="float64", backend="numpy", rng=3, **shape)
    x, dy = randn(rng, 4, 3, 3), randn(rng, 4, 3, here.output_size)
    state, dstate = random_state(here, 3, rng), random_state(here, 3, rng)
    want = call(here, x, state, dy, dstate)
    with device(1):
        there = rnnkit.SLSTM(3, 4, dtype="float64", device="cuda", backend="numba_cuda", rng=3, **shape)
        got = call(there, *(on_card(a) for a in (x, state, dy, dstate)))
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_close(name, got[name], value, "float64", "backward")


def on_card(value: Any) -> Any:
    return tuple(map(on_card, value)) if isinstance(value, tuple) else to_device(value, "cuda:0")


def call(layer: Any, x: Any, state: Any, dy: Any, dstate: Any) -> dict[str, np.ndarray]:
    """Every result of a forward and a backward of ragged rows, on the host."""
    y, state_n = layer(x, state, [4, 0, 2])
    dx, dstate0 = layer.backward(dy, dstate)
    found = {"y": y, "dx": dx} | layer.grads
    for name, n, d in zip(layer.cell.states, parts(state_n), parts(dstate0), strict=True):
        found |= {f"{name}_n": n, f"d{name}0": d}
    return {name: to_numpy(value) for name, value in found.items()}


def test_chunks_of_steps(rng: np.random.Generator) -> None:
    """Chunks of steps hand all four states on, and all four gradients back."""
    T, B = 16, 2
    with device(1):
        layer = rnnkit.SLSTM(3, 4, device="cuda", backend="numba_cuda", rng=3)
        x, dy = (on_card(randn(rng, T, B, width, dtype="float32")) for width in (3, 4))
        state = on_card(random_state(layer, B, rng))
        y, state_n = layer(x, state)
        dx, dstate0 = layer.backward(dy, state)
        half = rnnkit.explain(layer, x).kept_bytes // 2
        again, ends = layer(x, state, max_saved_bytes=half)
        dx_again, starts = layer.backward(dy, state)
        for one, other in zip((y, *state_n, dx, *dstate0), (again, *ends, dx_again, *starts), strict=True):
            assert_close("chunked", to_numpy(other), to_numpy(one).astype("float64"), "float32", "backward")


def test_explain_names_the_kernel() -> None:
    with device() as (cp, _):
        layer = rnnkit.SLSTM(4, 6, device="cuda", backend="numba_cuda", strict=True, rng=0)
        found = rnnkit.explain(layer, cp.zeros((5, 3, 4), "float32"))
    assert (found.backend, found.kernel.split(",")[0]) == ("numba_cuda", "slstm in Numba CUDA")
