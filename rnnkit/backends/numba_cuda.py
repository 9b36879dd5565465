"""The Numba CUDA backend: the scans of kernels/numba_cuda/scan.py, one launch per sequence, on CuPy arrays.

The readable counterpart of the `cupy` backend: the pointwise pairs are those of the CPU path, the loops are plain
Python, and CuPy computes the products outside time (`by_scan`). Launches go to the current device, which
`rnnkit.functional` sets to that of the arrays, on CuPy's current stream. Nothing synchronises. Temporaries come from
CuPy's memory pool, so the steady state allocates no device memory.

Numba compiles a kernel at its first launch in a process, in about a second. It raises its own errors by name if it
cannot compile, or if the driver refuses.
"""

from __future__ import annotations

from collections.abc import Callable
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
from rnnkit.kernels.numba_cuda import scan_norm
from rnnkit.kernels.numba_cuda.launch_shape import ROWS, launch_shape
from rnnkit.kernels.numba_cuda.scan import kernels, signatures


class Saved(NamedTuple):
    """What the backward scan reads: arrays of every step, named as in kernels/numba_cuda/scan.py, and the direction.

    m is the operand of the second product, which the products after the scan also need: o tanh(c), or r h'. c_n (B, H)
    is the final c, if the cell has peepholes. stats: of a cell that normalises.
    """

    values: Array
    h_prev: Array
    c_prev: Array | None
    m: Array | None
    lengths: Array
    reverse: bool
    c_n: Array | None = None
    noise: Noise | None = None
    stats: Array | None = None


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
    if cell.normalises:
        return _norm_forward(call, gates_x, lengths)
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
    matrices = (weights.w_hh.T, None if weights.w_hr is None else weights.w_hr.T)
    flags = (call.reverse, keep, projected)
    masks = step_masks(call.noise, call.sizes, cell.n_gates, gates_x)
    noise = (*_hidden(masks), *_zones(masks, compute))
    arguments = (
        gates_x,
        lengths,
        *flags,
        *_biases(call),
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
    _launch("forward", call, arguments, (T, B, H), kernels, signatures)
    state_n = (h,) if c is None else (h, c.astype(storage, copy=False))
    c_n = c if cell.unit_weights else None
    return Scan(y, state_n, Saved(values, h_prev, c_prev, m, lengths, call.reverse, c_n, call.noise) if keep else None)


def scan_backward(call: BackwardCall) -> ScanGradients:
    """See `rnnkit.backends.by_scan.backward`."""
    cell = call.cell
    if cell.normalises:
        return _norm_backward(call)
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
    _launch("backward", call, arguments, (T, B, GH // cell.n_gates), kernels, signatures)
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


def _norm_forward(call: LayerCall, gates_x: Array, lengths: Array | None) -> Scan:
    """As `scan_forward`, of a cell that normalises: kernels/numba_cuda/scan_norm.py."""
    cell = call.cell
    weights = call.weights
    keep = call.keep
    storage = call.dtype.storage
    compute = call.dtype.compute
    T, B, GH = gates_x.shape
    H = GH // cell.n_gates
    lengths = cupy.full(B, T, np.int64) if lengths is None else lengths
    gates_x = cupy.ascontiguousarray(gates_x)
    h = _copy(call.state0[0], storage)
    c = _copy(call.state0[1], compute) if cell.has_c else None
    y = cupy.empty((T, B, H), storage)
    values = cupy.empty((T, B, cell.n_saved * H), storage) if keep else None
    stats = cupy.empty((T, B, cell.n_statistics), compute) if keep else None
    h_prev = cupy.empty((T, B, H), storage) if keep else None
    c_prev = cupy.empty((T, B, H), compute) if keep and cell.has_c else None
    given = (gates_x, lengths, call.reverse, keep, *_biases(call), weights.w_hh.T)
    kept = (values, stats, h_prev, c_prev)
    arguments = (*given, h, c, y, *kept, cupy.empty((B, GH), compute), _extras(call))
    _launch("forward", call, arguments, (T, B, H), scan_norm.kernels, scan_norm.signatures)
    state_n = (h,) if c is None else (h, c.astype(storage, copy=False))
    saved = Saved(values, h_prev, c_prev, None, lengths, call.reverse, stats=stats) if keep else None
    return Scan(y, state_n, saved)


def _norm_backward(call: BackwardCall) -> ScanGradients:
    """As `scan_backward`, of a cell that normalises."""
    cell = call.cell
    saved = call.saved
    storage = call.dtype.storage
    compute = call.dtype.compute
    T, B, H = saved.h_prev.shape
    dstate0 = tuple(_copy(d, compute) for d in call.dstate_n)
    dgates_x = cupy.empty((T, B, cell.n_gates * H), storage)
    dgates_h = cupy.empty_like(dgates_x) if cell.splits_sides else dgates_x
    dv = cupy.empty((T, B, cell.n_norm_gradients * H), compute)
    given = (call.dy, call.dy is not None, saved.lengths, saved.reverse, call.weights.w_hh)
    states = (saved.values, saved.stats, saved.h_prev, saved.c_prev)
    results = (dgates_x, dgates_h, dstate0[0], dstate0[1] if cell.has_c else None, dv)
    arguments = (*given, *states, *results, *_biases(call), _extras(call))
    _launch("backward", call, arguments, (T, B, H), scan_norm.kernels, scan_norm.signatures)
    dunit = _norm_gradients(cell, saved.values.astype(compute, copy=False), dv)
    dstate0 = tuple(d.astype(storage, copy=False) for d in dstate0)
    return ScanGradients(dgates_x, dgates_h, dstate0, {"h_prev": saved.h_prev}, dunit=dunit)


def _norm_gradients(cell: Cell, values: Array, dv: Array) -> Array:
    """(T, B, n_unit_sums*H): what each row-step adds to the gradients of w_unit, b_ih and b_hh."""
    G = cell.n_gates
    width = dv.shape[2]
    H = width // cell.n_norm_gradients
    of_x = dv[:, :, : G * H]
    of_h = of_x
    if cell.splits_sides and not cell.has_c:
        of_h = cupy.concatenate([dv[:, :, : (G - 1) * H], dv[:, :, G * H :]], axis=2)
    hats = values[:, :, G * H :]
    parts = [of_x * hats[:, :, : G * H]]
    if cell.splits_sides:
        parts.append(of_h * hats[:, :, G * H : 2 * G * H])
    if cell.has_c:
        dshifted = dv[:, :, G * H :]
        parts += [dshifted * hats[:, :, 2 * G * H :], dshifted]
    return cupy.concatenate([*parts, of_x, of_h], axis=2)


def _biases(call: LayerCall | BackwardCall) -> tuple[Array, Array]:
    """b_ih and b_hh, zeros for None."""
    weights = call.weights
    GH = weights.w_hh.shape[0]
    b_ih, b_hh = (cupy.zeros(GH, call.dtype.storage) if b is None else b for b in (weights.b_ih, weights.b_hh))
    return b_ih, b_hh


def saved_steps(cell: Cell, dtype: DType, saved: by_scan.Saved) -> dict[str, Array]:
    """See `rnnkit.backends.Backend`."""
    scan: Saved = saved.scan
    T, _, width = scan.values.shape
    H = width // cell.n_saved
    live = (cupy.arange(T)[:, None] < scan.lengths)[:, :, None]

    def cleared(steps: Array) -> Array:
        """Past a row's end nothing was saved."""
        return cupy.where(live, steps, steps.dtype.type(0)).astype(dtype.storage, copy=False)

    found = {}
    for gate in cell.gates:
        first = cell.saved.index(gate) * H
        found[gate] = cleared(scan.values[:, :, first : first + H])
    found["h_prev"] = cleared(scan.h_prev)
    if cell.has_c:
        found["c_prev"] = cleared(scan.c_prev)
    return found


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


def _launch(
    name: str,
    call: LayerCall | BackwardCall,
    arguments: tuple[Any, ...],
    sizes: tuple[int, int, int],
    kernels_of: Callable[[Cell, str], Any],
    signatures_of: Callable[[str], dict[str, tuple[Any, ...]]],
) -> None:
    """Launches a kernel on CuPy's current stream. Without rows or steps there is nothing to do."""
    T, B, H = sizes
    if T == 0 or B == 0:
        return
    stream = cuda.external_stream(cupy.cuda.get_current_stream().ptr)
    kinds = signatures_of(call.dtype.name)[name]
    given = [_argument(a, kind) for a, kind in zip(arguments, kinds, strict=True)]
    kernel = getattr(kernels_of(call.cell, call.dtype.name), name)
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
    kept = T * B * (width + R * S + cell.has_c * H * C + cell.n_statistics * C) + 8 * B if keep else 0
    gathered = 0 if N == T * B else 8 * N + N * I * S + N * GH * C
    widened = 0 if S == C else (N * I + GH * I) * C + cell.has_c * B * H * C
    # Transposed weights, and zeros for missing biases.
    weights = (GH * R + projected * R * H + 2 * GH) * S
    second = (projected + cell.resets_before * (1 + cell.n_saved)) * B * H * S
    step = 0 if keep else 8 * B + second
    step += B * GH * C if cell.normalises else 0
    _, threads = launch_shape(B, H)
    words = f"{cell.name} in Numba CUDA, one launch per sequence, one block of {threads} threads per {ROWS} rows"
    kept += 8 * N if keep and N != T * B else 0
    return Description(words, T * B * GH * C + gathered + widened + weights + step, kept)
