"""Long sums of the CUDA backends, on the stand-in for CuPy: Linear, `by_scan` and gradients of the stepwise schedule.

cuBLAS may sum a product in one chain of additions, and so may NumPy's BLAS, which replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import by_scan
from rnnkit.backends.interface import BackwardCall
from rnnkit.core import long_sums
from rnnkit.core.cells import Weights
from rnnkit.core.devices import to_device
from rnnkit.core.dtypes import DTYPES
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, growth_of, make_inputs, parity, run, widened
from tests.cpu.test_sums import assert_sum, of_one_unit, product64, tenths
from tests.cuda.cuda_helpers import CELLS, assert_matches, chunked, cuda
from tests.helpers import slow_except
from tests.tools import emulator

needs_emulator = pytest.mark.skipif(bool(emulator.available()), reason=str(emulator.available()))
DEVICE = "cuda:0"
# A number of rows that NumPy's BLAS sums in one chain, in a product with 2 x 2 elements.
CHAINED = 240_001


@pytest.fixture
def cp() -> Iterator[Any]:
    with cuda() as fake:
        yield fake


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_linear_over_many_rows(cp: Any, dtype: str) -> None:
    layer = rnnkit.Linear(2, 2, dtype=dtype, device=DEVICE, rng=0)
    x, dy = (
        np.full((CHAINED, 2), 0.1, dtype),
        np.full((CHAINED, 2), 0.1 / 64, dtype),
    )  # sums fit float16
    layer(to_device(x, DEVICE))
    layer.backward(to_device(dy, DEVICE))
    sums, product = dy.sum(axis=0, dtype=np.float64), product64(dy, x)
    if dtype == "float32":
        assert_sum("bias", layer.grads["bias"], sums)
        assert_sum("weight", layer.grads["weight"], product)
    assert_close("bias", layer.grads["bias"], sums, dtype, "backward")
    assert_close("weight", layer.grads["weight"], product, dtype, "backward")


def test_products_around_the_scan_over_many_rows(cp: Any) -> None:
    """The products of by_scan in the backward of `numba_cuda`, without the scan, which would take minutes here."""
    d, x = tenths(CHAINED, 1, 2, vary=True), tenths(CHAINED, 1, 2, vary=True)
    d_there, x_there = to_device(d, DEVICE), to_device(x, DEVICE)
    weights = Weights(*(to_device(np.zeros(shape, np.float32), DEVICE) for shape in ((2, 2), (2, 2), (2,), (2,))))
    grads = by_scan.ScanGradients(d_there, d_there, (), {"h_prev": x_there})
    saved = by_scan.Saved(x_there, None, None)
    call = BackwardCall(CELLS["rnn_tanh"], DTYPES["float32"], saved, None, (), weights)
    found = by_scan.backward(lambda *_: grads, call).dweights
    for name in ("w_ih", "w_hh"):
        assert_sum(name, getattr(found, name), product64(d[:, 0], x[:, 0]))
    for name in ("b_ih", "b_hh"):
        assert_sum(name, getattr(found, name), d.sum(axis=(0, 1), dtype=np.float64))


def test_sums_of_blocks(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few rows, batches of few blocks, and remainders of both."""
    rng = np.random.default_rng(1)
    for name, value in (("DEVICE_ROWS", 5), ("DEVICE_ROWS_16", 4), ("COLUMN_ROWS", 3), ("BATCH_BYTES", 200)):
        monkeypatch.setattr(long_sums, name, value)
    for dtype in ("float64", "float32", "float16"):
        for N in (1, 3, 4, 5, 11, 33, 100):
            d, x = rng.standard_normal((N, 3)).astype(dtype), rng.standard_normal((N, 4)).astype(dtype)
            nothing = long_sums.product_over_rows(to_device(d, DEVICE), to_device(x[:, :0], DEVICE))
            assert nothing.shape == (3, 0)
            got = long_sums.product_over_rows(to_device(d, DEVICE), to_device(x, DEVICE))
            assert_close("product", got, d.astype(np.float64).T @ x.astype(np.float64), dtype, "backward")
            sums = long_sums.column_sums(to_device(d, DEVICE))
            assert_close("sums", sums, d.sum(axis=0, dtype=np.float64), DTYPES[dtype].computed, "backward")


def test_losses_are_summed_in_float64(cp: Any) -> None:
    pred, target = tenths(1000, 3, vary=True), tenths(1000, 3)
    difference = (pred - target).astype(np.float32)
    want = math.fsum((difference * difference).ravel().tolist())
    assert rnnkit.mse(to_device(pred, DEVICE), to_device(target, DEVICE), "sum")[0] == pytest.approx(want, rel=1e-12)
    logits = tenths(1000, 3, vary=True)
    loss, _ = rnnkit.bce_with_logits(to_device(logits, DEVICE), to_device(target, DEVICE), "sum")
    assert loss == pytest.approx(rnnkit.bce_with_logits(logits, target, "sum")[0], rel=1e-6)


# The stepwise schedule


@pytest.mark.slow
@needs_emulator
def test_one_step_of_millions_of_rows(cp: Any) -> None:
    got, want = of_one_unit("cupy", 1, 3_000_001, 1, device=DEVICE)
    for name in ("b_ih", "b_hh"):
        assert_sum(name, getattr(got, name), getattr(want, name))
    for name in ("w_ih", "w_hh"):
        assert_sum(name, getattr(got, name), getattr(want, name))


@needs_emulator
def test_small_sums_of_later_chunks_are_not_lost(cp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk of backward gives 2^24, each other one about 1, which alone does not change it in float32."""
    from rnnkit.backends.cupy import problem

    monkeypatch.setattr(problem, "SLICE_ROWS", 8, raising=False)
    T, one = 600, np.ones((1, 1), np.float32)
    weights = Weights(one * 0, one * 0, *(np.full(1, b, np.float32) for b in (0.3, 0.2)))
    x, dy = np.ones((T, 1, 1), np.float32), np.full((T, 1, 1), 0.99, np.float32)
    dy[-1] = 2.0**24
    given = [to_device(a, DEVICE) for a in (x, one, dy, one * 0, *weights[:4])]
    there = Weights(*given[4:])
    with chunked(1):
        _, _, saved = direction.forward("rnn_tanh", given[0], (given[1],), there, backend="cupy")
        _, _, got = direction.backward(saved, given[2], (given[3],), there)
    h = np.tanh(float(weights.b_ih[0]) + float(weights.b_hh[0]))
    da = dy[:, 0, 0].astype(np.float64) * (1 - h * h)
    h_prev = np.full(T, h)
    h_prev[0] = 1
    want = Weights([[da.sum()]], [[da @ h_prev]], [da.sum()], [da.sum()])
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        assert_sum(name, getattr(got, name), getattr(want, name))


SLICED = [
    Case(cell, T=5, B=3, I=4, H=3, P=2 if CELLS[cell].projects else 0, ragged=on)
    for cell in CELLS
    for on in (False, True)
]


@needs_emulator
@pytest.mark.parametrize("slice_bytes", [100, 1 << 20], ids=["a-slice-at-once", "all-at-once"])
@pytest.mark.parametrize("dtype", slow_except(["float32", "float16", "float64"], "float32"))
@pytest.mark.parametrize("case", slow_except(SLICED, *SLICED[1::2]), ids=str)
def test_gradients_in_slices(
    case: Case, dtype: str, slice_bytes: int, cp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of at most four row-steps, in one and in two chunks of steps, with shorter last ones."""
    from rnnkit.backends.cupy import problem

    for name, value in (("SLICE_ROWS", 4), ("LONG_SLICE_ROWS", 4), ("SLICE_BYTES", slice_bytes)):
        monkeypatch.setattr(problem, name, value)
    host = make_inputs(case, dtype)
    want = run(case, widened(host), "numpy")
    for steps in (3, 256):
        with chunked(steps):
            assert_matches(run(case, make_inputs(case, dtype, device=DEVICE), "cupy"), want, dtype)


@needs_emulator
@pytest.mark.parametrize("dtype", ["float32", "tf32"])
@pytest.mark.parametrize(("I", "H"), slow_except([(56, 8), (2000, 8), (20_000, 16)], (2000, 8), unpack=True))
def test_tolerances_grow_in_proportion_to_the_features(I: int, H: int, dtype: str, cp: Any) -> None:
    case = Case("rnn_tanh", T=3, B=8, I=I, H=H)
    assert (growth_of(case, dtype) == 1) == (I == 56)
    worst = parity("cupy", case, dtype, device=DEVICE)
    assert max(worst.values()) <= 1, worst
