"""The NumPy backend: the oracle. A plain loop over time on the steps of `rnnkit.core.cells`, forward beside backward.

It computes in the dtype it is given; in float64 it is what every other backend is held to. Rows that have ended keep
their state and their outputs are zero.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from rnnkit.backends import by_scan
from rnnkit.backends.by_scan import Scan, ScanGradients
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.backends.random_masks import StepMasks, step_masks
from rnnkit.core import noise_steps
from rnnkit.core.cells import Array, Cell, Kept, Weights
from rnnkit.core.dtypes import DType
from rnnkit.core.noise_steps import StepNoise
from rnnkit.core.regularisation import Noise


class Saved(NamedTuple):
    """Every step's kept arrays in time order, and how the scan went."""

    steps: list[Kept]
    lengths: Array | None
    reverse: bool
    noise: Noise | None = None


def _order(T: int, reverse: bool) -> range:
    return range(T - 1, -1, -1) if reverse else range(T)


def _live(t: int, lengths: Array | None) -> Array:
    """(B, 1) whether step t is inside each row; a reversed row starts at its own last step, so the same test serves."""
    return True if lengths is None else (t < lengths)[:, None]


def scan_forward(call: LayerCall, gates_x: Array, lengths: Array | None) -> Scan:
    """gates_x (T, B, G*H) is x W_ih^T, without its bias; see `rnnkit.backends.by_scan.forward`."""
    cell, weights, keep = call.cell, call.weights, call.keep
    step, _ = cell.steps(call.constants)
    T, B, _ = gates_x.shape
    y = np.empty((T, B, call.state0[0].shape[1]), gates_x.dtype)
    steps: list[Kept] = [{} for _ in range(T)]
    state = tuple(np.array(s) for s in call.state0)
    masks = step_masks(call.noise, call.sizes, cell.n_gates, gates_x)
    for t in _order(T, call.reverse):
        x_side = gates_x[t] if weights.b_ih is None or cell.normalises else gates_x[t] + weights.b_ih
        if call.noise is None:
            new, kept = step(x_side, state, weights)
        else:
            noise = _step_noise(call.noise, masks, t, call.sizes.H)
            new, kept = noise_steps.forward(step, noise, x_side, state, weights)
        live = _live(t, lengths)
        state = tuple(np.where(live, n, s) for n, s in zip(new, state, strict=True))
        y[t] = np.where(live, state[0], 0)
        if keep:
            steps[t] = kept
    return Scan(y, state, Saved(steps, lengths, call.reverse, call.noise) if keep else None)


def scan_backward(call: BackwardCall) -> ScanGradients:
    """See `rnnkit.backends.by_scan.backward`."""
    cell, saved, dy = call.cell, call.saved, call.dy
    dstate_n, weights = call.dstate_n, call.weights
    _, step_back = cell.steps(call.constants)
    T, B = len(saved.steps), dstate_n[0].shape[0]
    dtype, GH = dstate_n[0].dtype, weights.w_hh.shape[0]
    dgates_x, dgates_h = np.zeros((T, B, GH), dtype), np.zeros((T, B, GH), dtype)
    dprojected = None if weights.w_hr is None else np.zeros((T, B, weights.w_hr.shape[0]), dtype)
    units = cell.n_unit_sums * (GH // cell.n_gates)
    dunit = np.zeros((T, B, units), dtype) if units else None
    dstate = tuple(np.array(d) for d in dstate_n)
    H, R = GH // cell.n_gates, weights.w_hh.shape[1]
    masks = step_masks(saved.noise, Sizes(T, B, 0, H, R, T * B), cell.n_gates, dgates_x)
    for t in _order(T, not saved.reverse):
        live = _live(t, saved.lengths)
        dh = dstate[0] if dy is None else dstate[0] + dy[t]
        if saved.noise is None:
            step = step_back(saved.steps[t], (dh, *dstate[1:]), weights)
        else:
            noise = _step_noise(saved.noise, masks, t, H)
            step = noise_steps.backward(step_back, noise, saved.steps[t], (dh, *dstate[1:]), weights)
        dgates_x[t] = np.where(live, step.dx_side, 0)
        dgates_h[t] = np.where(live, step.dh_side, 0)
        if dprojected is not None and step.dprojected is not None:
            dprojected[t] = np.where(live, step.dprojected, 0)
        if dunit is not None and step.dunit is not None:
            dunit[t] = np.where(live, step.dunit, 0)
        dstate = tuple(np.where(live, n, d) for n, d in zip(step.dstate, dstate, strict=True))

    def over_time(name: str, width: int) -> Array:
        stacked = np.zeros((T, B, width), dtype)
        for t in range(T):
            stacked[t] = np.where(_live(t, saved.lengths), saved.steps[t][name], 0)
        return stacked

    operands = {name: over_time(name, weights.w_hh.shape[1]) for name, _, _ in cell.products}
    m = over_time("m", weights.w_hr.shape[1]) if weights.w_hr is not None else None
    return ScanGradients(dgates_x, dgates_h, dstate, operands, dprojected, m, dunit, masks.hidden)


def _step_noise(noise: Noise, masks: StepMasks, t: int, H: int) -> StepNoise:
    """What step t does at random."""

    def kept(zone: Array | None, share: float) -> Array | None:
        return None if zone is None else zone[t if len(zone) > 1 else 0] * np.float64(share)

    keep_h, keep_c = kept(masks.zone_h, masks.share_h), kept(masks.zone_c, masks.share_c)
    return StepNoise(masks.hidden, keep_h, keep_c, noise.rates.zoned_output, H)


def forward(call: LayerCall) -> Forward:
    """See `rnnkit.backends.Backend.forward`. Computes in the dtype's `compute`, gives back its `storage`."""
    storage, compute = call.dtype.storage, call.dtype.compute
    weights = Weights(*_cast_all(call.weights, compute))
    call = call._replace(x=_cast(call.x, compute), state0=_cast_all(call.state0, compute), weights=weights)
    y, state_n, saved = by_scan.forward(scan_forward, call)
    return _cast(y, storage), _cast_all(state_n, storage), saved


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`."""
    storage, compute = call.dtype.storage, call.dtype.compute
    weights = Weights(*_cast_all(call.weights, compute))
    call = call._replace(dy=_cast(call.dy, compute), dstate_n=_cast_all(call.dstate_n, compute), weights=weights)
    dx, dstate0, dweights = by_scan.backward(scan_backward, call)
    return Gradients(_cast(dx, storage), _cast_all(dstate0, storage), Weights(*_cast_all(dweights, storage)))


def saved_steps(cell: Cell, dtype: DType, saved: by_scan.Saved) -> dict[str, Array]:
    """See `rnnkit.backends.Backend`."""
    scan: Saved = saved.scan
    found = {}
    for name in (*cell.gates, *(f"{state}_prev" for state in cell.states)):
        steps = [np.where(_live(t, scan.lengths), kept[name], 0) for t, kept in enumerate(scan.steps)]
        found[name] = np.stack(steps).astype(dtype.storage)
    return found


def _cast(a: Array | None, dtype: np.dtype) -> Array:
    return None if a is None else a.astype(dtype, copy=False)


def _cast_all(arrays: tuple[Array | None, ...], dtype: np.dtype) -> tuple[Array, ...]:
    return tuple(_cast(a, dtype) for a in arrays)


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = sizes
    itemsize = dtype.compute.itemsize
    row = B * H * itemsize
    kept = T * _kept_values(cell) * row if keep else 0
    # With lengths, the live steps of x and their products are gathered, and found by way of an index.
    gathered = 0 if N == T * B else N * (I + cell.n_gates * H) * itemsize + 8 * N
    step = (3 * cell.n_gates + 4) * row
    widened = 0
    if dtype.storage != dtype.compute:  # x stays for backward; weights and y are there in both dtypes while it runs
        kept += T * B * I * itemsize if keep else 0
        widened = (T * B * (R + (0 if keep else I)) + cell.n_gates * H * (I + R + 2)) * itemsize
    if dtype.weights:  # every call expands the matrices
        widened += (cell.n_gates * H * (I + R) + (R * H if R != H else 0)) * itemsize
    transient = T * cell.n_gates * row + gathered + step + widened
    return Description(f"{cell.name} in NumPy, one step at a time", transient, kept)


@cache
def _kept_values(cell: Cell) -> int:
    """How many values a unit and step hold on to: counted on a step of one unit, views at the size of their base."""
    one, gates, unit = np.ones((1, 1)), np.ones((1, cell.n_gates)), np.ones((len(cell.unit_weights), 1))
    _, kept = cell.forward(gates, (one,) * len(cell.states), Weights(gates.T, gates.T, w_unit=unit))
    bases = [a if a.base is None else a.base for a in kept.values()]
    return sum({id(b): b.size for b in bases}.values()) + len(cell.states) - 1
