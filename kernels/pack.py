"""Weights as the register tiles read them: [panel][K][columns * lanes], zero past N; the last panel may be narrower.

A weight matrix W (N, K) is stored by rows and read by columns, so packing is a transposition: lanes x lanes blocks in
registers, each cache line touched once. Where W^T is wanted instead, its columns are already contiguous and are copied.
"""

from __future__ import annotations

from functools import cache

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.product import tile_shape
from rnnkit.kernels.vector import INT32, emit_load, emit_store, vectors


def padded(columns: int, dtype: str) -> int:
    """`columns` rounded up to whole vectors: what a packed weight matrix of so many rows takes for each k."""
    lanes = vectors(dtype).lanes
    return -(-columns // lanes) * lanes


def panels_of(N: int, dtype: str) -> int:
    """How many panels N rows make."""
    width = tile_shape()[1] * vectors(dtype).lanes
    return -(-N // width)


def _make_transpose(v):
    """transpose(source, source_row, target, target_row): one lanes x lanes block; strides in bytes."""
    vec, lanes = v.type, v.lanes

    @intrinsic
    def transpose(typing, source, source_row, target, target_row):
        def emit(context, builder, sig, args):
            source, source_row, target, target_row = args

            def at(base, row, n):
                return builder.add(base, builder.mul(row, ir.Constant(row.type, n)))

            rows = [emit_load(builder, vec, at(source, source_row, n)) for n in range(lanes)]
            distance = lanes // 2
            while distance:  # exchange the off-diagonal blocks of each 2 distance x 2 distance block
                upper = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
                lower = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
                for n in range(lanes):
                    if not n & distance:
                        a, b = rows[n], rows[n + distance]
                        masks = (ir.Constant(ir.VectorType(INT32, lanes), m) for m in (upper, lower))
                        rows[n], rows[n + distance] = (builder.shuffle_vector(a, b, mask) for mask in masks)
                distance //= 2
            for n, row in enumerate(rows):
                emit_store(builder, row, at(target, target_row, n))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), emit

    return transpose


@cache
def packer(dtype: str):
    """pack(w, transposed, first, each, stride, N, panel0, panel1, packed): panels [panel0, panel1) of N rows of w.

    Row n of the packed matrix is row `first + (n // each) * stride + n % each` of w (C-contiguous), or with
    `transposed` that column of it. `packed` takes padded(N) * K elements.
    """
    v = vectors(dtype)
    load, store, lanes, size = v.whole.load, v.whole.store, v.lanes, v.itemsize
    transpose = _make_transpose(v)
    width = tile_shape()[1] * lanes

    @inner
    def scalars(w, transposed, first, each, stride, n0, n1, N, k0, K, packed, panel, columns, start):
        """Columns [n0, n1) from k0 on, one element at a time: where rows are not neighbours, and past N."""
        for n in range(n0, n1):
            row = first + (n // each) * stride + n % each
            for k in range(k0, K):
                value = 0.0
                if n < N:
                    value = w[k, row] if transposed else w[row, k]
                packed[panel + k * columns + n - start] = value

    @entry(("pack", dtype))
    def pack(w, transposed, first, each, stride, N, panel0, panel1, packed):
        K = w.shape[0] if transposed else w.shape[1]
        w_row, source, target = w.shape[1] * size, w.ctypes.data, packed.ctypes.data
        whole_k = K // lanes * lanes
        total = (N + lanes - 1) // lanes * lanes
        for start in range(panel0 * width, min(panel1 * width, total), width):
            columns = min(width, total - start)
            panel = start * K
            for n in range(start, start + columns, lanes):
                row = first + (n // each) * stride + n % each
                neighbours = n + lanes <= N and n % each + lanes <= each
                if not neighbours:
                    scalars(w, transposed, first, each, stride, n, n + lanes, N, 0, K, packed, panel, columns, start)
                elif transposed:
                    for k in range(K):
                        at = target + (panel + k * columns + n - start) * size
                        store(load(source + k * w_row + row * size, lanes), at, lanes)
                else:
                    for k in range(0, whole_k, lanes):
                        at = target + (panel + k * columns + n - start) * size
                        transpose(source + row * w_row + k * size, w_row, at, columns * size)
                    scalars(w, False, first, each, stride, n, n + lanes, N, whole_k, K, packed, panel, columns, start)

    return pack
