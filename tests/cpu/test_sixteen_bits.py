"""float16 and bfloat16 in the compiled CPU path: conversions, parity at several tiles' sizes, bits, special values."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import prepared
from rnnkit.core.cells import CELLS
from rnnkit.core.dtypes import DTYPES
from rnnkit.kernels.cpu import conversions, formats
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.testing import Case, Inputs, make_inputs, parity, run
from tests.helpers import LAYERS, assert_same, share_everything, slow_except

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ml_dtypes") is None, reason="bfloat16 needs the package ml_dtypes"
)
SHORT = ("float16", "bfloat16")
PAIRS = [(cell, dtype) for dtype in SHORT for cell in CELLS]
CELLS_AND_DTYPES = pytest.mark.parametrize(("cell", "dtype"), slow_except(PAIRS, ("lstm", "bfloat16"), unpack=True))


def storage(dtype: str) -> np.dtype:
    return DTYPES[dtype].storage


# Conversions


def convert(source: str, target: str, x: np.ndarray, key: str = "") -> np.ndarray:
    """x from one dtype's format to another's, by the kernels' loads and stores of whole vectors and of parts."""
    a, b = vectors(source), vectors(target)
    load, store, load_first, store_first = a.whole.load, b.whole.store, a.first.load, b.first.store
    lanes, from_size, to_size = a.lanes, a.itemsize, b.itemsize

    @entry(("test", "convert", source, target, key))
    def over(x, y):
        whole = x.size // lanes * lanes
        at_x = x.ctypes.data
        at_y = y.ctypes.data
        for j in range(0, whole, lanes):
            store(load(at_x + j * from_size, lanes), at_y + j * to_size, lanes)
        store_first(load_first(at_x + whole * from_size, x.size - whole), at_y + whole * to_size, x.size - whole)

    def numbers(a: np.ndarray) -> np.ndarray:  # Numba has no bfloat16; the kernels see addresses only
        return a.view(np.uint16) if a.dtype.itemsize == 2 else a

    y = np.zeros(x.size + 1, storage(target))
    over(numbers(x), numbers(y[:-1]))
    assert y[-1] == 0
    return y[:-1]


def floats() -> np.ndarray:
    """float32 numbers of every sign and exponent: random ones, those next to ties, and special values."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_001, dtype=np.uint64).astype(np.uint32)
    for shift in (13, 16):  # of float16 and of bfloat16
        tie = (rng.integers(0, 2**32, 50_000, dtype=np.uint64).astype(np.uint32) >> shift << shift) | 1 << (shift - 1)
        bits = np.concatenate([bits, tie, tie - 1, tie + 1])
    near = np.float32(
        [0, 6e-8, 5.9e-8, 2.98e-8, 2.99e-8, 6.1e-5, 65504, 65519.99, 65520, 65536, 3.4e38, np.inf, np.nan]
    )
    return np.concatenate([bits.view(np.float32), near, -near])


@pytest.fixture(params=[True, False], ids=["instructions", "operations"])
def instructions(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    """float16 by the processor's instructions, or by integer operations as on processors without them."""
    if not request.param:
        monkeypatch.setattr(conversions, "converts_float16", lambda width: False)
    return request.param


@pytest.mark.parametrize("dtype", SHORT)
def test_every_number_of_16_bits_is_widened_and_rounded_back_exactly(dtype: str, instructions: bool) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    wide = convert(dtype, "float32", every.view(storage(dtype)), f"{instructions}")
    want = every.view(storage(dtype)).astype(np.float32)
    np.testing.assert_array_equal(wide, want)  # NaN equals NaN
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(wide[numbers]), np.signbit(want[numbers]))
    back = convert("float32", dtype, wide, f"{instructions}").view(np.uint16)
    np.testing.assert_array_equal(back[numbers], every[numbers])
    assert np.isnan(back.view(storage(dtype))[~numbers].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", SHORT)
def test_float32_is_rounded_to_the_nearest_even(dtype: str, instructions: bool) -> None:
    x = floats()
    got = convert("float32", dtype, x, f"{instructions}").astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(got, x.astype(storage(dtype)).astype(np.float32))


# Parity


def sizes(cell: str) -> list[Case]:
    """Odd and even sizes of one tile and of several, of a single step and of more, with lengths and without."""
    found = []
    for T, B, I, H, flag in (
        (1, 3, 5, 20, False),
        (1, 21, 70, 67, True),
        (9, 7, 21, 37, True),
        (5, 14, 33, 64, False),
        (6, 1, 17, 70, False),
        (4, 5, 300, 97, True),
    ):
        for P in (0, H // 2) if CELLS[cell].projects else (0,):
            found.append(Case(cell, T=T, B=B, I=I, H=H, P=P, ragged=flag, reverse=flag))
    return found


@CELLS_AND_DTYPES
def test_several_tiles_equal_the_oracle(cell: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    share_everything(monkeypatch, 3)
    for case in sizes(cell):
        worst = parity("numba", case, dtype)
        assert max(worst.values()) <= 1, (case, worst)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_without_dot_products_equals_the_oracle(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors without AVX512_BF16."""
    monkeypatch.setattr(formats, "has_dot_product", lambda width: False)
    prepared.forget()
    try:
        for case in sizes(cell):
            assert formats.format_of(CELLS[cell], "bfloat16") == "bfloat16"
            worst = parity("numba", case, "bfloat16")
            assert max(worst.values()) <= 1, (case, worst)
    finally:
        prepared.forget()


@CELLS_AND_DTYPES
def test_gradients_of_many_row_steps(cell: str, dtype: str) -> None:
    """More row-steps than the products over time take at once, an odd number; and more rows than dx takes at once."""
    case = Case(cell, T=9, B=67, I=6, H=20)
    worst = parity("numba", case, dtype)
    assert max(worst.values()) <= 1, worst


@pytest.mark.parametrize("name", slow_except(LAYERS, "lstm"))
def test_gradients_are_added_to_those_of_the_layer(name: str) -> None:
    """In 16 bits: the sum is rounded once."""
    layer = LAYERS[name](5, 20, dtype="bfloat16", backend="numba", rng=0)
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((4, 3, width)).astype(layer.dtype) for width in (5, 20))
    layer(x)
    layer.backward(dy)
    once = {key: grad.astype(np.float32) for key, grad in layer.grads.items()}
    layer(x)
    layer.backward(dy)
    for key, grad in layer.grads.items():
        # Twice a number of 16 bits has 16 bits; the first gradient was rounded, the second one was not.
        np.testing.assert_allclose(grad.astype(np.float32), 2 * once[key], rtol=2**-6, atol=1e-30)


# Bits


@CELLS_AND_DTYPES
def test_bits_depend_neither_on_other_rows_nor_on_threads(
    cell: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for T in (1, 6):
        case = Case(cell, T=T, B=9, I=21, H=67)
        inputs = make_inputs(case, dtype)
        together = run(case, inputs, "numba")
        with pytest.MonkeyPatch.context() as patch:
            share_everything(patch, 4)
            prepared.forget()
            shared = run(case, inputs, "numba")
        prepared.forget()
        assert_same(shared, together)
        for row in (0, 5):
            part = slice(row, row + 1)
            one = Inputs(
                np.ascontiguousarray(inputs.x[:, part]),
                tuple(np.ascontiguousarray(s[part]) for s in inputs.state0),
                inputs.weights,
                None,
                np.ascontiguousarray(inputs.dy[:, part]),
                tuple(np.ascontiguousarray(d[part]) for d in inputs.dstate_n),
            )
            alone = run(Case(cell, T=T, B=1, I=21, H=67), one, "numba")
            assert_same({k: alone[k] for k in ("y", "dx")}, {k: together[k][:, part] for k in ("y", "dx")})
            ends = [k for k in ("h_n", "c_n", "dh0", "dc0") if k in alone]
            assert_same({k: alone[k] for k in ends}, {k: together[k][part] for k in ends})


# Special values


@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("dtype", SHORT)
def test_subnormal_numbers_of_float16_count_and_those_of_bfloat16_are_zeros(dtype: str, T: int) -> None:
    layer = rnnkit.RNN(3, 20, nonlinearity="relu", dtype=dtype, bias=False, backend="numba", rng=0)
    layer.params["weight_hh_l0"][...] = 0
    smallest = np.array(1, np.uint16).view(storage(dtype))
    layer.params["weight_ih_l0"][...] = smallest
    x = np.zeros((T, 2, 3), layer.dtype)
    x[:, 0] = 1
    y, h_n = layer(x)
    want = 3 * float(smallest) if dtype == "float16" else 0.0
    assert (y[:, 0].astype(np.float64) == want).all()
    assert not y[:, 1].astype(np.float64).any()
    assert (h_n[0, 0].astype(np.float64) == want).all()
    dx = layer.backward(np.ones_like(y))[0].astype(np.float64)
    # 20 units each give the smallest number; relu passes a gradient where h is above 0.
    assert (dx[:, 0] == (20 * float(smallest) if dtype == "float16" else 0)).all()
    assert not dx[:, 1].any()


@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("dtype", SHORT)
def test_overflow_and_nan_stay_in_their_row(dtype: str, T: int) -> None:
    """A sum above the largest number of the dtype gives infinity, as in NumPy; NaN reaches its own row only."""
    layer = rnnkit.RNN(3, 20, nonlinearity="relu", dtype=dtype, bias=False, backend="numba", rng=0)
    layer.params["weight_hh_l0"][...] = 0
    layer.params["weight_ih_l0"][...] = 1
    largest = np.array(0x7BFF if dtype == "float16" else 0x7F7F, np.uint16).view(storage(dtype))
    x = np.ones((T, 3, 3), layer.dtype)
    x[:, 0, 0] = np.nan
    x[:, 1] = largest
    y, h_n = (a.astype(np.float32) for a in layer(x))
    assert np.isnan(y[:, 0]).all()
    assert np.isnan(h_n[0, 0]).all()
    assert np.isposinf(y[0, 1]).all()
    assert (y[:, 2] == 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SHORT)
def test_rows_without_steps_keep_the_bits_of_their_states(dtype: str) -> None:
    """Also of subnormal numbers."""
    layer = rnnkit.RNN(3, 20, nonlinearity="relu", dtype=dtype, backend="numba", rng=0)
    h0 = np.arange(2 * 20, dtype=np.uint16).reshape(1, 2, 20).view(layer.dtype)
    _, h_n = layer(np.zeros((4, 2, 3), layer.dtype), h0, [0, 4])
    np.testing.assert_array_equal(h_n[0, 0].view(np.uint16), h0[0, 0].view(np.uint16))


@pytest.mark.parametrize("dtype", SHORT)
def test_explain_names_the_compiled_path(dtype: str) -> None:
    layer = rnnkit.LSTM(8, 16, dtype=dtype, rng=0)
    said = rnnkit.explain(layer, np.zeros((4, 2, 8), layer.dtype))
    assert said.backend == "numba"
