"""How long a call takes on this processor, estimated from its shapes: the model that uses the rates of host.py."""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.backends.numba.host import host
from rnnkit.core.cells import Cell
from rnnkit.kernels.cpu.formats import formats

# The shorter of the arithmetic and the stream of weights hides behind the longer one: all of it up to three quarters of
# the longer one; where they are equal, this share of it does not.
NOT_HIDDEN = 0.2
# A barrier of the members of a group, which arrive at slightly different times and add to one counter. Measured for two
# members; that it grows with them is assumed.
BARRIER_US = 0.2
BARRIER_MEMBER_US = 0.05
# What each thread of a job costs: a ready check, the start and the end. Assumed.
THREAD_US = 0.1
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
    # The rows of the largest group. In a ragged batch they change from step to step, so their mean is used.
    rows = -(-work.B // groups) if work.N == work.T * work.B else mean_rows(work) / groups
    width, gates = work.itemsize / 4, work.cell.n_gates
    flop = 2.0 * rows * gates * units * work.R
    if work.projected:
        flop += 2 * rows * work.H * work.R / members
    per_unit = gates * work.R * work.weight_size  # bytes of weights
    arithmetic = width * flop / _flop_us(work)
    stream = host().read_us(per_unit * units, per_unit * work.H)
    longer, shorter = max(arithmetic, stream), min(arithmetic, stream)
    time = longer + NOT_HIDDEN * max(0.0, 4 * shorter - 3 * longer)
    time += VECTOR_US * width * rows * gates * units / 64
    return time + (work.barriers * (BARRIER_US + BARRIER_MEMBER_US * members) if members > 1 else 0)


def mean_rows(work: Work) -> int:
    """The rows of a mean step, rounded up."""
    return -(-work.N // max(1, work.T))


def input_us(work: Work) -> float:
    """Microseconds of the input's product on one thread. The threads share it evenly."""
    width, gates = work.itemsize / 4, work.cell.n_gates
    weights = gates * work.H * work.I * work.weight_size
    time = width * 2 * work.N * gates * work.H * work.I / _flop_us(work)
    return max(time, host().read_us(weights, weights)) if work.T == 1 else time


def shared_us(work: Work, groups: int, units: int, members: int) -> float:
    """Microseconds of a forward call; units: the most that one of the members has."""
    threads = groups * members
    time = work.T * step_us(work, groups, units, members) + input_us(work) / threads
    return time + (THREAD_US * threads if threads > 1 else 0)


def call_us(work: Work) -> float:
    """Microseconds of a forward call on one thread."""
    return shared_us(work, 1, work.H, 1)


def _flop_us(work: Work) -> float:
    """FLOP per microsecond of one core, as if all numbers had 32 bits."""
    return (2 if formats(work.dtype).dots else 1) * host().flop
