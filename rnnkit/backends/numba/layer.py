"""The Numba backend: a layer in one direction is one compiled call (kernels/cpu/scan.py), divided over threads.

This file allocates and launches. Rows are sorted by length and stored without padding, and every product runs in
register tiles: no BLAS and no threads of a BLAS are used. An element's bits depend neither on the batch around its row
nor on the number of threads.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.by_scan import split_unit_sums
from rnnkit.backends.interface import (
    NO_DWEIGHTS,
    BackwardCall,
    Description,
    Forward,
    Gradients,
    LayerCache,
    LayerCall,
    Sizes,
)
from rnnkit.backends.numba import memory
from rnnkit.backends.numba.host import host
from rnnkit.backends.numba.noise import NO_NOISE, backward_noise, forward_noise
from rnnkit.backends.numba.operands import even_rows, ready_array
from rnnkit.backends.numba.plan import Plan, Work, call_us, lanes_of, plan_for, single
from rnnkit.backends.numba.prepared import (
    Offsets,
    Prepared,
    ReadyWeights,
    job,
    make_extras,
    operand_dtype,
    prepared,
    prepared_ragged,
    ready_weights,
    saved_parts,
    whole_lines,
)
from rnnkit.backends.ragged import Packing, packing
from rnnkit.core import thread_pool
from rnnkit.core.cells import Array, Cell, Weights
from rnnkit.core.dtypes import DType
from rnnkit.core.regularisation import Noise
from rnnkit.core.thread_pool import OWNER
from rnnkit.kernels.cpu.formats import format_of
from rnnkit.kernels.cpu.launch import launch_backward, launch_forward
from rnnkit.kernels.cpu.matmul import tile_shape

# The time of a backward, as a multiple of the forward's.
BACKWARD_SHARE = 2.0
# Workspace of up to this many bytes is on the stack of the launch.
STACK_WORKSPACE = 4 << 10

workspaces, packed_weights = memory.Workspaces(), memory.PackedWeightsCache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=packed_weights.reset_after_fork)


class Saved(NamedTuple):
    """One forward: how its rows are packed, x without padding (N, I), and what the steps saved (see `SavedArrays`)."""

    packing: Packing
    ready: Prepared
    x_packed: Array
    values: Array
    offsets: Offsets
    others: tuple[Array, ...]
    noise: Noise | None = None


def forward(call: LayerCall) -> Forward:
    """See `rnnkit.backends.Backend.forward`."""
    x, lengths, keep, cache = call.x, call.lengths, call.keep, call.cache
    # Partly inlined from `_ready_weights`: a call of a function is 1% of a Cell's call.
    weights = (cache and cache.addresses) or _ready_weights(call)
    key = (call.cell, weights.kind, x.shape, call.reverse, keep)
    p, ready = prepared(key) if lengths is None else prepared_ragged(key, lengths)
    if p.order is not None and single(ready.work):
        return _live_rows(p, ready, call)
    nothing, x, state0, out = ready.nothing, ready_array(x), call.state0, call.out
    dtype, states = x.dtype, len(state0)
    values, offsets, others = ready.arrays_to_save(call.reserve) if keep else ready.nothing_saved
    x_packed = x if p.order is None and not ready.converts_x else _memory_for_x(ready, values, call.reserve, x)
    h0 = ready_array(state0[0])
    c0 = nothing if states == 1 else ready_array(state0[1]) if states == 2 else side_by_side(state0[1:])
    y = np.empty(ready.y, dtype) if out is None else out
    # `out` may be part of a wider array, which is not contiguous: its first element is enough.
    first_y = y if out is None else y[:1, :1, :1]
    h_n = np.empty(ready.h, dtype)
    c_n = nothing if states == 1 else np.empty(ready.c, dtype)
    noise = NO_NOISE if call.noise is None else forward_noise(call, ready)
    operands = (noise.address, *offsets, y.strides[1], x, x_packed, h0, c0, first_y, h_n, c_n, values)
    _run(ready, ready.microseconds, partial(_launch, p, ready, weights, call, operands))
    saved = Saved(p, ready, x_packed, values, offsets, others, call.noise) if keep else None
    if states > 2:
        return y, (h_n, *apart(c_n, states - 1)), saved
    return y, (h_n,) if states == 1 else (h_n, c_n), saved


def side_by_side(states: tuple[Array, ...]) -> Array:
    """The states beside h, (B, H) each, as the kernels take them: (B, · H)."""
    return ready_array(np.concatenate(states, axis=1) if len(states) > 1 else states[0])


def apart(states: Array, count: int) -> tuple[Array, ...]:
    """The reverse of `side_by_side`."""
    return (states,) if count == 1 else tuple([np.ascontiguousarray(s) for s in np.split(states, count, axis=1)])


def _memory_for_x(ready: Prepared, values: Array, reserve: Array | None, x: Array) -> Array:
    """(N, I) for x as operands without padding: new, or behind what the steps save in the reserve.

    A single step reads x itself, so for its backward x is converted here.
    """
    N, I, dtype = ready.work.N, x.shape[2], ready.operand
    if single(ready.work):
        return x.astype(dtype) if ready.keep else x
    if reserve is None or not values.size:
        return np.empty((N, I), dtype)
    return values[ready.size : ready.size + N * I * dtype.itemsize].view(dtype).reshape(N, I)


def reserve_bytes(cell: Cell, dtype: DType, sizes: Sizes, ragged: bool) -> int:
    """See `rnnkit.backends.Backend`: what the steps save, then x without padding if it is ragged."""
    _, _, I, H, R, N = sizes
    size = sum(saved_parts(cell, dtype.stored, H, R, N, R != H))
    operands = operand_dtype(cell, dtype.stored)
    if ragged or operands != dtype.storage:
        size += whole_lines(N * I * operands.itemsize)
    return size


def saved_in_reserve(call: LayerCall) -> Saved:
    """See `rnnkit.backends.Backend`."""
    x, lengths = ready_array(call.x), call.lengths
    key = (call.cell, _ready_weights(call).kind, x.shape, call.reverse, True)
    p, ready = prepared(key) if lengths is None else prepared_ragged(key, lengths)
    values, offsets, others = ready.arrays_to_save(call.reserve)
    if single(ready.work) and p.order is not None:
        x = x[:, p.order[: p.steps]]  # as in `_live_rows`
    plain = not ready.converts_x and (p.order is None or single(ready.work))
    x_packed = x if plain else _memory_for_x(ready, values, call.reserve, x)
    return Saved(p, ready, x_packed, values, offsets, others, call.noise)


def saved_steps(cell: Cell, dtype: DType, saved: Saved) -> dict[str, Array]:
    """See `rnnkit.backends.Backend`."""
    p, ready = saved.packing, saved.ready
    T, B, N, H, R = p.T, p.B, p.steps, ready.work.H, ready.work.R
    places = p.places()

    def padded_out(packed: Array) -> Array:
        whole = np.zeros((T * B, packed.shape[1]), dtype.storage)
        whole[places] = packed
        return whole.reshape(T, B, packed.shape[1])

    def part(number: int, width: int, kind: np.dtype) -> Array:
        """A part of what was saved, (N, width)."""
        of = saved.others[number] if saved.others else saved.values[saved.offsets[number] :]
        return of[: N * width * kind.itemsize].view(kind).reshape(N, width)

    size = N * cell.n_saved * H * dtype.storage.itemsize
    values = saved.values[:size].view(dtype.storage).reshape(N, cell.n_saved, H)
    count = cell.n_cell_states
    cells = apart(part(1, count * H, dtype.compute), count) if count else ()
    before = {f"{state}_prev": steps for state, steps in zip(cell.states[1:], cells, strict=True)}
    gates = cell.gates_of({name: values[:, number] for number, name in enumerate(cell.saved)} | before)
    found = gates | before | {"h_prev": part(0, R, ready.operand)}
    return {name: padded_out(steps) for name, steps in found.items()}


def _live_rows(p: Packing, ready: Prepared, call: LayerCall) -> Forward:
    """A single step that not every row has: that of the batch of those that do."""
    assert p.order is not None
    x, state0, live = call.x, call.state0, p.order[: p.steps]
    states = tuple(s[live] for s in state0)
    live_y, ends, saved = forward(call._replace(x=x[:, live], state0=states, lengths=None, out=None))
    y = np.zeros((*x.shape[:2], live_y.shape[2]), x.dtype)
    state_n = tuple(np.array(s) for s in state0)
    y[:, live] = live_y
    for whole, rows in zip(state_n, ends, strict=True):
        whole[live] = rows
    return y, state_n, saved._replace(packing=p, ready=ready) if call.keep else None


def _launch(
    p: Packing, ready: Prepared, weights: ReadyWeights, call: LayerCall, operands: tuple, state: int, threads: int
) -> None:
    """Runs the forward job. Weights are packed for this call alone, or in inference for later ones too."""
    owner = object()
    plan = ready.plans.get(threads) or ready.new_plan(p, threads, backward=False)
    entry = None if call.keep or not plan.packed else _packed_layer(ready, call.weights, plan)
    try:
        if entry is not None and entry.claims.setdefault(OWNER, owner) is owner:
            workspace = workspaces.get(plan.workspace)
            digest = entry.buffer.address
            entry.set_trusted(weights.constant)
        else:
            on_stack = plan.workspace <= STACK_WORKSPACE and not plan.packed
            workspace = memory.EMPTY_BUFFER if on_stack else workspaces.get(plan.workspace + plan.packed)
            digest = 0
        arguments = weights.arguments
        launch_forward(state, ready.job, plan.words, p.table, *arguments, workspace.address, digest, *operands)
        if entry is not None and digest:
            entry.record_packed(weights.constant)
    finally:
        if entry is not None and OWNER in entry.claims and entry.claims[OWNER] is owner:
            del entry.claims[OWNER]


def _packed_layer(ready: Prepared, weights: Weights, plan: Plan) -> memory.PackedLayer | None:
    """The memory for packed weights that stays between calls, or None where they are too small or too large for
    that."""
    if not memory.is_cached(plan.packed):
        return None
    w_ih, w_hh = weights.w_ih, weights.w_hh
    # A new array may reuse a freed array's id; then the digest differs.
    key = (ready.job, id(w_ih), id(w_hh), id(weights.w_hr), plan.members, w_ih.shape, w_hh.shape)
    return packed_weights.get(key, plan.packed)


def _ready_weights(call: LayerCall | BackwardCall) -> ReadyWeights:
    """The weights as the kernels take them, prepared once per layer where the caller is a layer."""
    cache = call.cache
    if cache is None:
        return ready_weights(call.weights, call.cell, call.constants)
    if cache.addresses is None:
        cache.addresses = ready_weights(call.weights, call.cell, call.constants)
    return cache.addresses


def _run(ready: Prepared, microseconds: float, launch: Any) -> None:
    """Runs on as many threads as the estimated time and the partition justify."""
    threads = thread_pool.threads_for(microseconds)
    thread_pool.run_on_pool(ready.threads_of(threads) if threads > 1 else 1, microseconds, launch)


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`."""
    cell, saved, weights = call.cell, call.saved, call.weights
    p, ready, dtype = saved.packing, saved.ready, call.dtype.storage
    w_hh, projected, has_c = weights.w_hh, weights.w_hr is not None, cell.has_c
    GH, R = w_hh.shape
    I, N = weights.w_ih.shape[1], p.steps
    nothing = ready.nothing
    dy, y_row = (nothing, 0) if call.dy is None else even_rows(call.dy)
    dh_n = ready_array(call.dstate_n[0])
    dc_n = side_by_side(call.dstate_n[1:]) if has_c else nothing
    dh0 = np.empty(dh_n.shape, dtype)
    dc0 = np.empty(dc_n.shape, dtype) if has_c else nothing
    dgates_x = np.empty((N, GH), ready.operand)
    dgates_h = np.empty((N, GH), ready.operand) if cell.splits_sides else dgates_x
    dprojected = np.empty((N, R), ready.operand) if projected else nothing
    if cell.normalises:
        dprojected = np.empty((N, cell.n_norm_gradients * GH // cell.n_gates), call.dtype.compute)
    dx = np.empty((p.T, p.B, I), dtype) if call.wants_dx else nothing
    dx_packed = np.empty((N, I), dtype) if call.wants_dx and p.order is not None else dx
    into, adds = _weight_gradients(weights, call.cache, dtype) if call.wants_dweights else (NO_DWEIGHTS, False)
    dw_ih, dw_hh, dw_hr = [nothing if d is None else d for d in (into.w_ih, into.w_hh, into.w_hr)]
    biased = call.wants_dweights and not cell.normalises and (weights.b_ih is not None or weights.b_hh is not None)
    db_ih = np.empty(GH if biased else 0, dtype)
    db_hh = np.empty(GH if biased else 0, dtype)
    compiled = job(cell, ready.work.dtype, True, False)
    own = _ready_weights(call)
    arguments = own.arguments
    extras = own.extras  # the launch gets their address alone
    dw_unit = None
    if call.wants_dweights and weights.w_unit is not None:
        dw_unit = np.empty((cell.n_unit_sums, weights.w_unit.shape[1]), dtype)
        extras = make_extras(weights, call.constants, dw_unit)
        arguments = (*arguments[:-1], extras[0].ctypes.data)
    noise = NO_NOISE if saved.noise is None else backward_noise(saved.noise, ready)

    def launch(state: int, threads: int) -> None:
        plan = ready.backward_plans.get(threads) or ready.new_plan(p, threads, backward=True)
        workspace = workspaces.get(plan.workspace)
        launch_backward(
            state, compiled.address, plan.words, p.table, *arguments, workspace.address, noise.address,
            *saved.offsets, y_row, call.dy is not None, biased, adds, call.wants_dx, call.wants_dweights,
            saved.x_packed, saved.values, dy, dh_n, dc_n, dh0, dc0, dgates_x, dgates_h, dprojected, dx_packed, dx,
            dw_ih, dw_hh, dw_hr, db_ih, db_hh,
        )  # fmt: skip

    _run(ready, BACKWARD_SHARE * ready.microseconds, launch)
    found_dx = dx if call.wants_dx else None
    dstate0 = (dh0, *apart(dc0, cell.n_cell_states)) if has_c else (dh0,)
    if not call.wants_dweights:
        return Gradients(found_dx, dstate0, NO_DWEIGHTS)
    if dgates_h is dgates_x and weights.b_hh is not None:
        db_hh = db_ih.copy() if weights.b_ih is not None else db_ih
    biases = (None if weights.b_ih is None else db_ih, None if weights.b_hh is None else db_hh)
    if cell.normalises:
        dw_unit, db_ih, db_hh = split_unit_sums(cell, weights, dw_unit)
        biases = (db_ih, db_hh)
    rest = (*biases, None if adds else into.w_hr, dw_unit)
    dweights = Weights(None, None, *rest) if adds else Weights(into.w_ih, into.w_hh, *rest)
    return Gradients(found_dx, dstate0, dweights)


def _weight_gradients(weights: Weights, cache: LayerCache | None, dtype: np.dtype) -> tuple[Weights, bool]:
    """Where the matrices' gradients go, and whether they are added to what is there.

    Adding in place avoids the page faults of fresh memory, and one pass over both arrays.
    """
    into = None if cache is None else cache.grads
    if into is not None and all(a is None or a.flags.carray for a in (into.w_ih, into.w_hh, into.w_hr)):
        return into, True
    w_hr = None if weights.w_hr is None else np.empty(weights.w_hr.shape, dtype)
    return Weights(np.empty(weights.w_ih.shape, dtype), np.empty(weights.w_hh.shape, dtype), None, None, w_hr), False


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = sizes
    work = Work(cell, format_of(cell, dtype.format), T, B, I, H, R, N, R != H)
    plan = plan_for(work, packing(T, B, None), thread_pool.threads_for(call_us(work)), False, False, keep)
    saved = sum(saved_parts(cell, dtype.stored, H, R, N, R != H)) if keep else 0
    cached = not keep and memory.is_cached(plan.packed)
    own = plan.packed + 2 * memory.LINE if cached else 0
    resident = plan.workspace + (0 if cached else plan.packed) + memory.LINE
    transient = resident
    packed, operands = 0, operand_dtype(cell, dtype.stored)
    if N != T * B or (operands != dtype.storage and (keep or not single(work))):
        packed += N * I * operands.itemsize  # x
    if N != T * B:
        packed += 8 * (2 * T + 1 + 2 * B)  # the tables of the packing
    saved += packed if keep else 0
    transient += 0 if keep else packed
    if resident > memory.MAX_CACHED_WORKSPACE or (plan.workspace <= STACK_WORKSPACE and not plan.packed):
        resident = 0
    return Description(_in_words(work, plan), transient, saved, resident, own, placed=True, rates=host().why)


def _in_words(work: Work, plan: Plan) -> str:
    rows, columns = tile_shape()
    tiles = f"{rows} x {columns * lanes_of(work.dtype)} register tiles, {plan.chunk} steps a chunk"
    name = f"{work.cell.key} " + ("step, weights as they are" if single(work) else f"scan, {tiles}")
    shared = f"{plan.groups * plan.members} of {thread_pool.get_num_threads()} threads"
    return f"{name}, {shared}" + (", sharing units" if plan.members > 1 else "")
