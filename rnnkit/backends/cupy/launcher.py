"""One call of a schedule on an arena: its buffers by name, and the launches that every schedule needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rnnkit.backends.cupy import modules, sources
from rnnkit.backends.cupy.arena import Arena, refuse_capture
from rnnkit.backends.cupy.cublas import Matrix, Products
from rnnkit.backends.cupy.modules import Shape, over, over_steps
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.core.cells import Array, State, Weights

# An integer for a kernel's int parameter. CuPy passes a Python int as 64 bits, as it does pointers.
i32 = np.int32


def address(array: Any) -> int:
    """Where an array begins on the device; 0, the null pointer, for None."""
    return 0 if array is None else array.data.ptr


class Launcher:
    """One call on an arena. `launcher[name]` is the address of a buffer of the workspace, 0 for one it lacks.

    kernels: those of the schedule, by name; `rows` those of `sources.rows`.
    """

    def __init__(
        self, p: Problem, arena: Arena, sizes: dict[str, int], packing_table: Array | None, build: sources.Build
    ) -> None:
        self.p = p
        self.arena = arena
        self.packing_table = packing_table
        self._addresses = arena.reserve(sizes)
        self.layout = tuple(sizes.values())
        arena.begin()
        self.rows = modules.kernels(sources.rows(p.dtype.stored))
        self.module = modules.module(build)
        self.products = Products(arena.handle, p.dtype)
        self.order = address(packing_table)
        self.offsets = 0 if packing_table is None else self.order + 8 * p.B
        self.sizes = (p.B, p.R, p.H, p.GH)

    def __getitem__(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    def part(self, prefix: str) -> dict[str, int]:
        """The addresses of the buffers whose names begin with a prefix, by the rest of their names."""
        return {name.removeprefix(prefix): at for name, at in self._addresses.items() if name.startswith(prefix)}

    def swap(self, one: str, other: str) -> None:
        """Exchanges the names of two buffers."""
        self._addresses[one], self._addresses[other] = self._addresses[other], self._addresses[one]

    def launch(self, name: str, shape: Shape, *args: Any, shared_mem: int | None = None) -> None:
        """Launches a kernel of the schedule on the current stream. shared_mem: as of `modules.LoadedKernel`."""
        self.module.kernels[name](*shape, args, shared_mem)
        self.arena.counts.launches += 1

    def launch_rows(self, name: str, shape: Shape, *args: Any) -> None:
        """Launches a kernel of kernels/cuda/rows.cu on the current stream."""
        self.rows[name](*shape, args)
        self.arena.counts.launches += 1

    def compute_matrix(self, name: str, ld: int) -> Matrix:
        """A buffer as a matrix of the compute dtype."""
        return Matrix(self[name], ld, self.p.dtype.computed)

    def storage_matrix(self, name: str, ld: int) -> Matrix:
        """A buffer as a matrix of the storage dtype."""
        return Matrix(self[name], ld, self.p.dtype.stored)

    def array(self, a: Array) -> Matrix:
        """A contiguous array as a matrix whose rows are its last axis."""
        return Matrix(a.data.ptr, max(1, a.shape[-1]), self.p.dtype.stored)

    def set_call(self, t0: int, n0: int, y: Array | None, saved: SavedStates, dy: Array | None) -> None:
        """Writes a Call of kernels/cuda/call.cuh to the buffer "call"."""
        outputs = (address(y), *(address(a) for a in saved))
        table = (self.order, self.offsets)
        strides = (*self.row_strides(y), *self.row_strides(dy))
        self.launch_rows("set_call", ((1,), (1,)), self["call"], *outputs, *table, address(dy), *strides, t0, n0)

    def row_strides(self, a: Array | None) -> tuple[int, int]:
        """The strides of (T, B, R) along T and B, in elements; zeros for None."""
        size = self.p.storage_bytes
        return (0, 0) if a is None else (a.strides[0] // size, a.strides[1] // size)

    def forward_begin(self, state0: State, weights: Weights) -> None:
        """Copies the initial states to "h" and "c" (n_cell_states, B, H), and the biases to "bias"."""
        p = self.p
        biases = (address(weights.b_ih), address(weights.b_hh))
        buffers = (self["h"], self["c"], self["bias"])
        shape = over(p.B * max(p.H, p.R))
        self.launch_rows("forward_begin", shape, *addresses(state0), *biases, self.order, *buffers, *self.sizes)
        self._take_more(state0, "c")

    def forward_end(self, state_n: State) -> None:
        """Copies "h" and "c" to the final states."""
        self._move_states("forward_end", (self["h"], self["c"], self.order, *addresses(state_n)), self.p.R)
        self._give_more(state_n, "c")

    def gradients_begin(self, dstate_n: State) -> None:
        """Copies the gradients of the final states to "dh" and "dc" (n_cell_states, B, H)."""
        self._move_states("backward_begin", (*addresses(dstate_n), self.order, self["dh"], self["dc"]), self.p.R)
        self._take_more(dstate_n, "dc")

    def backward_end(self, dstate0: State) -> None:
        """Copies "dh" and "dc" to the gradients of the initial states."""
        self._move_states("backward_end", (self["dh"], self["dc"], self.order, *addresses(dstate0)), self.p.R)
        self._give_more(dstate0, "dc")

    def _move_states(self, name: str, args: tuple[int, ...], R: int) -> None:
        p = self.p
        self.launch_rows(name, over(p.B * max(p.H, R)), *args, p.B, R, p.H)

    def _take_more(self, state: State, buffer: str) -> None:
        """Copies the states beyond h and c to their parts of a buffer of all states beside h.

        "backward_begin" and "backward_end" copy any two arrays between the storage and the compute dtype.
        """
        for given, parts in self._more_states(state, buffer):
            self._move_states("backward_begin", (*given, self.order, *parts), self.p.H)

    def _give_more(self, state: State, buffer: str) -> None:
        """The reverse of `_take_more`."""
        for given, parts in self._more_states(state, buffer):
            self._move_states("backward_end", (*parts, self.order, *given), self.p.H)

    def _more_states(self, state: State, buffer: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The addresses of the states beyond h and c, and of their parts of a buffer: of two at a time, 0 for none."""
        p = self.p
        size = p.B * p.H * p.compute_bytes
        for first in range(2, len(state), 2):
            given = (address(state[first]), address(state[first + 1] if first + 1 < len(state) else None))
            at = self[buffer] + (first - 1) * size
            yield given, (at, at + size)

    def transpose(self, name: str, w: Array) -> Matrix:
        """w (rows, columns) transposed, in the buffer `name`."""
        rows, columns = w.shape
        shape = ((-(-columns // 32), -(-rows // 32)), (32, 8))
        self.launch_rows("transpose", shape, self[name], w, rows, columns)
        return self.storage_matrix(name, rows)

    def pack(self, flat: Array, x: Array) -> None:
        """Packs ragged x (T, B, I) into its row-steps, flat (N, I)."""
        self._move_rows("pack_rows", flat, x)

    def pack_chunk(self, flat: Array, x: Array, chunk: Chunk) -> None:
        """Packs the steps of a chunk of x (T, B, I) into their rows of flat (N, I)."""
        B, I = x.shape[1:]
        source = x.data.ptr + chunk.t0 * B * I * x.itemsize
        offsets = self.offsets + 8 * chunk.t0
        sizes = (chunk.T, B, I)
        self.launch_rows("pack_rows", over_steps(chunk.T, B * I), flat, source, self.order, offsets, *sizes)

    def unpack(self, dx: Array, flat: Array) -> None:
        """The inverse of `pack`, into dx (T, B, I); zero past each row's end."""
        self._move_rows("unpack_rows", dx, flat)

    def unpack_chunk(self, dx: Array, flat: Array, chunk: Chunk) -> None:
        """The inverse of `pack_chunk`, into the chunk's steps of dx (T, B, I); zero past each row's end."""
        B, I = dx.shape[1:]
        to = dx.data.ptr + chunk.t0 * B * I * dx.itemsize
        offsets = self.offsets + 8 * chunk.t0
        sizes = (chunk.T, B, I)
        self.launch_rows("unpack_rows", over_steps(chunk.T, B * I), to, flat, self.order, offsets, *sizes)

    def _move_rows(self, name: str, to: Array, source: Array) -> None:
        p = self.p
        self.launch_rows(name, over_steps(p.T, p.B * p.I), to, source, self.order, self.offsets, p.T, p.B, p.I)


def units_aligned(a: Array | None) -> Array | None:
    """`a` (T, B, R) itself if the elements of a row are next to each other, else a copy."""
    import cupy

    return a if a is None or a.strides[2] == a.itemsize else cupy.ascontiguousarray(a)


def addresses(state: State) -> tuple[int, int]:
    """The addresses of h, and of c or 0."""
    return address(state[0]), address(state[1] if len(state) > 1 else None)


def contiguous(arrays: Any) -> tuple[Any, ...]:
    """The arrays, each copied if it is not C-contiguous; None for None."""
    import cupy

    return tuple(None if a is None else cupy.ascontiguousarray(a) for a in arrays)


def packing_table(p: Problem) -> Array | None:
    """order (B,) and offsets (T+1,), concatenated on the device; None where every row has T steps.

    Raises DeviceError inside a capture.
    """
    import cupy

    if not p.ragged:
        return None
    refuse_capture(
        cupy.cuda.get_current_stream(),
        "rows of different lengths cannot be captured, because a replay would read their order from host memory",
    )
    return cupy.asarray(np.concatenate([p.packing.order, p.packing.offsets]).astype(np.int64))
