"""cuBLAS as the schedules need it: one product of row-major matrices, at a precision of DTYPES, also under capture.

CuPy's own wrappers refuse to be captured into a CUDA graph, so the library that CuPy has loaded is called through
ctypes, with handles of our own. Matrices are given by address and leading dimension (elements from row to row): nothing
here looks at an array.
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
OWNER, HANDLE = 0, 1  # of an entry of _made

NO, TRANSPOSED, DEFAULT_ALGORITHM = 0, 1, -1

# 16-bit results are summed in float32 to the end, also where a sum is split between blocks.
DISALLOW_REDUCED_PRECISION_REDUCTION = 16


@cache
def workspace_bytes(device: int) -> int:
    """Scratch of a handle, as NVIDIA's documentation of cublasSetWorkspace advises for the card."""
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

_int, _long, _pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
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
    """The cuBLAS that CuPy runs on, with its functions' types. Raises DeviceError where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        found = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as problem:  # pathfinder's own errors, its absence, or the loader's OSError
        raise DeviceError(
            f"cuBLAS cannot be loaded ({problem}): pip install 'rnnkit[cuda13]' or 'rnnkit[cuda12]'"
        ) from None
    for name, types in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, _int
    return found


def _check(name: str, status: int) -> None:
    if status:
        raise DeviceError(f"{name} failed: {STATUS.get(status, f'status {status}')}")


# Every handle of cuBLAS, by device, with who has it: one whose owner is gone serves the next. None is ever destroyed:
# that would wait for the device, and spoil a capture under way in another thread. No finalizer gives them back: what a
# signal handler raises inside one is lost.
_made: dict[int, list[list[Any]]] = {}

# Held while a handle is made, which may wait for the device, and while a graph is captured, which that would spoil.
quiet = threading.Lock()


class Launches(Protocol):
    """What a product adds one to: see `rnnkit.backends.cupy.arena.Counts`."""

    launches: int


class Handle:
    """A cuBLAS handle on the current device. Not for two threads at once. counts: where its products are counted."""

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
            if status not in (1, 3):  # what cuBLAS says when its own allocation fails
                break
            if last:
                raise DeviceMemoryError(f"cublasCreate failed: {STATUS[status]}, the device's memory may be full")
            cupy.get_default_memory_pool().free_all_blocks()
        _check("cublasCreate", status)
        status = self._library.cublasSetMathMode(handle, DISALLOW_REDUCED_PRECISION_REDUCTION)
        _check("cublasSetMathMode", status)
        return handle

    def use(self, stream: int, workspace: int, size: int) -> None:
        """Products go to `stream` from now on, with `size` bytes of scratch at the address `workspace`."""
        _check("cublasSetStream", self._library.cublasSetStream_v2(self._handle, stream))
        # After the stream, for setting that resets it. Without one of our own a captured product would allocate.
        status = self._library.cublasSetWorkspace_v2(self._handle, workspace, size)
        _check("cublasSetWorkspace", status)


class Matrix(NamedTuple):
    """A row-major matrix in device memory: where it begins, elements from row to row, and its dtype by name."""

    address: int
    ld: int
    dtype: str

    def at(self, row: int, column: int = 0) -> Matrix:
        """The matrix that begins at an element of this one."""
        return Matrix(self.address + (row * self.ld + column) * ITEMSIZE[self.dtype], self.ld, self.dtype)


ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Products:
    """Matrix products at one row of DTYPES. Sums are in its compute dtype, whatever the matrices hold."""

    def __init__(self, handle: Handle, dtype: DType) -> None:
        self._handle, self._type = handle, COMPUTE[dtype.name]
        number: Any = ctypes.c_double if dtype.computed == "float64" else ctypes.c_float
        self._scalars = number(0), number(1)
        self._beta = tuple(map(ctypes.addressof, self._scalars))

    def rows_by_weights(self, a: Matrix, w: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = a (M, K) w^T, of w (N, K); added to what is there if `add`."""
        self._gemm(TRANSPOSED, NO, N, M, K, w, a, out, add)

    def rows_through(self, a: Matrix, w: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = a (M, K) w, of w (K, N)."""
        self._gemm(NO, NO, N, M, K, w, a, out, add)

    def over_steps(self, d: Matrix, a: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = d^T a, of d (K, M) and a (K, N): a weight's gradient over K steps."""
        self._gemm(NO, TRANSPOSED, N, M, K, a, d, out, add)

    def over_slices(self, d: Matrix, a: Matrix, out: Matrix, M: int, N: int, K: int, rows: int) -> int:
        """out (parts, M, N) = d^T a of parts of the K steps, each of at most `rows`, which is given back: how many.

        One batched product, and another for a last part that is shorter. out has N elements from row to row.
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
            *(self._handle._handle, NO, TRANSPOSED, N, M, each, self._beta[True]),
            *(a.address, REAL[a.dtype], a.ld, each * a.ld, d.address, REAL[d.dtype], d.ld, each * d.ld),
            *(self._beta[False], out.address, REAL[out.dtype], out.ld, M * out.ld, parts),
            *(self._type, DEFAULT_ALGORITHM),
        )
        _check("cublasGemmStridedBatchedEx", status)
        if self._handle._counts is not None:
            self._handle._counts.launches += 1

    def _gemm(self, op_a: int, op_b: int, m: int, n: int, k: int, a: Matrix, b: Matrix, out: Matrix, add: bool) -> None:
        """cuBLAS reads columns where we write rows: out^T (m, n) = op(a) (m, k) op(b) (k, n)."""
        if not k:  # x of no features: what cuBLAS would do with operands of nothing is nowhere said
            if not add:
                _zero(out, rows=n, columns=m)
            return
        if not (m and n):
            return
        status = self._handle._library.cublasGemmEx(
            *(self._handle._handle, op_a, op_b, m, n, k, self._beta[True]),
            *(a.address, REAL[a.dtype], a.ld, b.address, REAL[b.dtype], b.ld),
            *(self._beta[add], out.address, REAL[out.dtype], out.ld, self._type, DEFAULT_ALGORITHM),
        )
        _check("cublasGemmEx", status)
        if self._handle._counts is not None:
            self._handle._counts.launches += 1


def _zero(out: Matrix, rows: int, columns: int) -> None:
    import cupy

    size, stream = ITEMSIZE[out.dtype], cupy.cuda.get_current_stream().ptr
    for row in range(rows):
        cupy.cuda.runtime.memsetAsync(out.address + row * out.ld * size, 0, columns * size, stream)
