"""The activations of the compiled CPU path: error in ulp, special values, symmetry, range, equal bits in all lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.activation_error import errors, exactly, kernel, measure
from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.elementwise import elementwise
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.simd import vectors

DTYPES = ("float32", "float64")
BOUND = 2.6  # ulp; kernels/cpu/activations.py states the measured errors
WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


def apply(name: str, x: np.ndarray) -> np.ndarray:
    """The activation of x, of any size."""
    y = np.full_like(x, 7)
    kernel(name, x.dtype.name)(x, y)
    return y


def sample(dtype: str) -> np.ndarray:
    """Values of every magnitude and sign, and many in the usual range of recurrent layers."""
    rng = np.random.default_rng(0)
    low, high = np.log2(np.finfo(dtype).smallest_subnormal), np.log2(np.finfo(dtype).max)
    wide = 2.0 ** rng.uniform(low, high - 1e-3, 40_000) * rng.choice([-1, 1], 40_000)
    return np.concatenate([wide, rng.uniform(-110, 110, 40_000), 3 * rng.standard_normal(120_000)]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.skipif(
    not WIDER, reason="no type wider than float64 to compare with"))])  # fmt: skip
def test_errors_in_ulp_over_the_whole_range(dtype):
    """Every 101st of all float32 values, with subnormal arguments and results and NaN; a million float64 values."""
    for tally in measure(dtype, whole=False):
        assert tally.values > 1_000_000
        assert tally.worst < BOUND, str(tally)
        assert tally.outside == 0, str(tally)


@pytest.mark.parametrize(("dtype", "name", "end", "bound"), [
    ("float32", "tanh", 0.173, 1.5), ("float32", "sigmoid", 0.34, 0.9),
    ("float64", "tanh", 0.173, 0.75), ("float64", "sigmoid", 0.34, 0.75),
])  # fmt: skip
@pytest.mark.skipif(not WIDER, reason="no type wider than float64 to compare with")
def test_errors_near_zero_are_those_of_the_polynomial(dtype, name, end, bound):
    """For k = 0 the polynomial dominates the error, so a wrong digit of a coefficient is detected."""
    x = np.linspace(-end, end, 1_000_001).astype(dtype)
    assert errors(apply(name, x), exactly(name, x)).max() < bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype):
    inf, nan, largest = np.inf, np.nan, np.finfo(dtype).max
    x = np.array([nan, -nan, inf, -inf, 0.0, -0.0, 1e3, -1e3, largest, -largest], dtype)
    np.testing.assert_array_equal(apply("sigmoid", x), np.array([nan, nan, 1, 0, 0.5, 0.5, 1, 0, 1, 0], dtype))
    np.testing.assert_array_equal(apply("tanh", x), np.array([nan, nan, 1, -1, 0, 0, 1, -1, 1, -1], dtype))
    np.testing.assert_array_equal(np.signbit(apply("tanh", x[2:])), np.signbit(x[2:]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_nan_stays_nan(dtype):
    """Quiet and signalling NaN of both signs, with numbers in the same vector."""
    lanes, info = vectors(dtype).lanes, np.finfo(dtype)
    exponent = int(bits(np.array(np.inf, dtype)))
    payloads = [1, 1 << (info.nmant - 1), (1 << info.nmant) - 1, 12345]
    nans = bits(np.zeros(8, dtype)) + np.array([[exponent | p, exponent | p | 1 << info.bits - 1] for p in payloads],
                                               bits(np.zeros(1, dtype)).dtype).ravel()  # fmt: skip
    for nan in nans.view(dtype):
        for lane in range(lanes):
            x = np.ones(lanes, dtype)
            x[lane] = nan
            for name in ("sigmoid", "tanh", "relu"):
                assert (np.isnan(apply(name, x)) == (np.arange(lanes) == lane)).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_odd_to_the_bit_and_the_identity_for_tiny_arguments(dtype):
    x = sample(dtype)
    np.testing.assert_array_equal(bits(apply("tanh", -x)), bits(-apply("tanh", x)))
    info = np.finfo(dtype)
    tiny = x[np.abs(x) < np.sqrt(info.eps) / 2]
    subnormal = np.arange(1, 2000).astype(bits(x).dtype).view(dtype)
    for same in (tiny, subnormal, -subnormal, np.array([info.tiny, 0.0, -0.0], dtype)):
        np.testing.assert_array_equal(bits(apply("tanh", same)), bits(same))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturation(dtype):
    """1 and 0 where the exact value rounds to them, within one rounding error; before that, subnormal results."""
    info = np.finfo(dtype)
    end = -(info.nmant + 2) * np.log(2)  # exp(end) is a quarter of the gap above 1, a half of that below
    x = np.linspace(end - 40, end, 1000).astype(dtype)
    assert (apply("sigmoid", -x) == 1).all()
    assert (apply("tanh", (-x + 1) / 2) == 1).all()
    assert (apply("tanh", -np.linspace(2.5, -0.45 * end, 1000).astype(dtype)) > -1).all()
    least = np.log(np.float64(info.smallest_subnormal)) if dtype == "float32" else -1074 * np.log(2)
    assert (apply("sigmoid", np.linspace(least - 50, least - 0.8, 1000).astype(dtype)) == 0).all()
    below_normal = np.linspace(least + 0.1, np.log(info.tiny) - 0.1, 1000).astype(dtype)
    got = apply("sigmoid", below_normal)
    assert ((got > 0) & (got < info.tiny)).all()
    want = np.exp(below_normal.astype(np.longdouble))
    assert np.abs(got - want).max() < 1.01 * info.smallest_subnormal + 4 * info.eps * want.max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_bits_do_not_depend_on_the_lane_or_on_partial_vectors(name, dtype):
    """Each value in every lane, in whole vectors and in the first n lanes, with other values in the other lanes."""
    v, function = vectors(dtype), getattr(activations(dtype), name)
    load, store, lanes, size = v.whole.load, v.whole.store, v.lanes, v.itemsize

    @entry(("test", "whole", name, dtype))
    def whole(x, y):
        for j in range(0, x.size, lanes):
            store(function(load(x.ctypes.data + j * size, lanes)), y.ctypes.data + j * size, lanes)

    x = sample(dtype)[: 400 * lanes]
    x[::37], x[5::91], x[7::53] = np.nan, np.inf, -np.inf
    want = np.full_like(x, 7)
    whole(x, want)
    for shift in range(lanes):
        for n in (x.size - shift, 1, lanes - 1, lanes + 1, 3 * lanes - 1):
            np.testing.assert_array_equal(bits(apply(name, x[shift : shift + n])), bits(want[shift : shift + n]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_and_its_gradient(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    h = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, 1.5, -1.5], dtype)
    got = apply("relu", h)
    np.testing.assert_array_equal(got, np.array([np.nan, np.inf, 0, 0, 0, tiny, 0, 1.5, 0], dtype))
    assert not np.signbit(got[1:]).any()

    v, passed = vectors(dtype), activations(dtype).passed
    load, store, lanes, size = v.first.load, v.first.store, v.lanes, v.itemsize

    @entry(("test", "passed", dtype))
    def over(h, dh, y):
        for j in range(0, h.size, lanes):
            n, at = h.size - j, j * size
            store(passed(load(h.ctypes.data + at, n), load(dh.ctypes.data + at, n)), y.ctypes.data + at, n)

    for dh, back in ((2.5, 2.5), (-np.inf, -np.inf), (np.nan, np.nan)):
        y = np.full_like(h, 7)
        over(h, np.full_like(h, dh), y)
        np.testing.assert_array_equal(y, np.where((h <= 0), 0, back).astype(dtype))


def apply_elementwise(function: Any, key: str, x: np.ndarray) -> np.ndarray:
    v = vectors(x.dtype.name)
    load, store, lanes, size = v.first.load, v.first.store, v.lanes, v.itemsize

    @entry(("test", "elementwise", key, x.dtype.name))
    def over(x, y):
        for j in range(0, x.size, lanes):
            store(function(load(x.ctypes.data + j * size, x.size - j)), y.ctypes.data + j * size, x.size - j)

    y = np.full_like(x, 7)
    over(x, y)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_and_signs_at_nan_infinity_and_zero(dtype):
    of = elementwise(dtype)
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.5, -2.5, 1.0, -1.0], dtype)
    np.testing.assert_array_equal(apply_elementwise(of.clamp_min(-1.0), "least", x), np.where(x < -1, -1, x))
    np.testing.assert_array_equal(apply_elementwise(of.clamp_max(1.0), "most", x), np.where(x > 1, 1, x))
    negative = apply_elementwise(of.negative_abs, "negative", x)
    np.testing.assert_array_equal(negative, -np.abs(x))
    assert np.signbit(negative).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_at_known_points(dtype):
    """The reference at points with known values."""
    x = np.array([0, np.log(3), -np.log(3)], dtype)
    np.testing.assert_allclose(exactly("sigmoid", x).astype(np.float64), [0.5, 0.75, 0.25], rtol=np.finfo(dtype).eps)
    np.testing.assert_allclose(exactly("tanh", x).astype(np.float64), [0, 0.8, -0.8], rtol=np.finfo(dtype).eps)
