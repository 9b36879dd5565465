"""How long a call takes on this processor, estimated from its shapes: the rates, and the model that uses them."""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.core.cells import Cell
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.simd import vector_bytes

# FLOP per microsecond of one core in float32, by the bytes of its vectors: one multiply-add per cycle of 64 bytes, two
# of 32 bytes.
FLOP_US = {64: 112e3, 32: 100e3, 16: 25e3}
# (size, rate): one core reads weights of up to `size` bytes at `rate` bytes per microsecond. The sizes are the caches'.
STREAM = ((24 << 10, 200e3), (768 << 10, 110e3), (20 << 20, 80e3), (1 << 62, 28e3))
# The shorter of the arithmetic and the stream of weights hides behind the longer one: all of it up to three quarters of
# the longer one; where they are equal, this share of it does not.
NOT_HIDDEN = 0.2
# A barrier of the members of a group, which arrive at slightly different times.
BARRIER_US = 0.3
# The pointwise part of one vector of 64 bytes of units.
VECTOR_US = 0.02


class Work(NamedTuple):
    """A call as estimates and plans see it. R is P under projection, else H; N is the number of row-steps; dtype is the
    name of a format of kernels/cpu/formats.py."""

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
        """Bytes of a computed number: a sum, or a cell state."""
        return int(formats(self.dtype).computed.itemsize)

    @property
    def weight_size(self) -> int:
        """Bytes of a packed weight."""
        form = formats(self.dtype)
        return form.word // 2 if form.paired else form.word

    @property
    def second_product(self) -> bool:
        """Whether a step has a second product, whose operand the first stage computes."""
        return self.projected or self.cell.resets_before

    @property
    def barriers(self) -> int:
        """Barriers per step that cost time. In a reset-before GRU, computing z hides one of two."""
        return 2 if self.projected else 1


def step_us(work: Work, groups: int, units: int, members: int) -> float:
    """Microseconds of one forward step; units: the most that one of the members has."""
    rows = -(-work.N // max(1, work.T)) / groups
    width, gates = work.itemsize / 4, work.cell.n_gates
    flop = 2 * rows * gates * units * work.R
    if work.projected:
        flop += 2 * rows * work.H * work.R / members
    weights = gates * units * work.R * work.weight_size
    arithmetic = width * flop / _flop_us(work)
    stream = weights / _rate(weights)
    longer, shorter = max(arithmetic, stream), min(arithmetic, stream)
    time = longer + NOT_HIDDEN * max(0.0, 4 * shorter - 3 * longer)
    time += VECTOR_US * width * rows * gates * units / 64
    return time + (BARRIER_US * work.barriers if members > 1 else 0)


def input_us(work: Work) -> float:
    """Microseconds of the input's product on one thread. The threads share it evenly."""
    width, gates = work.itemsize / 4, work.cell.n_gates
    weights = gates * work.H * work.I * work.weight_size
    time = width * 2 * work.N * gates * work.H * work.I / _flop_us(work)
    return max(time, weights / _rate(weights)) if work.T == 1 else time


def shared_us(work: Work, groups: int, units: int, members: int) -> float:
    """Microseconds of a forward call; units: the most that one of the members has."""
    return work.T * step_us(work, groups, units, members) + input_us(work) / (groups * members)


def call_us(work: Work) -> float:
    """Microseconds of a forward call on one thread."""
    return shared_us(work, 1, work.H, 1)


def _flop_us(work: Work) -> float:
    """FLOP per microsecond of one core, as if all numbers had 32 bits."""
    return (2 if formats(work.dtype).dots else 1) * FLOP_US[vector_bytes()]


def _rate(size: float) -> float:
    return next(rate for most, rate in STREAM if size <= most)
