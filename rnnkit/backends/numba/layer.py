"""The Numba backend: a layer in one direction is one compiled call (kernels/cpu/scan.py), divided over a team of
threads.

This file allocates and launches. Rows are sorted by length and stored without their padding, and every product runs in
register tiles: BLAS and its threads are not used. An element's bits depend neither on the batch around its row nor on
the number of threads.
"""

from __future__ import annotations

import os
from functools import cache, lru_cache, partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, HeldWeights, LayerCall
from rnnkit.backends.interface import Sizes as CallSizes
from rnnkit.backends.numba import memory
from rnnkit.backends.numba.operands import even_rows, ready_array
from rnnkit.backends.numba.plan import RESET_BEFORE, Plan, Sizes, call_us, plan_for, single, threads_of
from rnnkit.backends.ragged import Packing, packing
from rnnkit.core import thread_pool
from rnnkit.core.cells import CELLS, Array, Cell, Weights
from rnnkit.core.dtypes import DType
from rnnkit.core.read_only import is_constant
from rnnkit.core.thread_pool import OWNER
from rnnkit.kernels.cpu import scan, scan_reset_before, step
from rnnkit.kernels.cpu.launch import addresses, launch_backward, launch_forward
from rnnkit.kernels.cpu.matmul import tile_shape
from rnnkit.kernels.cpu.simd import vectors

# A backward is two thirds of a training call's work.
BACKWARD_SHARE = 2.0

_NAMES = {"f": "float32", "d": "float64"}
_NONE = {dtype: np.empty((0, 0), dtype) for dtype in _NAMES.values()}

# What a forward keeps is one array up to so many bytes. Of larger ones malloc gives back to the system what is freed,
# and takes page faults anew, the sooner the larger.
TOGETHER = 2 << 20
# Scratch memory of so many bytes is part of the launch's own.
OWN_SCRATCH = 4 << 10


class Saved(NamedTuple):
    """One forward: x without padding, N steps of it, and what it kept of them, flat.

    kept (N, KEPT*H) is the cell's. places tells, in bytes from there, where its states before each step are, h_prev
    (N, R) and c_prev (N, H), and m (N, H) under projection or rh (N, H) for a GRU that resets before: in the same
    array, or in `others`.
    """

    packing: Packing
    x_rows: Array
    kept: Array
    places: tuple[int, int, int]
    others: tuple[Array, ...]
    reverse: bool


scratch_memory, packed_weights = memory.Scratch(), memory.PackedWeightsCache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=packed_weights.reset_after_fork)


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


class _Standing(NamedTuple):
    """Where weights stand (5,), as kernels/cpu/launch.py says, and what must be held as long as that is used.

    constant: the matrices, where nothing can write to any of them.
    """

    found: Array
    arrays: tuple[Array, ...]
    constant: tuple[Array, ...]


def _addresses(weights: Weights) -> _Standing:
    held = type(weights) is HeldWeights
    if held and weights.found is not None:  # type: ignore[attr-defined]
        return weights.found  # type: ignore[attr-defined]
    w_hh = ready_array(weights.w_hh)
    no_bias = _zeros(w_hh.shape[0], _NAMES[w_hh.dtype.char])
    arrays = (
        *(ready_array(weights.w_ih), w_hh, w_hh if weights.w_hr is None else ready_array(weights.w_hr)),
        *(no_bias if b is None else ready_array(b) for b in (weights.b_ih, weights.b_hh)),
    )
    found = np.empty(5, np.int64)
    addresses(found, *arrays, weights.w_hr is not None)
    matrices = tuple(w for w in (weights.w_ih, weights.w_hh, weights.w_hr) if w is not None)
    standing = _Standing(found, arrays, matrices if all(map(is_constant, matrices)) else ())
    if held:
        weights.found = standing  # type: ignore[attr-defined]
    return standing


class _Prepared(NamedTuple):
    """What the sizes of a forward decide. job: its address; plans: by number of threads, as they are needed.

    kept_widths: of what `Saved` keeps; together: elements of the one array for it, and `places` there.
    """

    sizes: Sizes
    packing: Packing
    job: int
    microseconds: float
    plans: dict[int, Plan]
    none: Array
    nothing_kept: tuple[Array, tuple[int, int, int], tuple[Array, ...]]
    kept_widths: tuple[int, ...]
    together: tuple[int, tuple[int, int, int]] | None


def _prepare(sizes: Sizes, p: Packing) -> _Prepared:
    cell, dtype, _, _, _, _, H, R, N, projected = sizes
    compiled, two = job(cell, dtype, False, single(sizes)), len(CELLS[cell].states) == 2
    widths = (_kept_width(cell, H), R, H if two else 0, H if projected or cell == RESET_BEFORE else 0)
    first, second, third, whole = (N * width for width in accumulate(widths))
    item = sizes.itemsize
    together = (whole, (item * first, item * second, item * third)) if whole * item <= TOGETHER else None
    nothing = np.empty(0, dtype), (0, 0, 0), ()
    return _Prepared(sizes, p, compiled.address, call_us(sizes), {}, _NONE[dtype], nothing, widths, together)


def _sizes(cell: str, char: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], projected: bool, N: int) -> Sizes:
    (T, B, I), (GH, R), G = x_shape, w_shape, CELLS[cell].n_gates
    return Sizes(cell, _NAMES[char], G, T, B, I, GH // G, R, N, projected)


@lru_cache(512)
def _prepared(
    cell: str, char: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], projected: bool, reverse: bool, keep: bool
) -> _Prepared:
    """Without lengths. Streaming calls a step at a time: whatever need not be done at each is done here."""
    T, B, _ = x_shape
    return _prepare(_sizes(cell, char, x_shape, w_shape, projected, T * B), packing(T, B, None))


def _memory_to_keep(ready: _Prepared, dtype: np.dtype) -> tuple[Array, tuple[int, int, int], tuple[Array, ...]]:
    """kept, places and others of a `Saved`."""
    if ready.together is not None:
        size, places = ready.together
        return np.empty(size, dtype), places, ()
    values, *others = [np.empty(ready.sizes.N * width, dtype) for width in ready.kept_widths]
    h_prev, c_prev, extra = (a.ctypes.data - values.ctypes.data for a in others)
    return values, (h_prev, c_prev, extra), tuple(others)


def forward(call: LayerCall) -> Forward:
    """See `rnnkit.backends.Backend.forward`."""
    x, weights, keep, out = call.x, call.weights, call.keep, call.out
    cell, state0, lengths = call.cell, call.state0, call.lengths
    dtype, two, shapes = x.dtype, len(state0) == 2, (x.shape, weights.w_hh.shape, weights.w_hr is not None)
    p = None if lengths is None else packing(x.shape[0], x.shape[1], lengths)
    if p is None or p.order is None:
        ready = _prepared(cell.name, dtype.char, *shapes, call.reverse, keep)
    else:
        ready = _prepare(_sizes(cell.name, dtype.char, *shapes, p.steps), p)
        if single(ready.sizes):
            return _live_rows(p, call)
    p, none, x = ready.packing, ready.none, ready_array(x)
    x_rows = x if p.order is None else np.empty((p.steps, x.shape[2]), dtype)
    h0, c0 = ready_array(state0[0]), ready_array(state0[1]) if two else none
    y = np.empty((*x.shape[:2], h0.shape[1]), dtype) if out is None else out  # whose rows may be parts of longer ones
    h_n = np.empty(h0.shape, dtype)
    c_n = np.empty(c0.shape, dtype) if two else none
    kept, places, others = _memory_to_keep(ready, dtype) if keep else ready.nothing_kept
    operands = (*places, y.strides[1], x, x_rows, h0, c0, y if out is None else y[:1, :1, :1], h_n, c_n, kept)
    _run(ready.sizes, ready.microseconds, partial(_launch, ready, weights, call.reverse, keep, operands))
    return Forward(
        y, (h_n, c_n) if two else (h_n,), Saved(p, x_rows, kept, places, others, call.reverse) if keep else None
    )


def _live_rows(p: Packing, call: LayerCall) -> Forward:
    """A single step that not every row has: that of the batch of those that do."""
    assert p.order is not None
    x, state0, live = call.x, call.state0, p.order[: p.steps]
    states = tuple(s[live] for s in state0)
    found = forward(call._replace(x=x[:, live], state0=states, lengths=None, out=None))
    y = np.zeros((*x.shape[:2], found.y.shape[2]), x.dtype)
    state = tuple(np.array(s) for s in state0)
    y[:, live] = found.y
    for whole, part in zip(state, found.state_n, strict=True):
        whole[live] = part
    return Forward(y, state, found.saved._replace(packing=p) if call.keep else None)


def _launch(
    ready: _Prepared, weights: Weights, reverse: bool, keep: bool, operands: tuple, state: int, threads: int
) -> None:
    """The forward job, with weights packed for this call, or in inference for this and later ones."""
    held, call, plan, standing = None, object(), ready.plans.get(threads), _addresses(weights)
    if plan is None:
        plan = ready.plans[threads] = plan_for(ready.sizes, ready.packing, threads, False, reverse, keep)
    if plan.packed and not keep and memory.is_cached(plan.packed):
        w_ih, w_hh = weights.w_ih, weights.w_hh
        # An id may come again, for another array: then the digest is another.
        key = (ready.job, id(w_ih), id(w_hh), id(weights.w_hr), plan.members, w_ih.shape, w_hh.shape)
        held = packed_weights.get(key, plan.packed)
    try:
        if held is not None and held.claims.setdefault(OWNER, call) is call:
            scratch, digest = scratch_memory.get(plan.scratch), held.buffer.address
            held.set_trusted(standing.constant)
        else:
            own = plan.scratch <= OWN_SCRATCH and not plan.packed
            scratch = memory.EMPTY_BUFFER if own else scratch_memory.get(plan.scratch + plan.packed)
            digest = 0
        table, where = ready.packing.table, standing.found
        launch_forward(state, ready.job, plan.words, table, where, scratch.address, digest, *operands)
        if held is not None and digest:
            held.record_packed(standing.constant)
    finally:
        if held is not None and OWNER in held.claims and held.claims[OWNER] is call:
            del held.claims[OWNER]


def _run(sizes: Sizes, microseconds: float, launch: Any) -> None:
    """On as many threads as the work is worth and has parts for."""
    threads = thread_pool.threads_for(microseconds)
    thread_pool.run_on_pool(threads_of(sizes, threads) if threads > 1 else 1, microseconds, launch)


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`."""
    cell, row, saved = call.cell, call.dtype, call.saved
    dy, dstate_n, weights, into = call.dy, call.dstate_n, call.weights, call.into
    p, dtype = saved.packing, row.storage
    (GH, R), I = weights.w_hh.shape, weights.w_ih.shape[1]
    name, G, N, projected = _NAMES[dtype.char], cell.n_gates, p.steps, weights.w_hr is not None
    H, none, has_dy, two = GH // G, _NONE[name], dy is not None, len(dstate_n) == 2
    dy, y_row = (none, 0) if dy is None else even_rows(dy)
    dh_n, dc_n = ready_array(dstate_n[0]), ready_array(dstate_n[1]) if two else none
    dh0, dc0 = np.empty(dh_n.shape, dtype), np.empty(dc_n.shape, dtype) if two else none
    dgates_x = np.empty((N, GH), dtype)
    dgates_h = np.empty((N, GH), dtype) if cell.splits_sides else dgates_x
    dx, dprojected = np.empty((p.T, p.B, I), dtype), np.empty((N, R), dtype) if projected else none
    dx_rows = dx if p.order is None else np.empty((N, I), dtype)
    # Added to where they are: fresh memory would cost its pages, and the sum a pass more over both.
    adds = into is not None and all(a is None or a.flags.carray for a in (into.w_ih, into.w_hh, into.w_hr))
    if into is None or not adds:
        into = Weights(*(None if w is None else np.empty(w.shape, dtype) for w in weights))
    dw_ih, dw_hh, dw_hr = into.w_ih, into.w_hh, into.w_hr if projected else none
    biased = weights.b_ih is not None or weights.b_hh is not None
    db_ih, db_hh = (np.empty(GH if biased else 0, dtype) for _ in range(2))
    sizes = Sizes(cell.name, name, G, p.T, p.B, I, H, R, N, projected)
    compiled, standing = job(cell.name, name, True, False), _addresses(weights)

    def launch(state: int, members: int) -> None:
        plan = plan_for(sizes, p, members, True, saved.reverse, False)
        scratch = scratch_memory.get(plan.scratch)
        launch_backward(
            state, compiled.address, plan.words, p.table, standing.found, scratch.address, *saved.places,
            y_row, has_dy, biased, adds, saved.x_rows, saved.kept, dy, dh_n, dc_n, dh0, dc0, dgates_x, dgates_h,
            dprojected, dx_rows, dx, dw_ih, dw_hh, dw_hr, db_ih, db_hh,
        )  # fmt: skip

    _run(sizes, BACKWARD_SHARE * call_us(sizes), launch)
    if dgates_h is dgates_x and weights.b_hh is not None:
        db_hh = db_ih.copy() if weights.b_ih is not None else db_ih
    biases = None if weights.b_ih is None else db_ih, None if weights.b_hh is None else db_hh
    dweights = Weights(None, None, *biases, None) if adds else Weights(dw_ih, dw_hh, *biases, into.w_hr)
    return Gradients(dx, (dh0, dc0) if two else (dh0,), dweights)


def describe(cell: Cell, row: DType, call: CallSizes, keep: bool) -> Description:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = call
    item, reset_before = row.storage.itemsize, cell.name == RESET_BEFORE
    sizes = Sizes(cell.name, row.stored, cell.n_gates, T, B, I, H, R, N, R != H)
    threads = thread_pool.threads_for(call_us(sizes))
    plan = plan_for(sizes, packing(T, B, None), threads, False, False, keep)
    two, extra = len(cell.states) == 2, H if sizes.projected or reset_before else 0
    kept = N * (_kept_width(cell.name, H) + R + (H if two else 0) + extra) * item if keep else 0
    stays = not keep and memory.is_cached(plan.packed)
    own = plan.packed + 2 * memory.LINE if stays else 0
    resident = plan.scratch + (0 if stays else plan.packed) + memory.LINE
    transient = resident
    if N != T * B:
        packed = N * I * item + 8 * (2 * T + 1 + 2 * B)  # x, and the packing's tables
        kept += packed if keep else 0
        transient += 0 if keep else packed
    if resident > memory.MAX_CACHED_SCRATCH or (plan.scratch <= OWN_SCRATCH and not plan.packed):
        resident = 0
    rows, columns = tile_shape()
    tiles = f"{rows} x {columns * vectors(row.stored).lanes} register tiles, {plan.chunk} steps a chunk"
    name = f"{cell.name} " + ("step, weights as they are" if single(sizes) else f"scan, {tiles}")
    shared = f"{plan.groups * plan.members} of {thread_pool.get_num_threads()} threads"
    shared += ", sharing units" if plan.members > 1 else ""
    return Description(f"{name}, {shared}", transient, kept, resident, own, placed=True)
