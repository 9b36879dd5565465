"""The Numba backend: whole sequences in one compiled call (kernels/scan.py), shared over threads.

This file packs, allocates and launches. Rows are sorted by length and stored without their padding, weights are
packed for the register tiles once a call, and every product runs in those tiles: BLAS and its threads are not used. An
element's bits depend neither on the batch around its row nor on the number of threads.
"""

from __future__ import annotations

import ctypes
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from rnnkit._threads import get_num_threads, meeting, run_shares, shares_of
from rnnkit.backends import Forward, Gradients, Sizes
from rnnkit.backends.packing import Packing, packing
from rnnkit.cells import Array, Cell, State, Weights
from rnnkit.dtypes import DType
from rnnkit.kernels import scan, scan_reset_before
from rnnkit.kernels.large import large_products, room_of
from rnnkit.kernels.pack import packer, padded, panels_of
from rnnkit.kernels.product import tile_shape
from rnnkit.kernels.vector import vectors

RESET_BEFORE = "gru_reset_before"

_NAMES = {"f": "float32", "d": "float64"}

# The input's products are computed this many bytes at a time for each thread: what stays in its second-level cache
# beside the weights' panel in use.
CHUNK_BYTES = 1 << 18

# When threads share a sequence's units rather than the batch's rows: with fewer rows than this for each thread, if a
# step has so many FLOP. Measured on two cores with AVX-512: at 3 rows a thread the two are level, at 1 sharing units is
# 1.2 to 1.5 times as fast from H = 256 on; below 3e5 FLOP meeting every step costs more than it saves.
UNITS_BELOW_ROWS, UNITS_FROM = 3, 3e5

# What a meeting's counter becomes when a share will not come: past every goal.
ABANDONED = 1 << 62


class Saved(NamedTuple):
    """One forward: x packed, what the cell kept, its states before each step, and the other operand."""

    packing: Packing
    x: Array
    kept: Array
    h_prev: Array
    c_prev: Array
    extra: Array  # m (N, H) under projection, rh (N, H) for a GRU that resets before, else empty
    reverse: bool


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


def _name(dtype: np.dtype) -> str:
    """dtype.name, which takes NumPy microseconds to make up."""
    return _NAMES[dtype.char]


@cache
def kernels(cell: str, dtype: str) -> SimpleNamespace:
    """The compiled pair of a cell and dtype."""
    return scan_reset_before.make(dtype) if cell == RESET_BEFORE else scan.make(cell, dtype)


def pack_weights(w: Array, transposed: bool = False, first: int = 0, each: int = 0, blocks: int = 1) -> Array:
    """w (N, K), or with `transposed` w^T of w (K, N), in the layout of the register tiles.

    With `each`, of the N rows those [first, first + each), and as many from each further block of N / blocks rows.
    It begins at an address that vectors do not straddle.
    """
    w = _as_writable(np.ascontiguousarray(w))
    K, whole = w.shape if transposed else w.shape[::-1]
    each = each or whole
    name, N = _name(w.dtype), each * blocks
    size = padded(N, name) * K
    room = np.empty(size + 64 // w.dtype.itemsize, w.dtype)
    start = -room.ctypes.data % 64 // w.dtype.itemsize
    packed, pack = room[start : start + size], packer(name)

    def share(panel0: int, panel1: int) -> None:
        pack(w, transposed, first, each, whole // blocks, N, panel0, panel1, packed)

    panels = panels_of(N, name)
    # Counted as the work that takes as long as moving its bytes.
    shares = shares_of(32.0 * size, panels)
    run_shares(share, [panels * k // shares for k in range(shares + 1)])
    return packed


def units_of(cell: Cell, B: int, H: int, dtype: str, alone: bool) -> list[int]:
    """The bounds of each thread's units, where threads had better share units than rows; [0, H] where they had not.

    Sharing units, a thread reads only its part of W_hh at each step, for all rows at once, but meets the others every
    step. That pays where there are few rows to share and a step is long enough. `alone`: with lengths or a projection,
    which the kernel shares by rows only.
    """
    step = 2.0 * B * cell.n_gates * H * H
    if alone or cell.name == RESET_BEFORE or step < UNITS_FROM:
        return [0, H]
    lanes = vectors(dtype).lanes
    threads = min(get_num_threads(), H // lanes)
    if threads < 2 or UNITS_BELOW_ROWS * threads <= B:
        return [0, H]
    return [*(H * k // threads // lanes * lanes for k in range(threads)), H]


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
    (GH, R), dtype = weights.w_hh.shape, x.dtype
    H, p = GH // cell.n_gates, packing(T, B, lengths)
    x = _as_writable(p.pack(x))
    h = p.sorted(state0[0])
    c = p.sorted(state0[1]) if len(state0) == 2 else np.empty((B, 0), dtype)
    y = np.empty((p.steps, R), dtype)
    kept_steps = p.steps if keep else 0
    h_prev = np.empty((kept_steps, R), dtype)
    biases = [
        np.zeros(GH, dtype) if b is None else _as_writable(np.ascontiguousarray(b))
        for b in (weights.b_ih, weights.b_hh)
    ]
    c_prev = np.empty((kept_steps, c.shape[1]), dtype)
    around = (reverse, keep, x, p.offsets, p.counts)
    work = 2.0 * p.steps * GH * (I + R)
    if cell.name == RESET_BEFORE:
        rows = p.steps if keep else B
        kept, extra = np.empty((rows, GH), dtype), np.empty((rows, H), dtype)
        run, bounds = kernels(cell.name, _name(dtype)).forward, p.bounds(shares_of(work, B))
        w = (
            pack_weights(weights.w_ih),
            *biases,
            *(pack_weights(weights.w_hh[a:b]) for a, b in ((0, 2 * H), (2 * H, GH))),
        )
        gates = _gates(T, bounds, B, GH, dtype)

        def share(b0: int, b1: int) -> None:
            run(b0, b1, *around, *w, h, y, kept, h_prev, extra, gates)

        run_shares(share, bounds)
    else:
        projected = weights.w_hr is not None
        kept = np.empty((kept_steps, scan.kept_blocks(cell.name) * H), dtype)
        extra = np.empty(((p.steps if keep else B) if projected else 0, H), dtype)
        _run_forward(cell, p, around, work, weights, biases, (h, c, y, kept, h_prev, c_prev, extra))
    state_n = tuple(p.unsorted(s) for s in ((h, c) if len(state0) == 2 else (h,)))
    return Forward(p.unpack(y), state_n, Saved(p, x, kept, h_prev, c_prev, extra, reverse) if keep else None)


def _run_forward(
    cell: Cell, p: Packing, around: tuple, work: float, weights: Weights, biases: list[Array], results: tuple
) -> None:
    """Launches the forward scan, sharing units or rows."""
    dtype, GH, G = weights.w_hh.dtype, weights.w_hh.shape[0], cell.n_gates
    H, run = GH // G, kernels(cell.name, _name(dtype)).forward
    w_proj = _projection(weights.w_hr, dtype)
    units = units_of(cell, p.B, H, _name(dtype), p.order is not None or weights.w_hr is not None)
    counter = np.zeros(1, np.int64)
    with meeting(len(units) - 1) as together:
        units = units if together else [0, H]
        threads = len(units) - 1
        bounds = units if together else p.bounds(shares_of(work, p.B))
        launches = {}
        for u0, u1 in pairwise(units):
            w_x, w = (pack_weights(part, first=u0, each=u1 - u0, blocks=G) for part in (weights.w_ih, weights.w_hh))
            gates = _gates(p.T, [0, p.B] if together else bounds, p.B, G * (u1 - u0), dtype)
            u = np.empty((p.B if scan.is_split(cell.name) else 0, gates.shape[2]), dtype)
            launches[u0] = (*around, w_x, *biases, w, w_proj, *results, gates, u)

        def share(low: int, high: int) -> None:
            rows, own = ((0, p.B), (low, high)) if together else ((low, high), (0, H))
            run(*rows, *own, threads, counter.ctypes.data, *launches[own[0]])

        run_shares(share, bounds, lambda: counter.fill(ABANDONED))


def _gates(T: int, bounds: list[int], B: int, width: int, dtype: np.dtype) -> Array:
    """Room for the pre-activations of a chunk of steps."""
    rows = max(high - low for low, high in pairwise(bounds))
    return np.empty((_chunk(T, rows, width * dtype.itemsize), B, width), dtype)


def _chunk(T: int, rows: int, row_bytes: int) -> int:
    """How many steps of `rows` rows fit CHUNK_BYTES, at least one."""
    return max(1, min(T, CHUNK_BYTES // max(1, rows * row_bytes)))


def _projection(w: Array | None, dtype: np.dtype, transposed: bool = False) -> Array:
    return np.empty(0, dtype) if w is None else pack_weights(w, transposed)


def backward(cell: Cell, row: DType, saved: Saved, dy: Array | None, dstate_n: State, weights: Weights) -> Gradients:
    """See `rnnkit.backends.Backend.backward`."""
    p, dtype = saved.packing, row.storage
    GH, R = weights.w_hh.shape
    H, N = GH // cell.n_gates, p.steps
    dy = np.empty((0, R), dtype) if dy is None else _as_writable(p.pack(np.ascontiguousarray(dy)))
    dh = p.sorted(dstate_n[0])
    dc = p.sorted(dstate_n[1]) if len(dstate_n) == 2 else np.empty((p.B, 0), dtype)
    dgates_x = np.empty((N, GH), dtype)
    dgates_h = np.empty_like(dgates_x) if cell.name == "gru" else dgates_x
    projected = weights.w_hr is not None
    dprojected = np.empty((N if projected else 0, R), dtype)
    run, work = kernels(cell.name, _name(dtype)).backward, 2.0 * N * GH * R
    around = (saved.reverse, dy, p.offsets, p.counts)
    if cell.name == RESET_BEFORE:
        w = [pack_weights(weights.w_hh[a:b], transposed=True) for a, b in ((0, 2 * H), (2 * H, GH))]
        drh = np.empty((p.B, H), dtype)

        def share(b0: int, b1: int) -> None:
            run(b0, b1, *around, *w, saved.kept, saved.h_prev, dgates_x, dh, drh)

        run_shares(share, p.bounds(shares_of(work, p.B)))
    else:
        dm = np.empty((p.B if projected else 0, H), dtype)
        results = (saved.kept, saved.h_prev, saved.c_prev, dgates_x, dgates_h, dh, dc, dm, dprojected)
        _run_backward(cell, p, around, work, weights, results)
    dstate0 = tuple(p.unsorted(d) for d in ((dh, dc) if len(dstate_n) == 2 else (dh,)))
    dx = p.unpack(_times_weights(dgates_x, weights.w_ih))
    return Gradients(dx, dstate0, _weight_gradients(cell, saved, dgates_x, dgates_h, dprojected, weights))


def _run_backward(cell: Cell, p: Packing, around: tuple, work: float, weights: Weights, results: tuple) -> None:
    """Launches the backward scan, sharing units or rows as the forward does."""
    dtype, (GH, R) = weights.w_hh.dtype, weights.w_hh.shape
    H, run = GH // cell.n_gates, kernels(cell.name, _name(dtype)).backward
    w_proj = _projection(weights.w_hr, dtype, transposed=True)
    units = units_of(cell, p.B, H, _name(dtype), p.order is not None or weights.w_hr is not None)
    counter = np.zeros(1, np.int64)
    with meeting(len(units) - 1) as together:
        units = units if together else [0, R]
        threads = len(units) - 1
        packed = {u0: pack_weights(weights.w_hh, True, u0, u1 - u0) for u0, u1 in pairwise(units)}

        def share(low: int, high: int) -> None:
            rows, own = ((0, p.B), (low, high)) if together else ((low, high), (0, H))
            run(*rows, *own, threads, counter.ctypes.data, *around, packed[own[0]], w_proj, *results)

        bounds = units if together else p.bounds(shares_of(work, p.B))
        run_shares(share, bounds, lambda: counter.fill(ABANDONED))


def _times_weights(d: Array, w: Array) -> Array:
    """d (N, M) w (M, K)."""
    out, packed = np.empty((d.shape[0], w.shape[1]), d.dtype), pack_weights(w, transposed=True)
    rows_by_weights = large_products(_name(d.dtype)).rows_by_weights

    def share(r0: int, r1: int) -> None:
        rows_by_weights(d, packed, out, r0, r1)

    _share_rows(share, d.shape[0], 2.0 * d.size * w.shape[1])
    return out


def _over_time(d: Array, d0: int, x: Array, out: Array, sums: Array | None = None) -> None:
    """out (M, N) = d[:, d0 : d0 + M]^T x, of d (K, ·) and x (K, N); sums (M,), if given, the sums of those columns."""
    name, (M, N) = _name(d.dtype), out.shape
    over_time = large_products(name).over_time
    if not d.shape[0]:
        out[...] = 0
    totals = np.empty(0, d.dtype) if sums is None else sums
    totals[...] = 0

    def share(m0: int, m1: int) -> None:
        over_time(d, d0, x, out, totals, m0, m1, np.empty(room_of(N, name), d.dtype))

    _share_rows(share, M, 2.0 * M * x.size)


def _share_rows(share: Any, rows: int, work: float) -> None:
    shares = shares_of(work, max(1, rows // tile_shape()[0]))
    run_shares(share, [rows * k // shares for k in range(shares + 1)])


def _weight_gradients(
    cell: Cell, saved: Saved, dgates_x: Array, dgates_h: Array, dprojected: Array, weights: Weights
) -> Weights:
    """Each one product over all steps; the biases' gradients are summed on the way."""
    H = weights.w_hh.shape[0] // cell.n_gates
    dw_ih, dw_hh = np.empty_like(weights.w_ih, order="C"), np.empty_like(weights.w_hh, order="C")
    db_ih, db_hh = (None if b is None else np.empty_like(b, order="C") for b in (weights.b_ih, weights.b_hh))
    _over_time(dgates_x, 0, saved.x, dw_ih, db_ih)
    same = dgates_h is dgates_x
    operands = {"h_prev": saved.h_prev, "rh": saved.extra}
    for operand, first, end in cell.products:
        gates = slice(first * H, end * H)
        db = None if same or db_hh is None else db_hh[gates]
        _over_time(dgates_h, first * H, operands[operand], dw_hh[gates], db)
    if same and db_hh is not None:
        db_hh = np.array(db_ih)
    dw_hr = None
    if weights.w_hr is not None:
        dw_hr = np.empty_like(weights.w_hr, order="C")
        _over_time(dprojected, 0, saved.extra, dw_hr)
    return Weights(dw_ih, dw_hh, db_ih, db_hh, dw_hr)


def describe(cell: Cell, row: DType, sizes: Sizes, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = sizes
    tile_rows, columns = tile_shape()
    dtype = row.stored
    itemsize, GH, projected = row.storage.itemsize, cell.n_gates * H, R != H
    reset_before, two_states = cell.name == RESET_BEFORE, len(cell.states) == 2
    width = 3 * H if reset_before else scan.kept_blocks(cell.name) * H
    extra = H if projected or reset_before else 0
    kept = N * (width + R + (H if two_states else 0) + extra) * itemsize if keep else 0
    packed = padded(GH, dtype) * (I + R) + (padded(R, dtype) * H if projected else 0)
    if reset_before:
        packed = padded(GH, dtype) * I + (padded(2 * H, dtype) + padded(H, dtype)) * H
    threads = len(units_of(cell, B, H, dtype, projected or N != T * B)) - 1
    by_units = threads > 1
    shares = threads if by_units else shares_of(2.0 * N * GH * (I + R), B)
    rows, part = (B, -(-GH // shares)) if by_units else (-(-B // shares), GH)
    chunk = _chunk(T, rows, part * itemsize) if B else 1
    scratch = B * GH * (chunk + (1 if not reset_before and scan.is_split(cell.name) else 0)) + 2 * GH
    states = B * (R + (H if two_states else 0))
    once = 0 if keep else B * ((width if reset_before else 0) + extra)
    transient = (packed + scratch + states + once) * itemsize
    if N != T * B:
        # With lengths x and y are packed, by an index made by way of (T, B) whole numbers; y as returned comes last.
        around = N * I * itemsize + 8 * (N + 4 * B + 2 * T)
        kept += around if keep else 0
        y, packed_y = T * B * R * itemsize, N * R * itemsize
        while_packed = transient + packed_y - (0 if reset_before else y)
        transient = max(while_packed, packed_y, 17 * T * B - y) + (0 if keep else around)
    name = f"{cell.name} scan, {tile_rows} x {columns * vectors(dtype).lanes} register tiles, {chunk} steps a chunk"
    shared = f"{shares} of {get_num_threads()} threads" + (", sharing units" if by_units else "")
    return f"{name}, {shared}", transient, kept
