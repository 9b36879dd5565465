"""16-bit numbers, math functions and tensor cores of the emulator against NumPy, ml_dtypes and float64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.tools.emulator import available
from tests.tools.emulator.cases import module

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

F, I = np.float32, np.int32


@pytest.fixture(params=("fast", "check"))
def get(request: pytest.FixtureRequest):
    """The kernel of features.cu by its name, in each mode."""
    return module("features", request.param).get_function


def bfloat16() -> type:
    return pytest.importorskip("ml_dtypes", reason="ml_dtypes provides bfloat16").bfloat16


def test_every_16_bit_number_converts_to_float(get) -> None:
    bits = np.arange(65536, dtype=np.uint16)
    half, bf16 = np.zeros(65536, F), np.zeros(65536, F)
    get("widen")((256,), (256,), (bits, half, bf16))
    np.testing.assert_array_equal(half, bits.view(np.float16).astype(F))
    np.testing.assert_array_equal(
        bf16.view(np.uint32)[np.isfinite(bf16)], (bits.astype(np.uint32) << 16)[np.isfinite(bf16)]
    )
    np.testing.assert_array_equal(bf16, bits.view(bfloat16()).astype(F))
    assert np.signbit(half[0x8000])


def hard_numbers(dtype: type) -> np.ndarray:
    """float64: every number of `dtype`, the midpoints between neighbours, and the floats next to the midpoints."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        exact = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float64)
    finite = np.unique(exact[np.isfinite(exact)])
    middle = (finite[1:] + finite[:-1]) / 2
    last = finite[-1] + (finite[-1] - finite[-2]) / 2
    points = np.concatenate([exact, middle, [last, -last]])
    with np.errstate(invalid="ignore"):
        single = points.astype(F)
    around = [np.nextafter(single, F(s) * np.inf).astype(np.float64) for s in (1, -1)]
    return np.concatenate([points, *around])


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_numbers_round_to_the_nearest_even(get, name: str) -> None:
    dtype = np.float16 if name == "float16" else bfloat16()
    y = hard_numbers(dtype)
    with np.errstate(invalid="ignore"):
        x = y.astype(F)
    out = np.zeros((4, y.size), np.uint16)
    get("narrow")((-(-y.size // 256),), (256,), (x, y, out, I(y.size)))
    from_float = out[0 if name == "float16" else 1].view(dtype)
    from_double = out[2 if name == "float16" else 3].view(dtype)
    with np.errstate(over="ignore"):
        want = x.astype(dtype)
    nan = np.isnan(x)
    np.testing.assert_array_equal(from_float.view(np.uint16)[~nan], want.view(np.uint16)[~nan])
    assert np.isnan(from_float[nan].astype(F)).all()
    # All are floats, so nothing is rounded twice. The next test has doubles.
    np.testing.assert_array_equal(from_double.view(np.uint16), from_float.view(np.uint16))


def test_doubles_are_rounded_once(get) -> None:
    """Values closer to the midpoint of two numbers than a float represents: in float they would be ties."""
    y = np.array([1 + 2.0**-11 + 2.0**-40, 1 + 3 * 2.0**-11 - 2.0**-40, 2.0**-25 + 2.0**-60, -(2.0**-25)])
    z = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-40, 2.0**-134 + 2.0**-170, -(2.0**-134)])
    for values, row, want in ((y, 2, [0x3C01, 0x3C01, 1, 0x8000]), (z, 3, [0x3F81, 0x3F81, 1, 0x8000])):
        out = np.zeros((4, 4), np.uint16)
        get("narrow")((1,), (4,), (values.astype(F), values, out, I(4)))
        np.testing.assert_array_equal(out[row], want)


def nearest_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray, dtype: type) -> np.ndarray:
    """a b + c in exact rational arithmetic, rounded to the nearest number, ties to even."""
    result = np.empty(a.size, np.uint16)
    for i, (p, q, r) in enumerate(zip(a.tolist(), b.tolist(), c.tolist(), strict=True)):
        exact = Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r))
        guess = np.array([float(exact)]).astype(dtype).view(np.uint16)
        bits = guess + np.array([-1, 0, 1]).astype(np.uint16)
        far = [abs(Fraction(float(n)) - exact) if np.isfinite(float(n)) else np.inf for n in bits.view(dtype)]
        result[i] = min(zip(far, bits & 1, bits, strict=True))[2]
    return result.view(dtype)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_arithmetic_rounds_once(get, name: str) -> None:
    dtype = np.float16 if name == "float16" else bfloat16()
    rng = np.random.default_rng(6)
    n = 600
    scale = 2.0 ** rng.integers(-7, 7, (3, n))
    x = (rng.standard_normal((3, n)) * scale).astype(dtype)
    x[2, ::2] = (-(x[0] * x[1]).astype(np.float64) * (1 + 2.0**-9))[::2].astype(dtype)  # cancellation
    least = 2.0**-24 if name == "float16" else 2.0**-100
    # a b is the midpoint of two numbers. c is too small to change the sum in double, but determines the rounding.
    x[:, :2] = np.array([[7 / 16, 5 / 16], [37 / 16, 53 / 16], [-least, least]]).astype(dtype)
    out, unused = np.zeros((9, n), dtype), np.zeros((9, n), np.uint16)
    own, other = (x.view(np.uint16), out.view(np.uint16)), (unused, unused.copy())
    operands = (*own, *other) if name == "float16" else (*other, *own)
    get("arithmetic")((3,), (256,), (*operands, I(n)))
    p, q, _ = x.astype(np.float64)
    wide = [p + q, p - q, p * q, p / q, None, -p, abs(p), np.maximum(p, q), np.sqrt(abs(p))]
    for row, want in zip(out, wide, strict=True):
        expected = want.astype(dtype) if want is not None else nearest_fma(*x, dtype)
        np.testing.assert_array_equal(row.view(np.uint16), expected.view(np.uint16))


def test_pairs_and_vectors(get) -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((32, 2)).astype(F)
    h, b, back = np.zeros((32, 2), np.float16), np.zeros((32, 2), np.uint16), np.zeros((32, 4), F)
    get("pairs")((1,), (32,), (x, h, b, back))
    want = np.add(x.astype(np.float16).astype(np.float64), [1, 2]).astype(np.float16)
    np.testing.assert_array_equal(h, want)
    np.testing.assert_array_equal(back[:, :2], want.astype(F))
    np.testing.assert_allclose(back[:, 2:], 3 * x, rtol=2**-7)
    u, f = rng.integers(0, 2**32, (32, 4), np.uint32), rng.standard_normal((32, 4)).astype(F)
    v, g = np.zeros_like(u), np.zeros_like(f)
    get("vectors")((1,), (32,), (u, v, f, g))
    first = u[:, 0] + np.uint32(1)
    np.testing.assert_array_equal(v[:, :3], np.stack([first, u[:, 1], u[:, 2]], 1))
    np.testing.assert_array_equal(v[:, 3], (u[:, 1] << np.uint32(8)) | (first >> np.uint32(24)))
    np.testing.assert_array_equal(g, f[:, ::-1])


def test_classes_in_shared_memory(get) -> None:
    x, out = np.random.default_rng(11).standard_normal((32, 4)).astype(np.float16), np.zeros(32, F)
    get("half_tiles")((1,), (32,), (x, out))
    last = x[:, 3].astype(F).astype(bfloat16()).astype(F)
    want = (x[:, 0] + x[:, 1]).astype(F) * x[:, 2].astype(F) + last
    np.testing.assert_array_equal(out, want[::-1])


def test_functions(get) -> None:
    x = (np.random.default_rng(8).standard_normal(32) * 3).astype(F)
    out = np.zeros((16, 32), F)
    get("functions")((1,), (32,), (x, out, I(32)))
    d, lane = x.astype(np.float64), np.arange(32)
    bits = [int(v).bit_count() for v in x.view(np.uint32)]
    want = [
        *(np.exp(d), d / 3, np.tanh(d), np.exp(d), d * d + 1, abs(d) ** -0.5, np.clip(d, 0, 1), np.rint(d)),
        *(np.maximum(d, 0.5), np.minimum(lane, 7), np.log1p(abs(d)), bits, [32 - int(i).bit_length() for i in lane], d),
        *(np.full(32, F(0x01060503)), d),
    ]
    for row, expected in zip(out, want, strict=True):
        np.testing.assert_allclose(row, np.array(expected, np.float64), rtol=3e-7)


def test_tensor_core_products(get) -> None:
    rng = np.random.default_rng(9)
    c, d = rng.standard_normal((16, 8)).astype(F), np.zeros((5, 16, 8), F)
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((8, 16)).astype(np.float16)
    wide_a, wide_b = rng.standard_normal((16, 16)).astype(F), rng.standard_normal((8, 16)).astype(F)
    bf = [(v.view(np.uint32) >> 16).astype(np.uint16) for v in (wide_a, wide_b)]
    as_float = [(v.astype(np.uint32) << 16).view(F) for v in bf]
    ta, tb = rng.standard_normal((16, 8)).astype(F), rng.standard_normal((8, 8)).astype(F)
    get("products")((1,), (32,), (a, b, *bf, ta, tb, c, d))
    tf32 = [(v.view(np.uint32) & np.uint32(0xFFFFE000)).view(F) for v in (ta, tb)]
    short = [(v.ravel()[: 8 * v.shape[0]]).reshape(-1, 8) for v in (a, b, *as_float)]
    operands = [(a, b), tuple(as_float), tuple(tf32), (short[0], short[1]), (short[2], short[3])]
    for got, (left, right) in zip(d, operands, strict=True):
        want = c + left.astype(np.float64) @ right.astype(np.float64).T
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_matrix_loads(get) -> None:
    x = np.random.default_rng(10).integers(0, 65536, (4, 8, 8)).astype(np.uint16)
    out = np.zeros((6, 4, 32), np.uint32)
    get("matrix_loads")((1,), (32,), (x, out))
    for k in range(6):
        for i in range((4, 2, 1)[k // 2]):
            matrix = x[i].T if k % 2 else x[i]
            pairs = matrix.reshape(8, 4, 2).astype(np.uint32)  # lane (row, member) has two consecutive numbers
            np.testing.assert_array_equal(out[k, i], (pairs[..., 0] | pairs[..., 1] << np.uint32(16)).ravel())
