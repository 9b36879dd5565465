"""Truncated backpropagation with resets or a mask: a group of segments in chunks of the caller's time.

The rows of a group are segments without their masked steps, so a boundary, a multiple of k in the caller's time, is at
another step of each row. `Truncated` is a backend that runs another one once per chunk: on the rows' steps between two
boundaries, which are gathered for it, from the states of the chunk before. The gradients of those states are dropped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.backends.interface import Backend
from rnnkit.core.cells import Array, Cell, State, Weights, each_weight
from rnnkit.core.devices import array_module
from rnnkit.core.dtypes import DType
from rnnkit.core.mixed_precision import narrow, wide
from rnnkit.functional.segments import Group


class Part(NamedTuple):
    """The k-th chunk of each row that has steps in k of them or more: a call of all rows.

    steps    T of the call
    lengths  (B,) int64, 0 for a row that has no such chunk; None if all have T steps
    first    (B,) the step of the group's row at which it begins
    source   (steps * B,) for each step of the call its step among the T*B of the group; any step where it is padding
    """

    steps: int
    lengths: np.ndarray | None
    first: np.ndarray
    source: Array

    def rows(self) -> np.ndarray | None:
        """(B,) which rows have steps in it; None for all."""
        return None if self.lengths is None else self.lengths > 0


class Pieces(NamedTuple):
    """How the rows of a group are cut, in time order.

    place, empty   (T*B,) for each step of the group its step among those of all parts, and the steps that are padding
    before, after  (B,) whether a boundary is between the begin of a segment and its first live step, and between its
                   last live step and its end; at one of both, if no step is live
    """

    parts: list[Part]
    place: Array
    empty: Array
    before: np.ndarray
    after: np.ndarray

    def on(self, xp: Any) -> Pieces:
        """With the tables of steps as arrays of NumPy or CuPy, then on the current device."""
        if xp is np:
            return self
        parts = [part._replace(source=xp.asarray(part.source)) for part in self.parts]
        return self._replace(parts=parts, place=xp.asarray(self.place), empty=xp.asarray(self.empty))


def pieces_of(group: Group, B: int, k: int) -> Pieces:
    """The pieces of a group whose steps are gathered, with its `spans`. B: rows of the caller."""
    assert group.source is not None
    assert group.spans is not None
    T, S = group.steps, group.last - group.first
    lengths = np.full(S, T) if group.lengths is None else group.lengths
    positions = np.arange(T)[:, None]
    live = positions < lengths
    chunk = group.source.reshape(T, S) // B // k
    begins = live.copy()
    begins[1:] &= chunk[1:] != chunk[:-1]
    number = np.cumsum(begins, axis=0) - 1
    rows = np.nonzero(live)[1]
    count = max(1, int(number.max(initial=-1)) + 1)
    of_part = np.bincount(number[live] * S + rows, minlength=count * S).reshape(count, S)
    first = np.zeros((count, S), np.int64)
    step, row = np.nonzero(begins)
    first[number[begins], row] = step
    parts = []
    place = np.zeros(T * S, np.int64)
    total = 0
    for own, start in zip(of_part, first, strict=True):
        longest = int(own.max(initial=0))
        inside = np.arange(longest)[:, None] < own
        source = np.where(inside, (start + np.arange(longest)[:, None]) * S + np.arange(S), 0).ravel()
        place[source[inside.ravel()]] = total + np.flatnonzero(inside)
        total += longest * S
        parts.append(Part(longest, None if (own == longest).all() else own, start, source))
    before, after = _at_the_ends(group.spans // k, chunk, lengths)
    return Pieces(parts, place, np.flatnonzero(~live), before, after)


def _at_the_ends(ends: np.ndarray, chunk: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Pieces.before` and `after`. ends: (2, S), the chunks of the first and the last step of each segment."""
    first, last = ends
    before = last > first
    after = before.copy()
    rows = np.flatnonzero(lengths)
    if len(rows):
        before[rows] = chunk[0, rows] > first[rows]
        after[rows] = chunk[lengths[rows] - 1, rows] < last[rows]
    return before, after


class _Saved(NamedTuple):
    """The pieces on the device, what the backend saved of each part, and x's shape and direction."""

    pieces: Pieces
    parts: list[Any]
    shape: tuple[int, int, int]
    reverse: bool


class Truncated:
    """A backend of BACKENDS for one group of segments: see rnnkit/backends/interface.py."""

    def __init__(self, backend: Backend, pieces: Pieces) -> None:
        self.backend = backend
        self.pieces = pieces

    def forward(self, call: LayerCall) -> Forward:
        T, B, I = call.x.shape
        xp: Any = array_module(call.state0[0])
        pieces = self.pieces.on(xp)
        flat = call.x.reshape(T * B, I)
        state = call.state0
        ys: list[Any] = [None] * len(pieces.parts)
        saved: list[Any] = [None] * len(pieces.parts)
        for k in _order(len(ys), call.reverse):
            part = pieces.parts[k]
            noise = call.noise
            if noise is not None:
                noise = noise._replace(times=part.first if noise.times is None else noise.times + part.first)
            x = flat.take(part.source, axis=0).reshape(part.steps, B, I)
            of_part = call._replace(x=x, state0=state, lengths=part.lengths, out=None, reserve=None, noise=noise)
            ys[k], state, saved[k] = self.backend.forward(of_part)
        y = _joined(ys, pieces, T, B)
        return y, state, _Saved(pieces, saved, (T, B, I), call.reverse) if call.keep else None

    def backward(self, call: BackwardCall) -> Gradients:
        saved: _Saved = call.saved
        pieces = saved.pieces
        T, B, _ = saved.shape
        R = call.weights.w_hh.shape[1]
        dy = None if call.dy is None else call.dy.reshape(T * B, R)
        starts, ends = (pieces.after, pieces.before) if saved.reverse else (pieces.before, pieces.after)
        dstate = cut(call.dstate_n, ends)
        sums: Weights | None = None
        # A 16-bit gradient is added up in float32 here, and not in place, which would round it after every chunk.
        own_sums = call.dtype.storage.itemsize == 2
        dxs: list[Any] = [None] * len(pieces.parts)
        order = _order(len(dxs), not saved.reverse)
        for k in order:
            part = pieces.parts[k]
            of_part = call._replace(
                saved=saved.parts[k],
                dy=None if dy is None else dy.take(part.source, axis=0).reshape(part.steps, B, R),
                dstate_n=dstate,
                cache=None if own_sums else call.cache,
            )
            dxs[k], dstate, dweights = self.backend.backward(of_part)
            sums = added(sums, dweights)
            if k != order[-1]:  # the boundary between this part and the next one of the loop
                dstate = cut(dstate, pieces.parts[k + 1 if saved.reverse else k].rows())
        assert sums is not None  # there is at least one part
        dtype = call.weights.w_hh.dtype
        dx = _joined(dxs, pieces, T, B) if call.wants_dx else None
        return Gradients(dx, cut(dstate, starts), each_weight(lambda s: narrow(s, dtype), sums))

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        parts = self.pieces.parts
        steps = max(part.steps for part in parts)
        of_part = sizes._replace(T=steps, N=min(sizes.N, steps * sizes.B))
        found = self.backend.describe(cell, dtype, of_part, keep)
        gathered = steps * sizes.B * (sizes.I + sizes.R) * dtype.storage.itemsize
        how = f"in {len(parts)} chunks of at most {steps} steps, gradients of states cut between them"
        return found._replace(
            kernel=f"{found.kernel}; {how}", transient=found.transient + gathered, kept=len(parts) * found.kept
        )


def cut(dstate: State, rows: np.ndarray | None) -> State:
    """The gradients of states with zeros for `rows` (B,), on the host; None for all rows."""
    xp: Any = array_module(dstate[0])
    if rows is None:
        return tuple([xp.zeros_like(d) for d in dstate])
    if not rows.any():
        return dstate
    chosen = xp.asarray(rows[:, None])
    return tuple([xp.where(chosen, d.dtype.type(0), d) for d in dstate])


def added(sums: Weights | None, dweights: Weights) -> Weights:
    """The sums of the gradients of weights of several calls, in the dtype of the arithmetic. None: before the first."""
    return each_weight(wide, dweights) if sums is None else each_weight(lambda s, d: s + d, sums, dweights)


def _order(count: int, reverse: bool) -> range:
    return range(count - 1, -1, -1) if reverse else range(count)


def _joined(parts: list[Array], pieces: Pieces, T: int, B: int) -> Array:
    """(T, B, K) of the group from that of each part, zero where it is padding."""
    xp: Any = array_module(parts[0])
    width = parts[0].shape[2]
    flat = [a.reshape(len(a) * B, width) for a in parts]
    joined = flat[0] if len(flat) == 1 else xp.concatenate(flat)
    if not len(joined):
        return xp.zeros((T, B, width), joined.dtype)
    whole = joined.take(pieces.place, axis=0)
    if len(pieces.empty):
        whole[pieces.empty] = 0
    return whole.reshape(T, B, width)
