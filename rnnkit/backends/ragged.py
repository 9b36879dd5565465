"""How a batch is stored that is walked without its padding: rows sorted by length, longest first.

Step t holds the rows that are still live, one after the other, so that all steps of all rows are one array (N, K), N
the sum of the lengths. Where no row is shorter than T that is (T, B, K) as it stands. Kernels do the copying.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

# Packings of batches of at most so many steps, with their padding, are kept, and so many of them: the layers and
# directions of a stack ask for the same one.
KEPT_STEPS, KEPT = 1 << 16, 4


@dataclass(frozen=True, eq=False)
class Packing:
    """How rows are stored: sorted by length, longest first, without padding. See kernels/cpu/arguments.py."""

    T: int
    B: int
    table: np.ndarray  # (2*T+1+B,) where each step begins, T+1 numbers; the rows that are live at each; the order
    order: np.ndarray | None  # (B,) which row stands at each place; None where no row is shorter than T
    plans: dict[Any, Any] = field(default_factory=dict)  # of ragged rows: rnnkit/backends/numba/plan.py

    @property
    def offsets(self) -> np.ndarray:
        """(T+1,) where each step begins."""
        return self.table[: self.T + 1]

    @property
    def counts(self) -> np.ndarray:
        """(T,) rows that are live at each step."""
        return self.table[self.T + 1 : 2 * self.T + 1]

    @property
    def steps(self) -> int:
        """N."""
        return int(self.table[self.T])

    def bounds(self, shares: int) -> list[int]:
        """Rows split into `shares` of about equal numbers of steps."""
        if self.order is None:
            return [self.B * k // shares for k in range(shares + 1)]
        done = np.cumsum(np.searchsorted(-self.counts, -np.arange(self.B)))
        inner = [int(np.searchsorted(done, done[-1] * k / shares)) + 1 for k in range(1, shares)]
        return [0, *(min(b, self.B) for b in inner), self.B]


@lru_cache(4)
def _whole(T: int, B: int) -> Packing:
    table = np.concatenate([np.arange(T + 1) * B, np.full(T, B), np.arange(B)])
    return Packing(T, B, table.astype(np.int64, copy=False), None)


def packing(T: int, B: int, lengths: np.ndarray | None) -> Packing:
    """The packing of a batch; lengths (B,) or None."""
    if lengths is None or (lengths == T).all():
        return _whole(T, B)
    return _kept(T, B, lengths.tobytes()) if T * B <= KEPT_STEPS else _ragged(T, B, lengths)


@lru_cache(KEPT)
def _kept(T: int, B: int, lengths: bytes) -> Packing:
    return _ragged(T, B, np.frombuffer(lengths, np.int64))


def _ragged(T: int, B: int, lengths: np.ndarray) -> Packing:
    order = np.argsort(-lengths, kind="stable")
    counts = np.count_nonzero(np.arange(T)[:, None] < lengths[None, :], axis=1)
    return Packing(T, B, np.concatenate([[0], np.cumsum(counts), counts, order]).astype(np.int64, copy=False), order)


def clear_packing_cache() -> None:
    """No packing is kept."""
    _kept.cache_clear()
