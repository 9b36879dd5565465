"""Problem: one layer-direction as a schedule sees it. Sizes, how ragged rows are stored, and chunks of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.interface import LayerCall
from rnnkit.backends.ragged import Packing, packing
from rnnkit.core.cells import Cell
from rnnkit.core.dtypes import DType

# A chunk of steps has its pre-activations computed at once, walks, and in backward has its weight gradients added at
# once: so work space does not grow with T, and what one product writes is still in the L2 cache when the steps read
# it. It is also what one CUDA graph holds.
CHUNK_BYTES, CHUNK_STEPS = 32 << 20, 256

# Fewer steps than this are no chunk, however large: adding up the weights' gradients would cost as much as the steps.
FEWEST_STEPS = 16

# A weight's gradient is a product over all steps, which cuBLAS may sum in one chain of additions. So it is computed in
# slices of at most this many steps, which are added without loss (LongSum of kernels/cuda/rows.cuh). Writing and
# reading them is predicted to take 4% of a backward on an H100 at H = 512. One chain of 512 equal terms is off by up to
# 512 / 4 * 2^-24 of itself: 7.6e-6. The long slices are for dtypes whose products are faster or of which less is
# promised.
SLICE_ROWS, LONG_SLICE_ROWS = 512, 16384

# What the slices that one batched product writes take at most, unless one is larger.
SLICE_BYTES = 32 << 20


class Step(NamedTuple):
    """One step of a chunk: its time step and first live step, from the chunk's, and how many rows are live."""

    t: int
    n: int
    rows: int


@lru_cache(maxsize=16)
def _packing(T: int, B: int, lengths: bytes) -> Packing:
    """The packing of ragged rows, made once for the layers and directions that share them; lengths as int64."""
    return packing(T, B, np.frombuffer(lengths, np.int64))


@dataclass(frozen=True)
class Chunk:
    """Time steps [t0, t0 + T): live steps [n0, n0 + N) in storage. `key` is equal where `steps` are."""

    t0: int
    T: int
    n0: int
    N: int
    key: Any
    packing: Packing
    descending: bool

    def steps(self, backward: bool = False) -> Iterator[Step]:
        """The steps with live rows, in the order of the scan, or of its way back."""
        times = range(self.t0, self.t0 + self.T)
        for t in reversed(times) if self.descending != backward else times:
            rows = int(self.packing.counts[t])
            if rows:
                yield Step(t - self.t0, int(self.packing.offsets[t]) - self.n0, rows)


@dataclass(frozen=True)
class Problem:
    """Sizes of one layer-direction; R = P under projection, else H. N is packing.steps."""

    cell: Cell
    dtype: DType
    T: int
    B: int
    I: int
    H: int
    R: int
    projected: bool
    reverse: bool
    packing: Packing

    @classmethod
    def of(cls, call: LayerCall) -> Problem:
        """The problem of a forward call."""
        cell, weights, lengths = call.cell, call.weights, call.lengths
        T, B, I = call.x.shape
        GH, R = weights.w_hh.shape
        stored = packing(T, B, None) if lengths is None else _packing(T, B, lengths.tobytes())
        projected = weights.w_hr is not None
        return cls(cell, call.dtype, T, B, I, GH // cell.n_gates, R, projected, call.reverse, stored)

    @property
    def GH(self) -> int:
        return self.cell.n_gates * self.H

    @property
    def N(self) -> int:
        return self.packing.steps

    @property
    def two_states(self) -> bool:
        return self.cell.has_c

    @property
    def ragged(self) -> bool:
        return self.packing.order is not None

    @property
    def stored(self) -> int:
        """Bytes of a number as arrays hold it."""
        return self.dtype.storage.itemsize

    @property
    def computed(self) -> int:
        """Bytes of a number of the arithmetic."""
        return self.dtype.compute.itemsize

    @cached_property
    def chunk_steps(self) -> int:
        """Steps of a chunk: as many as fit, in chunks of about one length."""
        fit = CHUNK_BYTES // max(1, self.B * self.GH * self.computed)
        most = min(CHUNK_STEPS, max(fit, FEWEST_STEPS))
        chunks = max(1, -(-self.T // most))
        return max(1, -(-self.T // chunks))

    @property
    def chunk_rows(self) -> int:
        """The most live steps a chunk can have."""
        return self.chunk_steps * self.B

    @property
    def slice_rows(self) -> int:
        """The most steps that one product sums."""
        return SLICE_ROWS if self.dtype.name == "float32" else LONG_SLICE_ROWS

    @property
    def sums_in_place(self) -> bool:
        """Whether a weight's gradient is one slice, which products write where it is to be, chunk by chunk."""
        return self.slice_rows >= self.N and self.stored == self.computed

    def slices_at_once(self, elements: int) -> int:
        """How many slices of a gradient with this many elements one batched product writes."""
        return max(1, SLICE_BYTES // max(1, elements * self.computed))

    def chunks(self, backward: bool = False) -> Iterator[Chunk]:
        """The chunks with live steps, in the order of the scan, or of its way back."""
        S, p = self.chunk_steps, self.packing
        starts = range(0, self.T, S)
        for t0 in reversed(starts) if self.reverse != backward else starts:
            t1 = min(self.T, t0 + S)
            n0, n1 = int(p.offsets[t0]), int(p.offsets[t1])
            if n1 > n0:
                key = (t1 - t0, p.counts[t0:t1].tobytes() if self.ragged else None)
                yield Chunk(t0, t1 - t0, n0, n1 - n0, key, p, self.reverse)
