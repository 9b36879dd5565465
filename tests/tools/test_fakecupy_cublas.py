"""The simulated cuBLAS against NumPy: layouts, types, rounding, and rejected arguments."""

import ctypes
import inspect
import itertools
import threading

import numpy as np
import pytest

from tests.tools import fakecupy
from tests.tools.fakecupy import _blas
from tests.tools.fakecupy._gemm import tf32

KINDS = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
COMPUTE = {"32F": 68, "pedantic": 69, "tf32": 77, "64F": 70}
# A and B, C, compute type, and the relative error of rounding once to C.
COMBINATIONS = [
    ("float16", "float16", "32F", 2.0**-11),
    ("float16", "float32", "32F", 2.0**-22),
    ("bfloat16", "bfloat16", "32F", 2.0**-8),
    ("bfloat16", "float32", "pedantic", 2.0**-22),
    ("float32", "float32", "32F", 2.0**-22),
    ("float32", "float32", "pedantic", 2.0**-22),
    ("float32", "float32", "tf32", 2.0**-22),
    ("float64", "float64", "64F", 2.0**-51),
]


def dtype_of(name):
    return pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)


@pytest.fixture
def cp():
    with fakecupy.installed(devices=2) as module:
        yield module


class Scalars:
    """alpha and beta on the host, in the compute type."""

    def __init__(self, compute, alpha, beta):
        self.held = np.array([alpha, beta], np.float64 if compute == "64F" else np.float32)
        self.alpha, self.beta = self.held.ctypes.data, self.held.ctypes.data + self.held.itemsize


def column_major(cp, values, ld):
    """`values` (rows, columns) on the device, column-major with leading dimension `ld`, NaN in the gaps."""
    rows, columns = values.shape
    padded = np.full((columns, ld), np.nan).astype(values.dtype)
    padded[:, :rows] = values.T
    return cp.asarray(padded)


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((0, 1, 2), repeat=2)))
@pytest.mark.parametrize(("ab", "c", "compute", "eps"), COMBINATIONS)
def test_products_of_every_layout_and_type(cp, ab, c, compute, eps, trans_a, trans_b):
    cublas, rng = cp.cuda.cublas, np.random.default_rng(5)
    m, n, k = 3, 5, 4
    a = rng.standard_normal((k, m) if trans_a else (m, k)).astype(dtype_of(ab))
    b = rng.standard_normal((n, k) if trans_b else (k, n)).astype(dtype_of(ab))
    old = rng.standard_normal((m, n)).astype(dtype_of(c))
    x, y, out = column_major(cp, a, 6), column_major(cp, b, 7), column_major(cp, old, 4)
    held = Scalars(compute, 1.5, -0.5)
    cublas.gemmEx(
        cp.cuda.device.get_cublas_handle(), trans_a, trans_b, m, n, k, held.alpha, x.data.ptr, KINDS[ab], 6,
        y.data.ptr, KINDS[ab], 7, held.beta, out.data.ptr, KINDS[c], 4, COMPUTE[compute], -1,
    )  # fmt: skip
    a, b = (tf32(v) if compute == "tf32" else v for v in (a, b))
    a, b = (v.astype(np.float64) for v in (a, b))
    want = 1.5 * ((a.T if trans_a else a) @ (b.T if trans_b else b)) - 0.5 * old.astype(np.float64)
    got = out.get()
    summing = 2.0**-50 if compute == "64F" else 2.0**-21
    np.testing.assert_allclose(got[:, :m].T.astype(np.float64), want, rtol=eps, atol=summing)
    assert np.isnan(got[:, m:].astype(np.float64)).all(), "memory between the columns is not changed"


def test_c_is_not_read_if_beta_is_0_and_not_changed_if_k_is_0(cp):
    handle, held = cp.cuda.device.get_cublas_handle(), Scalars("32F", 1, 0)
    a, c = cp.ones((2, 2), np.float32), cp.empty((2, 2), np.float32)
    cp.cuda.cublas.sgemm(handle, 0, 0, 2, 2, 2, held.alpha, a.data.ptr, 2, a.data.ptr, 2, held.beta, c.data.ptr, 2)
    assert c.get().tolist() == [[2, 2], [2, 2]]
    keep = Scalars("32F", 1, 1)
    cp.cuda.cublas.sgemm(handle, 0, 0, 2, 2, 0, keep.alpha, a.data.ptr, 2, a.data.ptr, 2, keep.beta, c.data.ptr, 2)
    assert c.get().tolist() == [[2, 2], [2, 2]]


def test_tf32_rounds_to_ten_bits(cp):
    values = np.array([1, 1 + 2**-11, 1 + 2**-12, -(1 + 3 * 2**-11), np.inf, 3e38], np.float32)
    assert tf32(values)[:5].tolist() == [1, 1 + 2**-10, 1, -(1 + 2 * 2**-10), np.inf]
    assert tf32(tf32(values)).tolist() == tf32(values).tolist()
    handle, held = cp.cuda.device.get_cublas_handle(), Scalars("32F", 1, 0)
    x, one, out = cp.asarray(values[2:3]), cp.ones(1, np.float32), cp.empty(1, np.float32)
    for math_mode, want in ((0, values[2]), (3, 1)):
        cp.cuda.cublas.setMathMode(handle, math_mode)
        cp.cuda.cublas.sgemm(handle, 0, 0, 1, 1, 1, held.alpha, x.data.ptr, 1, one.data.ptr, 1, held.beta,
                             out.data.ptr, 1)  # fmt: skip
        assert float(out[0]) == want


def test_cupys_functions_use_the_current_stream_and_refuse_a_capture(cp):
    handle, held, stream = cp.cuda.device.get_cublas_handle(), Scalars("32F", 1, 0), cp.cuda.Stream(non_blocking=True)
    x, out = cp.ones(1, np.float32), cp.zeros(1, np.float32)
    product = (0, 0, 1, 1, 1, held.alpha, x.data.ptr, 1, x.data.ptr, 1, held.beta, out.data.ptr, 1)
    with stream:
        cp.cuda.cublas.sgemm(handle, *product)
        assert cp.cuda.cublas.getStream(handle) == stream.ptr
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
            cp.cuda.cublas.sgemm(handle, *product)
        stream.end_capture()
    cp.cuda.cublas.sgemm(handle, *product)
    assert cp.cuda.cublas.getStream(handle) == 0


def test_strided_batches(cp):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 4, 2)), rng.standard_normal((4, 5))
    x, y, out = cp.asarray(a), cp.asarray(b), cp.empty((3, 2, 5))
    held = Scalars("64F", 1, 0)
    cp.cuda.cublas.gemmStridedBatchedEx(  # row-major out = a^T b is column-major out^T = b^T a
        cp.cuda.device.get_cublas_handle(), 0, 1, 5, 2, 4, held.alpha, y.data.ptr, 1, 5, 0, x.data.ptr, 1, 2, 8,
        held.beta, out.data.ptr, 1, 5, 10, 3, 70, -1,
    )  # fmt: skip
    np.testing.assert_allclose(out.get(), a.swapaxes(1, 2) @ b, rtol=1e-13)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"lda": 1}, "INVALID_VALUE"),
        ({"ldb": 2}, "INVALID_VALUE"),
        ({"ldc": 1}, "INVALID_VALUE"),
        ({"m": -1}, "INVALID_VALUE"),
        ({"transa": 3}, "INVALID_VALUE"),
        ({"algo": 50}, "INVALID_VALUE"),
        ({"computeType": 70}, "NOT_SUPPORTED"),
        ({"computeType": 64}, "NOT_SUPPORTED"),
        ({"Ctype": 2}, "NOT_SUPPORTED"),
        ({"Atype": 14}, "NOT_SUPPORTED"),
    ],
)
def test_arguments_that_cublas_rejects(cp, change, status):
    held, x, out = Scalars("32F", 1, 0), cp.ones(64, np.float32), cp.empty(64, np.float32)
    names = [p.name for p in inspect.signature(_blas.PRODUCTS["gemmEx"]).parameters.values()]
    sizes, a, b, c = (0, 0, 2, 2, 3), (x.data.ptr, 0, 2), (x.data.ptr, 0, 3), (out.data.ptr, 0, 2)
    arguments = dict(zip(names, (*sizes, held.alpha, *a, *b, held.beta, *c, 68, -1), strict=True))
    handle = cp.cuda.device.get_cublas_handle()
    cp.cuda.cublas.gemmEx(handle, *arguments.values())
    with pytest.raises(cp.cuda.cublas.CUBLASError, match=status):
        cp.cuda.cublas.gemmEx(handle, *{**arguments, **change}.values())
    assert np.isnan(out.get()[4:]).all()


def test_errors_that_cublas_does_not_detect(cp):
    held, x = Scalars("32F", 1, 0), cp.ones(8, np.float32)
    handle = cp.cuda.device.get_cublas_handle()

    def product(a, c, m=2):
        cp.cuda.cublas.sgemm(handle, 0, 0, m, 2, 2, held.alpha, a, m, x.data.ptr, 2, held.beta, c, m)

    out = cp.empty(4, np.float32)
    product(x.data.ptr, out.data.ptr)
    for a, c, m in (
        (x.data.ptr, out.data.ptr, 3),  # C is too small
        (x.data.ptr + 20, out.data.ptr, 2),  # A ends past its allocation
        (x.data.ptr, x.data.ptr, 2),  # C is A
        (np.ones(4, np.float32).ctypes.data, out.data.ptr, 2),  # A is on the host
        (x.data.ptr + 2, out.data.ptr, 2),  # A is not aligned
    ):
        with pytest.raises(fakecupy.FakeError):
            product(a, c, m)
    with cp.cuda.Device(1), pytest.raises((fakecupy.FakeError, cp.cuda.cublas.CUBLASError)):
        product(x.data.ptr, out.data.ptr)


def test_the_c_library_is_found_and_can_be_captured(cp):
    from cuda.pathfinder import load_nvidia_dynamic_lib

    blas = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    assert blas is cp.fake.libcublas
    handle, workspace = ctypes.c_void_p(), cp.empty(1024, np.uint8)
    assert blas.cublasCreate_v2(ctypes.byref(handle)) == 0
    stream = cp.cuda.Stream(non_blocking=True)
    x, y, out = cp.full(1, 3.0), cp.full(1, 5.0), cp.zeros(1)
    one, zero = ctypes.c_double(1), ctypes.c_double(0)
    product = (
        handle, 0, 0, 1, 1, 1, ctypes.addressof(one), x.data.ptr, 1, 1, y.data.ptr, 1, 1, ctypes.byref(zero),
        out.data.ptr, 1, 1, 70, -1,
    )  # fmt: skip
    assert blas.cublasSetStream_v2(handle, stream.ptr) == 0
    assert blas.cublasSetWorkspace_v2(handle, workspace.data.ptr, 1024) == 0
    with stream, cp.fake.counting() as counts:
        stream.begin_capture()
        assert blas.cublasGemmEx(*product) == 0
        graph = stream.end_capture()
        one.value = 100  # alpha was read when the product was submitted
        assert out.get().tolist() == [0]
        x += 1
        graph.launch()
        assert out.get().tolist() == [20]
    assert (counts.captured, counts.replayed, counts.gemms) == ({"gemm": 1}, {"gemm": 1}, 0)
    assert blas.cublasGemmEx(*product[:9], 0, *product[10:]) == 7
    assert "lda=0" in blas.why
    del workspace
    with pytest.raises(fakecupy.FakeError, match="freed"):
        graph.launch(stream)
    assert blas.cublasDestroy_v2(handle) == 0
    assert blas.cublasDestroy_v2(handle) == 1


def test_a_handle_records_the_threads_that_used_it(cp):
    handle = cp.cuda.cublas.create()
    assert cp.cuda.cublas.getMathMode(handle) == 0
    thread = threading.Thread(target=cp.cuda.cublas.getMathMode, args=(handle,))
    thread.start()
    thread.join()
    assert [len(h.threads) for h in cp.fake.handles()] == [2]
