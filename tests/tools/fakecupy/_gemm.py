"""cuBLAS's column-major matrix products at raw addresses, computed by NumPy.

16-bit operands are multiplied exactly and summed in float32, and the result is rounded once. In TF32 each operand
is rounded to 10 bits of mantissa first. C is read only if beta is not 0. Arguments for which cuBLAS returns an error
status raise CUBLASError. An operand outside live memory, which cuBLAS does not detect, raises FakeError.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from tests.tools.fakecupy import _launch, _state
from tests.tools.fakecupy._errors import CUBLASError, FakeError
from tests.tools.fakecupy._memory import Block
from tests.tools.fakecupy._streams import Node

R_32F, R_64F, R_16F, R_16BF = 0, 1, 2, 14
COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_32F_FAST_TF32 = 68, 69, 77
COMPUTE_64F, COMPUTE_64F_PEDANTIC = 70, 71
INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 7, 13, 15

_FLOAT = frozenset({COMPUTE_32F, COMPUTE_32F_PEDANTIC})
SUPPORTED = {
    (R_16F, R_16F, R_16F): _FLOAT,
    (R_16F, R_16F, R_32F): _FLOAT,
    (R_16BF, R_16BF, R_16BF): _FLOAT,
    (R_16BF, R_16BF, R_32F): _FLOAT,
    (R_32F, R_32F, R_32F): _FLOAT | {COMPUTE_32F_FAST_TF32},
    (R_64F, R_64F, R_64F): frozenset({COMPUTE_64F, COMPUTE_64F_PEDANTIC}),
}


class Operand(NamedTuple):
    """One matrix of a product: address, type, leading dimension, and the stride between matrices of a batch."""

    address: int
    kind: int
    ld: int
    stride: int = 0


class Product(NamedTuple):
    """C = alpha op(A) op(B) + beta C, `batch` times. alpha and beta are addresses, as in cuBLAS."""

    trans_a: int
    trans_b: int
    m: int
    n: int
    k: int
    alpha: int
    a: Operand
    b: Operand
    beta: int
    c: Operand
    compute: int
    algo: int = -1
    batch: int = 1


def dtype_of(kind: int) -> np.dtype:
    """The NumPy dtype of a cudaDataType. Raises CUBLASError for an unsupported one."""
    plain = {R_32F: np.float32, R_64F: np.float64, R_16F: np.float16}
    if kind in plain:
        return np.dtype(plain[kind])
    found = _launch.bfloat16() if kind == R_16BF else None
    if found is None:
        raise CUBLASError(NOT_SUPPORTED, f"cudaDataType {kind}")
    return found


def tf32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to 10 bits of mantissa, ties away from zero, as cvt.rna.tf32 does."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    finite = np.isfinite(values)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(finite, rounded, bits).view(np.float32)


def check(p: Product) -> None:
    """Raises CUBLASError for arguments that cuBLAS rejects."""
    rows_a, rows_b = (p.m if p.trans_a == 0 else p.k), (p.k if p.trans_b == 0 else p.n)
    wrong = [
        (not {p.trans_a, p.trans_b} <= {0, 1, 2}, "transa or transb"),
        (min(p.m, p.n, p.k, p.batch) < 0, f"m={p.m}, n={p.n}, k={p.k}, batchCount={p.batch}"),
        (p.a.ld < max(1, rows_a), f"lda={p.a.ld} for {rows_a} rows"),
        (p.b.ld < max(1, rows_b), f"ldb={p.b.ld} for {rows_b} rows"),
        (p.c.ld < max(1, p.m), f"ldc={p.c.ld} for m={p.m}"),
        (not (-1 <= p.algo <= 23 or 99 <= p.algo <= 115), f"algo={p.algo}"),
    ]
    for is_wrong, why in wrong:
        if is_wrong:
            raise CUBLASError(INVALID_VALUE, why)
    kinds = (p.a.kind, p.b.kind, p.c.kind)
    if p.compute not in SUPPORTED.get(kinds, frozenset()):
        raise CUBLASError(NOT_SUPPORTED, f"A, B, C types {kinds} with compute type {p.compute}")
    if R_16BF in kinds and int(_state.machine().arch) < 80:
        raise CUBLASError(NOT_SUPPORTED, f"bfloat16 on sm_{_state.machine().arch}")


def _matrices(o: Operand, rows: int, cols: int, batch: int) -> tuple[np.ndarray, Block | None]:
    """(batch, rows, cols), a view of the operand's memory, and its block. Empty and None if a size is 0."""
    dtype = dtype_of(o.kind)
    if not (rows and cols and batch):
        return np.empty((batch, rows, cols), dtype), None
    size = dtype.itemsize
    if o.address % size:
        raise FakeError(f"a matrix of {dtype} at {o.address:#x}, which is not aligned")
    span = (o.stride * (batch - 1) + o.ld * (cols - 1) + rows) * size
    block = _state.machine().memory().find(o.address, span)
    start = o.address - block.address
    strides = (o.stride * size, size, o.ld * size)
    return np.ndarray((batch, rows, cols), dtype, block.buffer[start : start + span], 0, strides), block


def _overlap(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(first.size and second.size and np.may_share_memory(first, second) and np.shares_memory(first, second))


def scalar(address: int, compute: int) -> float:
    """alpha or beta: a float64 for double-precision products, else a float32."""
    kind = ctypes.c_double if compute in (COMPUTE_64F, COMPUTE_64F_PEDANTIC) else ctypes.c_float
    return kind.from_address(address).value


def multiply(a: np.ndarray, b: np.ndarray, compute: int) -> np.ndarray:
    """(batch, m, k) times (batch, k, n) in the arithmetic of a compute type."""
    wide = np.float64 if compute in (COMPUTE_64F, COMPUTE_64F_PEDANTIC) else np.float32
    a, b = a.astype(wide), b.astype(wide)
    if compute == COMPUTE_32F_FAST_TF32 and int(_state.machine().arch) >= 80:
        a, b = tf32(a), tf32(b)
    return a @ b


def submit(p: Product, stream: int, device_scalars: bool, workspace: tuple[Block, ...]) -> None:
    """Checks the product and submits it to a stream. Host scalars are read now. C must not overlap A or B."""
    check(p)
    shape_a, shape_b = ((p.m, p.k), (p.k, p.n))
    a, block_a = _matrices(p.a, *(shape_a if p.trans_a == 0 else shape_a[::-1]), p.batch)
    b, block_b = _matrices(p.b, *(shape_b if p.trans_b == 0 else shape_b[::-1]), p.batch)
    c, block_c = _matrices(p.c, p.m, p.n, p.batch)
    if _overlap(a, c) or _overlap(b, c):
        raise FakeError("C overlaps A or B")
    a, b = (x if t == 0 else x.swapaxes(1, 2) for x, t in ((a, p.trans_a), (b, p.trans_b)))
    held = None if device_scalars else (scalar(p.alpha, p.compute), scalar(p.beta, p.compute))

    def work() -> None:
        alpha, beta = held or (scalar(p.alpha, p.compute), scalar(p.beta, p.compute))
        with np.errstate(all="ignore"):
            result = multiply(a, b, p.compute)
            result = result if alpha == 1 else result * result.dtype.type(alpha)
            if beta != 0:
                result = result + c.astype(result.dtype) * result.dtype.type(beta)
            c[...] = result.astype(c.dtype)

    blocks = tuple(block for block in (block_a, block_b, block_c, *workspace) if block is not None)
    _state.machine().streams.submit(Node("gemm", ("gemms", None), work, blocks), stream)
