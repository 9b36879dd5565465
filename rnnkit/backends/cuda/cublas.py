"""cuBLAS as the schedules need it: one product of row-major matrices, at a precision of DTYPES, also under capture.

CuPy's own wrappers refuse to be captured into a CUDA graph, so the library that CuPy has loaded is called through
ctypes, with handles of our own. Matrices are given by address and leading dimension (elements from row to row): nothing
here looks at an array.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

from rnnkit.dtypes import DType
from rnnkit.errors import DeviceError

# cudaDataType and cublasComputeType_t, as in library_types.h and cublas_api.h.
REAL = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
COMPUTE = {"float64": 70, "float32": 68, "tf32": 77, "float16": 68, "bfloat16": 68}
NO, TRANSPOSED, DEFAULT_ALGORITHM = 0, 1, -1

# NVIDIA's advice for Hopper; more than enough elsewhere.
WORKSPACE_BYTES = 32 << 20

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

_int, _pointer = ctypes.c_int, ctypes.c_void_p
_SIGNATURES = {
    "cublasCreate_v2": (ctypes.POINTER(_pointer),),
    "cublasDestroy_v2": (_pointer,),
    "cublasSetStream_v2": (_pointer, _pointer),
    "cublasSetWorkspace_v2": (_pointer, _pointer, ctypes.c_size_t),
    "cublasGemmEx": (
        *(_pointer, _int, _int, _int, _int, _int),
        *(_pointer, _pointer, _int, _int, _pointer, _int, _int, _pointer, _pointer, _int, _int),
        *(_int, _int),
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


class Handle:
    """A cuBLAS handle on the current device. Not for two threads at once."""

    def __init__(self) -> None:
        self._library = library()
        self._handle = _pointer()
        _check("cublasCreate", self._library.cublasCreate_v2(ctypes.byref(self._handle)))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.cublasDestroy_v2(self._handle)

    def use(self, stream: int, workspace: int) -> None:
        """Products go to `stream` from now on, with WORKSPACE_BYTES of scratch at the address `workspace`."""
        _check("cublasSetStream", self._library.cublasSetStream_v2(self._handle, stream))
        # After the stream, for setting that resets it. Without one of our own a captured product would allocate.
        status = self._library.cublasSetWorkspace_v2(self._handle, workspace, WORKSPACE_BYTES)
        _check("cublasSetWorkspace", status)


@dataclass(frozen=True)
class Matrix:
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
        self._one, self._zero = number(1), number(0)

    def rows_by_weights(self, a: Matrix, w: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = a (M, K) w^T, of w (N, K); added to what is there if `add`."""
        self._gemm(TRANSPOSED, NO, N, M, K, w, a, out, add)

    def rows_through(self, a: Matrix, w: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = a (M, K) w, of w (K, N)."""
        self._gemm(NO, NO, N, M, K, w, a, out, add)

    def over_steps(self, d: Matrix, a: Matrix, out: Matrix, M: int, N: int, K: int, add: bool = False) -> None:
        """out (M, N) = d^T a, of d (K, M) and a (K, N): a weight's gradient over K steps."""
        self._gemm(NO, TRANSPOSED, N, M, K, a, d, out, add)

    def _gemm(self, op_a: int, op_b: int, m: int, n: int, k: int, a: Matrix, b: Matrix, out: Matrix, add: bool) -> None:
        """cuBLAS reads columns where we write rows: out^T (m, n) = op(a) (m, k) op(b) (k, n)."""
        status = self._handle._library.cublasGemmEx(
            *(self._handle._handle, op_a, op_b, m, n, k, ctypes.addressof(self._one)),
            *(a.address, REAL[a.dtype], a.ld, b.address, REAL[b.dtype], b.ld),
            ctypes.addressof(self._one if add else self._zero),
            *(out.address, REAL[out.dtype], out.ld, self._type, DEFAULT_ALGORITHM),
        )
        _check("cublasGemmEx", status)
