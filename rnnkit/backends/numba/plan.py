"""How the Numba backend divides a call over threads and lays out its scratch memory: decided from shapes alone, once.

The table below holds what the decisions rest on. They are guesses of time, and never change a bit of a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rnnkit.backends.ragged import Packing, clear_packing_cache
from rnnkit.core.cells import Cell
from rnnkit.kernels.cpu import step
from rnnkit.kernels.cpu.arguments import Shape
from rnnkit.kernels.cpu.matmul_large import scratch_elements
from rnnkit.kernels.cpu.pack import padded
from rnnkit.kernels.cpu.simd import vector_bytes, vectors

# One core's FLOP a microsecond in float32, by the width of its vectors: a multiply-add a cycle of 64 bytes, two of 32.
FLOP_US = {64: 112e3, 32: 100e3, 16: 25e3}
# How fast weights of up to so many bytes come, bytes a microsecond for one core: the caches' and the memory's rates. Of
# the arithmetic and the stream the shorter hides behind the longer, all of it up to three quarters of that; where they
# are equal, so much of it shows.
NOT_HIDDEN = 0.2
STREAM = ((24 << 10, 200e3), (768 << 10, 110e3), (20 << 20, 80e3), (1 << 62, 28e3))
# A meeting of the members of a group, which come at slightly different times; the cell on one vector of units.
MEETING_US, VECTOR_US = 0.3, 0.02
# The input's products are computed so many bytes at a time for each thread, by the bytes of the weights: what stays in
# its second-level cache beside the weights' panel in use; but where W_ih and W_hh do not fit the last cache together,
# every chunk fetches W_ih anew and drives W_hh out, and there should be few.
CHUNKS = ((20 << 20, 256 << 10), (1 << 62, 2 << 20))


class Work(NamedTuple):
    """What a plan is made from. R is P under projection, else H; N the number of row-steps."""

    cell: Cell
    dtype: str
    T: int
    B: int
    I: int
    H: int
    R: int
    N: int
    projected: bool

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 8

    @property
    def gates(self) -> int:
        """G."""
        return self.cell.n_gates

    @property
    def second_product(self) -> bool:
        """Whether a step has a second product, of an operand that the first one leads to."""
        return self.projected or self.cell.resets_before

    @property
    def barriers(self) -> int:
        """Barriers per step that cost time. In a reset-before GRU, computing z hides one of two."""
        return 2 if self.projected else 1


class Plan(NamedTuple):
    """groups and members (kernels/cpu/partition.py), the bounds of the groups' rows (groups + 1,), steps of a chunk.

    words: the `Shape` as a job reads it, then `rows`. packed, scratch: bytes of memory for packed weights and of
    scratch memory.
    """

    groups: int
    members: int
    rows: np.ndarray
    chunk: int
    words: np.ndarray
    packed: int
    scratch: int


def step_us(work: Work, groups: int, members: int) -> float:
    """Guessed microseconds of one forward step, shared so."""
    rows = -(-work.N // max(1, work.T)) / groups
    units, width = max(_share(work.H, members, work.dtype)), work.itemsize / 4
    flop = 2 * rows * work.gates * units * work.R + (2 * rows * work.H * work.R / members if work.projected else 0)
    weights = work.gates * units * work.R * work.itemsize
    arithmetic, stream = width * flop / FLOP_US[vector_bytes()], weights / _rate(weights)
    longer, shorter = max(arithmetic, stream), min(arithmetic, stream)
    time = longer + NOT_HIDDEN * max(0.0, 4 * shorter - 3 * longer)
    time += VECTOR_US * width * rows * work.gates * units / 64
    return time + (MEETING_US * work.barriers if members > 1 else 0)


def input_us(work: Work) -> float:
    """Guessed microseconds of the input's product, which all threads share evenly, on one."""
    width, weights = work.itemsize / 4, work.gates * work.H * work.I * work.itemsize
    time = width * 2 * work.N * work.gates * work.H * work.I / FLOP_US[vector_bytes()]
    return max(time, weights / _rate(weights)) if work.T == 1 else time


def shared_us(work: Work, groups: int, members: int) -> float:
    """Guessed microseconds of a forward call, shared so."""
    return work.T * step_us(work, groups, members) + input_us(work) / (groups * members)


@lru_cache(4096)
def call_us(work: Work) -> float:
    """Guessed microseconds of a forward call on one thread."""
    return shared_us(work, 1, 1)


def _rate(size: float) -> float:
    return next(rate for most, rate in STREAM if size <= most)


def divisions(work: Work, threads: int) -> Iterator[tuple[int, int]]:
    """Every (groups, members) of at most `threads` threads, all of which have work."""
    whole_vectors = max(1, work.H // vectors(work.dtype).lanes)
    for members in range(1, min(threads, whole_vectors) + 1):
        yield max(1, min(threads // members, work.B)), members


@lru_cache(4096)
def division(work: Work, threads: int) -> tuple[int, int]:
    """(groups, members) of the least guessed time."""
    return min(divisions(work, threads), key=lambda d: (shared_us(work, *d), d))


def threads_of(work: Work, threads: int) -> int:
    """How many of so many threads would be used."""
    groups, members = division(work, threads)
    return groups * members


def layout(work: Work, members: int, rows: np.ndarray, backward: bool, reverse: bool, keep: bool) -> Plan:
    """The plan of a division, and where everything stands in memory. rows: the bounds of the groups' rows."""
    if single(work) and not backward:
        return _step_layout(work, members, rows, keep)
    cell, dtype, T, B, I, H, R, N, projected = work
    G, item, at, places = cell.n_gates, work.itemsize, 0, []

    def place(elements: int) -> None:
        nonlocal at
        places.append(at)
        at += _lines(elements * item)

    GH, resets, most_rows, groups = G * H, cell.resets_before, int(np.diff(rows).max()), len(rows) - 1
    share = max(_share(H, members, dtype))
    chunk_bytes = next(size for most, size in CHUNKS if GH * (I + R) * item <= most)
    chunk = max(1, min(T, chunk_bytes // max(1, most_rows * G * share * item)))
    packed = 0
    if backward:
        place(padded(I, dtype) * GH)
        place(padded(R, dtype) * (2 * H if resets else GH))
        place(padded(H, dtype) * (H if resets else R if projected else 0))
        place(B * R)
        own = scratch_elements(N, -(-GH // (groups * members)), max(I, R, H), dtype)
    else:
        place(padded(GH, dtype) * I)
        place(2 * padded(H, dtype) * H if resets else padded(GH, dtype) * R)
        place(padded(H, dtype) * H if resets else padded(R, dtype) * H if projected else 0)
        packed, at = at, 0
        place(2 * B * R)
        own = most_rows * G * share * (chunk + (1 if cell.splits_sides else 0))
    place(B * H if work.second_product else 0)
    own_size = _lines(own * item)
    numbers = Shape._make([T, B, I, H, R, N, chunk, groups, members, reverse, keep, *places, at, own_size])
    scratch = at + groups * members * own_size
    return Plan(groups, members, rows, chunk, np.array([*numbers, *rows], np.int64), packed, scratch)


def _step_layout(work: Work, members: int, rows: np.ndarray, keep: bool) -> Plan:
    """The same for kernels/cpu/step.py, which packs nothing: of some rows the gates of a vector of units; and r h'."""
    cell, dtype, T, B, I, H, R, N, _ = work
    groups, exchanged = len(rows) - 1, cell.resets_before and not keep
    own = _lines(min(B, step.AT_ONCE) * 2 * cell.n_gates * vectors(dtype).lanes * work.itemsize)
    at = _lines((B * H if exchanged else 0) * work.itemsize)
    numbers = Shape(T, B, I, H, R, N, 1, groups, members, False, keep, 0, 0, 0, 0, 0, at, own)
    return Plan(groups, members, rows, 1, np.array([*numbers, *rows], np.int64), 0, at + groups * members * own)


def _lines(size: int) -> int:
    """A size in bytes, in whole cache lines."""
    return -(-size // 64) * 64


def _share(width: int, members: int, dtype: str) -> list[int]:
    """How many of `width` units each member has, as `first_unit` of kernels/cpu/rows.py divides them."""
    lanes = vectors(dtype).lanes
    return [b - a for a, b in pairwise([*(width * k // members // lanes * lanes for k in range(members)), width])]


def single(work: Work) -> bool:
    """Whether a forward is one step by itself (kernels/cpu/step.py)."""
    return work.T == 1 and not work.projected


@lru_cache(512)
def _whole_plan(work: Work, threads: int, backward: bool, reverse: bool, keep: bool) -> Plan:
    groups, members = division(work, threads) if threads > 1 else (1, 1)
    rows = np.array([work.B * k // groups for k in range(groups + 1)], np.int64)
    return layout(work, members, rows, backward, reverse, keep)


def plan_for(work: Work, p: Packing, threads: int, backward: bool, reverse: bool, keep: bool) -> Plan:
    """The plan of a call on so many threads. Ragged rows are divided into about equal numbers of steps."""
    if p.order is None or (single(work) and not backward):
        return _whole_plan(work, threads, backward, reverse, keep)
    key = work, threads, backward, reverse, keep
    plan = p.plans.get(key)
    if plan is None:
        groups, members = division(work, threads) if threads > 1 else (1, 1)
        rows = np.array(p.bounds(groups), np.int64)
        plan = p.plans[key] = layout(work, members, rows, backward, reverse, keep)
    return plan


def forget() -> None:
    """Plans are made anew from here on."""
    clear_packing_cache()
    _whole_plan.cache_clear()
