"""The layout of a ragged batch without padding: rows sorted by length, longest first.

Step t holds the rows that are longer than t, one after the other. So the row-steps, the live (t, row) pairs, form one
array (N, K), where N is the sum of the lengths. If all rows have length T, that is (T, B, K) unchanged. The kernels
copy the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

# The layers and directions of a stack share one packing. So the most recent packings are cached, if T * B is small.
MAX_CACHED_TB = 1 << 16
CACHED_PACKINGS = 4


@dataclass(frozen=True, eq=False)
class Packing:
    """The layout of a batch: rows sorted by length, longest first, without padding. See kernels/cpu/arguments.py."""

    T: int
    B: int
    table: np.ndarray  # (2*T+1+B,) `offsets`, then `counts`, then the order
    order: np.ndarray | None  # (B,) the caller's row at each position; None if all rows have length T
    prepared: dict[Any, Any] = field(default_factory=dict)  # cached by rnnkit/backends/numba/prepared.py

    @property
    def offsets(self) -> np.ndarray:
        """(T+1,) the first row-step of each step, then N."""
        return self.table[: self.T + 1]

    @property
    def counts(self) -> np.ndarray:
        """(T,) the number of live rows at each step."""
        return self.table[self.T + 1 : 2 * self.T + 1]

    @property
    def steps(self) -> int:
        """N, the number of row-steps."""
        return int(self.table[self.T])

    def places(self) -> np.ndarray:
        """(N,) where each row-step is among the T*B steps of the caller, time-major: t * B + b."""
        steps = np.repeat(np.arange(self.T), self.counts)
        rows = np.arange(self.steps) - self.offsets[steps]
        return steps * self.B + (rows if self.order is None else self.order[rows])

    def bounds(self, shares: int) -> list[int]:
        """(shares+1,) bounds that split the rows into shares with about equal numbers of row-steps.

        Each share has at least one row if there are as many rows as shares.
        """
        if self.order is None:
            return [self.B * k // shares for k in range(shares + 1)]
        done = np.cumsum(np.searchsorted(-self.counts, -np.arange(self.B)))
        bounds = [0]
        for k in range(1, shares):
            even = int(np.searchsorted(done, done[-1] * k / shares)) + 1
            bounds.append(min(max(even, bounds[-1] + 1), max(self.B - shares + k, bounds[-1]), self.B))
        return [*bounds, self.B]


def packing(T: int, B: int, lengths: np.ndarray | None) -> Packing:
    """The packing of a batch of rows with these lengths (B,), or of full rows for None."""
    if lengths is None or (lengths == T).all():
        table = np.concatenate([np.arange(T + 1) * B, np.full(T, B), np.arange(B)])
        return Packing(T, B, table.astype(np.int64, copy=False), None)
    return _cached_packing(T, B, lengths.tobytes()) if T * B <= MAX_CACHED_TB else _ragged_packing(T, B, lengths)


@lru_cache(CACHED_PACKINGS)
def _cached_packing(T: int, B: int, lengths: bytes) -> Packing:
    return _ragged_packing(T, B, np.frombuffer(lengths, np.int64))


def _ragged_packing(T: int, B: int, lengths: np.ndarray) -> Packing:
    order = np.argsort(-lengths, kind="stable")
    counts = np.count_nonzero(np.arange(T)[:, None] < lengths[None, :], axis=1)
    return Packing(T, B, np.concatenate([[0], np.cumsum(counts), counts, order]).astype(np.int64, copy=False), order)


def clear_packing_cache() -> None:
    """Empties the cache of packings."""
    _cached_packing.cache_clear()
