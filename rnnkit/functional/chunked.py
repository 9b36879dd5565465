"""A layer and direction in chunks of steps: truncated backpropagation through time, and a bound on what is saved.

`Chunked` is a backend that runs another one chunk by chunk, and hands the states from each chunk to the next. So every
backend, direction and stack is served, and no kernel knows of it.

Truncated backpropagation (Williams and Peng, Neural Computation 2, 1990): the state is carried from chunk to chunk, its
gradient is not. Recomputation (Chen et al., arXiv 1604.06174): only the states between chunks are saved, and backward
runs the forward of a chunk again before its backward. Its results are those of the whole sequence, up to rounding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import BackwardCall, Choice, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.backends.interface import Backend
from rnnkit.core import checks
from rnnkit.core.cells import Cell, State, Weights, each_weight
from rnnkit.core.devices import array_module
from rnnkit.core.dtypes import DType
from rnnkit.core.mixed_precision import narrow
from rnnkit.functional.gates import Decision, gates_of
from rnnkit.functional.segments import Group, Segments
from rnnkit.functional.truncated import Truncated, added, cut, pieces_of


class Chunks(NamedTuple):
    """How a call is cut: the steps of a chunk, whether gradients of states are cut between chunks, and whether backward
    runs the forward of each chunk again instead of saving what it needs."""

    steps: int
    cuts: bool
    recomputes: bool

    def applied(self, choice: Choice) -> Choice:
        """The choice with its backend run in these chunks."""
        return choice._replace(backend=Chunked(choice.backend, self))


class ChunkArguments(NamedTuple):
    """The arguments of a call that say what it saves for backward, as they were given, unchecked."""

    truncate: Any
    max_saved_bytes: Any
    recompute_gates: Any = None

    def with_gates(
        self,
        choice: Choice,
        cell: Cell,
        sizes: Sizes,
        layers: int,
        directions: int,
        keep: bool,
        segments: Segments | None,
    ) -> tuple[Choice, Decision | None]:
        """The choice with the backend that saves the gates or computes them again, and why: see `gates_of`.

        The arguments are those of `applied` and `of_groups`.
        """
        most = None if self.max_saved_bytes is None else checks.positive_int("max_saved_bytes", self.max_saved_bytes)

        def saved(one: Choice) -> int:
            if segments is None:
                return whole_bytes(one, cell, sizes, layers, directions)
            return whole_group_bytes(one, cell, sizes, layers, directions, segments)

        found, decision = gates_of(choice, cell, sizes, layers, directions, self.recompute_gates, most, saved)
        return (found, decision) if keep else (choice, None)

    def applied(self, choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int, keep: bool) -> Choice:
        """Checks them, and returns the choice for a call with them: the same one where the call is the plain one.

        sizes: of the first layer. keep: whether the call saves for backward. Raises ValueError or TypeError that name
        the argument.
        """
        truncate, most = self._checked()
        if truncate is not None:
            return Chunks(truncate, cuts=True, recomputes=False).applied(choice) if keep else choice
        if most is None:
            return choice
        chunks = chunks_within(choice, cell, sizes, layers, directions, most)
        return choice if chunks is None or not keep else chunks.applied(choice)

    def of_groups(
        self, choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int, keep: bool, segments: Segments
    ) -> list[Choice]:
        """As `applied`, for each group of segments of a call with resets or a mask; with their spans, to truncate."""
        truncate, most = self._checked()
        count = len(segments.groups)
        if truncate is not None:
            return [_truncated(choice, group, sizes.B, truncate) if keep else choice for group in segments.groups]
        if most is None:
            return [choice] * count
        chunks = group_chunks_within(choice, cell, sizes, layers, directions, segments, most)
        return [choice] * count if chunks is None or not keep else [one.applied(choice) for one in chunks]

    def _checked(self) -> tuple[int | None, int | None]:
        truncate, most, _ = self
        if truncate is not None and most is not None:
            raise ValueError(f"max_saved_bytes must be None with truncate, got {most!r}")
        return (
            None if truncate is None else checks.positive_int("truncate", truncate),
            None if most is None else checks.positive_int("max_saved_bytes", most),
        )


def _truncated(choice: Choice, group: Group, B: int, k: int) -> Choice:
    """The choice for a group of segments, whose boundaries are those of the caller's time. B: rows of the caller."""
    if group.source is None:
        return Chunks(k, cuts=True, recomputes=False).applied(choice)
    return choice._replace(backend=Truncated(choice.backend, pieces_of(group, B, k)))


class _Saved(NamedTuple):
    """The forward call, and for each chunk in the order of the pass its initial state, or what the backend saved."""

    call: LayerCall
    parts: list[Any]


class Chunked:
    """A backend of BACKENDS in chunks: see rnnkit/backends/interface.py."""

    def __init__(self, backend: Backend, chunks: Chunks) -> None:
        self.backend = backend
        self.chunks = chunks

    def forward(self, call: LayerCall) -> Forward:
        T, B, _ = call.x.shape
        xp: Any = array_module(call.state0[0])
        y = xp.empty((T, B, call.weights.w_hh.shape[1]), call.x.dtype) if call.out is None else call.out
        keep = call.keep and not self.chunks.recomputes
        state = call.state0
        parts = []
        for t0, t1 in self._spans(T, call.reverse):
            out = y[t0:t1]
            found, end, own = self.backend.forward(_part(call, t0, t1, state)._replace(out=out, keep=keep))
            if found is not out:
                out[...] = found
            parts.append(own if keep else state)
            state = end
        return y, state, _Saved(call._replace(out=None), parts) if call.keep else None

    def backward(self, call: BackwardCall) -> Gradients:
        saved: _Saved = call.saved
        whole = saved.call
        xp: Any = array_module(whole.state0[0])
        dx = xp.empty(whole.x.shape, whole.x.dtype) if call.wants_dx else None
        dstate = call.dstate_n
        sums: Weights | None = None
        # A 16-bit gradient is added up in float32 here, and not in place, which would round it after every chunk.
        own_sums = call.dtype.storage.itemsize == 2
        spans = self._spans(len(whole.x), whole.reverse)
        for k in reversed(range(len(spans))):
            t0, t1 = spans[k]
            part = saved.parts[k]
            if self.chunks.recomputes:
                _, _, part = self.backend.forward(_part(whole, t0, t1, part)._replace(out=None))
            of_chunk = call._replace(
                saved=part,
                dy=None if call.dy is None else call.dy[t0:t1],
                dstate_n=dstate,
                cache=None if own_sums else call.cache,
            )
            dx_of_chunk, dstate, dweights = self.backend.backward(of_chunk)
            if dx is not None:
                dx[t0:t1] = dx_of_chunk
            sums = added(sums, dweights)
            if self.chunks.cuts and k:
                dstate = _cut(dstate, whole.lengths, t1 if whole.reverse else t0)
        assert sums is not None  # there is at least one chunk
        dtype = call.weights.w_hh.dtype
        return Gradients(dx, dstate, each_weight(lambda s: narrow(s, dtype), sums))

    def describe(self, cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
        steps, cuts, recomputes = self.chunks
        steps = max(1, min(steps, sizes.T))
        count = max(1, -(-sizes.T // steps))
        of_chunk = sizes._replace(T=steps, N=min(sizes.N, steps * sizes.B))
        found = self.backend.describe(cell, dtype, of_chunk, keep and not recomputes)
        kept = count * (_state_bytes(cell, dtype, sizes) if recomputes else found.kept) if keep else 0
        how = ", run again in backward" if recomputes else ""
        how += ", gradients of states cut between them" if cuts else ""
        return found._replace(kernel=f"{found.kernel}; in {count} chunks of {steps} steps{how}", kept=kept)

    def _spans(self, T: int, reverse: bool) -> list[tuple[int, int]]:
        """Time steps [t0, t1) of each chunk, in the order of the forward pass."""
        steps = self.chunks.steps
        spans = [(t, min(T, t + steps)) for t in range(0, max(T, 1), steps)]
        return spans[::-1] if reverse else spans


def _part(call: LayerCall, t0: int, t1: int, state: State) -> LayerCall:
    lengths = None if call.lengths is None else np.clip(call.lengths - t0, 0, t1 - t0)
    noise = None if call.noise is None else call.noise._replace(t0=t0)
    return call._replace(x=call.x[t0:t1], state0=state, lengths=lengths, reserve=None, noise=noise)


def _cut(dstate: State, lengths: np.ndarray | None, t: int) -> State:
    """Zero for the rows that continue across the boundary at step t: all, or those that are longer than t."""
    return cut(dstate, None if lengths is None else lengths > t)


def _state_bytes(cell: Cell, dtype: DType, sizes: Sizes) -> int:
    return sizes.B * sum(cell.state_widths(sizes.R, sizes.H)) * dtype.storage.itemsize


def chunks_within(choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int, most: int) -> Chunks | None:
    """The largest chunks with which a call saves at most `most` bytes; None if the whole sequence fits.

    Counted are the states between chunks, the outputs of all layers but the last, and what backward recomputes of one
    chunk at a time. sizes: of the first layer.

    Raises:
        ValueError: every size of chunks would save more.
    """
    T = sizes.T
    kept, between = _layer_bytes(choice, cell, sizes, layers, directions)
    if between + directions * (kept[0] + (layers - 1) * kept[-1]) <= most:
        return None
    # With k steps a chunk, at most (T / k + 1) states and k per_step are saved. The largest k is a root of a quadratic.
    states = layers * directions * _state_bytes(cell, choice.dtype, sizes)
    per_step = max(1, -(-max(kept) // max(1, T)))
    fewest = max(1.0, math.sqrt(T * states / per_step))
    least = math.ceil(between + states + T * states / fewest + fewest * per_step)
    if most < least:
        raise ValueError(f"max_saved_bytes must be at least {least:,} for this call, got {most:,}")
    free = most - between - states
    root = math.sqrt(max(0, free * free - 4 * per_step * T * states))
    return Chunks(min(T, int((free + root) / (2 * per_step))), cuts=False, recomputes=True)


def whole_bytes(choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int) -> int:
    """What `chunks_within` counts of a call without chunks."""
    kept, between = _layer_bytes(choice, cell, sizes, layers, directions)
    return between + directions * (kept[0] + (layers - 1) * kept[-1])


def _layer_bytes(choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int) -> tuple[list[int], int]:
    """What a direction of the first layer and of a layer above it saves, and the outputs of all layers but the last."""
    T, B, I, _, R, _ = sizes
    widths = (I, directions * R)[: min(layers, 2)]
    kept = [choice.backend.describe(cell, choice.dtype, sizes._replace(I=width), True).kept for width in widths]
    return kept, (layers - 1) * T * B * directions * R * choice.dtype.storage.itemsize


def group_chunks_within(
    choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int, segments: Segments, most: int
) -> list[Chunks] | None:
    """As `chunks_within`, of a call with resets or a mask: the chunks of each group, or None if the whole call fits.

    Groups run one after the other, so what backward computes again is counted of one chunk of one group. Counted too
    are the tables of the segments, the states of all segments, and the steps of x that are gathered: all of them in a
    call without chunks, else those of one chunk.
    """
    if whole_group_bytes(choice, cell, sizes, layers, directions, segments) <= most:
        return None
    groups = [_group_sizes(choice, cell, sizes, layers, directions, group) for group in segments.groups]
    fixed = segments.nbytes + sum(g.between for g in groups)
    states = layers * directions * _state_bytes(cell, choice.dtype, sizes._replace(B=1))

    def saved(each: int) -> int:
        """The bytes that a call saves whose chunks are computed again in `each` bytes."""
        between = sum(states * g.rows * -(-g.steps // g.chunk(each)) for g in groups)
        return fixed + between + max(min(g.steps, g.chunk(each)) * g.per_step for g in groups)

    found = []
    each = max(1, *(g.per_step for g in groups))
    end = max(each, *(g.steps * g.per_step for g in groups))
    while each <= end * STEP_UP:
        found.append((saved(each), each))
        each = math.ceil(each * STEP_UP)
    fitting = [each for size, each in found if size <= most]
    if not fitting:
        least = min(size for size, _ in found)
        raise ValueError(f"max_saved_bytes must be at least {least:,} for this call, got {most:,}")
    return [Chunks(max(1, min(g.steps, g.chunk(fitting[-1]))), cuts=False, recomputes=True) for g in groups]


def whole_group_bytes(
    choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int, segments: Segments
) -> int:
    """What `group_chunks_within` counts of a call without chunks."""
    groups = [_group_sizes(choice, cell, sizes, layers, directions, group) for group in segments.groups]
    states = layers * directions * segments.total * _state_bytes(cell, choice.dtype, sizes._replace(B=1))
    return segments.nbytes + states + sum(g.between + g.kept + g.steps * g.gathered for g in groups)


# Sizes of chunks that `group_chunks_within` tries are this factor apart.
STEP_UP = 1.1


class _GroupSizes(NamedTuple):
    """A group of segments: its steps and rows, and in bytes what a step of it gathers, what is saved of a step (with
    what is gathered), what a call without chunks saves in all layers and directions, and the outputs between layers."""

    steps: int
    rows: int
    gathered: int
    per_step: int
    kept: int
    between: int

    def chunk(self, each: int) -> int:
        """The most steps whose chunk is saved in `each` bytes."""
        return max(1, each // self.per_step)


def _group_sizes(choice: Choice, cell: Cell, sizes: Sizes, layers: int, directions: int, group: Group) -> _GroupSizes:
    item = choice.dtype.storage.itemsize
    T, B = group.steps, group.last - group.first
    width = directions * sizes.R
    gathered = 0 if group.source is None else B * sizes.I * item
    N = T * B if group.lengths is None else int(group.lengths.sum())
    # All rows are live in the first chunk. One step less than all says that there are lengths.
    full = T * B - (group.lengths is not None and T > 0)
    kept, most = (
        [
            choice.backend.describe(cell, choice.dtype, sizes._replace(T=T, B=B, N=count, I=I), True).kept
            for I in (sizes.I, width)[: min(layers, 2)]
        ]
        for count in (N, full)
    )
    return _GroupSizes(
        steps=T,
        rows=B,
        gathered=gathered,
        per_step=max(1, -(-max(most) // max(1, T))) + gathered,
        kept=directions * (kept[0] + (layers - 1) * kept[-1]),
        between=(layers - 1) * T * B * width * item,
    )
