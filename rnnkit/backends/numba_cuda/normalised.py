"""The scans of cells that normalise: kernels/numba_cuda/scan_norm.py."""

from __future__ import annotations

import cupy

from rnnkit.backends.by_scan import Scan, ScanGradients
from rnnkit.backends.interface import BackwardCall, LayerCall
from rnnkit.backends.numba_cuda.arrays import Saved, all_lengths, biases, extras, final_gradients, initial_states
from rnnkit.backends.numba_cuda.launch import launch
from rnnkit.core.cells import Array, Cell
from rnnkit.kernels.numba_cuda import scan_norm


def forward(call: LayerCall, gates_x: Array, lengths: Array | None) -> Scan:
    """As `plain.forward`. See `rnnkit.backends.by_scan.forward`."""
    cell = call.cell
    weights = call.weights
    keep = call.keep
    storage = call.dtype.storage
    compute = call.dtype.compute
    T, B, GH = gates_x.shape
    H = GH // cell.n_gates
    lengths = all_lengths(lengths, T, B)
    gates_x = cupy.ascontiguousarray(gates_x)
    state = initial_states(call)
    y = cupy.empty((T, B, H), storage)
    values = cupy.empty((T, B, cell.n_saved * H), storage) if keep else None
    stats = cupy.empty((T, B, cell.n_statistics), compute) if keep else None
    h_prev = cupy.empty((T, B, H), storage) if keep else None
    c_prev = cupy.empty((T, B, H), compute) if keep and cell.has_c else None
    given = (gates_x, lengths, call.reverse, keep, *biases(call), weights.w_hh.T)
    kept = (values, stats, h_prev, c_prev)
    arguments = (*given, *state, y, *kept, cupy.empty((B, GH), compute), extras(call))
    launch(scan_norm, "forward", call, arguments, (T, B, H))
    saved = Saved(values, h_prev, c_prev, None, lengths, call.reverse, stats=stats) if keep else None
    return Scan(y, state.as_state(cell, storage), saved)


def backward(call: BackwardCall) -> ScanGradients:
    """See `rnnkit.backends.by_scan.backward`."""
    cell = call.cell
    saved = call.saved
    storage = call.dtype.storage
    compute = call.dtype.compute
    T, B, H = saved.h_prev.shape
    dstate = final_gradients(call)
    dgates_x = cupy.empty((T, B, cell.n_gates * H), storage)
    dgates_h = cupy.empty_like(dgates_x) if cell.splits_sides else dgates_x
    dv = cupy.empty((T, B, cell.n_norm_gradients * H), compute)
    given = (call.dy, call.dy is not None, saved.lengths, saved.reverse, call.weights.w_hh)
    states = (saved.values, saved.stats, saved.h_prev, saved.c_prev)
    results = (dgates_x, dgates_h, *dstate, dv)
    arguments = (*given, *states, *results, *biases(call), extras(call))
    launch(scan_norm, "backward", call, arguments, (T, B, H))
    dunit = _norm_gradients(cell, saved.values.astype(compute, copy=False), dv)
    return ScanGradients(dgates_x, dgates_h, dstate.as_state(cell, storage), {"h_prev": saved.h_prev}, dunit=dunit)


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
