"""Problem: one layer-direction as a schedule processes it: sizes, the order of ragged rows, and chunks of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rnnkit.backends.interface import LayerCall, Sizes
from rnnkit.backends.ragged import Packing, packing
from rnnkit.core.cells import Cell
from rnnkit.core.dtypes import DType
from rnnkit.core.regularisation import Noise

# A chunk of steps has its pre-activations x W_ih^T computed at once before its steps, and its weight gradients added at
# once after them. So the workspace does not grow with T, and the steps find in the L2 cache what the product before
# them wrote.
CHUNK_BYTES = 32 << 20
CHUNK_STEPS = 256

# The least steps of a chunk, however large: with fewer, adding up the weights' gradients costs as much as the steps.
FEWEST_STEPS = 16

# A weight's gradient is a product over all row-steps, which cuBLAS may sum in one chain of additions. One chain of 512
# equal terms is off by up to 512 / 4 * 2^-24 of itself: 7.6e-6. So the gradient is computed in slices of at most
# SLICE_ROWS row-steps, and the slices are added without loss (LongSum of kernels/cuda/rows.cuh). Writing and reading
# them is predicted to take 4% of a backward on an H100 at H = 512. LONG_SLICE_ROWS is for the dtypes with faster
# products or wider tolerances.
SLICE_ROWS = 512
LONG_SLICE_ROWS = 16384

# The most bytes of slices that one batched product writes, unless one slice alone is larger.
SLICE_BYTES = 32 << 20


# Up to this many steps are one graph whatever their number. More are cut into powers of two, so that few graphs serve
# every number of steps.
WHOLE_STEPS = 8

# A ragged batch's steps compute products of one of this many numbers of rows: the least that covers the live rows.
ROW_COUNTS = 4


class Span(NamedTuple):
    """Time steps [t0, t0 + steps) of a chunk, which run as one CUDA graph.

    rows   of the steps' products, at least as many as are live in any of them
    first  the span's first row-step, from the chunk's, where every row has T steps; else 0
    """

    t0: int
    steps: int
    rows: int
    first: int


@dataclass(frozen=True)
class Chunk:
    """Time steps [t0, t0 + T), which are row-steps [n0, n0 + N)."""

    t0: int
    T: int
    n0: int
    N: int
    packing: Packing
    descending: bool

    def spans(self, backward: bool = False) -> list[Span]:
        """The chunk's spans, in the order of the forward or the backward pass."""
        packing = self.packing
        found = []
        done = 0
        while done < self.T:
            left = self.T - done
            steps = left if left <= WHOLE_STEPS else power_of_two(left)
            t0 = self.t0 + done
            if packing.order is None:
                found.append(Span(t0, steps, packing.B, done * packing.B))
            else:
                found.append(Span(t0, steps, _product_rows(packing, t0), 0))
            done += steps
        return found[::-1] if self.descending != backward else found


def _product_rows(packing: Packing, t0: int) -> int:
    """The rows of the products from step t0 on: counts do not grow with t. Rows of length 0 are never among them."""
    live = int(packing.counts[t0])
    each = -(-packing.B // ROW_COUNTS)
    return min(-(-live // each) * each, int(packing.counts[0]))


def power_of_two(n: int) -> int:
    """The largest power of two up to n."""
    return 1 << (n.bit_length() - 1)


@dataclass(frozen=True)
class Problem:
    """Sizes of one layer-direction: R = P under projection, else H; N, the number of row-steps, is packing.steps.

    ahead_steps  the most steps of a chunk, where the product of x of one chunk runs beside the steps of the chunk
                 before it; None where all follow each other
    share        the layer has one of this many equal parts of the card, beside other layers
    recomputes   whether backward computes the gates again, so that forward saves the states alone: `recompute`
    noise        the random masks of the call, or None
    """

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
    ahead_steps: int | None = None
    share: int = 1
    constants: tuple[float, ...] = ()
    recomputes: bool = False
    noise: Noise | None = field(default=None, compare=False)

    @classmethod
    def of(cls, call: LayerCall, recomputes: bool = False) -> Problem:
        """The problem of a forward call."""
        weights = call.weights
        T, B, I = call.x.shape
        GH, R = weights.w_hh.shape
        return cls(
            cell=call.cell,
            dtype=call.dtype,
            T=T,
            B=B,
            I=I,
            H=GH // call.cell.n_gates,
            R=R,
            projected=weights.w_hr is not None,
            reverse=call.reverse,
            packing=packing(T, B, call.lengths),
            constants=call.constants,
            recomputes=recomputes and call.keep,
            noise=call.noise,
        )

    @classmethod
    def of_sizes(cls, cell: Cell, dtype: DType, sizes: Sizes, recomputes: bool = False) -> Problem:
        """The problem of a forward call whose rows all have T steps; R != H means projection."""
        T, B, I, H, R, _ = sizes
        one = cls(cell, dtype, T, B, I, H, R, projected=R != H, reverse=False, packing=packing(T, B, None))
        return replace(one, recomputes=True) if recomputes else one

    def ahead(self, steps: int, share: int) -> Problem:
        """The same, with these `ahead_steps` and this share."""
        return replace(self, ahead_steps=steps, share=share)

    @property
    def GH(self) -> int:
        return self.cell.n_gates * self.H

    @property
    def N(self) -> int:
        return self.packing.steps

    @property
    def has_second_product(self) -> bool:
        """Whether a step has a second product: the projection, or the one that r h' waits for."""
        return self.projected or self.cell.resets_before

    @property
    def first_gates(self) -> int:
        """How many gates the first product of a step computes."""
        _, _, end = self.cell.products[0]
        return end

    @property
    def ragged(self) -> bool:
        return self.packing.order is not None

    @property
    def storage_bytes(self) -> int:
        """Bytes of a number of the storage dtype."""
        return self.dtype.storage.itemsize

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number of the compute dtype."""
        return self.dtype.compute.itemsize

    @cached_property
    def chunk_steps(self) -> int:
        """Steps of a chunk: all that fit, or a power of two."""
        fit = CHUNK_BYTES // max(1, self.B * self.GH * self.compute_bytes)
        most = min(CHUNK_STEPS, max(fit, FEWEST_STEPS), self.ahead_steps or CHUNK_STEPS)
        return power_of_two(most) if most < self.T else max(1, self.T)

    @property
    def graph_steps(self) -> int:
        """The most steps of a span."""
        return self.chunk_steps if self.chunk_steps <= WHOLE_STEPS else power_of_two(self.chunk_steps)

    @property
    def chunk_rows(self) -> int:
        """The most row-steps a chunk can have."""
        return self.chunk_steps * self.B

    @property
    def slice_rows(self) -> int:
        """The most row-steps that one product sums."""
        return SLICE_ROWS if self.dtype.name == "float32" else LONG_SLICE_ROWS

    @property
    def sums_in_place(self) -> bool:
        """Whether a weight's gradient is one slice, which the chunks' products add up in the result itself."""
        return self.slice_rows >= self.N and self.storage_bytes == self.compute_bytes

    def slices_at_once(self, elements: int) -> int:
        """How many slices of a gradient with this many elements one batched product writes."""
        return max(1, SLICE_BYTES // max(1, elements * self.compute_bytes))

    def chunks(self, backward: bool = False) -> Iterator[Chunk]:
        """The chunks with live rows, in the order of the forward or the backward pass."""
        S = self.chunk_steps
        p = self.packing
        longest = int(np.count_nonzero(p.counts))
        starts = range(0, longest, S)
        for t0 in reversed(starts) if self.reverse != backward else starts:
            t1 = min(longest, t0 + S)
            n0 = int(p.offsets[t0])
            yield Chunk(t0, t1 - t0, n0, int(p.offsets[t1]) - n0, p, self.reverse)
