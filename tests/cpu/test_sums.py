"""Sums of millions of float32 numbers of one sign, and products of many features: the limits stated by DTYPES."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends import BACKENDS
from rnnkit.core import long_sums
from rnnkit.core.cells import CELLS, Weights
from rnnkit.core.devices import to_device, to_numpy
from rnnkit.core.dtypes import DTYPES
from rnnkit.functional import direction
from rnnkit.testing import Case, assert_close, error_ratio, growth_of, make_inputs, parity, run, widened
from tests.helpers import CPU_BACKENDS, assert_same, slow_except

MILLIONS = 4_000_003  # no multiple of any block
MOST = 20_000_000  # terms, up to which docs/promises.md promises 1e-5. Its tests take up to 0.9 GB


def assert_sum(name: str, got: Any, want: Any, bound: float = 1e-5) -> None:
    """Asserts a relative error below `bound`. The default is the promise for sums of one sign."""
    got, want = to_numpy(got).astype(np.float64), np.asarray(want)
    assert got.shape == want.shape, name
    worst = float(np.max(np.abs(got - want) / np.abs(want)))
    assert worst <= bound, f"{name}: off by {worst:.2g}"


def product64(d: np.ndarray, x: np.ndarray) -> np.ndarray:
    """d^T x in float64, a slice at a time."""
    slices = range(0, len(d), 1 << 16)
    return sum(d[k : k + (1 << 16)].astype(np.float64).T @ x[k : k + (1 << 16)].astype(np.float64) for k in slices)


def tenths(*shape: int, vary: bool = False) -> np.ndarray:
    """0.1 everywhere, or numbers from 0 to 0.2."""
    if vary:
        return np.random.default_rng(0).random(shape, dtype=np.float32) * np.float32(0.2)
    return np.full(shape, 0.1, np.float32)


# Linear


@pytest.mark.parametrize("vary", [False, True], ids=["equal", "drawn"])
@pytest.mark.parametrize(
    ("N", "I", "O"),
    [
        (1_000_000, 5, 3),
        *slow_except([(MILLIONS, 2, 2), (MILLIONS, 1, 1)], unpack=True),
        (70_001, 64, 48),
        (513, 2, 2),
        (255, 2, 2),
    ],
)
def test_linear_over_many_rows(N: int, I: int, O: int, vary: bool) -> None:
    layer, x, dy = rnnkit.Linear(I, O, rng=0), tenths(N, I, vary=vary), tenths(N, O, vary=vary)
    layer(x)
    layer.backward(dy)
    assert_sum("bias", layer.grads["bias"], dy.sum(axis=0, dtype=np.float64))
    assert_sum("weight", layer.grads["weight"], product64(dy, x))


@pytest.mark.parametrize("N", [0, 1, 255, 256, 257, 512, 2049, 3000, 40_000])
def test_sums_of_any_number_of_rows_and_columns(N: int) -> None:
    rng = np.random.default_rng(N)
    for dtype in ("float64", "float32", "float16"):
        d = rng.standard_normal((N, 5)).astype(dtype)
        sums = long_sums.column_sums(d)
        assert_close("sums", sums, d.sum(axis=0, dtype=np.float64), DTYPES[dtype].computed, "backward")
        for K in (0, 3, 500 if N < 3000 else 0):
            x = rng.standard_normal((N, K)).astype(dtype)
            want = d.astype(np.float64).T @ x.astype(np.float64)
            assert_close("product", long_sums.product_over_rows(d, x), want, DTYPES[dtype].computed, "backward")


# Recurrent layers


def of_one_unit(
    backend: str, T: int, B: int, I: int, vary: bool = False, device: str = "cpu"
) -> tuple[Weights, Weights]:
    """The weights' gradients of an RNN of one unit with W_hh = 0, in float32 and by their formulas in float64."""
    w = Weights(tenths(1, I), np.zeros((1, 1), np.float32), np.full(1, 0.3, np.float32), np.full(1, 0.2, np.float32))
    x, dy, h0 = tenths(T, B, I, vary=vary), tenths(T, B, 1, vary=vary), tenths(B, 1)
    put = lambda a: to_device(a, device)  # noqa: E731
    weights, state = Weights(*map(put, w[:4])), (put(h0),)
    _, _, saved = direction.forward("rnn_tanh", put(x), state, weights, backend=backend)
    _, _, got = direction.backward(saved, put(dy), (put(np.zeros_like(h0)),), weights)
    flat, one = x.reshape(-1, I).astype(np.float64), dy.reshape(-1, 1).astype(np.float64)
    h = np.tanh(flat @ w.w_ih.astype(np.float64).T + np.float64(w.b_ih[0]) + np.float64(w.b_hh[0]))
    da, h_prev = one * (1 - h * h), np.concatenate([h0.astype(np.float64), h[: (T - 1) * B]])
    return got, Weights(da.T @ flat, da.T @ h_prev, da.sum(axis=0), da.sum(axis=0))


def assert_sums(got: Weights, want: Weights) -> None:
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        assert_sum(name, getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("vary", slow_except([False, True], False), ids=["equal", "drawn"])
@pytest.mark.parametrize("I", slow_except([1, 3], 1))
@pytest.mark.parametrize("backend", slow_except(CPU_BACKENDS, CPU_BACKENDS[0]))
def test_one_step_of_millions_of_rows(backend: str, I: int, vary: bool) -> None:
    assert_sums(*of_one_unit(backend, 1, MILLIONS, I, vary))


@pytest.mark.slow
@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="needs Numba")
def test_millions_of_steps() -> None:
    assert_sums(*of_one_unit("numba", MILLIONS, 1, 1))


SPANS, STRETCHES = (
    16384 * 2 + 77,
    (1 << 20) + 16384 + 77,
)  # row-steps that kernels/cpu/matmul_large.py sums in two and three levels


@pytest.mark.parametrize("rows", slow_except([SPANS, STRETCHES], SPANS))
@pytest.mark.parametrize("cell", slow_except(CELLS, "gru", "lstm"))
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_cell_over_many_rows(backend: str, cell: str, rows: int) -> None:
    if backend == "numpy" and rows == STRETCHES:
        pytest.skip("has no third level of sums, and takes seconds")
    case = Case(cell, T=1, B=rows, I=2, H=2 if rows == SPANS else 1, P=1 if CELLS[cell].projects else 0)
    inputs = make_inputs(case, "float32")
    got, want = run(case, inputs, backend), run(case, widened(inputs), "numpy")
    for name in want:
        if not CELLS[cell].jumps or name == "y" or name.endswith("_n"):
            assert_close(name, got[name], want[name], "float32", "backward" if name.startswith("d") else "forward")
    summed = [name for name in want if name.startswith(("dw", "db"))]
    assert len(summed) >= 4
    assert all(error_ratio(got[name], want[name], "float32") <= 1 for name in summed)


@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="needs Numba")
def test_bits_of_long_sums_do_not_depend_on_the_number_of_threads() -> None:
    inputs, results, before = make_inputs(Case("gru", T=1, B=SPANS, I=3, H=37), "float32"), [], rnnkit.get_num_threads()
    try:
        for threads in (1, 2, 3):
            rnnkit.set_num_threads(threads)
            results.append(run(Case("gru"), inputs, "numba"))
    finally:
        rnnkit.set_num_threads(before)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="needs Numba")
def test_gradients_of_many_rows_accumulate() -> None:
    layer, dy = rnnkit.RNN(2, 3, backend="numba", rng=0), tenths(1, SPANS, 3)
    layer(tenths(1, SPANS, 2, vary=True))
    layer.backward(dy)
    once = {name: np.array(grad) for name, grad in layer.grads.items()}
    layer.backward(dy)
    for name, grad in layer.grads.items():
        assert_close(name, grad, 2 * once[name].astype(np.float64), "float32", "backward")


# As many terms as the promise names. All are equal, which is the worst case of a sum in sequence, so a float64 product
# of one term is the reference.


@pytest.mark.slow
def test_linear_and_loss_of_as_many_rows_as_promised() -> None:
    layer = rnnkit.Linear(1, 1, rng=0)
    x = tenths(MOST, 1)
    y = layer(x)
    layer.backward(x)
    tenth = float(np.float32(0.1))
    assert_sum("bias", layer.grads["bias"], [MOST * tenth])
    assert_sum("weight", layer.grads["weight"], [[MOST * tenth * tenth]])
    y[...] = 0
    assert rnnkit.mse(x, y)[0] == pytest.approx(tenth * tenth, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="needs Numba")
def test_one_step_of_as_many_rows_as_promised() -> None:
    layer = rnnkit.RNN(1, 1, backend="numba", rng=0)
    x, tenth = tenths(1, MOST, 1), float(np.float32(0.1))
    y, h_n = layer(x, x)
    h = float(y[0, 0, 0])
    assert np.array_equal(y, np.full_like(y, h))
    del y, h_n
    layer.backward(x)
    da = tenth * (1 - h * h)
    for name, grad in layer.grads.items():
        assert_sum(name, grad, np.full(grad.shape, MOST * da * (tenth if name.startswith("weight") else 1)))


# Losses, embeddings, norms


def test_losses_of_many_numbers() -> None:
    pred, zeros, tenth = tenths(MILLIONS), np.zeros(MILLIONS, np.float32), float(np.float32(0.1))
    squared = float(np.float32(0.1) * np.float32(0.1))
    assert rnnkit.mse(pred, zeros)[0] == pytest.approx(squared, rel=1e-6)
    assert rnnkit.bce_with_logits(pred, zeros)[0] == pytest.approx(math.log1p(math.exp(tenth)), rel=1e-6)
    strided = np.asfortranarray(tenths(1_000_000, 4))[::2]
    assert rnnkit.mse(strided, np.zeros_like(strided))[0] == pytest.approx(squared, rel=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_cross_entropy_of_many_classes_and_rows(order: Any) -> None:
    logits = np.full((3, 1_000_000), math.log(0.1), np.float32, order=order)
    logits[:, 0] = 0
    loss, dlogits = rnnkit.cross_entropy(logits, np.zeros(3, np.int64))
    wide = np.exp(logits.astype(np.float64))
    total = wide.sum(axis=1, keepdims=True)
    assert loss == pytest.approx(float(np.log(total).mean()), rel=1e-5)
    wide /= total
    wide[:, 0] -= 1
    assert_sum("dlogits", dlogits, wide / 3)
    rows = np.full((1_000_000, 2), 0.1, np.float32, order=order)
    assert rnnkit.cross_entropy(rows, np.zeros(len(rows), np.int64))[0] == pytest.approx(math.log(2), rel=1e-6)


def test_embedding_of_one_index_a_million_times() -> None:
    layer, dy = rnnkit.Embedding(3, 2, rng=0), tenths(1_000_000, 2)
    layer(np.ones(1_000_000, np.int64))
    layer.backward(dy)
    assert_sum("weight", layer.grads["weight"][1], dy.sum(axis=0, dtype=np.float64))


def test_norm_of_a_million_gradients() -> None:
    layer = rnnkit.Linear(1000, 1000, bias=False, rng=0)
    layer.grads["weight"][...] = 0.1
    assert rnnkit.clip_grad_norm(layer, math.inf) == pytest.approx(1000 * float(np.float32(0.1)), rel=1e-12)


# Features: how far the tolerances hold, and how they grow


def shares(case: Case, dtype: str, backend: str) -> float:
    """The largest error relative to its bound, over two seeds."""
    return max(worst for seed in range(2) for worst in parity(backend, case, dtype, seed).values())


@pytest.mark.parametrize(("I", "H"), slow_except([(56, 8), (200, 100), (640, 1024)], (56, 8), (200, 100), unpack=True))
@pytest.mark.parametrize("cell", slow_except([cell for cell in CELLS if cell != "rnn_relu"], "rnn_tanh", "lstm"))
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_tolerances_hold_up_to_the_stated_number_of_features(backend: str, cell: str, I: int, H: int) -> None:
    for T in (1, 3):
        case = Case(cell, T=T, B=16 if H < 1000 else 3, I=I, H=H)
        assert growth_of(case, "float32") == 1
        assert I / math.sqrt(H) > 0.6 * DTYPES["float32"].reach
        assert shares(case, "float32", backend) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_tolerances_hold_for_many_seeds(cell: str) -> None:
    """With 2.5 times as many features, some seeds exceed the tolerances."""
    case = Case(cell, T=35, B=16, I=80, H=16)
    assert case.I / math.sqrt(case.H) == DTYPES["float32"].reach
    for seed in range(100):
        assert max(parity("numba", case, "float32", seed).values()) <= 1, seed


@pytest.mark.parametrize(("I", "H"), slow_except([(2000, 8), (20_000, 16)], (2000, 8), unpack=True))
@pytest.mark.parametrize("cell", slow_except([cell for cell in CELLS if cell != "rnn_relu"], "gru"))
@pytest.mark.parametrize("backend", slow_except(CPU_BACKENDS, "numpy"))
def test_tolerances_grow_in_proportion_to_the_features_beyond_it(backend: str, cell: str, I: int, H: int) -> None:
    for T in (1, 3):
        case = Case(cell, T=T, B=16, I=I, H=H)
        growth = growth_of(case, "float32")
        assert growth == pytest.approx(I / math.sqrt(H) / DTYPES["float32"].reach)
        assert growth > 10
        assert shares(case, "float32", backend) <= 1
    for dtype in {"float64", "float16"} & set(BACKENDS[backend].dtypes):
        assert growth_of(case, dtype) == 1
        assert shares(case, dtype, backend) <= 1


def test_without_growth_some_errors_would_exceed_the_tolerances() -> None:
    """The unscaled tolerances do not hold for these sizes."""
    case = Case("rnn_tanh", T=1, B=16, I=20_000, H=100)
    assert shares(case, "float32", "numpy") * growth_of(case, "float32") > 2
