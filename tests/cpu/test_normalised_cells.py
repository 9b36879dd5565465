"""Cells with layer normalisation on the compiled CPU backend: values against the oracle, memory, threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest

import rnnkit
from rnnkit.core import thread_pool
from rnnkit.core.cells import Weights
from rnnkit.testing import Case, assert_close, kind_of, make_inputs, parity, run, widened
from tests.helpers import slow_except
from tests.normalised import NORM_CASES

SMALL = NORM_CASES[0]


def assert_parity(case: Case, dtype: str) -> None:
    over = {name: ratio for name, ratio in parity("numba", case, dtype).items() if not ratio <= 1}
    assert not over, over


@pytest.mark.parametrize("case", slow_except(NORM_CASES, SMALL), ids=str)
def test_every_output_and_gradient_equals_the_oracles(case: Case) -> None:
    assert_parity(case, "float32")
    assert_parity(replace(case, bias=False, H=16), "float32")
    assert_parity(replace(case, T=3, B=2, H=70, ragged=False), "float32")
    assert_parity(replace(case, T=1, B=3, H=1), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("case", NORM_CASES[1::2], ids=str)
def test_other_dtypes(case: Case, dtype: str) -> None:
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    assert_parity(case, dtype)


def test_no_uninitialised_memory_is_read(poison: Callable[[], AbstractContextManager[None]]) -> None:
    inputs = make_inputs(SMALL, "float32")
    with poison():
        got = run(SMALL, inputs, "numba")
    for name, want in run(SMALL, widened(inputs), "numpy").items():
        assert_close(name, got[name], want, "float32", kind_of(name))


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """x W^T = 64 + small integers, exact in float32. A variance from sums of squares would be off by 1e-4."""
    case = replace(SMALL, I=2, H=24, ragged=False)
    inputs = make_inputs(case, "float32")
    rng = np.random.default_rng(0)
    w_ih = np.stack([np.full(72, 64), rng.integers(-3, 4, 72)], axis=1).astype(np.float32)
    inputs.x[...] = 1
    inputs.weights = Weights(w_ih, *inputs.weights[1:])
    got, want = run(case, inputs, "numba"), run(case, widened(inputs), "numpy")
    assert_close("y", got["y"], want["y"], "float32")


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    case = replace(SMALL, T=40, B=16, I=8, H=96)
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


def test_explain_names_the_kernel() -> None:
    layer = rnnkit.GRU(4, 6, layer_norm="haste", strict=True, rng=0)
    found = rnnkit.explain(layer, np.ones((5, 3, 4), np.float32))
    assert found.backend == "numba"
    assert found.kernel.startswith("gru+layer_norm=haste scan")
