"""cuBLAS in two forms: `cupy.cuda.cublas`, which cannot be captured, and the C library below it, which can.

CuPy's functions set the handle's stream to the current one at each call, and raise if that stream is capturing
("calling cuBLAS API during stream capture is currently unsupported"). Code that needs a product in a graph calls the C
library through ctypes. `Library` provides its functions by their C names, and tests pass it to such code.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.tools.fakecupy import _gemm, _state
from tests.tools.fakecupy._errors import CUBLASError
from tests.tools.fakecupy._gemm import Operand, Product
from tests.tools.fakecupy._memory import Block

CONSTANTS = {
    "CUBLAS_OP_N": 0,
    "CUBLAS_OP_T": 1,
    "CUBLAS_OP_C": 2,
    "CUBLAS_POINTER_MODE_HOST": 0,
    "CUBLAS_POINTER_MODE_DEVICE": 1,
    "CUBLAS_GEMM_DEFAULT": -1,
    "CUBLAS_GEMM_DFALT": -1,
    "CUBLAS_GEMM_DEFAULT_TENSOR_OP": 99,
    "CUBLAS_GEMM_DFALT_TENSOR_OP": 99,
    "CUBLAS_DEFAULT_MATH": 0,
    "CUBLAS_TENSOR_OP_MATH": 1,
    "CUBLAS_COMPUTE_16F": 64,
    "CUBLAS_COMPUTE_16F_PEDANTIC": 65,
    "CUBLAS_COMPUTE_32F": 68,
    "CUBLAS_COMPUTE_32F_PEDANTIC": 69,
    "CUBLAS_COMPUTE_32F_FAST_16F": 74,
    "CUBLAS_COMPUTE_32F_FAST_16BF": 75,
    "CUBLAS_COMPUTE_32F_FAST_TF32": 77,
    "CUBLAS_COMPUTE_64F": 70,
    "CUBLAS_COMPUTE_64F_PEDANTIC": 71,
    "CUBLAS_COMPUTE_32I": 72,
    "CUBLAS_COMPUTE_32I_PEDANTIC": 73,
}
PEDANTIC_MATH, TF32_MATH = 2, 3

_pointers = itertools.count(0xB1A50000, 64)


@dataclass
class Handle:
    """The state of a cuBLAS handle. threads: the idents of the threads that have used it."""

    device: int
    stream: int = 0
    math: int = 0
    pointer_mode: int = 0
    workspace: tuple[Block, ...] = ()
    threads: set[int] = field(default_factory=set)
    machine: Any = None


_handles: dict[int, Handle] = {}  # of all machines, since a handle may outlive its machine


def _handle(ptr: int) -> Handle:
    if ptr not in _handles:
        raise CUBLASError(1, f"{ptr:#x} is not a handle")
    _handles[ptr].threads.add(threading.get_ident())
    return _handles[ptr]


def handles_of(machine: Any) -> list[Handle]:
    return [handle for handle in _handles.values() if handle.machine is machine]


def release_handles(machine: Any) -> None:
    """Frees the workspaces of a machine's handles, which keep the machine's memory alive."""
    for handle in handles_of(machine):
        handle.machine, handle.workspace = None, ()


def create(device: int | None = None) -> int:
    ptr = next(_pointers)
    machine = _state.machine()
    _handles[ptr] = Handle(machine.device() if device is None else device, machine=machine)
    return ptr


def destroy(handle: int) -> None:
    """Waits for the device, as cublasDestroy does. This invalidates a capture in progress there."""
    _state.machine().streams.synchronise_device(_handle(handle).device)
    del _handles[handle]


def getVersion(handle: int) -> int:
    return 130100 if _handle(handle) else 0


def setStream(handle: int, stream: int) -> None:
    """Sets the stream. Raises NotImplementedError if it is capturing, as CuPy does."""
    if _state.machine().streams.is_capturing(stream):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    _set_stream(_handle(handle), stream)


def _set_stream(handle: Handle, stream: int) -> None:
    _state.machine().streams.queue(stream)
    handle.stream, handle.workspace = stream, ()  # cublasSetStream restores the default workspace


def getStream(handle: int) -> int:
    return _handle(handle).stream


def setMathMode(handle: int, mode: int) -> None:
    if mode & ~16 not in (0, 1, PEDANTIC_MATH, TF32_MATH):
        raise CUBLASError(_gemm.INVALID_VALUE, f"math mode {mode}")
    _handle(handle).math = mode


def getMathMode(handle: int) -> int:
    return _handle(handle).math


def setPointerMode(handle: int, mode: int) -> None:
    _handle(handle).pointer_mode = mode


def getPointerMode(handle: int) -> int:
    return _handle(handle).pointer_mode


def _run(handle: Handle, product: Product) -> None:
    if handle.device != _state.machine().device():
        raise CUBLASError(_gemm.EXECUTION_FAILED, f"a handle of device {handle.device}")
    if handle.math & 3 == TF32_MATH and product.compute == _gemm.COMPUTE_32F and product.a.kind == _gemm.R_32F:
        product = product._replace(compute=_gemm.COMPUTE_32F_FAST_TF32)
    _gemm.submit(product, handle.stream, handle.pointer_mode == 1, handle.workspace)


def _ex(
    transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, computeType, algo
) -> Product:  # fmt: skip
    a, b, c = Operand(A, Atype, lda), Operand(B, Btype, ldb), Operand(C, Ctype, ldc)
    return Product(transa, transb, m, n, k, alpha, a, b, beta, c, computeType, algo)


def _strided(
    transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC,
    batchCount, computeType, algo,
) -> Product:  # fmt: skip
    a, b = Operand(A, Atype, lda, strideA), Operand(B, Btype, ldb, strideB)
    c = Operand(C, Ctype, ldc, strideC)
    return Product(transa, transb, m, n, k, alpha, a, b, beta, c, computeType, algo, batchCount)


def _typed(kind: int, compute: int) -> Callable[..., Product]:
    def product(transa, transb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc) -> Product:
        return _ex(transa, transb, m, n, k, alpha, A, kind, lda, B, kind, ldb, beta, C, kind, ldc, compute, -1)

    return product


def _cupy_call(name: str, product: Callable[..., Product]) -> Callable[..., None]:
    def call(handle: int, *args: Any) -> None:
        setStream(handle, _state.machine().streams.current().ptr)
        _run(_handle(handle), product(*args))

    call.__name__ = name
    return call


PRODUCTS: dict[str, Callable[..., Product]] = {
    "gemmEx": _ex,
    "gemmStridedBatchedEx": _strided,
    "sgemm": _typed(_gemm.R_32F, _gemm.COMPUTE_32F),
    "dgemm": _typed(_gemm.R_64F, _gemm.COMPUTE_64F),
}
FUNCTIONS: dict[str, Any] = {
    "create": create,
    "destroy": destroy,
    "getVersion": getVersion,
    "setStream": setStream,
    "getStream": getStream,
    "setMathMode": setMathMode,
    "getMathMode": getMathMode,
    "setPointerMode": setPointerMode,
    "getPointerMode": getPointerMode,
    "CUBLASError": CUBLASError,
    **{name: _cupy_call(name, product) for name, product in PRODUCTS.items()},
}


def _int(value: Any) -> int:
    """An argument of a C function as a number: an int, a ctypes value, byref of one, or an array of them."""
    if isinstance(value, int):
        return value
    if value is None:
        return 0
    if hasattr(value, "_obj"):  # byref
        return ctypes.addressof(value._obj)
    if isinstance(value, ctypes.Array):
        return ctypes.addressof(value)
    if hasattr(value, "contents"):  # a pointer
        return ctypes.addressof(value.contents)
    return int(getattr(value, "value", value) or 0)


# Major, minor and patch level, as cublasGetProperty returns them.
VERSION = (13, 1, 0)


class Library:
    """libcublas.so as ctypes loads it: functions by their C names that return a status. `why`: the last error."""

    def __init__(self) -> None:
        self.why = ""
        names = {"gemmEx": "cublasGemmEx", "gemmStridedBatchedEx": "cublasGemmStridedBatchedEx"}
        names |= {"sgemm": "cublasSgemm_v2", "dgemm": "cublasDgemm_v2"}
        for name, c_name in names.items():
            setattr(self, c_name, self._guarded(self._product(PRODUCTS[name])))
        others: dict[str, Callable[..., None]] = {
            "cublasCreate_v2": lambda out: _write(out, create()),
            "cublasDestroy_v2": lambda handle: destroy(_int(handle)),
            "cublasSetStream_v2": lambda handle, stream: _set_stream(_handle(_int(handle)), _int(stream)),
            "cublasGetStream_v2": lambda handle, out: _write(out, getStream(_int(handle))),
            "cublasSetMathMode": lambda handle, mode: setMathMode(_int(handle), _int(mode)),
            "cublasGetMathMode": lambda handle, out: _write(out, getMathMode(_int(handle))),
            "cublasSetPointerMode_v2": lambda handle, mode: setPointerMode(_int(handle), _int(mode)),
            "cublasGetProperty": lambda field, out: _write(out, VERSION[field]),
            "cublasSetWorkspace_v2": lambda handle, ptr, size: _set_workspace(_int(handle), _int(ptr), _int(size)),
        }
        for c_name, function in others.items():
            setattr(self, c_name, self._guarded(function))

    @staticmethod
    def _product(product: Callable[..., Product]) -> Callable[..., None]:
        def call(handle: Any, *args: Any) -> None:
            _run(_handle(_int(handle)), product(*map(_int, args)))

        return call

    def _guarded(self, function: Callable[..., None]) -> Callable[..., int]:
        def call(*args: Any) -> int:
            try:
                function(*args)
            except CUBLASError as error:
                self.why = str(error)
                return error.status
            return 0

        return call


def _write(out: Any, value: int) -> None:
    """Writes `value` to the target of a pointer argument."""
    target = out._obj if hasattr(out, "_obj") else out.contents
    target.value = value


def _set_workspace(handle: int, address: int, size: int) -> None:
    if address % 256:
        raise CUBLASError(_gemm.INVALID_VALUE, "the workspace is not aligned to 256 bytes")
    _handle(handle).workspace = (_state.machine().memory().find(address, size),) if size else ()
