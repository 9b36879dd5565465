"""The scans of every cell but those that normalise: kernels/numba_cuda/scan.py."""

from __future__ import annotations

import cupy
import numpy as np

from rnnkit.backends.by_scan import Scan, ScanGradients
from rnnkit.backends.interface import BackwardCall, LayerCall, Sizes
from rnnkit.backends.numba_cuda.arrays import Saved, all_lengths, biases, extras, final_gradients, initial_states
from rnnkit.backends.numba_cuda.launch import launch
from rnnkit.backends.random_masks import StepMasks, step_masks
from rnnkit.core.cells import Array, Cell
from rnnkit.kernels.numba_cuda import scan


def forward(call: LayerCall, gates_x: Array, lengths: Array | None) -> Scan:
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
    lengths = all_lengths(lengths, T, B)
    state = initial_states(call)
    y = cupy.empty((T, B, R), storage)
    values = cupy.empty((steps, B, cell.n_saved * H), storage) if keep or cell.resets_before else None
    h_prev = cupy.empty((T, B, R), storage) if keep else None
    c_prev = cupy.empty((T, B, cell.n_cell_states * H), compute) if keep and cell.has_c else None
    m = cupy.empty((steps, B, H), storage) if projected or cell.resets_before else None
    matrices = (weights.w_hh.T, None if weights.w_hr is None else weights.w_hr.T)
    given = (gates_x, lengths, call.reverse, keep, projected, *biases(call), *matrices)
    masks = step_masks(call.noise, call.sizes, cell.n_gates, gates_x)
    noise = (masks.hidden, *_zones(masks, compute))
    arguments = (*given, *state, y, values, h_prev, c_prev, m, extras(call), *noise)
    launch(scan, "forward", call, arguments, (T, B, H))
    c_n = state.c if cell.unit_weights else None
    saved = Saved(values, h_prev, c_prev, m, lengths, call.reverse, c_n, call.noise) if keep else None
    return Scan(y, state.as_state(cell, storage), saved)


def backward(call: BackwardCall) -> ScanGradients:
    """See `rnnkit.backends.by_scan.backward`."""
    cell = call.cell
    saved = call.saved
    weights = call.weights
    storage = call.dtype.storage
    compute = call.dtype.compute
    T, B, R = saved.h_prev.shape
    GH = weights.w_hh.shape[0]
    H = GH // cell.n_gates
    projected = weights.w_hr is not None
    dstate = final_gradients(call)
    dgates_x = cupy.empty((T, B, GH), storage)
    dgates_h = cupy.empty((T, B, GH), storage) if cell.splits_sides else dgates_x
    dprojected = cupy.empty((T, B, R), storage) if projected else None
    given = (call.dy, call.dy is not None, saved.lengths, saved.reverse, projected, weights.w_hh, weights.w_hr)
    states = (saved.values, saved.h_prev, saved.c_prev)
    results = (dgates_x, dgates_h, *dstate, dprojected)
    masks = step_masks(saved.noise, Sizes(T, B, 0, H, R, T * B), cell.n_gates, dgates_x)
    direct = None if masks.zone_h is None else cupy.empty((B, R), compute)
    noise = (masks.hidden, direct, *_zones(masks, compute))
    launch(scan, "backward", call, (*given, *states, *results, extras(call), *noise), (T, B, H))
    operands = {name: saved.m if number else saved.h_prev for number, (name, _, _) in enumerate(cell.products)}
    return ScanGradients(
        dgates_x,
        dgates_h,
        dstate.as_state(cell, storage),
        operands,
        dprojected,
        saved.m if projected else None,
        _unit_gradients(cell, saved, dgates_x) if cell.unit_weights else None,
        _masks_of_products(cell, masks.hidden),
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


def _masks_of_products(cell: Cell, hidden: Array | None) -> Array | None:
    """What the operands of the weights' gradients are multiplied by. r h' was masked before it was saved."""
    if hidden is None or not cell.resets_before:
        return hidden
    first = hidden[:-1] if cell.options.mask_per_gate else cupy.concatenate([hidden] * (cell.n_gates - 1))
    return cupy.concatenate([first, cupy.ones_like(hidden[:1])])


def _zones(masks: StepMasks, compute: np.dtype) -> tuple[Array | None, ...]:
    """zone_h, zone_c and shares of kernels/numba_cuda/scan.py."""
    zoned = masks.zone_h is not None or masks.zone_c is not None
    shares = cupy.asarray(np.array([masks.share_h, masks.share_c], compute)) if zoned else None
    return masks.zone_h, masks.zone_c, shares
