"""What the steps of a call save for backward: the layout that all schedules share.

So the backward of one schedule can follow the forward of another.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """What the steps save for backward, rows ordered as `packing` says; all None in a forward that saves nothing.

    Where the problem `recomputes`, values and operand are those of one chunk at a time: `OfChunk`.
    """

    values: Array = None  # (N, n_saved*H) the values named by the row's `saved`
    h_prev: Array = None  # (N, R) the state before each step
    c_prev: Array = None  # (N, n_cell_states*H) the states beside h before each step, in the compute dtype
    # (N, H), the operand of the second product: m with a projection, r h' for a GRU that resets before. For a cell with
    # layer normalisation it is the statistics of each row, (N, n_statistics) in the compute dtype.
    operand: Array = None

    @classmethod
    def placed(cls, p: Problem, memory: Memory) -> SavedStates:
        """The arrays for the row-steps of one call. Their values are as the memory is."""
        columns = _kept(_columns(p.cell, p.dtype, p.H, p.R, p.has_second_product), p.recomputes)
        return cls(*[memory.array((p.N, width), dtype) if width else None for width, dtype in columns])


Columns = tuple[tuple[int, Any], ...]


def _columns(cell: Cell, dtype: DType, H: int, R: int, second_product: bool) -> Columns:
    """The columns and the dtype of each field of `SavedStates`; no columns where the field is None."""
    operand = (cell.n_statistics, dtype.compute) if cell.normalises else (H if second_product else 0, dtype.storage)
    return (
        (cell.n_saved * H, dtype.storage),
        (R, dtype.storage),
        (cell.n_cell_states * H, dtype.compute),
        operand,
    )


def _kept(columns: Columns, recomputes: bool) -> Columns:
    """The columns of what is saved of all row-steps: without those that backward computes again."""
    if not recomputes:
        return columns
    _, h_prev, c_prev, _ = columns
    return (0, h_prev[1]), h_prev, c_prev, (0, h_prev[1])


def saved_bytes(p: Problem, N: int) -> int:
    """Bytes of `SavedStates.placed` for N row-steps."""
    columns = _kept(_columns(p.cell, p.dtype, p.H, p.R, p.has_second_product), p.recomputes)
    return N * sum(width * dtype.itemsize for width, dtype in columns)


def chunk_buffers(p: Problem) -> dict[str, int]:
    """Bytes of the buffers that `of_chunk` needs: none where all row-steps' values are saved."""
    if not p.recomputes:
        return {}
    values, _, _, operand = _columns(p.cell, p.dtype, p.H, p.R, p.has_second_product)
    columns = {"values": values, "operand": operand}
    return {name: p.chunk_rows * width * of.itemsize for name, (width, of) in columns.items() if width}


@dataclass(frozen=True)
class OfChunk:
    """(N, columns) of which the row-steps of one chunk alone exist, in a buffer of the workspace.

    ptr: where row-step 0 would be, so that row-step n0 of the chunk is at the buffer's beginning.
    """

    ptr: int
    shape: tuple[int, int]
    itemsize: int

    def row(self, n: int) -> int:
        """The address of a row-step."""
        return self.ptr + n * self.shape[1] * self.itemsize

    @property
    def data(self) -> OfChunk:
        """As of an array of CuPy."""
        return self


def of_chunk(p: Problem, states: SavedStates, buffers: Any, n0: int) -> SavedStates:
    """What a launch on the steps of a chunk from row-step n0 on writes or reads: `states`, and with them, where the
    problem `recomputes`, the chunk's values and operands in the buffers of `chunk_buffers`.

    buffers: a `launcher.Launcher`.
    """
    if not p.recomputes or states.h_prev is None:
        return states
    values, _, _, operand = _columns(p.cell, p.dtype, p.H, p.R, p.has_second_product)
    placed = [
        OfChunk(buffers[name] - n0 * width * of.itemsize, (p.N, width), of.itemsize) if width else None
        for name, (width, of) in (("values", values), ("operand", operand))
    ]
    return states._replace(values=placed[0], operand=placed[1])


def reserve_bytes(cell: Cell, dtype: DType, sizes: Sizes, ragged: bool, recomputes: bool = False) -> int:
    """See `rnnkit.backends.Backend`: what the steps save, then x without padding if it is ragged."""
    _, _, I, H, R, N = sizes
    columns = _kept(_columns(cell, dtype, H, R, R != H or cell.resets_before), recomputes)
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
