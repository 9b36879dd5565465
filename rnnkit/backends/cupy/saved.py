"""What the steps of a call save for backward: the layout that all schedules share.

So the backward of one schedule can follow the forward of another.
"""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.backends.cupy.problem import Problem
from rnnkit.core.cells import Array


class SavedStates(NamedTuple):
    """What the steps save for backward, rows ordered as `packing` says; all None in a forward that saves nothing."""

    values: Array = None  # (N, n_saved*H) the values named by the row's `saved`
    h_prev: Array = None  # (N, R) the state before each step
    c_prev: Array = None  # (N, H) in the compute dtype, where the cell has c
    operand: Array = None  # (N, H) operand of the second product: m under projection, r h' for a GRU that resets before

    @classmethod
    def empty(cls, p: Problem) -> SavedStates:
        """Uninitialised arrays for the row-steps of one call."""
        import cupy

        storage = p.dtype.storage
        values = cupy.empty((p.N, p.cell.n_saved * p.H), storage)
        h_prev = cupy.empty((p.N, p.R), storage)
        c_prev = cupy.empty((p.N, p.H), p.dtype.compute) if p.cell.has_c else None
        operand = cupy.empty((p.N, p.H), storage) if p.has_second_product else None
        return cls(values, h_prev, c_prev, operand)


def saved_bytes(p: Problem, N: int) -> int:
    """Bytes of `SavedStates.empty` for N row-steps."""
    in_storage = p.cell.n_saved * p.H + p.R + (p.H if p.has_second_product else 0)
    in_compute = p.H if p.cell.has_c else 0
    return N * (in_storage * p.storage_bytes + in_compute * p.compute_bytes)


class Saved(NamedTuple):
    """What backward needs of a forward: x (N, I), what the steps saved, and `launcher.packing_table`."""

    x: Array
    states: SavedStates
    packing_table: Array | None
