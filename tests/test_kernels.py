"""The pieces of the compiled CPU path by themselves: activations in ulp, edges of vectors, products, the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rnnkit.kernels.activations import activations
from rnnkit.kernels.jit import entry
from rnnkit.kernels.large import K_BLOCK, large_products, room_of
from rnnkit.kernels.pack import packer, padded, panels_of
from rnnkit.kernels.product import products, tile_shape
from rnnkit.kernels.vector import vectors

DTYPES = ("float32", "float64")


def apply(name: str, dtype: str, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The vector function `name` over x, into `out` if given."""
    v, function = vectors(dtype), getattr(activations(dtype), name)
    load, store, lanes, size = v.first.load, v.first.store, v.lanes, v.itemsize

    @entry(("test", name, dtype))
    def over(x, y):
        for j in range(0, x.size, lanes):
            n = x.size - j
            store(function(load(x.ctypes.data + j * size, n)), y.ctypes.data + j * size, n)

    y = np.full_like(x, np.nan) if out is None else out
    over(x, y)
    return y


def exactly(name: str, x: np.ndarray) -> np.ndarray:
    """The function in extended precision."""
    wide = x.astype(np.longdouble)
    with np.errstate(over="ignore"):
        return np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations_are_within_three_ulp(name, dtype):
    rng = np.random.default_rng(0)
    dense = np.linspace(-40, 40, 800_001)
    tiny = rng.choice([-1, 1], 10_000) * 2.0 ** rng.uniform(-100, 0, 10_000)
    x = np.concatenate([dense, tiny, rng.standard_normal(200_000)]).astype(dtype)
    want = exactly(name, x)
    ulp = np.abs(apply(name, dtype, x) - want) / np.spacing(np.abs(want.astype(dtype)))
    assert ulp.max() < 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_at_the_edges(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, 1e3, -1e3, np.finfo(dtype).tiny / 4, np.finfo(dtype).max], dtype)
    np.testing.assert_array_equal(apply("sigmoid", dtype, x), np.array([np.nan, 1, 0, 0.5, 1, 0, 0.5, 1], dtype))
    subnormal = x[6]
    np.testing.assert_array_equal(apply("tanh", dtype, x), np.array([np.nan, 1, -1, 0, 1, -1, subnormal, 1], dtype))
    np.testing.assert_array_equal(apply("relu", dtype, x), np.maximum(x, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_lane_past_the_end_is_written(dtype):
    lanes = vectors(dtype).lanes
    for n in range(1, 2 * lanes + 2):
        x, room = np.linspace(-1, 1, n).astype(dtype), np.full(n + lanes, 7, dtype)
        apply("tanh", dtype, x, room[:n])
        np.testing.assert_array_equal(room, np.concatenate([apply("tanh", dtype, x), np.full(lanes, 7, dtype)]))


# In a process of its own: a lane too many ends it by a signal.
UP_TO_A_FORBIDDEN_PAGE = """
import ctypes, mmap, sys
import numpy as np
from tests.test_kernels import apply, vectors

PROT_NONE = 0
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def at_the_end(dtype):
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    array = np.frombuffer(pages, dtype)
    if libc.mprotect(array.ctypes.data + mmap.PAGESIZE, mmap.PAGESIZE, PROT_NONE):
        sys.exit(f"mprotect: error {ctypes.get_errno()}")
    return array[: mmap.PAGESIZE // array.itemsize]

for dtype in ("float32", "float64"):
    x, y = at_the_end(dtype), at_the_end(dtype)
    x[...] = np.linspace(-1, 1, x.size)
    for n in range(1, 2 * vectors(dtype).lanes + 2):
        apply("tanh", dtype, x[-n:], y[-n:])
        np.testing.assert_array_equal(y[-n:], apply("tanh", dtype, x[-n:].copy()))
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect, which Windows has not")
def test_no_lane_past_the_end_is_read():
    command = [sys.executable, "-c", UP_TO_A_FORBIDDEN_PAGE]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


def unpacked(packed: np.ndarray, N: int, K: int, dtype: str) -> np.ndarray:
    """(N, K) again, and the padding, which must be zero."""
    width, total, rows = tile_shape()[1] * vectors(dtype).lanes, padded(N, dtype), []
    for start in range(0, total, width):
        columns = min(width, total - start)
        rows.append(packed[start * K : (start + columns) * K].reshape(K, columns).T)
    whole = np.concatenate(rows)
    assert (whole[N:] == 0).all()
    return whole[:N]


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_some_rows_of_each_block_either_way_up(dtype):
    rng = np.random.default_rng(5)
    lanes = vectors(dtype).lanes
    for H in (1, lanes - 1, lanes, 2 * lanes + 3, 5 * lanes):
        for K in (1, lanes, 2 * lanes + 1):
            w = rng.standard_normal((3 * H, K)).astype(dtype)
            for first, each in ((0, H), (H // 2, H - H // 2), (H - 1, 1)):
                want = np.concatenate([w[g * H + first : g * H + first + each] for g in range(3)])
                N = 3 * each
                for transposed in (False, True):
                    source = np.ascontiguousarray(w.T) if transposed else w
                    packed = np.full(padded(N, dtype) * K, np.nan, dtype)
                    for panel in range(panels_of(N, dtype)):
                        packer(dtype)(source, transposed, first, each, H, N, panel, panel + 1, packed)
                    np.testing.assert_array_equal(unpacked(packed, N, K, dtype), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_over_every_tile_shape(dtype):
    """All numbers of rows and columns around the tile's, against NumPy in float64, with and without adding."""
    product, size = products(dtype).product, np.dtype(dtype).itemsize

    @entry(("test", "product", dtype))
    def run(a, w, c, N, add):
        rows, K = a.shape
        product(a.ctypes.data, K * size, w.ctypes.data, K, c.ctypes.data, c.shape[1] * size, N, rows, add)

    rng = np.random.default_rng(1)
    rows_max, columns_max = tile_shape()
    lanes = vectors(dtype).lanes
    for rows in range(1, 2 * rows_max + 2):
        for N in (1, lanes - 1, lanes, lanes + 1, columns_max * lanes, columns_max * lanes + 1, 130):
            for K in (1, 2, 17, 33):
                a, w = rng.standard_normal((rows, K)).astype(dtype), rng.standard_normal((N, K)).astype(dtype)
                packed = np.full(padded(N, dtype) * K, np.nan, dtype)
                packer(dtype)(w, False, 0, N, 0, N, 0, panels_of(N, dtype), packed)
                c = np.full((rows, N + 3), 7, dtype)
                run(a, packed, c, N, 0)
                assert (c[:, N:] == 7).all()
                want = a.astype(np.float64) @ w.astype(np.float64).T
                bound = 4 * np.finfo(dtype).eps * (np.abs(a).astype(np.float64) @ np.abs(w).astype(np.float64).T)
                assert (np.abs(c[:, :N] - want) <= bound * np.sqrt(K)).all()
                once = c.copy()
                run(a, packed, c, N, 1)
                assert (np.abs(c[:, :N] - once[:, :N] - want) <= 4 * bound * np.sqrt(K)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_products_in_shares(dtype):
    """x W^T and d^T x with d's column sums, whole and in shares of their rows, over several blocks of rows and of K."""
    rows_by_weights, over_time = large_products(dtype).rows_by_weights, large_products(dtype).over_time
    rng = np.random.default_rng(3)
    for steps, M, N in ((1, 1, 1), (5, 7, 3), (K_BLOCK, 16, 64), (2 * K_BLOCK + 5, 19, 70)):
        x, d = rng.standard_normal((steps, N)).astype(dtype), rng.standard_normal((steps, M)).astype(dtype)
        w = rng.standard_normal((M, N)).astype(dtype)
        packed, room = np.empty(padded(M, dtype) * N, dtype), np.empty(room_of(N, dtype), dtype)
        packer(dtype)(w, False, 0, M, 0, M, 0, panels_of(M, dtype), packed)
        results = []
        for cut_rows, cut_gates in ((steps, M), (steps // 2, M // 2)):
            y, dw, sums = np.full((steps, M), np.nan, dtype), np.full((M, N), np.nan, dtype), np.zeros(M, dtype)
            for low, high in ((0, cut_rows), (cut_rows, steps)):
                rows_by_weights(x, packed, y, low, high)
            for low, high in ((0, cut_gates), (cut_gates, M)):
                over_time(d, 0, x, dw, sums, low, high, room)
            results.append((y, dw, sums))
        for whole, cut in zip(*results, strict=True):
            np.testing.assert_array_equal(whole, cut)
        wide_x, wide_d = x.astype(np.float64), d.astype(np.float64)
        eps = 8 * np.finfo(dtype).eps
        y, dw, sums = results[0]
        assert (np.abs(y - wide_x @ w.T) <= eps * np.sqrt(N) * (np.abs(wide_x) @ np.abs(w.T))).all()
        assert (np.abs(dw - wide_d.T @ wide_x) <= eps * np.sqrt(steps) * (np.abs(wide_d.T) @ np.abs(wide_x))).all()
        assert (np.abs(sums - wide_d.sum(0)) <= eps * np.sqrt(steps) * np.abs(wide_d).sum(0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_has_the_same_bits_in_any_batch(dtype):
    product, size = products(dtype).product, np.dtype(dtype).itemsize

    @entry(("test", "product rows", dtype))
    def run(a, w, c, N):
        rows, K = a.shape
        product(a.ctypes.data, K * size, w.ctypes.data, K, c.ctypes.data, c.shape[1] * size, N, rows, 0)

    rng = np.random.default_rng(2)
    K, N = 37, 70
    a, w = rng.standard_normal((13, K)).astype(dtype), rng.standard_normal((N, K)).astype(dtype)
    packed = np.empty(padded(N, dtype) * K, dtype)
    packer(dtype)(w, False, 0, N, 0, N, 0, panels_of(N, dtype), packed)
    whole = np.empty((13, padded(N, dtype)), dtype)
    run(a, packed, whole, N)
    for row in range(13):
        alone = np.empty((1, padded(N, dtype)), dtype)
        run(a[row : row + 1], packed, alone, N)
        np.testing.assert_array_equal(alone[0, :N], whole[row, :N])


def test_kernels_are_cached_between_processes_and_recompiled_when_a_source_changes(tmp_path):
    """Counts compilations in fresh processes over a copy of the package: first some, then none, then some again."""
    root = Path(__file__).parents[1] / "rnnkit"
    copy = tmp_path / "rnnkit"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = textwrap.dedent("""
        import numpy as np, rnnkit
        from rnnkit.backends.numba import kernels
        layer = rnnkit.RNN(3, 4, rng=0)
        layer(np.ones((2, 1, 3), "float32"))
        forward = kernels("rnn_tanh", "float32").forward
        print(sum(forward.stats.cache_misses.values()), sum(forward.stats.cache_hits.values()))
    """)

    def compilations() -> str:
        command = [sys.executable, "-c", script]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.split()

    assert compilations() == ["1", "0"]
    assert compilations() == ["0", "1"]
    source = copy / "kernels" / "rnn.py"
    source.write_text(source.read_text() + "\n# changed\n")
    assert compilations() == ["1", "0"]


def test_kernels_that_several_processes_compiled_serve_one(tmp_path: Path) -> None:
    """Machine code from the cache is linked by symbols: no two processes may have given one to two functions."""
    script = textwrap.dedent("""
        import sys
        from rnnkit import ops
        from rnnkit.testing import Case, assert_close, make_inputs
        for dtype in sys.argv[1:]:
            given = make_inputs(Case("rnn_tanh"), dtype)
            ours, oracle = (
                ops.forward("rnn_tanh", given.x, given.state0, given.weights, backend=backend, keep=False)
                for backend in ("numba", "numpy")
            )
            assert_close("y", ours[0], oracle[0], dtype)
    """)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).resolve().parent.parent
    for dtypes in (["float32"], ["float64"], ["float32", "float64"]):
        subprocess.run([sys.executable, "-c", script, *dtypes], cwd=root, env=environment, check=True)
