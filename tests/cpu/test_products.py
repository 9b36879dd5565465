"""Products and packing of the compiled CPU path, against float64: values, bits, and no write out of bounds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.matmul import products, tile_shape
from rnnkit.kernels.cpu.matmul_large import K_BLOCK, M_BLOCK, ROW_BLOCK, large_products, scratch_elements
from rnnkit.kernels.cpu.pack import packer, padded, panel_count
from rnnkit.kernels.cpu.simd import vectors

DTYPES = ("float32", "float64")


@cache
def entries(dtype: str) -> SimpleNamespace:
    """The kernels, which take addresses, as functions for Python."""
    multiply, multiply_steps = products(dtype, dtype).product, products(dtype, dtype).product_steps
    large, pack_panels = large_products(dtype), packer(dtype)
    by_weights, of_time = large.rows_by_weights, large.over_time

    @entry(("test", "product", dtype))
    def product(a, a_row, w, K, c, c_row, N, rows, add, backwards):
        multiply(a, a_row, w, K, c, c_row, N, rows, add, backwards)

    @entry(("test", "product_steps", dtype))
    def product_steps(a, a_step, a_row, a_k, w, K, c, c_step, c_row, N, steps, rows, add, backwards):
        multiply_steps(a, a_step, a_row, a_k, w, K, c, c_step, c_row, N, steps, rows, add, backwards)

    @entry(("test", "pack", dtype))
    def pack(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed):
        pack_panels(w, w_row, K, transposed, first, each, stride, N, panel0, panel1, packed)

    @entry(("test", "rows_by_weights", dtype))
    def rows_by_weights(x, x_row, w, K, y, y_row, N, r0, r1):
        by_weights(x, x_row, w, K, y, y_row, N, r0, r1)

    @entry(("test", "over_time", dtype))
    def over_time(d, d_row, x, K, N, out, sums, m0, m1, room, adds):
        of_time(d, d_row, x, K, N, out, sums, m0, m1, room, adds)

    return SimpleNamespace(
        product=product, product_steps=product_steps, pack=pack, rows_by_weights=rows_by_weights, over_time=over_time
    )


GUARD = 7  # fills the memory around every array that a kernel writes


def guarded(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A 64-byte aligned array of NaN with 3 unused elements after each row; and its memory, elsewhere GUARD."""
    lanes, size = vectors(dtype).lanes, np.dtype(dtype).itemsize
    stored = (*shape[:-1], shape[-1] + 3) if len(shape) > 1 else shape
    memory = np.full(int(np.prod(stored)) + 6 * lanes, GUARD, dtype)
    start = lanes + (-memory.ctypes.data // size) % (64 // size)
    inside = memory[start : start + int(np.prod(stored))].reshape(stored)[..., : shape[-1]]
    inside[...] = np.nan
    return inside, memory


def assert_guarded(inside: np.ndarray, memory: np.ndarray) -> None:
    """No byte outside `inside` was written."""
    kept = inside.copy()
    inside[...] = GUARD
    assert (memory == GUARD).all()
    inside[...] = kept


def unpacked(packed: np.ndarray, N: int, K: int, dtype: str) -> np.ndarray:
    """The unpacked (N, K) array. Asserts that the padding is zero."""
    width, total, rows = tile_shape()[1] * vectors(dtype).lanes, padded(N, dtype), []
    for start in range(0, total, width):
        columns = min(width, total - start)
        rows.append(packed[start * K : (start + columns) * K].reshape(K, columns).T)
    whole = np.concatenate(rows)
    assert (whole[N:] == 0).all()
    return whole[:N]


def pack(w: np.ndarray, N: int, first: int, each: int, stride: int, transposed: bool = False) -> np.ndarray:
    """The panels of N rows of w, each packed by a separate call."""
    dtype, K = str(w.dtype), w.shape[0 if transposed else 1]
    packed, memory = guarded((padded(N, dtype) * K,), dtype)
    row = w.strides[0]
    for panel in reversed(range(panel_count(N, dtype))):
        entries(dtype).pack(
            w.ctypes.data, row, K, transposed, first, each, stride, N, panel, panel + 1, packed.ctypes.data
        )
    assert_guarded(packed, memory)
    return packed


def close_to_product(c: np.ndarray, a: np.ndarray, b: np.ndarray, added: np.ndarray | float = 0.0) -> bool:
    """Whether c equals added + a @ b in float64, up to K roundings in c's dtype."""
    eps, a, b = np.finfo(c.dtype).eps, a.astype(np.float64), b.astype(np.float64)
    bound = 4 * eps * (np.sqrt(a.shape[1] + 1) * (np.abs(a) @ np.abs(b)) + np.abs(added))
    return bool((np.abs(c - (added + a @ b)) <= bound).all())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_some_rows_of_each_block_also_transposed(dtype, transposed):
    rng = np.random.default_rng(5)
    lanes = vectors(dtype).lanes
    for H in (1, 3, lanes - 1, lanes, 2 * lanes + 3, 5 * lanes, 6 * lanes + lanes // 2):
        for K in (0, 1, 2, lanes - 1, lanes, 2 * lanes + 1, 3 * lanes + lanes // 2):
            w = rng.standard_normal((3 * H, K + 5)).astype(dtype)[:, :K]
            for first, each in ((0, H), (H // 2, H - H // 2), (H - 1, 1)):
                want = np.concatenate([w[g * H + first : g * H + first + each] for g in range(3)])
                source, taken, stride = w, each, H
                if transposed:
                    wide = rng.standard_normal((K, 3 * each + first + 5)).astype(dtype)
                    source, taken, stride = wide[:, : 3 * each + first], 3 * each, 0
                    want = source[:, first:].T
                packed = pack(source, 3 * each, first, taken, stride, transposed)
                np.testing.assert_array_equal(unpacked(packed, 3 * each, K, dtype), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_over_every_tile_shape(dtype):
    """Numbers of rows and columns around the tile's, with and without accumulation, panels in both orders."""
    size, rng = np.dtype(dtype).itemsize, np.random.default_rng(1)
    rows_max, columns_max = tile_shape()
    lanes = vectors(dtype).lanes
    for rows in range(1, 2 * rows_max + 2):
        for N in (1, lanes - 1, lanes, lanes + 1, columns_max * lanes, columns_max * lanes + 1, 130):
            for K in (0, 1, 2, 17, 33):
                a, w = rng.standard_normal((rows, K + 2)).astype(dtype), rng.standard_normal((N, K)).astype(dtype)
                packed, results = pack(w, N, 0, N, 0), []
                for backwards in (False, True):
                    c, memory = guarded((rows, N), dtype)
                    given = a.ctypes.data, (K + 2) * size, packed.ctypes.data, K, c.ctypes.data, c.strides[0], N, rows
                    entries(dtype).product(*given, 0, backwards)
                    assert close_to_product(c, a[:, :K], w.T)
                    once = c.astype(np.float64)
                    entries(dtype).product(*given, 1, backwards)
                    assert close_to_product(c, a[:, :K], w.T, once)
                    assert_guarded(c, memory)
                    results.append(c)
                np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_of_steps(dtype):
    """Several A with gaps between them, or transposed; the order of the panels does not change the result."""
    rng = np.random.default_rng(4)
    for steps, rows, K, N in ((1, 1, 9, 70), (3, 2, 33, 130), (4, 7, 20, 5), (2, 19, 64, 64)):
        w = rng.standard_normal((N, K)).astype(dtype)
        packed = pack(w, N, 0, N, 0)
        upright = rng.standard_normal((steps, rows, K + 1)).astype(dtype)[:, :, :K]
        flat = rng.standard_normal((steps, K, rows + 2)).astype(dtype)[:, :, :rows].transpose(0, 2, 1)
        for a in (upright, flat):
            results = []
            for backwards in (False, True):
                c, memory = guarded((steps, rows, N), dtype)
                once = np.zeros(c.shape)
                for add in (0, 1):
                    entries(dtype).product_steps(
                        a.ctypes.data, *a.strides, packed.ctypes.data, K, c.ctypes.data, *c.strides[:2], N, steps, rows,
                        add, backwards,
                    )  # fmt: skip
                    assert all(close_to_product(c[t], a[t], w.T, once[t]) for t in range(steps))
                    once = c.astype(np.float64)
                assert_guarded(c, memory)
                results.append(c)
            np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_has_the_same_bits_in_any_batch(dtype):
    rng = np.random.default_rng(2)
    K, size = 37, np.dtype(dtype).itemsize
    for N in (70, 5 * vectors(dtype).lanes, 1 + 8 * vectors(dtype).lanes):
        a, w = rng.standard_normal((33, K)).astype(dtype), rng.standard_normal((N, K)).astype(dtype)
        packed = pack(w, N, 0, N, 0)

        def run(rows, a=a, packed=packed, N=N):
            c = np.full((len(rows), N), np.nan, dtype)
            at = np.ascontiguousarray(a[rows])
            entries(dtype).product(
                at.ctypes.data, K * size, packed.ctypes.data, K, c.ctypes.data, N * size, N, len(rows), 0, False
            )
            return c

        whole = run(range(33))
        for rows in range(1, 33):
            np.testing.assert_array_equal(run(range(rows)), whole[:rows])
            np.testing.assert_array_equal(run(range(33 - rows, 33)), whole[33 - rows :])


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_of_rows_by_weights_divided(dtype):
    """x W^T as a whole and divided by rows, over several blocks of rows."""
    rng = np.random.default_rng(3)
    for M, K, N in ((1, 1, 1), (7, 5, 3), (ROW_BLOCK, 16, 64), (2 * ROW_BLOCK + 5, 70, 131)):
        x, w = rng.standard_normal((M, K + 3)).astype(dtype)[:, :K], rng.standard_normal((N, K)).astype(dtype)
        packed, results = pack(w, N, 0, N, 0), []
        for cut in (0, 1, M // 2):
            y, memory = guarded((M, N), dtype)
            for low, high in ((cut, M), (0, cut)):
                entries(dtype).rows_by_weights(
                    x.ctypes.data, x.strides[0], packed.ctypes.data, K, y.ctypes.data, y.strides[0], N, low, high
                )
            assert_guarded(y, memory)
            results.append(y)
        assert close_to_product(results[0], x, w.T)
        for cut in results[1:]:
            np.testing.assert_array_equal(cut, results[0])


@pytest.mark.parametrize("K", [0, 1, 5, K_BLOCK - 1, K_BLOCK, K_BLOCK + 1, 2 * K_BLOCK + 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_over_time_divided(dtype, K):
    """d^T x and d's column sums, as a whole and divided by rows, over several blocks of K and of columns of d.

    Also accumulated to earlier values, which do not change if there is nothing to add.
    """
    rng = np.random.default_rng(6)
    size = np.dtype(dtype).itemsize
    for M, N in ((1, 1), (7, 3), (5, vectors(dtype).lanes), (19, 70), (M_BLOCK + 1, 40), (2 * M_BLOCK + 7, 129)):
        x, d = rng.standard_normal((K, N)).astype(dtype), rng.standard_normal((K, M + 3)).astype(dtype)[:, :M]
        results = []
        for summed, cuts in ((True, (0, M)), (True, (0, M // 2, M)), (False, (0, M // 3, M))):
            dw, sums = np.full(M * N + 64, GUARD, dtype), np.full(M + 64, GUARD, dtype)
            room = np.full(scratch_elements(K, M, N, dtype) + 64, GUARD, dtype)
            for low, high in pairwise(cuts):
                entries(dtype).over_time(
                    d.ctypes.data, (M + 3) * size, x.ctypes.data, K, N, dw.ctypes.data,
                    sums.ctypes.data if summed else 0, low, high, room.ctypes.data, 0,
                )  # fmt: skip
            assert all((past == GUARD).all() for past in (dw[M * N :], sums[M if summed else 0 :], room[-64:]))
            results.append((dw, sums))
        for dw, sums in results[1:]:
            np.testing.assert_array_equal(dw, results[0][0])
            assert (sums == GUARD).all() or (sums == results[0][1]).all()
        dw, sums = results[0]
        assert close_to_product(dw[: M * N].reshape(M, N), d.T, x)
        assert close_to_product(sums[:M, None], d.T, np.ones((K, 1)))
        before = rng.standard_normal((M, N)).astype(dtype)
        after = before.copy()
        entries(dtype).over_time(
            d.ctypes.data, (M + 3) * size, x.ctypes.data, K, N, after.ctypes.data, 0, 0, M, room.ctypes.data, 1
        )
        assert close_to_product(after, d.T, x, before)


# Kernels read vector_bytes when they are created, so it must be replaced before.
NARROW = """
import sys
from rnnkit.kernels.cpu import simd as vector
vector.vector_bytes = lambda: int(sys.argv[1])
from rnnkit.kernels.cpu import matmul as product
assert product.tile_shape() == {32: (4, 3), 16: (6, 2)}[vector.vector_bytes()], product.tile_shape()
import pytest
chosen = "float32 and not narrower"
sys.exit(pytest.main(["tests/cpu/test_products.py", "-p", "no:cacheprovider", "-k", chosen]))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors")
@pytest.mark.parametrize(("processor", "width"), [("haswell", 32), ("x86-64", 16)])
def test_products_and_packing_on_narrower_vectors(processor, width, tmp_path):
    """The tests above with the vectors, tiles and instructions of older processors."""
    root = Path(__file__).parents[2]
    variables = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    environment = os.environ | variables | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", NARROW, str(width)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
