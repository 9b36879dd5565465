"""One call of schedule D on an arena: its buffers by name, its launches, and the steps of a chunk, forward and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.cupy import modules, sources
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.cublas import Matrix, Products
from rnnkit.backends.cupy.modules import over_steps, rows_by_units
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.stepwise_buffers import SavedStates
from rnnkit.core.cells import Array, Weights

# An integer for a kernel's int parameter. CuPy passes a Python int as 64 bits, as it does pointers.
i32 = np.int32


def address(array: Any) -> int:
    """Where an array begins on the device; 0, the null pointer, for None."""
    return 0 if array is None else array.data.ptr


class SecondProduct(NamedTuple):
    """The second product of a step, m (rows, H) times weight (units, H) transposed: the projection, or W_hn (r h')."""

    weight: Matrix
    units: int


class Launcher:
    """One call on an arena. `launcher[name]` is the address of a buffer of the workspace, 0 for one it lacks."""

    def __init__(self, p: Problem, arena: Arena, sizes: dict[str, int], packing_table: Array | None) -> None:
        self.p = p
        self.arena = arena
        self.packing_table = packing_table
        self._addresses = arena.reserve(sizes)
        self._layout = tuple(sizes.values())
        arena.begin()
        self.module = modules.module(sources.stepwise(p.cell.name, p.dtype.stored))
        self.products = Products(arena.handle, p.dtype)
        self.order = address(packing_table)
        self.sizes = (p.B, p.R, p.H, p.GH)

    def __getitem__(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    def launch(self, name: str, shape: tuple[tuple[int, ...], tuple[int, ...]], *args: Any) -> None:
        """Launches a kernel on the current stream."""
        self.module.kernels[name](*shape, args)
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

    def set_call(self, chunk: Chunk, y: Array | None, saved: SavedStates, dy: Array | None) -> None:
        """Writes the Call that the chunk's steps read."""
        size = self.p.storage_bytes
        strides = (0, 0) if dy is None else (dy.strides[0] // size, dy.strides[1] // size)
        outputs = (address(y), *(address(a) for a in saved))
        gradient = (address(dy), *strides)
        self.launch("set_call", ((1,), (1,)), self["call"], *outputs, self.order, *gradient, chunk.t0, chunk.n0)

    def packed(self, x: Array) -> Array:
        """x (T, B, I) as its row-steps (N, I); x itself where every row has T steps."""
        import cupy

        if self.packing_table is None:
            return x
        flat = cupy.empty((self.p.N, self.p.I), x.dtype)
        self._move("pack_rows", flat, x)
        return flat

    def unpack(self, dx: Array, flat: Array) -> None:
        """The inverse of `packed`, into dx (T, B, I); zero past each row's end."""
        self._move("unpack_rows", dx, flat)

    def _move(self, name: str, to: Array, source: Array) -> None:
        p = self.p
        offsets = self.order + 8 * p.B
        self.launch(name, over_steps(p.T, p.B * p.I), to, source, self.order, offsets, p.T, p.B, p.I)

    def forward_steps(self, chunk: Chunk, weights: Weights) -> None:
        """The steps of a chunk, from the products of x in "gates"."""
        self.arena.replay(self._key("forward", chunk, weights), lambda: self._forward(chunk, weights))

    def backward_steps(self, chunk: Chunk, weights: Weights) -> None:
        """The steps of a chunk, last first; their gradients end in "dgates_x", "dgates_h" and "dprojected"."""
        self.arena.replay(self._key("backward", chunk, weights), lambda: self._backward(chunk, weights))

    def _key(self, way: str, chunk: Chunk, weights: Weights) -> tuple[Any, ...]:
        p = self.p
        fixed = (way, self.module, p.dtype.name, p.B, p.H, p.R, p.reverse)
        return (*fixed, chunk.key, address(weights.w_hh), address(weights.w_hr), self._layout)

    def _second_product(self, weights: Weights) -> SecondProduct | None:
        """None where a step has one product."""
        p = self.p
        if p.projected:
            return SecondProduct(self.array(weights.w_hr), p.R)
        if p.cell.resets_before:
            _, first, end = p.cell.products[1]
            return SecondProduct(self.array(weights.w_hh).at(first * p.H), (end - first) * p.H)
        return None

    def _forward(self, chunk: Chunk, weights: Weights) -> None:
        p = self.p
        w_hh = self.array(weights.w_hh)
        gates = self.compute_matrix("gates", p.GH)
        side = self.compute_matrix("side", p.GH)
        h = self.storage_matrix("h", p.R)
        m = self.storage_matrix("m", p.H)
        second = self._second_product(weights)
        B, H, R = map(i32, (p.B, p.H, p.R))
        # Rows of W_hh in the first product, so columns of `side` that it writes.
        first = p.first_gates * p.H
        for t, n, rows in chunk.steps():
            self.products.rows_by_weights(h, w_hh, side, rows, first, p.R)
            sides = (gates.at(n).address, side.address, self["bias"])
            states = (h.address, self["c"], m.address)
            sizes = (i32(rows), B, H, R, i32(t), n)
            self.launch("forward_step", rows_by_units(rows, p.H), self["call"], *sides, *states, *sizes)
            if second is None:
                continue
            out = h if p.projected else side.at(0, first)
            self.products.rows_by_weights(m, second.weight, out, rows, second.units, p.H)
            ends = (i32(rows), B, R, i32(t), n)
            self.launch("forward_output", rows_by_units(rows, p.R), self["call"], *sides, h.address, *ends)

    def _backward(self, chunk: Chunk, weights: Weights) -> None:
        p = self.p
        w_hh = self.array(weights.w_hh)
        dh = self.compute_matrix("dh", p.R)
        dm = self.compute_matrix("dm", p.H)
        second = self._second_product(weights)
        H, R = map(i32, (p.H, p.R))
        first = p.first_gates * p.H
        for t, n, rows in chunk.steps(backward=True):
            dgates_x = self.storage_matrix("dgates_x", p.GH).at(n)
            dgates_h = self.storage_matrix("dgates_h", p.GH).at(n) if p.cell.splits_sides else dgates_x
            if second is not None:
                written = self.storage_matrix("dprojected", p.R).at(n) if p.projected else dgates_x
                ends = (i32(rows), R, i32(t), n)
                shape = rows_by_units(rows, p.R)
                self.launch("backward_output", shape, self["call"], written.address, dh.address, *ends)
                doutput = written if p.projected else written.at(0, first)
                self.products.rows_through(doutput, second.weight, dm, rows, p.H, second.units)
            gradients = (dgates_x.address, dgates_h.address, dh.address, self["dc"], dm.address)
            sizes = (i32(rows), H, i32(t), n)
            self.launch("backward_step", rows_by_units(rows, p.H), self["call"], *gradients, *sizes)
            # Where the pointwise part reads h', dh already holds the part that bypasses the product.
            self.products.rows_through(dgates_h, w_hh, dh, rows, p.R, first, add=p.cell.reads_h)
