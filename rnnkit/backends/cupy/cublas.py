"""cuBLAS as the schedules need it: products of row-major matrices at a precision of DTYPES, also during graph capture.

CuPy's wrappers refuse to be captured into a CUDA graph, so this file calls the library that CuPy has loaded through
ctypes, with its own handles. A matrix is an address and a leading dimension, the elements from one row to the next; no
function here takes an array.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from functools import cache
from typing import Any, NamedTuple, Protocol

from rnnkit.core.dtypes import DType
from rnnkit.errors import DeviceError, DeviceMemoryError

# cudaDataType and cublasComputeType_t, as in library_types.h and cublas_api.h.
REAL = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
COMPUTE = {"float64": 70, "float32": 68, "tf32": 77, "float16": 68, "bfloat16": 68}

# cublasOperation_t and cublasGemmAlgo_t.
NO = 0
TRANSPOSED = 1
DEFAULT_ALGORITHM = -1

# Indices into an entry of _made.
OWNER = 0
HANDLE = 1

# A math mode: sums of 16-bit products stay in float32 until the end, also where a sum is split between blocks.
DISALLOW_REDUCED_PRECISION_REDUCTION = 16


@cache
def workspace_bytes(device: int) -> int:
    """Bytes of a handle's workspace, as NVIDIA's documentation of cublasSetWorkspace recommends for the card."""
    import cupy

    return (32 if int(cupy.cuda.Device(device).compute_capability) >= 90 else 4) << 20


STATUS = {
    1: "not initialized",
    3: "allocation failed",
    7: "invalid value",
    8: "architecture mismatch",
    11: "mapping error",
    13: "execution failed",
    14: "internal error",
    15: "not supported",
}

_int = ctypes.c_int
_long = ctypes.c_longlong
_pointer = ctypes.c_void_p
_SIGNATURES = {
    "cublasCreate_v2": (ctypes.POINTER(_pointer),),
    "cublasSetMathMode": (_pointer, _int),
    "cublasSetStream_v2": (_pointer, _pointer),
    "cublasSetWorkspace_v2": (_pointer, _pointer, ctypes.c_size_t),
    "cublasGemmEx": (
        *(_pointer, _int, _int, _int, _int, _int),
        *(_pointer, _pointer, _int, _int, _pointer, _int, _int, _pointer, _pointer, _int, _int),
        *(_int, _int),
    ),
    "cublasGemmStridedBatchedEx": (
        *(_pointer, _int, _int, _int, _int, _int),
        *(_pointer, _pointer, _int, _int, _long, _pointer, _int, _int, _long, _pointer, _pointer, _int, _int, _long),
        *(_int, _int, _int),
    ),
}


@cache
def library() -> Any:
    """The cuBLAS library that CuPy uses, with argument types set. Raises DeviceError if it cannot be loaded."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        found = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as problem:  # pathfinder's own errors, its absence, or the loader's OSError
        raise DeviceError(
            f"cuBLAS cannot be loaded ({problem}): pip install 'rnnkit[cuda13]' or 'rnnkit[cuda12]'"
        ) from None
    for name, types in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes = types
        function.restype = _int
    return found


def _check(name: str, status: int) -> None:
    if status:
        raise DeviceError(f"{name} failed: {STATUS.get(status, f'status {status}')}")


# Every cuBLAS handle by device, with a weak reference to its owner. A handle whose owner is gone is reused. A handle is
# never destroyed: that would synchronise, and so break a capture in another thread. No finalizer returns handles: an
# exception that a signal handler raises inside a finalizer is lost.
_made: dict[int, list[list[Any]]] = {}

# Held while a handle is created, which may synchronise, and during a capture, which a synchronisation would break.
quiet = threading.Lock()


class Launches(Protocol):
    """The counter that a product increments: see `rnnkit.backends.cupy.arena.Counts`."""

    launches: int


class Handle:
    """A cuBLAS handle on the current device, for one thread at a time. counts: counts its products."""

    def __init__(self, counts: Launches | None = None) -> None:
        import cupy

        self._counts = counts
        self._library = library()
        mine = weakref.ref(self)
        with quiet:
            made = _made.setdefault(cupy.cuda.runtime.getDevice(), [])
            free = next((entry for entry in made if entry[OWNER]() is None), None)
            if free is None:
                free = [mine, self._create()]
                made.append(free)
            free[OWNER] = mine
            self._handle = free[HANDLE]

    def _create(self) -> Any:
        import cupy

        handle = _pointer()
        for last in (False, True):
            status = self._library.cublasCreate_v2(ctypes.byref(handle))
            if status not in (1, 3):  # the two that cuBLAS returns when its own allocation fails
                break
            if last:
                raise DeviceMemoryError(f"cublasCreate failed: {STATUS[status]}, the device's memory may be full")
            cupy.get_default_memory_pool().free_all_blocks()
        _check("cublasCreate", status)
        status = self._library.cublasSetMathMode(handle, DISALLOW_REDUCED_PRECISION_REDUCTION)
        _check("cublasSetMathMode", status)
        return handle

    def use(self, stream: int, workspace: int, size: int) -> None:
        """Later products run on `stream`, with `size` bytes of workspace at the address `workspace`."""
        _check("cublasSetStream", self._library.cublasSetStream_v2(self._handle, stream))
        # Set after the stream, because setting the stream resets it. Without it a captured product would allocate.
        status = self._library.cublasSetWorkspace_v2(self._handle, workspace, size)
        _check("cublasSetWorkspace", status)


class Matrix(NamedTuple):
    """A row-major matrix in device memory: address, leading dimension in elements, and the name of its dtype."""

    address: int
    ld: int
    dtype: str

    def at(self, row: int, column: int = 0) -> Matrix:
        """The submatrix that begins at an element of this one."""
        return Matrix(self.address + (row * self.ld + column) * ITEMSIZE[self.dtype], self.ld, self.dtype)


ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Products:
    """Matrix products at the precision of one row of DTYPES: sums are in its compute dtype."""

    def __init__(self, handle: Handle, dtype: DType) -> None:
        self._handle = handle
        self._type = COMPUTE[dtype.name]
        number: Any = ctypes.c_double if dtype.computed == "float64" else ctypes.c_float
        self._scalars = (number(0), number(1))
        self._factor = tuple(map(ctypes.addressof, self._scalars))

    def rows_by_weights(self, a: Matrix, w: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = a (M, K) w^T for w (N, K); out += if `add`."""
        self._gemm((TRANSPOSED, NO), (N, M, K), w, a, out, add)

    def rows_through(self, a: Matrix, w: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = a (M, K) w for w (K, N); out += if `add`."""
        self._gemm((NO, NO), (N, M, K), w, a, out, add)

    def over_steps(self, d: Matrix, a: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = d^T a for d (K, M) and a (K, N), a weight's gradient over K row-steps; out += if `add`."""
        self._gemm((NO, TRANSPOSED), (N, M, K), a, d, out, add)

    def over_slices(self, d: Matrix, a: Matrix, out: Matrix, M: int, N: int, K: int, rows: int) -> int:
        """out (parts, M, N) = d^T a over parts of the K row-steps, at most `rows` in each; returns the number of parts.

        One batched product, and a second product for a shorter last part. The leading dimension of out is N.
        """
        each = -(-K // -(-K // rows))
        whole = K // each
        if whole == 1:
            self.over_steps(d, a, out, M, N, each)
        else:
            self._batch(d, a, out, M, N, each, whole)
        if whole * each < K:
            self.over_steps(d.at(whole * each), a.at(whole * each), out.at(whole * M), M, N, K - whole * each)
        return -(-K // each)

    def _batch(self, d: Matrix, a: Matrix, out: Matrix, M: int, N: int, each: int, parts: int) -> None:
        status = self._handle._library.cublasGemmStridedBatchedEx(
            *(self._handle._handle, NO, TRANSPOSED, N, M, each, self._factor[True]),
            *(a.address, REAL[a.dtype], a.ld, each * a.ld, d.address, REAL[d.dtype], d.ld, each * d.ld),
            *(self._factor[False], out.address, REAL[out.dtype], out.ld, M * out.ld, parts),
            *(self._type, DEFAULT_ALGORITHM),
        )
        _check("cublasGemmStridedBatchedEx", status)
        if self._handle._counts is not None:
            self._handle._counts.launches += 1

    def _gemm(
        self, ops: tuple[int, int], sizes: tuple[int, int, int], a: Matrix, b: Matrix, out: Matrix, add: bool
    ) -> None:
        """cuBLAS is column-major, so it computes out^T (m, n) = op(a) (m, k) op(b) (k, n)."""
        m, n, k = sizes
        if not k:  # x without features; cuBLAS does not document products of empty operands
            if not add:
                _zero(out, rows=n, columns=m)
            return
        if not (m and n):
            return
        status = self._handle._library.cublasGemmEx(
            *(self._handle._handle, *ops, m, n, k, self._factor[True]),
            *(a.address, REAL[a.dtype], a.ld, b.address, REAL[b.dtype], b.ld),
            *(self._factor[add], out.address, REAL[out.dtype], out.ld, self._type, DEFAULT_ALGORITHM),
        )
        _check("cublasGemmEx", status)
        if self._handle._counts is not None:
            self._handle._counts.launches += 1


def _zero(out: Matrix, rows: int, columns: int) -> None:
    import cupy

    size = ITEMSIZE[out.dtype]
    stream = cupy.cuda.get_current_stream().ptr
    for row in range(rows):
        cupy.cuda.runtime.memsetAsync(out.address + row * out.ld * size, 0, columns * size, stream)
