"""The steps of a chunk in schedule D, forward and back, as launches that a CUDA graph captures."""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_pass import BackwardLauncher
from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import address, i32
from rnnkit.backends.cupy.modules import rows_by_units
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.sources import Build
from rnnkit.core.cells import Array, Weights

FILES = ("cuda/rows.cuh", "cuda/call.cuh", "cuda/stepwise.cuh", "cuda/stepwise.cu")
KERNELS = sources.pointwise_kernels("forward_step", "forward_output", "backward_output", "backward_step")


def build(cell: str, storage: str) -> Build:
    """The module of a cell and a storage dtype."""
    return sources.of_cell("stepwise", cell, storage, FILES, KERNELS)


class SecondProduct(NamedTuple):
    """The second product of a step, m (rows, H) times weight (units, H) transposed: the projection, or W_hn (r h')."""

    weight: Matrix
    units: int


class StepLauncher(BackwardLauncher):
    """A Launcher with the steps of schedule D."""

    def __init__(self, p: Problem, arena: Arena, sizes: dict[str, int], packing_table: Array | None) -> None:
        super().__init__(p, arena, sizes, packing_table, build(p.cell.name, p.dtype.stored))

    def forward_chunk(self, chunk: Chunk, weights: Weights, y: Array, states: SavedStates) -> None:
        """See `passes.ForwardLauncher`."""
        self.set_call(chunk, y, states, None)
        self.arena.replay(self._key("forward", chunk, weights), lambda: self._forward(chunk, weights))

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """See `BackwardLauncher`."""
        self.set_call(chunk, None, states, dy)
        self.arena.replay(self._key("backward", chunk, weights), lambda: self._backward(chunk, weights))

    def _key(self, way: str, chunk: Chunk, weights: Weights) -> tuple[Any, ...]:
        p = self.p
        fixed = (way, self.module, p.dtype.name, p.B, p.H, p.R, p.reverse)
        return (*fixed, chunk.key, address(weights.w_hh), address(weights.w_hr), self.layout)

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
