"""Cells with options on the compiled CPU backend: values against the oracle, sums, threads, and what is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core import thread_pool
from rnnkit.core.cells import CELLS, Weights, cell_of
from rnnkit.functional import direction
from rnnkit.kernels.cpu import cache
from rnnkit.testing import Case, make_inputs, parity, run
from tests.helpers import slow_except
from tests.options import ACTIVATION_CASES, OPTION_CASES

SMALL = OPTION_CASES[0]


def assert_parity(case: Case, dtype: str) -> None:
    over = {name: ratio for name, ratio in parity("numba", case, dtype).items() if not ratio <= 1}
    assert not over, over


@pytest.mark.parametrize("case", slow_except([*OPTION_CASES, *ACTIVATION_CASES], SMALL), ids=str)
def test_every_output_and_gradient_equals_the_oracles(case: Case) -> None:
    assert_parity(case, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("case", OPTION_CASES[:4:3], ids=str)
def test_other_dtypes(case: Case, dtype: str) -> None:
    assert_parity(case, dtype)


def test_another_clip_compiles_nothing_and_is_used() -> None:
    inputs = make_inputs(SMALL, "float32")
    one = run(SMALL, inputs, "numba")
    before = cache.counts["compiled"], cache.counts["loaded"]
    other = run(Case(SMALL.cell, constants=(0.2, 0.1), ragged=True), inputs, "numba")
    assert (cache.counts["compiled"], cache.counts["loaded"]) == before
    assert np.abs(other["c_n"][0]).max() <= np.float32(0.1)  # row 0 has steps
    assert np.abs(one["y"] - other["y"]).max() > 0.01


@pytest.mark.slow
def test_the_gradient_is_zero_beyond_the_clip_in_every_dtype() -> None:
    """x decides the pre-activation exactly: at the limit, beyond it and inside."""
    case = Case("rnn_tanh+clip", T=1, B=4, I=1, H=1, constants=(0.5,))
    for dtype in ("float32", "bfloat16"):
        inputs = make_inputs(case, dtype)
        inputs.x[0, :, 0] = [0.5, 0.51, -0.5, -0.75]
        ones = [np.ones_like(inputs.weights.w_ih), np.zeros_like(inputs.weights.w_hh)]
        inputs.weights = Weights(*ones, None, None)
        inputs.dy[...] = 1
        inputs.dstate_n[0][...] = 0
        got = run(case, inputs, "numba")["dx"].ravel().astype(np.float64)
        want = 1 - np.tanh(0.5) ** 2
        np.testing.assert_allclose(got, [want, 0, want, 0], rtol=0.01)


@pytest.mark.slow
def test_sums_over_many_steps_are_exact() -> None:
    """Each of 2^18 row-steps adds 0.1 times a number of its own: a chain of float32 additions would be off by 1e-3."""
    N, H = 1 << 18, 1
    weights = Weights(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32), w_unit=np.zeros((3, 1), np.float32))
    c0 = np.full((N, H), 0.1, np.float32)
    x = np.zeros((1, N, 1), np.float32)
    x = np.concatenate([x, x])
    state0 = (np.zeros((N, H), np.float32), c0)
    _, _, saved = direction.forward("lstm+peephole", x, state0, weights, backend="numba")
    dc = np.ones((N, H), np.float32)
    _, _, dweights = direction.backward(saved, None, (np.zeros_like(dc), dc), weights)
    wide = Weights(*(None if w is None else w.astype(np.float64) for w in weights))
    state0 = tuple(s.astype(np.float64) for s in state0)
    _, _, saved = direction.forward("lstm+peephole", x.astype(np.float64), state0, wide, backend="numpy")
    _, _, want = direction.backward(saved, None, (np.zeros((N, H)), np.ones((N, H))), wide)
    np.testing.assert_allclose(dweights.w_unit, want.w_unit, rtol=2e-6)


@pytest.mark.slow
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    case = Case("lstm+peephole", T=40, B=16, I=8, H=96)
    inputs = make_inputs(case, "float32")
    before = thread_pool.get_num_threads()
    try:
        rnnkit.set_num_threads(1)
        one = run(case, inputs, "numba")
        rnnkit.set_num_threads(2)
        two = run(case, inputs, "numba")
    finally:
        rnnkit.set_num_threads(before)
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)


def test_layers_choose_the_compiled_backend_and_say_so() -> None:
    layer: Any = rnnkit.LSTM(4, 6, peephole=True, clip=0.7, cell_clip=0.5, strict=True, rng=0)
    found = rnnkit.explain(layer, np.ones((5, 3, 4), np.float32))
    assert found.backend == "numba"
    assert found.kernel.startswith("lstm+peephole+clip+cell_clip scan")
    assert cell_of("lstm") is CELLS["lstm"]
