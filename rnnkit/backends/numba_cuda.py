"""The Numba CUDA backend: the scans of kernels/numba_cuda/scan.py, one launch a sequence, on CuPy arrays.

The legible sibling of the `cupy` backend: the pointwise pairs are those of the CPU path, the loops plain Python, the
products outside time CuPy's (`by_scan`). Launches go to the current device, which `ops` makes that of the arrays, on
CuPy's current stream; nothing waits for either. Temporaries come from CuPy's memory pool, which has them in the steady
state.

Numba compiles a kernel at its first launch in a process, in about a second, and raises its own errors by name where it
cannot, or where the driver refuses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np
from numba import cuda

from rnnkit.backends import by_scan
from rnnkit.backends.by_scan import Scan, ScanGradients
from rnnkit.backends.cupy.arena import refuse_capture
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.core.cells import Array, Cell
from rnnkit.core.dtypes import DType
from rnnkit.kernels.numba_cuda.launch_shape import launch_shape
from rnnkit.kernels.numba_cuda.scan import is_split, kept_blocks, kernels, signatures
from rnnkit.kernels.numba_cuda.scan_reset_before import RESET_BEFORE


class Saved(NamedTuple):
    """What the backward scan reads, as kernels/numba_cuda/scan.py names it, of every step; and how the forward went.

    `operand` is a second operand of the products after the scan: the projection's m, or the reset state r h'.
    """

    kept: Array
    h_prev: Array
    c_prev: Array | None
    operand: Array | None
    lengths: Array
    reverse: bool


def forward(call: LayerCall) -> Forward:
    """See `rnnkit.backends.Backend.forward`. Raises DeviceError while the current stream is being captured."""
    refuse_capture(cupy.cuda.get_current_stream())
    return by_scan.forward(scan_forward, call, compute=call.dtype.compute)


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises as `forward`."""
    refuse_capture(cupy.cuda.get_current_stream())
    return by_scan.backward(scan_backward, call)


def scan_forward(call: LayerCall, gates_x: Array, lengths: Array | None) -> Scan:
    """gates_x (T, B, G*H) in the dtype's compute; lengths on the device. See `rnnkit.backends.by_scan.forward`."""
    cell, dtype, state0, weights = call.cell, call.dtype, call.state0, call.weights
    reverse, keep = call.reverse, call.keep
    storage, compute = dtype.storage, dtype.compute
    (T, B, _), (GH, R) = gates_x.shape, weights.w_hh.shape
    H, steps = GH // cell.n_gates, T if keep else 1
    projected, reset_before, has_c = weights.w_hr is not None, cell.name == RESET_BEFORE, len(cell.states) == 2
    lengths = cupy.full(B, T, np.int64) if lengths is None else lengths
    h, y = _copy(state0[0], storage), cupy.empty((T, B, R), storage)
    c = _copy(state0[1], compute) if has_c else None
    kept = cupy.empty((steps, B, kept_blocks(cell.name) * H), storage) if keep or reset_before else None
    h_prev = cupy.empty((T, B, R), storage) if keep else None
    c_prev = cupy.empty((T, B, H), compute) if keep and has_c else None
    operand = cupy.empty((steps, B, H), storage) if projected or reset_before else None
    bias_x, bias_h = (cupy.zeros(GH, storage) if b is None else b for b in (weights.b_ih, weights.b_hh))
    way, w = (lengths, reverse, keep), weights.w_hh.T
    if reset_before:
        arguments: tuple[Any, ...] = (gates_x, *way, bias_x, bias_h, w, h, y, kept, h_prev, operand)
    else:
        w_proj = None if weights.w_hr is None else weights.w_hr.T
        arguments = (gates_x, *way, projected, bias_x, bias_h, w, w_proj, h, c, y, kept, h_prev, c_prev, operand)
    _launch("forward", cell, dtype, T, B, H, arguments)
    state_n = (h,) if c is None else (h, c.astype(storage, copy=False))
    return Scan(y, state_n, Saved(kept, h_prev, c_prev, operand, lengths, reverse) if keep else None)


def scan_backward(call: BackwardCall) -> ScanGradients:
    """See `rnnkit.backends.by_scan.backward`."""
    cell, dtype, saved = call.cell, call.dtype, call.saved
    dy, dstate_n, weights = call.dy, call.dstate_n, call.weights
    storage, compute = dtype.storage, dtype.compute
    (T, B, R), GH = saved.h_prev.shape, weights.w_hh.shape[0]
    projected, reset_before = weights.w_hr is not None, cell.name == RESET_BEFORE
    dh, *dc = (_copy(d, compute) for d in dstate_n)
    dgates_x = cupy.empty((T, B, GH), storage)
    dgates_h = cupy.empty((T, B, GH), storage) if is_split(cell.name) else dgates_x
    dprojected = cupy.empty((T, B, R), storage) if projected else None
    way = (dy, dy is not None, saved.lengths, saved.reverse)
    if reset_before:
        arguments: tuple[Any, ...] = (*way, weights.w_hh, saved.kept, saved.h_prev, dgates_x, dh)
    else:
        kept = (saved.kept, saved.h_prev, saved.c_prev)
        carried = (dh, dc[0] if dc else None)
        arguments = (*way, projected, weights.w_hh, weights.w_hr, *kept, dgates_x, dgates_h, *carried, dprojected)
    _launch("backward", cell, dtype, T, B, GH // cell.n_gates, arguments)
    dstate0 = tuple(d.astype(storage, copy=False) for d in (dh, *dc))
    operands = {"h_prev": saved.h_prev} | ({"rh": saved.operand} if reset_before else {})
    return ScanGradients(dgates_x, dgates_h, dstate0, operands, dprojected, saved.operand if projected else None)


def _copy(array: Array, dtype: np.dtype) -> Array:
    """A C-contiguous copy, for a kernel to carry on in."""
    return cupy.array(array, dtype, copy=True, order="C")


def _launch(name: str, cell: Cell, dtype: DType, T: int, B: int, H: int, arguments: tuple[Any, ...]) -> None:
    """A kernel on CuPy's current stream. Without rows or steps none is needed: what it carries on in is the result."""
    if T == 0 or B == 0:
        return
    stream = cuda.external_stream(cupy.cuda.get_current_stream().ptr)
    given = [_argument(a, kind) for a, kind in zip(arguments, signatures(cell.name, dtype.name)[name], strict=True)]
    getattr(kernels(cell.name, dtype.name), name)[(*launch_shape(B, H), stream)](*given)


def _argument(value: Any, kind: Any) -> Any:
    """What Numba is given: a flag as it is, an array C-contiguous, one number for an array that is not used.

    sync=False: these arrays are of this very stream, and Numba would otherwise wait for it, array by array.
    """
    if isinstance(value, bool):
        return value
    array = cupy.empty((1,) * kind.ndim, str(kind.dtype)) if value is None else cupy.ascontiguousarray(value)
    return cuda.as_cuda_array(array, sync=False)


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = sizes
    S, C, GH = dtype.storage.itemsize, dtype.compute.itemsize, cell.n_gates * H
    projected, reset_before, has_c = R != H, cell.name == RESET_BEFORE, len(cell.states) == 2
    width = (kept_blocks(cell.name) + projected + reset_before) * H * S
    kept = T * B * (width + R * S + has_c * H * C) + 8 * B if keep else 0
    gathered = 0 if N == T * B else 8 * N + N * I * S + N * GH * C
    widened = 0 if S == C else (N * I + GH * I) * C + has_c * B * H * C
    weights = (GH * R + projected * R * H + 2 * GH) * S  # transposed; biases where there are none
    step = 0 if keep else 8 * B + (projected + 4 * reset_before) * B * H * S
    _, threads = launch_shape(B, H)
    words = f"{cell.name} in Numba CUDA, one launch a sequence, a block of {threads} threads a row"
    kept += 8 * N if keep and N != T * B else 0
    return Description(words, T * B * GH * C + gathered + widened + weights + step, kept)
