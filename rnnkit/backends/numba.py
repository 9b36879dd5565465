"""The Numba backend: a layer in one direction is one compiled call (kernels/scan.py), divided over a team of threads.

This file allocates and launches. Rows are sorted by length and stored without their padding, and every product runs in
register tiles: BLAS and its threads are not used. An element's bits depend neither on the batch around its row nor on
the number of threads.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from rnnkit import _threads
from rnnkit.backends import Description, Forward, Gradients, memory
from rnnkit.backends import Sizes as CallSizes
from rnnkit.backends.packing import Packing, packing
from rnnkit.backends.plan import RESET_BEFORE, Plan, Sizes, call_us, plan_for, single, threads_of
from rnnkit.cells import Array, Cell, State, Weights
from rnnkit.dtypes import DType
from rnnkit.kernels import scan, scan_reset_before, step
from rnnkit.kernels.launch import launch_backward, launch_forward
from rnnkit.kernels.product import tile_shape
from rnnkit.kernels.vector import vectors

# A backward is two thirds of a training call's work.
BACKWARD_SHARE = 2.0

_NAMES = {"f": "float32", "d": "float64"}
_NONE = {dtype: np.empty((0, 0), dtype) for dtype in _NAMES.values()}


class Saved(NamedTuple):
    """One forward: x packed, what the cell kept, its states before each step, and the other operand."""

    packing: Packing
    x: Array
    kept: Array
    h_prev: Array
    c_prev: Array
    extra: Array  # m (N, H) under projection, rh (N, H) for a GRU that resets before, else empty
    reverse: bool


scratch_memory, packed_weights = memory.Scratch(), memory.PackedWeights()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=packed_weights.start_anew)


def _as_writable(a: Array) -> Array:
    """a itself, or for a read-only array a writable one over its memory, which no kernel writes to.

    Numba takes read-only arrays for another type, and would compile every kernel again for each mix of the two.
    """
    if a.flags.writeable:
        return a
    memory = (ctypes.c_char * a.nbytes).from_address(a.ctypes.data)
    alias = np.ndarray(a.shape, a.dtype, memory)
    memory.owner = a  # kept alive as long as its alias
    return alias


def _ready(a: Array) -> Array:
    """a as the kernels take it: C-contiguous and writable."""
    flags = a.flags
    return a if flags.c_contiguous and flags.writeable else _as_writable(np.ascontiguousarray(a))


@cache
def job(cell: str, dtype: str, backward: bool, single: bool) -> Any:
    """The compiled loop of a cell and dtype, or the single step."""
    if single:
        return step.make_step_reset_before(dtype) if cell == RESET_BEFORE else step.make_step(cell, dtype)
    if cell == RESET_BEFORE:
        return scan_reset_before.make_backward(dtype) if backward else scan_reset_before.make_forward(dtype)
    return scan.make_backward(cell, dtype) if backward else scan.make_forward(cell, dtype)


@cache
def _zeros(size: int, dtype: str) -> Array:
    """Biases for a layer that has none. Never written to."""
    return np.zeros(size, dtype)


def _kept_width(cell: str, H: int) -> int:
    return (3 if cell == RESET_BEFORE else scan.kept_blocks(cell)) * H


def _ready_weights(weights: Weights) -> tuple[Array, Array, Array]:
    """w_ih, w_hh and w_hr, of which the last is any array where there is none."""
    w_hh = _ready(weights.w_hh)
    return _ready(weights.w_ih), w_hh, w_hh if weights.w_hr is None else _ready(weights.w_hr)


class _Prepared(NamedTuple):
    """What the sizes of a forward decide. plans: by number of threads, as they are needed."""

    packing: Packing
    job: Any
    microseconds: float
    plans: dict[int, Plan]
    no_bias: Array
    kept_width: int


def _prepare(sizes: Sizes, p: Packing) -> _Prepared:
    compiled, width = job(sizes.cell, sizes.dtype, False, single(sizes)), _kept_width(sizes.cell, sizes.H)
    return _Prepared(p, compiled, call_us(sizes), {}, _zeros(sizes.gates * sizes.H, sizes.dtype), width)


@lru_cache(512)
def _prepared(sizes: Sizes, reverse: bool, keep: bool) -> _Prepared:
    """Without lengths. Streaming calls a step at a time: whatever need not be done at each is done here."""
    return _prepare(sizes, packing(sizes.T, sizes.B, None))


def forward(
    cell: Cell,
    row: DType,
    x: Array,
    state0: State,
    weights: Weights,
    *,
    lengths: np.ndarray | None,
    reverse: bool,
    keep: bool,
) -> Forward:
    """See `rnnkit.backends.Backend.forward`."""
    T, B, I = x.shape
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    (GH, R), dtype, two, projected = w_hh.shape, x.dtype, len(state0) == 2, w_hr is not None
    name, G = _NAMES[dtype.char], len(cell.gates)
    H, none = GH // G, _NONE[name]
    if lengths is None:
        N = T * B
        sizes = Sizes(cell.name, name, G, T, B, I, H, R, N, projected)
        ready = _prepared(sizes, reverse, keep)
        p, h0, c0 = ready.packing, _ready(state0[0]), _ready(state0[1]) if two else none
        x = _ready(x)
    else:
        p = packing(T, B, lengths)
        N = p.steps
        sizes = Sizes(cell.name, name, G, T, B, I, H, R, N, projected)
        ready = _prepare(sizes, p)
        h0, c0 = _ready(p.ordered(state0[0])), _ready(p.ordered(state0[1])) if two else none
        x = _ready(p.pack(x))
    y, h_n = np.empty((T, B, R) if lengths is None else (N, R), dtype), np.empty((B, R), dtype)
    c_n = np.empty((B, H), dtype) if two else none
    kept = h_prev = c_prev = extra = none
    if keep:
        kept, h_prev = np.empty((N, ready.kept_width), dtype), np.empty((N, R), dtype)
        c_prev = np.empty((N, H), dtype) if two else none
        extra = np.empty((N, H), dtype) if projected or cell.name == RESET_BEFORE else none
    w_hh = _ready(w_hh)
    operands = (
        *(x if x.ndim == 3 else x[None], _ready(w_ih), w_hh, _ready(w_hr) if projected else w_hh),
        *(ready.no_bias if b is None else _ready(b) for b in (b_ih, b_hh)),
        *(h0, c0, y if y.ndim == 3 else y[None], h_n, c_n, kept, h_prev, c_prev, extra),
    )

    def launch(state: int, threads: int) -> None:
        plan = ready.plans.get(threads)
        if plan is None:
            plan = ready.plans[threads] = plan_for(sizes, p, threads, False, reverse, keep)
        _launch(state, plan, ready, weights, keep, operands)

    _run(sizes, ready.microseconds, launch)
    if lengths is not None:
        h_n, c_n, y = p.unsorted(h_n), p.unsorted(c_n) if two else none, p.unpack(y)
    saved = Saved(p, x.reshape(N, I), kept, h_prev, c_prev, extra, reverse) if keep else None
    return Forward(y, (h_n, c_n) if two else (h_n,), saved)


def _launch(state: int, plan: Plan, ready: _Prepared, weights: Weights, keep: bool, operands: tuple) -> None:
    """The forward job, with weights packed for this call, or in inference for this and later ones."""
    p, held, packed = ready.packing, None, None
    projected = weights.w_hr is not None
    if not keep and memory.is_kept(plan.packed):
        w_ih, w_hh = weights.w_ih, weights.w_hh
        # An id may come again, for another array: then the digest is another.
        key = (ready.job.address, id(w_ih), id(w_hh), id(weights.w_hr), plan.members, w_ih.shape, w_hh.shape)
        held = packed_weights.take(key, plan.packed)
    if held is None:
        scratch = scratch_memory.get(plan.scratch + plan.packed)
        packed = scratch[plan.scratch :] if plan.packed else scratch
    else:
        scratch, packed = scratch_memory.get(plan.scratch), held.room
    try:
        launch_forward(
            state, plan.groups * plan.members, ready.job.address, plan.groups, plan.words, p.offsets, p.counts,
            plan.rows, scratch, packed, held is not None, projected, *operands,
        )  # fmt: skip
    finally:
        if held is not None:
            held.taken.release()


def _run(sizes: Sizes, microseconds: float, launch: Any) -> None:
    """On as many threads as the work is worth and has parts for."""
    threads = _threads.threads_for(microseconds)
    _threads.run(threads_of(sizes, threads) if threads > 1 else 1, microseconds, launch)


def backward(cell: Cell, row: DType, saved: Saved, dy: Array | None, dstate_n: State, weights: Weights) -> Gradients:
    """See `rnnkit.backends.Backend.backward`."""
    p, dtype = saved.packing, row.storage
    (GH, R), I = weights.w_hh.shape, weights.w_ih.shape[1]
    name, G, N, projected = _NAMES[dtype.char], cell.n_gates, p.steps, weights.w_hr is not None
    H, none, has_dy, two = GH // G, _NONE[name], dy is not None, len(dstate_n) == 2
    dy = none if dy is None else _ready(p.pack(np.ascontiguousarray(dy)))
    dh, dc = p.sorted(dstate_n[0]), p.sorted(dstate_n[1]) if two else none
    dgates_x = np.empty((N, GH), dtype)
    dgates_h = np.empty((N, GH), dtype) if cell.name == "gru" else dgates_x
    dprojected, dw_hr = (np.empty((N, R), dtype), np.empty((R, H), dtype)) if projected else (none, none)
    dx, dw_ih, dw_hh = np.empty((N, I), dtype), np.empty((GH, I), dtype), np.empty((GH, R), dtype)
    biased = weights.b_ih is not None or weights.b_hh is not None
    db_ih, db_hh = (np.empty(GH if biased else 0, dtype) for _ in range(2))
    sizes = Sizes(cell.name, name, G, p.T, p.B, I, H, R, N, projected)
    compiled, arrays, around = job(cell.name, name, True, False), _ready_weights(weights), (p.offsets, p.counts)

    def launch(state: int, members: int) -> None:
        plan = plan_for(sizes, p, members, True, saved.reverse, False)
        launch_backward(
            state, plan.groups * plan.members, compiled.address, plan.groups, plan.words, *around, plan.rows,
            scratch_memory.get(plan.scratch), projected, has_dy, biased, saved.x, *arrays, saved.kept, saved.h_prev,
            saved.c_prev, saved.extra, dy, dh, dc, dgates_x, dgates_h, dprojected, dx, dw_ih, dw_hh, dw_hr, db_ih,
            db_hh,
        )  # fmt: skip

    _run(sizes, BACKWARD_SHARE * call_us(sizes), launch)
    if dgates_h is dgates_x and weights.b_hh is not None:
        db_hh = db_ih.copy() if weights.b_ih is not None else db_ih
    dstate0 = (p.unsorted(dh), p.unsorted(dc)) if two else (p.unsorted(dh),)
    dweights = Weights(
        dw_ih,
        dw_hh,
        None if weights.b_ih is None else db_ih,
        None if weights.b_hh is None else db_hh,
        dw_hr if projected else None,
    )
    return Gradients(p.unpack(dx), dstate0, dweights)


def describe(cell: Cell, row: DType, call: CallSizes, keep: bool) -> Description:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = call
    item, reset_before = row.storage.itemsize, cell.name == RESET_BEFORE
    sizes = Sizes(cell.name, row.stored, cell.n_gates, T, B, I, H, R, N, R != H)
    threads = _threads.threads_for(call_us(sizes))
    plan = plan_for(sizes, packing(T, B, None), threads, False, False, keep)
    two, extra = len(cell.states) == 2, H if sizes.projected or reset_before else 0
    kept = N * (_kept_width(cell.name, H) + R + (H if two else 0) + extra) * item if keep else 0
    stays = not keep and memory.is_kept(plan.packed)
    own = plan.packed + 2 * memory.LINE if stays else 0
    resident = plan.scratch + (0 if stays else plan.packed) + memory.LINE
    transient = resident
    if N != T * B:
        # With lengths x and y are packed, by an index made by way of (T, B) whole numbers; y as returned comes last.
        around = N * I * item + 8 * (N + 4 * B + 2 * T)
        kept += around if keep else 0
        y, packed_y = T * B * R * item, N * R * item
        states = 2 * B * (R + (H if two else 0)) * item
        transient += max(states + packed_y - y, packed_y, 17 * T * B - y) + (0 if keep else around)
    if resident > memory.KEPT_SCRATCH:
        resident = 0
    rows, columns = tile_shape()
    tiles = f"{rows} x {columns * vectors(row.stored).lanes} register tiles, {plan.chunk} steps a chunk"
    name = f"{cell.name} " + ("step, weights as they are" if single(sizes) else f"scan, {tiles}")
    shared = f"{plan.groups * plan.members} of {_threads.get_num_threads()} threads"
    shared += ", sharing units" if plan.members > 1 else ""
    return Description(f"{name}, {shared}", transient, kept, resident, own)
