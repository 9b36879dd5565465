"""The Numba backend: whole sequences in one compiled call (kernels/scan.py), the batch shared over threads.

This file allocates, packs the recurrent weights once a call, and launches. A row's bits depend neither on the
batch around it nor on the number of threads.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from rnnkit._threads import over_batch
from rnnkit.backends import Scan, ScanGradients
from rnnkit.cells import Array, Cell, State, Weights
from rnnkit.kernels import scan, scan_reset_before
from rnnkit.kernels.product import packer, padded, tile_shape
from rnnkit.kernels.vector import vectors

RESET_BEFORE = "gru_reset_before"


class Saved(NamedTuple):
    """One forward: the slots of h (T+1, B, R) and c, what the cell kept, the other operands, and how the scan went."""

    h: Array
    c: Array
    kept: Array
    extra: Array  # m (T, B, H) under projection, rh (T, B, H) for a GRU that resets before, else empty
    lengths: Array
    reverse: bool


@cache
def kernels(cell: str, dtype: str) -> SimpleNamespace:
    """The compiled pair of a cell and dtype."""
    return scan_reset_before.make(dtype) if cell == RESET_BEFORE else scan.make(cell, dtype)


def pack(w: Array) -> Array:
    """w (N, K) in the layout of the register tiles."""
    packed = np.empty(padded(w.shape[0], w.dtype.name) * w.shape[1], w.dtype)
    packer(w.dtype.name)(w, packed)
    return packed


def scan_forward(
    cell: Cell,
    gates_x: Array,
    state0: State,
    weights: Weights,
    *,
    lengths: Array | None,
    reverse: bool,
    keep: bool,
) -> Scan:
    """See `rnnkit.backends.Backend.scan_forward`."""
    T, B, GH = gates_x.shape
    H, R, dtype = GH // cell.n_gates, state0[0].shape[1], gates_x.dtype
    ends = np.full(B, T, np.int64) if lengths is None else lengths
    step = 1 if keep else 0
    starts = ends * step if reverse else np.zeros(B, np.int64)
    slots = T * step + 1
    h = _slots(state0[0], slots, starts)
    c = _slots(state0[1], slots, starts) if len(state0) == 2 else np.empty((0, B, H), dtype)
    biases = [np.zeros(GH, dtype) if b is None else np.ascontiguousarray(b) for b in (weights.b_ih, weights.b_hh)]
    y = np.empty((T, B, R), dtype) if lengths is None else np.zeros((T, B, R), dtype)
    steps = T if keep else 1
    launch = _launch_reset_before if cell.name == RESET_BEFORE else _launch
    kept, extra = launch(cell, gates_x, biases, weights, ends, h, c, y, steps, reverse, step)
    last = np.zeros(B, np.int64) if reverse else ends * step
    rows = np.arange(B)
    state_n = (h[last, rows], c[last, rows]) if len(state0) == 2 else (h[last, rows],)
    return Scan(y, state_n, Saved(h, c, kept, extra, ends, reverse) if keep else None)


def _slots(s0: Array, slots: int, starts: Array) -> Array:
    """Room for the states of every step, with s0 where each row starts."""
    states = np.empty((slots, *s0.shape), s0.dtype)
    states[starts, np.arange(s0.shape[0])] = s0
    return states


def _launch(
    cell: Cell,
    gates_x: Array,
    biases: list[Array],
    weights: Weights,
    ends: Array,
    h: Array,
    c: Array,
    y: Array,
    steps: int,
    reverse: bool,
    step: int,
) -> tuple[Array, Array]:
    T, B, GH = gates_x.shape
    H, R, dtype = GH // cell.n_gates, y.shape[2], gates_x.dtype
    projected = weights.w_hr is not None
    kept = np.empty((steps, B, scan.kept_blocks(cell.name) * H), dtype)
    m = np.empty((steps if projected else 0, B, H), dtype)
    w = pack(weights.w_hh)
    w_proj = np.empty(0, dtype) if weights.w_hr is None else pack(weights.w_hr)
    scratch = np.empty((B, padded(GH, dtype.name)), dtype)
    scratch_proj = np.empty((B, padded(R, dtype.name) if projected else 0), dtype)
    forward = kernels(cell.name, dtype.name).forward

    def share(b0: int, b1: int) -> None:
        forward(b0, b1, reverse, step, gates_x, *biases, w, w_proj, ends, h, c, kept, m, y, scratch, scratch_proj)

    over_batch(share, B, 2.0 * T * B * GH * R)
    return kept, m


def _launch_reset_before(
    cell: Cell,
    gates_x: Array,
    biases: list[Array],
    weights: Weights,
    ends: Array,
    h: Array,
    c: Array,
    y: Array,
    steps: int,
    reverse: bool,
    step: int,
) -> tuple[Array, Array]:
    T, B, GH = gates_x.shape
    H, dtype = GH // 3, gates_x.dtype
    kept, rh = np.empty((steps, B, GH), dtype), np.empty((steps, B, H), dtype)
    w_rz, w_n = pack(weights.w_hh[: 2 * H]), pack(weights.w_hh[2 * H :])
    scratch, scratch_n = (np.empty((B, padded(width, dtype.name)), dtype) for width in (2 * H, H))
    forward = kernels(cell.name, dtype.name).forward

    def share(b0: int, b1: int) -> None:
        forward(b0, b1, reverse, step, gates_x, *biases, w_rz, w_n, ends, h, kept, rh, y, scratch, scratch_n)

    over_batch(share, B, 2.0 * T * B * GH * H)
    return kept, rh


def scan_backward(cell: Cell, saved: Saved, dy: Array | None, dstate_n: State, weights: Weights) -> ScanGradients:
    """See `rnnkit.backends.Backend.scan_backward`."""
    T, B, R = saved.h.shape[0] - 1, saved.h.shape[1], saved.h.shape[2]
    GH, dtype = weights.w_hh.shape[0], weights.w_hh.dtype
    H = GH // cell.n_gates
    dy = np.empty((0, B, R), dtype) if dy is None else np.ascontiguousarray(dy)
    dh = np.zeros((B, padded(R, dtype.name)), dtype)
    dh[:, :R] = dstate_n[0]
    dc = np.array(dstate_n[1], order="C") if len(dstate_n) == 2 else np.empty((B, 0), dtype)
    dgates_x = np.empty((T, B, GH), dtype)
    run = kernels(cell.name, dtype.name).backward
    before = saved.h[1:] if saved.reverse else saved.h[:-1]
    if cell.name == RESET_BEFORE:
        w_rz, w_n = pack(weights.w_hh[: 2 * H].T), pack(weights.w_hh[2 * H :].T)
        scratch = np.empty((B, padded(H, dtype.name)), dtype)

        def share(b0: int, b1: int) -> None:
            run(b0, b1, saved.reverse, dy, w_rz, w_n, saved.lengths, saved.h, saved.kept, dgates_x, dh, scratch)

        over_batch(share, B, 2.0 * T * B * GH * H)
        return ScanGradients(dgates_x, dgates_x, (dh[:, :R],), {"h_prev": before, "rh": saved.extra})
    split = cell.name == "gru"
    dgates_h = np.empty_like(dgates_x) if split else dgates_x
    projected = weights.w_hr is not None
    w_back = pack(weights.w_hh.T)
    w_proj_back = np.empty(0, dtype) if weights.w_hr is None else pack(weights.w_hr.T)
    dprojected = np.empty((T if projected else 0, B, R), dtype)
    scratch = np.empty((B, padded(H, dtype.name) if projected else 0), dtype)

    def share_all(b0: int, b1: int) -> None:
        run(
            b0, b1, saved.reverse, dy, w_back, w_proj_back, saved.lengths, saved.h, saved.c, saved.kept,
            dgates_x, dgates_h, dprojected, dh, dc, scratch,
        )  # fmt: skip

    over_batch(share_all, B, 2.0 * T * B * GH * R)
    dstate0 = (dh[:, :R], dc) if len(dstate_n) == 2 else (dh[:, :R],)
    return ScanGradients(
        dgates_x,
        dgates_h,
        dstate0,
        {"h_prev": before},
        dprojected if projected else None,
        saved.extra if projected else None,
    )


def describe(cell: Cell, dtype: str, T: int, B: int, H: int, R: int, keep: bool) -> tuple[str, int, int]:
    """See `rnnkit.backends.Backend.describe`."""
    rows, columns = tile_shape()
    GH, projected, reset_before = cell.n_gates * H, R != H, cell.name == RESET_BEFORE
    width = 3 * H if reset_before else scan.kept_blocks(cell.name) * H
    slots = B * (R + (H if len(cell.states) == 2 else 0))
    a_step = B * (width + (H if projected or reset_before else 0))
    packed = padded(GH, dtype) * R + (padded(R, dtype) * H if projected else 0)
    scratch = B * (padded(GH, dtype) + (padded(R, dtype) if projected else 0))
    itemsize = np.dtype(dtype).itemsize
    kept = ((T + 1) * slots + T * a_step) if keep else 0
    transient = packed + scratch + (0 if keep else slots + a_step)
    name = f"{cell.name} scan, {rows} x {columns * vectors(dtype).lanes} register tiles"
    return name, transient * itemsize, kept * itemsize
