"""How the Numba backend divides a call over threads and lays out its workspace. Shapes alone decide, once per shape.

`estimate.py` says how long a call takes. Estimates choose between divisions, and never change a bit of a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rnnkit.backends.numba.estimate import Work, call_us, mean_rows, shared_us
from rnnkit.backends.numba.host import host
from rnnkit.backends.ragged import Packing
from rnnkit.kernels.cpu import step
from rnnkit.kernels.cpu.arguments import Shape
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.gradients import gradient_room
from rnnkit.kernels.cpu.noise import flags_of
from rnnkit.kernels.cpu.pack import padded
from rnnkit.kernels.cpu.unit_gradients import unit_gradient_room

__all__ = ["Plan", "Work", "call_us", "plan_for", "single", "threads_of"]

# Bytes of input products per thread and chunk. A chunk stays in the second-level cache beside the panel of the weights
# in use. Where W_ih and W_hh do not fit the third-level cache together, every chunk fetches W_ih again and evicts W_hh,
# so there should be few chunks.
CHUNK = 256 << 10
CHUNK_OF_LARGE = 2 << 20


class Plan(NamedTuple):
    """A division and a layout.

    groups, members  see kernels/cpu/partition.py
    rows             (groups + 1,) the first row of each group
    chunk            steps whose input products are computed at once
    words            the `Shape` as a job reads it, then `rows`
    packed           bytes of memory for packed weights
    workspace        bytes of workspace
    """

    groups: int
    members: int
    rows: np.ndarray
    chunk: int
    words: np.ndarray
    packed: int
    workspace: int


class _Layout:
    """Consecutive arrays in one block of memory, each from the start of a cache line."""

    def __init__(self) -> None:
        self.size = 0  # bytes

    def add(self, elements: int, itemsize: int) -> int:
        """Adds an array; its offset in bytes."""
        offset = self.size
        self.size += _lines(elements * itemsize)
        return offset


def divisions(work: Work, threads: int) -> Iterator[tuple[int, int]]:
    """Every (groups, members) of at most `threads` threads that is worth considering.

    No thread is without work. Of the divisions with the same largest share, only the one of fewest threads counts: so
    64 rows may be divided into 32 groups, but not into 40, where the largest group also has two rows. What fewer
    threads may do, more may do too. Rows that are normalised are not divided.
    """
    for members in [1] if work.cell.normalises else useful_shares(_whole_vectors(work), threads):
        for groups in useful_shares(min(mean_rows(work), work.B), threads // members):
            yield groups, members


def useful_shares(items: int, most: int) -> list[int]:
    """The numbers of shares up to `most` whose largest share of `items` is smaller than with one share fewer."""
    items = max(1, items)
    return [n for n in range(1, min(items, most) + 1) if n == 1 or -(-items // n) < -(-items // (n - 1))]


def _whole_vectors(work: Work) -> int:
    """The vectors of units of a row, the last of which may not be full."""
    return -(-work.H // lanes_of(work.dtype))


def division(work: Work, threads: int) -> tuple[int, int]:
    """The (groups, members) of the least estimated time."""
    return min(divisions(work, threads), key=lambda d: (shared_us(work, d[0], most_units(work, d[1]), d[1]), d))


def threads_of(work: Work, threads: int) -> int:
    """How many of `threads` threads would be used."""
    groups, members = division(work, threads)
    return groups * members


def layout(work: Work, members: int, rows: np.ndarray, backward: bool, reverse: bool, keep: bool) -> Plan:
    """The plan of a division. rows: the first row of each group, and B."""
    if single(work) and not backward:
        return _step_layout(work, members, rows, keep)
    lay_out = _backward_layout if backward else _forward_layout
    return lay_out(work, members, rows, reverse, keep)


def _forward_layout(work: Work, members: int, rows: np.ndarray, reverse: bool, keep: bool) -> Plan:
    cell, dtype, B, H, R = work.cell, work.dtype, work.B, work.H, work.R
    GH, resets = cell.n_gates * H, cell.resets_before
    form = formats(dtype)
    operand = form.operand.itemsize
    depth = form.depth
    mixed = form.mixed
    weights = _Layout()
    w_x = weights.add(padded(GH, dtype) * depth(work.I), form.word)
    gates, masks = cell.products[0][2], flags_of(cell).masks  # of the hidden product
    apart = 2 if resets else masks
    w_h = weights.add(apart * padded(gates * H // apart, dtype) * depth(R), form.word)
    second = padded(H, dtype) if resets else padded(R, dtype) if work.projected else 0
    w_p = weights.add(second * depth(H), form.word)
    workspace = _Layout()
    states = workspace.add(2 * B * R, operand)
    cells = workspace.add(B * H * cell.n_cell_states if mixed else 0, work.itemsize)
    exchanged = workspace.add(B * H if work.second_product else 0, operand)
    chunk, per_step = _chunk(work, members, rows)
    own = per_step * (chunk + (1 if cell.splits_sides or (mixed and work.projected) else 0))
    offsets = (w_x, w_h, w_p, states, cells, exchanged)
    return _plan(work, members, rows, (chunk, reverse, keep), offsets, workspace.size, own, weights.size)


def _backward_layout(work: Work, members: int, rows: np.ndarray, reverse: bool, keep: bool) -> Plan:
    cell, dtype, H, R = work.cell, work.dtype, work.H, work.R
    GH, resets, threads = cell.n_gates * H, cell.resets_before, (len(rows) - 1) * members
    form, item = formats(dtype), work.itemsize
    depth, word = form.depth, form.word
    workspace = _Layout()
    w_x = workspace.add(padded(work.I, dtype) * depth(GH), word)
    gates = cell.products[0][2]
    apart = gates if flags_of(cell).masks > 1 else 1
    w_h = workspace.add(apart * padded(R, dtype) * depth(gates * H // apart), word)
    w_p = workspace.add(padded(H, dtype) * depth(H if resets else R if work.projected else 0), word)
    states = workspace.add(work.B * R, item)
    cells = workspace.add(work.B * H * cell.n_cell_states if form.mixed else 0, item)
    exchanged = workspace.add(work.B * H if work.second_product else 0, item)
    own = gradient_room(work.N, -(-GH // threads), (work.I, R, H), dtype)
    own = max(own, unit_gradient_room(cell, H, threads, lanes_of(dtype)))
    chunk, _ = _chunk(work, members, rows)
    offsets = (w_x, w_h, w_p, states, cells, exchanged)
    return _plan(work, members, rows, (chunk, reverse, keep), offsets, workspace.size, own, 0)


def _step_layout(work: Work, members: int, rows: np.ndarray, keep: bool) -> Plan:
    """For kernels/cpu/step.py, which packs no weights: gates of one vector of units for some rows, and r h'."""
    own = min(work.B, step.AT_ONCE) * 2 * work.cell.n_gates * lanes_of(work.dtype)
    exchanged = work.B * work.H if work.cell.resets_before and not keep else 0
    size = _lines(exchanged * formats(work.dtype).operand.itemsize)
    return _plan(work, members, rows, (1, False, keep), (0, 0, 0, 0, 0, 0), size, own, 0)


def _plan(
    work: Work,
    members: int,
    rows: np.ndarray,
    how: tuple[int, bool, bool],
    offsets: tuple[int, int, int, int, int, int],
    size: int,
    own: int,
    packed: int,
) -> Plan:
    """A plan whose threads each have `own` elements after the `size` bytes that they share. how: chunk, reverse,
    keep."""
    groups, (chunk, reverse, keep) = len(rows) - 1, how
    own_size = _lines(own * work.itemsize)
    w_x, w_h, w_p, states, cells, exchanged = offsets
    shape = Shape(
        T=work.T,
        B=work.B,
        I=work.I,
        H=work.H,
        R=work.R,
        N=work.N,
        chunk=chunk,
        groups=groups,
        members=members,
        reverse=reverse,
        keep=keep,
        w_x=w_x,
        w_h=w_h,
        w_p=w_p,
        states=states,
        cells=cells,
        exchanged=exchanged,
        own=size,
        own_size=own_size,
    )
    words = np.array([*shape, *rows], np.int64)
    return Plan(groups, members, rows, chunk, words, packed, size + groups * members * own_size)


def _chunk(work: Work, members: int, rows: np.ndarray) -> tuple[int, int]:
    """Steps of a chunk, and elements of a thread's gates per step."""
    per_step = int(np.diff(rows).max()) * work.cell.n_gates * most_units(work, members)
    weights = work.cell.n_gates * work.H * (work.I + work.R) * work.weight_size
    size = CHUNK if weights <= host().shared_bytes else CHUNK_OF_LARGE
    return max(1, min(work.T, size // max(1, per_step * work.itemsize))), per_step


def most_units(work: Work, members: int) -> int:
    """The most units that a member has, where `first_unit` of kernels/cpu/rows.py divides them."""
    whole, lanes = _whole_vectors(work), lanes_of(work.dtype)
    firsts = [whole * k // members * lanes for k in range(members)]
    return max(end - first for first, end in pairwise([*firsts, work.H]))


def lanes_of(dtype: str) -> int:
    """How many units a vector has."""
    return int(formats(dtype).computed.lanes)


def _lines(size: int) -> int:
    """A size in bytes, in whole cache lines."""
    return -(-size // 64) * 64


def single(work: Work) -> bool:
    """Whether a forward is one step by itself, for kernels/cpu/step.py."""
    return work.T == 1 and not (work.projected or work.cell.normalises or flags_of(work.cell).any)


def plan_for(work: Work, p: Packing, threads: int, backward: bool, reverse: bool, keep: bool) -> Plan:
    """The plan of a call on `threads` threads. The groups of a ragged batch have about equal numbers of row-steps."""
    groups, members = division(work, threads) if threads > 1 else (1, 1)
    rows = np.array(p.bounds(groups), np.int64)
    return layout(work, members, rows, backward, reverse, keep)
