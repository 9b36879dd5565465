"""The Numba CUDA backend: the scans of kernels/numba_cuda/scan.py, one launch per sequence, on CuPy arrays.

The readable counterpart of the `cupy` backend: the pointwise pairs are those of the CPU path, the loops are plain
Python, and CuPy computes the products outside time (`by_scan`). Launches go to the current device, which
`rnnkit.functional` sets to that of the arrays, on CuPy's current stream. Nothing synchronises. Temporaries come from
CuPy's memory pool, so the steady state allocates no device memory.

Numba compiles a kernel at its first launch in a process, in about a second. It raises its own errors by name if it
cannot compile, or if the driver refuses.
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
from rnnkit.backends.random_masks import StepMasks, step_masks
from rnnkit.core.cells import Array, Cell
from rnnkit.core.dtypes import DType
from rnnkit.core.regularisation import Noise
from rnnkit.kernels.numba_cuda.launch_shape import ROWS, launch_shape
from rnnkit.kernels.numba_cuda.scan import kernels, signatures


class Saved(NamedTuple):
    """What the backward scan reads: arrays of every step, named as in kernels/numba_cuda/scan.py, and the direction.

    m is the operand of the second product, which the products after the scan also need: o tanh(c), or r h'. c_n (B, H)
    is the final c, if the cell has weights per unit.
    """

    values: Array
    h_prev: Array
    c_prev: Array | None
    m: Array | None
    lengths: Array
    reverse: bool
    c_n: Array | None = None
    noise: Noise | None = None


def forward(call: LayerCall) -> Forward:
    """See `rnnkit.backends.Backend.forward`. Raises DeviceError while the current stream is being captured."""
    refuse_capture(cupy.cuda.get_current_stream())
    return by_scan.forward(scan_forward, call, compute=call.dtype.compute)


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises like `forward`."""
    refuse_capture(cupy.cuda.get_current_stream())
    return by_scan.backward(scan_backward, call)


def scan_forward(call: LayerCall, gates_x: Array, lengths: Array | None) -> Scan:
    """gates_x (T, B, G*H) in the dtype's compute; lengths on the device. See `rnnkit.backends.by_scan.forward`."""
    cell = call.cell
    weights = call.weights
    keep = call.keep
    storage = call.dtype.storage
    compute = call.dtype.compute
    T, B, GH = gates_x.shape
    H = GH // cell.n_gates
    R = weights.w_hh.shape[1]
    projected = weights.w_hr is not None
    # Without keep, one step of what a second product reads.
    steps = T if keep else 1
    lengths = cupy.full(B, T, np.int64) if lengths is None else lengths
    h = _copy(call.state0[0], storage)
    c = _copy(call.state0[1], compute) if cell.has_c else None
    y = cupy.empty((T, B, R), storage)
    values = cupy.empty((steps, B, cell.n_saved * H), storage) if keep or cell.resets_before else None
    h_prev = cupy.empty((T, B, R), storage) if keep else None
    c_prev = cupy.empty((T, B, H), compute) if keep and cell.has_c else None
    m = cupy.empty((steps, B, H), storage) if projected or cell.resets_before else None
    biases = tuple(cupy.zeros(GH, storage) if b is None else b for b in (weights.b_ih, weights.b_hh))
    matrices = (weights.w_hh.T, None if weights.w_hr is None else weights.w_hr.T)
    flags = (call.reverse, keep, projected)
    masks = step_masks(call.noise, call.sizes, cell.n_gates, gates_x)
    noise = (*_hidden(masks), *_zones(masks, compute))
    arguments = (
        gates_x,
        lengths,
        *flags,
        *biases,
        *matrices,
        h,
        c,
        y,
        values,
        h_prev,
        c_prev,
        m,
        _extras(call),
        *noise,
    )
    _launch("forward", call, arguments, (T, B, H))
    state_n = (h,) if c is None else (h, c.astype(storage, copy=False))
    c_n = c if cell.unit_weights else None
    return Scan(y, state_n, Saved(values, h_prev, c_prev, m, lengths, call.reverse, c_n, call.noise) if keep else None)


def scan_backward(call: BackwardCall) -> ScanGradients:
    """See `rnnkit.backends.by_scan.backward`."""
    cell = call.cell
    saved = call.saved
    weights = call.weights
    storage = call.dtype.storage
    T, B, R = saved.h_prev.shape
    GH = weights.w_hh.shape[0]
    projected = weights.w_hr is not None
    dstate0 = tuple(_copy(d, call.dtype.compute) for d in call.dstate_n)
    dh = dstate0[0]
    dc = dstate0[1] if cell.has_c else None
    dgates_x = cupy.empty((T, B, GH), storage)
    dgates_h = cupy.empty((T, B, GH), storage) if cell.splits_sides else dgates_x
    dprojected = cupy.empty((T, B, R), storage) if projected else None
    gradients = (call.dy, call.dy is not None)
    flags = (saved.lengths, saved.reverse, projected)
    states = (saved.values, saved.h_prev, saved.c_prev)
    results = (dgates_x, dgates_h, dh, dc, dprojected)
    compute = call.dtype.compute
    masks = step_masks(saved.noise, Sizes(T, B, 0, GH // cell.n_gates, R, T * B), cell.n_gates, dgates_x)
    direct = None if masks.zone_h is None else cupy.empty((B, R), compute)
    noise = (*_hidden(masks), direct, *_zones(masks, compute))
    arguments = (*gradients, *flags, weights.w_hh, weights.w_hr, *states, *results, _extras(call), *noise)
    _launch("backward", call, arguments, (T, B, GH // cell.n_gates))
    # r h' was masked before it was saved.
    h_prev = saved.h_prev if masks.hidden is None else (saved.h_prev * masks.hidden[0]).astype(storage)
    operands = {name: saved.m if number else h_prev for number, (name, _, _) in enumerate(cell.products)}
    return ScanGradients(
        dgates_x,
        dgates_h,
        tuple(d.astype(storage, copy=False) for d in dstate0),
        operands,
        dprojected,
        saved.m if projected else None,
        _unit_gradients(cell, saved, dgates_x) if cell.unit_weights else None,
    )


def _unit_gradients(cell: Cell, saved: Saved, dgates: Array) -> Array:
    """(T, B, K*H): what each row-step adds to the gradients of the peepholes, from c before and after the step."""
    c_prev, c_n = saved.c_prev, saved.c_n
    T, B, H = c_prev.shape  # type: ignore[union-attr]
    after = cupy.empty_like(c_prev)
    if saved.reverse:
        after[1:] = c_prev[:-1]  # type: ignore[index]
        after[:1] = c_n
    else:
        steps = cupy.arange(T)[:, None, None]
        after[:-1] = c_prev[1:]  # type: ignore[index]
        after = cupy.where(steps == saved.lengths[:, None] - 1, c_n, after)
    gates = dgates.reshape(T, B, cell.n_gates, H)
    parts = [gates[:, :, 0] * c_prev, gates[:, :, 1] * c_prev, gates[:, :, 3] * after]
    return cupy.concatenate(parts, axis=2)


def _extras(call: LayerCall | BackwardCall) -> Array | None:
    """The constants of a cell with options, then its weights per unit, in the compute dtype; None for a plain cell."""
    if not call.cell.options:
        return None
    dtype = call.dtype.compute
    numbers = cupy.asarray(np.array(call.constants, dtype))
    units = call.weights.w_unit
    found = numbers if units is None else cupy.concatenate([numbers, units.astype(dtype).ravel()])
    return found if found.size else None


def _hidden(masks: StepMasks) -> tuple[Array | None]:
    return (None if masks.hidden is None else masks.hidden[0],)


def _zones(masks: StepMasks, compute: np.dtype) -> tuple[Array | None, ...]:
    """zone_h, zone_c and shares of kernels/numba_cuda/scan.py."""
    zoned = masks.zone_h is not None or masks.zone_c is not None
    shares = cupy.asarray(np.array([masks.share_h, masks.share_c], compute)) if zoned else None
    return masks.zone_h, masks.zone_c, shares


def _copy(array: Array, dtype: np.dtype) -> Array:
    """A C-contiguous copy, which a kernel updates in place."""
    return cupy.array(array, dtype, copy=True, order="C")


def _launch(name: str, call: LayerCall | BackwardCall, arguments: tuple[Any, ...], sizes: tuple[int, int, int]) -> None:
    """Launches a kernel on CuPy's current stream. Without rows or steps there is nothing to do."""
    T, B, H = sizes
    if T == 0 or B == 0:
        return
    stream = cuda.external_stream(cupy.cuda.get_current_stream().ptr)
    kinds = signatures(call.dtype.name)[name]
    given = [_argument(a, kind) for a, kind in zip(arguments, kinds, strict=True)]
    kernel = getattr(kernels(call.cell, call.dtype.name), name)
    kernel[(*launch_shape(B, H), stream)](*given)


def _argument(value: Any, kind: Any) -> Any:
    """What Numba is given: a flag unchanged, an array C-contiguous, and a one-element array for None.

    sync=False: these arrays belong to this stream, and Numba would otherwise synchronise with it once per array.
    """
    if isinstance(value, bool):
        return value
    array = cupy.empty((1,) * kind.ndim, str(kind.dtype)) if value is None else cupy.ascontiguousarray(value)
    return cuda.as_cuda_array(array, sync=False)


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = sizes
    S = dtype.storage.itemsize
    C = dtype.compute.itemsize
    GH = cell.n_gates * H
    projected = R != H
    width = (cell.n_saved + projected + cell.resets_before) * H * S
    kept = T * B * (width + R * S + cell.has_c * H * C) + 8 * B if keep else 0
    gathered = 0 if N == T * B else 8 * N + N * I * S + N * GH * C
    widened = 0 if S == C else (N * I + GH * I) * C + cell.has_c * B * H * C
    # Transposed weights, and zeros for missing biases.
    weights = (GH * R + projected * R * H + 2 * GH) * S
    second = (projected + cell.resets_before * (1 + cell.n_saved)) * B * H * S
    step = 0 if keep else 8 * B + second
    _, threads = launch_shape(B, H)
    words = f"{cell.name} in Numba CUDA, one launch per sequence, one block of {threads} threads per {ROWS} rows"
    kept += 8 * N if keep and N != T * B else 0
    return Description(words, T * B * GH * C + gathered + widened + weights + step, kept)
