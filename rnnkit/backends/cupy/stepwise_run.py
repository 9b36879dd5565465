"""One call of schedule D: its work space by name, its launches, and the steps of a chunk, forward and back."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.cupy import modules, sources
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.cublas import Matrix, Products
from rnnkit.backends.cupy.modules import MOST_PARTS, over_steps, rows_by_units
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.core.cells import Array, Cell, Weights

RESET_BEFORE = "gru_reset_before"

# A Call of kernels/cuda/stepwise.cuh, with room to spare.
CALL_BYTES = 256


# Whole numbers that a kernel takes as int; Python's own it is given as 64 bits, pointers among them.
i32 = lru_cache(maxsize=4096)(np.int32)


def address(array: Any) -> int:
    """Where an array begins on the device; 0 for None, the null pointer."""
    return 0 if array is None else array.data.ptr


def kept_blocks(cell: Cell) -> int:
    """How many values a unit and step keeps, states aside: kKept of the cell's header."""
    return {"gru": 4, RESET_BEFORE: 3}.get(cell.name, cell.n_gates)


def splits(cell: Cell) -> bool:
    """Whether the two sides' gradients differ, as where r multiplies one of them: kSplit of the cell's header."""
    return cell.name == "gru"


class Kept(NamedTuple):
    """What the steps keep for backward, rows stored as `packing` says; None in a forward that keeps nothing."""

    gates: Array = None  # (N, kept blocks, H)
    h_prev: Array = None  # (N, R) the state before each step
    c_prev: Array = None  # (N, H) in the compute dtype, where the cell has c
    extra: Array = None  # (N, H): m under projection, rh = r h' for the GRU that resets before

    @classmethod
    def empty(cls, p: Problem) -> Kept:
        import cupy

        storage = p.dtype.storage
        return cls(
            cupy.empty((p.N, kept_blocks(p.cell) * p.H), storage),
            cupy.empty((p.N, p.R), storage),
            cupy.empty((p.N, p.H), p.dtype.compute) if p.two_states else None,
            cupy.empty((p.N, p.H), storage) if p.projected or p.cell.name == RESET_BEFORE else None,
        )


def sizes_of(p: Problem, backward: bool) -> dict[str, int]:
    """Bytes of each buffer of the work space."""
    s, c, B, rows = p.stored, p.computed, p.B, p.chunk_rows
    sizes = {"call": CALL_BYTES}
    unprojected = B * p.H if p.projected or p.cell.name == RESET_BEFORE else 0
    if not backward:
        sizes |= {"gates": rows * p.GH * c, "side": B * p.GH * c, "bias": 2 * p.GH * c, "h": B * p.R * s}
        sizes |= {"c": B * p.H * c} if p.two_states else {}
        return sizes | ({"m": unprojected * s} if unprojected else {})
    sizes |= {"dgates_x": rows * p.GH * s, "dh": B * p.R * c, "partials": MOST_PARTS * p.GH * c}
    sizes |= {"dgates_h": rows * p.GH * s} if splits(p.cell) else {}
    sizes |= {"dc": B * p.H * c} if p.two_states else {}
    sizes |= {"dm": unprojected * c} if unprojected else {}
    sizes |= {"dprojected": rows * p.R * s} if p.projected else {}
    sizes |= {"db_ih": 2 * p.GH * c, "db_hh": 2 * p.GH * c}  # a LongSum of kernels/cuda/rows.cuh each
    if not p.sums_in_place:
        sizes |= _slices_of(p)
    return sizes


def _slices_of(p: Problem) -> dict[str, int]:
    """Bytes of the slices of weights' gradients, and of the sums so far, where not all slices come at once."""
    elements = {"dw_ih": p.GH * p.I, "dw_hh": p.GH * p.R} | ({"dw_hr": p.R * p.H} if p.projected else {})
    slices = -(-p.chunk_rows // p.slice_rows)
    at_once = {name: p.slices_at_once(n) for name, n in elements.items()}
    sizes = {"slices": max(n * min(slices, at_once[name]) for name, n in elements.items()) * p.computed}
    if p.chunk_steps < p.T or slices > min(at_once.values()):
        sizes |= {name: 2 * n * p.computed for name, n in elements.items()}
    return sizes


class Run:
    """One call on an arena. `run[name]` is the address of a buffer of the work space, 0 for one it has not."""

    def __init__(self, p: Problem, arena: Arena, sizes: dict[str, int], index: Array | None) -> None:
        self.p, self.arena, self.index = p, arena, index
        self._at = arena.reserve(sizes)
        self._layout = tuple(sizes.values())
        arena.begin()
        self.kernels = modules.kernels(sources.stepwise(p.cell.name, p.dtype.stored))
        self.products = Products(arena.handle, p.dtype)
        self.order = address(index)
        self.sizes = (p.B, p.R, p.H, p.GH)

    def __getitem__(self, name: str) -> int:
        return self._at.get(name, 0)

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def launch(self, name: str, shape: tuple[tuple[int, ...], tuple[int, ...]], *args: Any) -> None:
        """Launches a kernel on the current stream."""
        self.kernels[name](*shape, args)
        self.arena.counts.launches += 1

    def computed(self, name: str, ld: int) -> Matrix:
        return Matrix(self[name], ld, self.p.dtype.computed)

    def stored(self, name: str, ld: int) -> Matrix:
        return Matrix(self[name], ld, self.p.dtype.stored)

    def array(self, a: Array) -> Matrix:
        """A contiguous array as a matrix of its last axis."""
        return Matrix(a.data.ptr, max(1, a.shape[-1]), self.p.dtype.stored)

    def set_call(self, chunk: Chunk, y: Array | None, kept: Kept, dy: Array | None) -> None:
        """What the chunk's steps will find in their Call."""
        strides = (0, 0) if dy is None else (dy.strides[0] // self.p.stored, dy.strides[1] // self.p.stored)
        outputs = (address(y), *(address(a) for a in kept))
        gradient = (address(dy), *strides)
        self.launch("set_call", ((1,), (1,)), self["call"], *outputs, self.order, *gradient, chunk.t0, chunk.n0)

    def packed(self, x: Array) -> Array:
        """x (T, B, I) as its live steps (N, I); x itself where no row is shorter than T."""
        import cupy

        if self.index is None:
            return x
        flat = cupy.empty((self.p.N, self.p.I), x.dtype)
        self._move("pack_rows", flat, x)
        return flat

    def unpack(self, dx: Array, flat: Array) -> None:
        """The inverse, into dx (T, B, I); zero past each row's end."""
        self._move("unpack_rows", dx, flat)

    def _move(self, name: str, to: Array, source: Array) -> None:
        p, offsets = self.p, self.order + 8 * self.p.B
        self.launch(name, over_steps(p.T, p.B * p.I), to, source, self.order, offsets, p.T, p.B, p.I)

    def forward_steps(self, chunk: Chunk, weights: Weights) -> None:
        """The steps of a chunk, whose pre-activations of x are in "gates"."""
        steps = self._forward_reset_before if self.p.cell.name == RESET_BEFORE else self._forward
        self.arena.replay(self._key("forward", chunk, weights), lambda: steps(chunk, weights))

    def backward_steps(self, chunk: Chunk, weights: Weights) -> None:
        """The steps of a chunk on the way back, which leave its gradients in "dgates_x" and "dgates_h"."""
        steps = self._backward_reset_before if self.p.cell.name == RESET_BEFORE else self._backward
        self.arena.replay(self._key("backward", chunk, weights), lambda: steps(chunk, weights))

    def _key(self, way: str, chunk: Chunk, weights: Weights) -> tuple[Any, ...]:
        p = self.p
        around = (way, p.cell.name, p.dtype.name, p.B, p.H, p.R, p.reverse)
        return (*around, chunk.key, address(weights.w_hh), address(weights.w_hr), self._layout)

    def _forward(self, chunk: Chunk, weights: Weights) -> None:
        p = self.p
        w_hh, gates, side = self.array(weights.w_hh), self.computed("gates", p.GH), self.computed("side", p.GH)
        h, m, states = self.stored("h", p.R), self.stored("m", p.H), (self["h"], self["c"], self["m"])
        for t, n, rows in chunk.steps():
            self.products.rows_by_weights(h, w_hh, side, rows, p.GH, p.R)
            sides = (gates.at(n).address, side.address, self["bias"])
            shape, sizes = rows_by_units(rows, p.H), (i32(rows), i32(p.B), i32(p.H), i32(p.R), i32(t), n)
            self.launch("forward_step", shape, self["call"], *sides, *states, *sizes)
            if p.projected:
                self.products.rows_by_weights(m, self.array(weights.w_hr), h, rows, p.R, p.H)
                shape = rows_by_units(rows, p.R)
                self.launch("emit_output", shape, self["call"], h.address, i32(rows), i32(p.B), i32(p.R), i32(t))

    def _backward(self, chunk: Chunk, weights: Weights) -> None:
        p = self.p
        w_hh, dh, dm = self.array(weights.w_hh), self.computed("dh", p.R), self.computed("dm", p.H)
        for t, n, rows in chunk.steps(backward=True):
            dgates_x = self.stored("dgates_x", p.GH).at(n)
            dgates_h = self.stored("dgates_h", p.GH).at(n) if "dgates_h" in self else dgates_x
            if p.projected:
                dprojected = self.stored("dprojected", p.R).at(n)
                shape, ends = rows_by_units(rows, p.R), (dprojected.address, dh.address)
                self.launch("backward_project", shape, self["call"], *ends, i32(rows), i32(p.R), i32(t))
                self.products.rows_through(dprojected, self.array(weights.w_hr), dm, rows, p.H, p.R)
            around = (dgates_x.address, dgates_h.address, dh.address, self["dc"], self["dm"])
            shape, sizes = rows_by_units(rows, p.H), (i32(rows), i32(p.B), i32(p.H), i32(p.R), i32(t), n)
            self.launch("backward_step", shape, self["call"], *around, *sizes)
            self.products.rows_through(dgates_h, w_hh, dh, rows, p.R, p.GH, add=splits(p.cell))

    def _forward_reset_before(self, chunk: Chunk, weights: Weights) -> None:
        p, H = self.p, self.p.H
        w_hh, gates, side = self.array(weights.w_hh), self.computed("gates", p.GH), self.computed("side", p.GH)
        h, rh = self.stored("h", H), self.stored("m", H)
        for t, n, rows in chunk.steps():
            shape, sides = rows_by_units(rows, H), (gates.at(n).address, side.address, self["bias"])
            self.products.rows_by_weights(h, w_hh, side, rows, 2 * H, H)
            states = (h.address, rh.address)
            self.launch("forward_gates", shape, self["call"], *sides, *states, i32(rows), i32(H), n)
            self.products.rows_by_weights(rh, w_hh.at(2 * H), side.at(0, 2 * H), rows, H, H)
            sizes = (i32(rows), i32(p.B), i32(H), i32(t), n)
            self.launch("forward_output", shape, self["call"], *sides, h.address, *sizes)

    def _backward_reset_before(self, chunk: Chunk, weights: Weights) -> None:
        p, H = self.p, self.p.H
        w_hh, dh, drh = self.array(weights.w_hh), self.computed("dh", H), self.computed("dm", H)
        for t, n, rows in chunk.steps(backward=True):
            shape, dgates = rows_by_units(rows, H), self.stored("dgates_x", p.GH).at(n)
            around = (self["call"], dgates.address, dh.address)
            self.launch("backward_output", shape, *around, i32(rows), i32(H), i32(t), n)
            self.products.rows_through(dgates.at(0, 2 * H), w_hh.at(2 * H), drh, rows, H, H)
            self.launch("backward_gates", shape, *around, drh.address, i32(rows), i32(H), n)
            self.products.rows_through(dgates, w_hh, dh, rows, H, 2 * H, add=True)
