"""What the steps of a call save for backward: the layout that all schedules share.

So the backward of one schedule can follow the forward of another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.interface import Sizes
from rnnkit.core.cells import Array, Cell
from rnnkit.core.dtypes import DType

LINE = 64  # parts of a reserve begin at multiples of this many bytes


class Memory:
    """Where a forward saves: parts of `LayerCall.reserve` one after the other, or without one arrays of its own.

    The sizes of the parts say where they are, so the same requests find them again.
    """

    def __init__(self, reserve: Array | None) -> None:
        self._next = None if reserve is None else reserve.data

    def array(self, shape: tuple[int, int], dtype: Any) -> Array:
        """The next part, uninitialised."""
        import cupy

        rows, columns = shape
        size = rows * columns * dtype.itemsize
        if self._next is None or not size:
            return cupy.empty(shape, dtype)
        part = cupy.ndarray(shape, dtype, memptr=self._next)
        self._next += _whole_lines(size)
        return part


class SavedStates(NamedTuple):
    """What the steps save for backward, rows ordered as `packing` says; all None in a forward that saves nothing."""

    values: Array = None  # (N, n_saved*H) the values named by the row's `saved`
    h_prev: Array = None  # (N, R) the state before each step
    c_prev: Array = None  # (N, n_cell_states*H) the states beside h before each step, in the compute dtype
    # (N, H) operand of the second product: m with a projection, r h' for a GRU that resets before. Of a cell that
    # normalises the statistics of each row, (N, n_statistics) in the compute dtype.
    operand: Array = None

    @classmethod
    def placed(cls, p: Problem, memory: Memory) -> SavedStates:
        """The arrays for the row-steps of one call. Their values are as the memory is."""
        columns = _columns(p.cell, p.dtype, p.H, p.R, p.has_second_product)
        return cls(*[memory.array((p.N, width), dtype) if width else None for width, dtype in columns])


def _columns(cell: Cell, dtype: DType, H: int, R: int, second_product: bool) -> tuple[tuple[int, Any], ...]:
    """The columns and the dtype of each field of `SavedStates`; no columns where the field is None."""
    operand = (cell.n_statistics, dtype.compute) if cell.normalises else (H if second_product else 0, dtype.storage)
    return (
        (cell.n_saved * H, dtype.storage),
        (R, dtype.storage),
        (cell.n_cell_states * H, dtype.compute),
        operand,
    )


def saved_bytes(p: Problem, N: int) -> int:
    """Bytes of `SavedStates.placed` for N row-steps."""
    columns = _columns(p.cell, p.dtype, p.H, p.R, p.has_second_product)
    return N * sum(width * dtype.itemsize for width, dtype in columns)


def reserve_bytes(cell: Cell, dtype: DType, sizes: Sizes, ragged: bool) -> int:
    """See `rnnkit.backends.Backend`: what the steps save, then x without padding if it is ragged."""
    _, _, I, H, R, N = sizes
    columns = _columns(cell, dtype, H, R, R != H or cell.resets_before)
    if ragged:
        columns += ((I, dtype.storage),)
    return sum(_whole_lines(N * width * of.itemsize) for width, of in columns)


def _whole_lines(size: int) -> int:
    return (size + LINE - 1) // LINE * LINE


class Saved(NamedTuple):
    """What backward needs of a forward: x (N, I), what the steps saved, and `launcher.packing_table`."""

    x: Array
    states: SavedStates
    packing_table: Array | None
