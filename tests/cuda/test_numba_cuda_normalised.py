"""Cells with layer normalisation on `numba_cuda`, in greenlets, against the float64 oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.kernels.numba_cuda.launch_shape import THREADS
from rnnkit.testing import Case, assert_close, parity
from tests.cuda.test_numba_cuda import device
from tests.helpers import slow_except
from tests.normalised import NORM_CASES
from tests.tools import greenlets

pytestmark = pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))

SMALL = NORM_CASES[0]


def assert_parity(case: Case, dtype: str, seed: int | None = 1, watch: bool = False) -> None:
    with device(seed, watch):
        worst = parity("numba_cuda", case, dtype, device="cuda:0")
    over = {name: ratio for name, ratio in worst.items() if not ratio <= 1}
    assert not over, (case, over)


@pytest.mark.parametrize("case", slow_except(NORM_CASES, SMALL), ids=str)
def test_every_output_and_gradient_equals_the_oracles(case: Case) -> None:
    """Without races, in two orders of the threads."""
    small = replace(case, T=3, B=3, H=5)
    assert_parity(small, "float32", watch=True)
    assert_parity(replace(small, reverse=not case.reverse, ragged=False, bias=False), "float32", seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("case", NORM_CASES, ids=str)
def test_more_units_than_threads_and_other_dtypes(case: Case) -> None:
    assert_parity(replace(case, T=2, B=1, H=THREADS + 5, ragged=False), "float32")
    assert_parity(replace(case, T=2, B=5, H=9), "float64")
    assert_parity(replace(case, T=3, B=2, H=33), "float16")


def test_a_layer_in_both_directions() -> None:
    given: dict[str, Any] = {"layer_norm": "torch", "bidirectional": True, "rng": 0}
    x = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    oracle = rnnkit.LSTM(4, 5, backend="numpy", **given)
    want, _ = oracle(x)
    with device(1):
        layer = rnnkit.LSTM(4, 5, device="cuda", backend="numba_cuda", **given)
        there = to_device(x, "cuda:0")
        with rnnkit.no_grad():
            assert_close("y", to_numpy(layer(there)[0]), want, "float32")
        y, _ = layer(there)
        dx, _ = layer.backward(y)
        assert_close("dx", to_numpy(dx), oracle.backward(want)[0], "float32", "backward")
        for name, grad in oracle.grads.items():
            assert_close(name, to_numpy(layer.grads[name]), grad, "float32", "backward")
        assert "numba_cuda" in str(rnnkit.explain(layer, there))
