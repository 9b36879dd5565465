"""Cells with options on the CUDA backends, without a GPU, against the float64 oracle: the emulator and greenlets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.errors import UnsupportedDeviceError
from rnnkit.testing import Case, parity
from tests.cuda.cuda_helpers import cuda
from tests.cuda.test_numba_cuda import device
from tests.helpers import slow_except
from tests.options import ACTIVATION_CASES, OPTION_CASES
from tests.tools import emulator, greenlets

needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
needs_greenlets = pytest.mark.skipif(bool(greenlets.available()), reason=str(greenlets.available()))

SMALL = OPTION_CASES[0]
ALL = [*OPTION_CASES, *ACTIVATION_CASES]
OPTIONS = {"peephole": True, "clip": 0.7, "cell_clip": 0.5}


def assert_within(worst: dict[str, float]) -> None:
    over = {name: ratio for name, ratio in worst.items() if not ratio <= 1}
    assert not over, over


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


@needs_emulator
@pytest.mark.parametrize("case", slow_except(ALL, SMALL), ids=str)
def test_cupy_equals_the_oracle(cp: Any, case: Case) -> None:
    assert_within(parity("cupy:stepwise", case, "float32", device="cuda:0"))


@needs_emulator
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_cupy_in_other_dtypes(cp: Any, dtype: str) -> None:
    assert_within(parity("cupy:stepwise", SMALL, dtype, device="cuda:0"))


@needs_emulator
def test_schedules_that_keep_the_weights_on_the_chip_refuse_options(cp: Any) -> None:
    layer = rnnkit.LSTM(4, 6, device="cuda", backend="cupy", rng=0, **OPTIONS)
    x = to_device(np.ones((5, 3, 4), np.float32), "cuda:0")
    kernel = rnnkit.explain(layer, x).kernel
    assert "schedule stepwise" in kernel
    for name in ("one_block", "grid"):
        assert f"passed over {name}: cell lstm+peephole+clip+cell_clip: its kernels have no options" in kernel
    pinned = rnnkit.LSTM(4, 6, device="cuda", backend="cupy:one_block", rng=0, **OPTIONS)
    with pytest.raises(UnsupportedDeviceError, match="its kernels have no options"):
        pinned(x)


@needs_emulator
def test_both_directions_of_cupy_and_another_clip_in_the_same_graphs(cp: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    found = {}
    for name, clip in (("one", 0.7), ("other", 0.2)):
        given = {**OPTIONS, "clip": clip, "bidirectional": True, "rng": 0}
        layer = rnnkit.LSTM(4, 6, device="cuda", **given)
        oracle = rnnkit.LSTM(4, 6, backend="numpy", **given)
        for _ in range(3):  # later calls replay graphs
            y, _ = layer(to_device(x, "cuda:0"))
            layer.zero_grad()
            dx, _ = layer.backward(y)
        want, _ = oracle(x)
        found[name] = to_numpy(y)
        np.testing.assert_allclose(found[name], want, atol=1e-5)
        np.testing.assert_allclose(to_numpy(dx), oracle.backward(want)[0], atol=1e-5)
        for parameter, grad in oracle.grads.items():
            np.testing.assert_allclose(to_numpy(layer.grads[parameter]), grad, atol=2e-5, err_msg=parameter)
    assert np.abs(found["one"] - found["other"]).max() > 0.01


@needs_greenlets
@pytest.mark.parametrize("case", slow_except(ALL, SMALL), ids=str)
def test_numba_cuda_equals_the_oracle(case: Case) -> None:
    with device(1, watch=True):
        assert_within(parity("numba_cuda", case, "float32", device="cuda:0"))


@needs_greenlets
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_numba_cuda_in_other_dtypes(dtype: str) -> None:
    with device(1):
        assert_within(parity("numba_cuda", SMALL, dtype, device="cuda:0"))
