"""The steps of a chunk in schedule D, forward and back, as launches that a CUDA graph captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.cupy import sources, stepwise_noise, stepwise_norm
from rnnkit.backends.cupy.arena import Arena
from rnnkit.backends.cupy.backward_launcher import BackwardLauncher
from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import address, i32
from rnnkit.backends.cupy.modules import FEW_BLOCKS, THREADS, Shape, over, rows_by_units
from rnnkit.backends.cupy.problem import Chunk, Problem, Span
from rnnkit.backends.cupy.saved import SavedStates
from rnnkit.backends.cupy.sources import Build
from rnnkit.backends.cupy.stepwise_buffers import k_major
from rnnkit.backends.random_masks import StepMasks
from rnnkit.core.cells import Array, State, Weights, cell_of

FILES = ("cuda/rows.cuh", "cuda/call.cuh", "cuda/units.cuh", "cuda/stepwise.cuh", "cuda/stepwise.cu")
STEPS = ("forward_step", "forward_output", "backward_output", "backward_step")
KERNELS = sources.pointwise_kernels(*STEPS, *(f"{name}_wide" for name in STEPS))

# The wide kernels process 16 bytes of the compute dtype per thread, of rows whose units are a multiple of it. On fewer
# elements they would leave parts of a large card idle.
WIDE_BYTES = 16
WIDE_ELEMENTS = FEW_BLOCKS * THREADS


# Of a cell whose formulas have options, beside those.
FILE_OF_OPTIONS = "cuda/unit_weights.cu"
MOST_CONSTANTS = 8  # of set_extras

# Of a cell with several states beside h, in place of kernels/cuda/stepwise.cu.
FILE_OF_STATES = "cuda/stepwise_states.cu"
STEPS_OF_STATES = ("forward_step", "backward_step")
KERNELS_OF_STATES = sources.pointwise_kernels(*STEPS_OF_STATES, *(f"{name}_wide" for name in STEPS_OF_STATES))


def build(cell: str, storage: str) -> Build:
    """The module of a `Cell.key` and a storage dtype."""
    row = cell_of(cell)
    if row.normalises:
        return sources.of_cell("stepwise", cell, storage, (*FILES[:-1], *stepwise_norm.FILES), stepwise_norm.KERNELS)
    if row.n_cell_states > 1:
        count = (("RK_CELL_STATES", str(row.n_cell_states)),)
        return sources.of_cell(
            "stepwise", cell, storage, (*FILES[:-1], FILE_OF_STATES), KERNELS_OF_STATES, defines=count
        )
    files: tuple[str, ...] = FILES
    kernels = KERNELS
    if row.options.has_noise:
        files = (*FILES[:-1], stepwise_noise.HEADER, FILES[-1], stepwise_noise.FILE)
        kernels = (*kernels, *stepwise_noise.kernels(row))
    if row.options.changes_formulas:
        files = (*files, FILE_OF_OPTIONS)
        more = ("set_extras", *(("unit_products",) if row.unit_weights else ()))
        kernels = (*kernels, *sources.pointwise_kernels(*more))
    return sources.of_cell("stepwise", cell, storage, files, kernels, defines=stepwise_noise.defines(row))


class Operands(NamedTuple):
    """The weights as operands of a step's products.

    w_hh      (G*H, R), or for K-major products its transpose
    second    the weight of the second product, m (rows, H) times second (units, H) transposed: the projection, or
              W_hn of W_hn (r h'); or its transpose; None where a step has one product
    units     of the second product
    k_major   whether the operands are transposed, so that products through them read both operands along K
    """

    w_hh: Matrix
    second: Matrix | None
    units: int
    k_major: bool = False


class StepLauncher(BackwardLauncher):
    """A Launcher with the steps of schedule D."""

    def __init__(self, p: Problem, arena: Arena, sizes: dict[str, int], packing_table: Array | None) -> None:
        super().__init__(p, arena, sizes, packing_table, build(p.cell.key, p.dtype.stored))
        self._operands: Operands
        self._masks: StepMasks

    def operands(self, weights: Weights, k_major: bool = False) -> Operands:
        """k_major: transposes the weights into the buffers "w_hh" and "w_hr"."""
        p = self.p
        w_hh = self.transpose("w_hh", weights.w_hh) if k_major else self.array(weights.w_hh)
        if p.projected:
            w_hr = self.transpose("w_hr", weights.w_hr) if k_major else self.array(weights.w_hr)
            return Operands(w_hh, w_hr, p.R, k_major)
        if p.cell.resets_before:
            _, first, end = p.cell.products[1]
            second = w_hh.at(0, first * p.H) if k_major else w_hh.at(first * p.H)
            return Operands(w_hh, second, (end - first) * p.H, k_major)
        return Operands(w_hh, None, 0, k_major)

    def forward_begin(self, state0: State, weights: Weights) -> None:
        """As `Launcher.forward_begin`."""
        super().forward_begin(state0, weights)
        self._set_extras(weights)
        if self.p.cell.options.has_noise:
            self._masks = stepwise_noise.begin(self, weights.w_hh, backward=False)
        self._operands = self.operands(weights)

    def forward_chunk(self, chunk: Chunk, weights: Weights, y: Array, states: SavedStates) -> None:
        """See `passes.ForwardLauncher`. The graphs of its spans write only what the Call says."""
        for span in chunk.spans():
            self.set_call(span.t0, chunk.n0, y, states, None)
            self._replay("forward", span, self._forward)

    def backward_begin(self, dstate_n: State, weights: Weights) -> None:
        """As `BackwardLauncher.backward_begin`."""
        super().backward_begin(dstate_n, weights)
        self._set_extras(weights)
        if self.p.cell.options.has_noise:
            self._masks = stepwise_noise.begin(self, weights.w_hh, backward=True)
        self._operands = self.operands(weights, k_major(self.p))

    def backward_chunk(self, chunk: Chunk, weights: Weights, states: SavedStates, dy: Array | None) -> None:
        """See `BackwardLauncher`."""
        for span in chunk.spans(backward=True):
            self.set_call(span.t0, chunk.n0, None, states, dy)
            self._replay("backward", span, self._backward)

    def backward_end(self, dstate0: State) -> None:
        """As `Launcher.backward_end`."""
        stepwise_noise.end_backward(self)
        super().backward_end(dstate0)

    def hidden_operands(self, chunk: Chunk, states: SavedStates) -> Iterator[tuple[Matrix, int, int]]:
        """As `BackwardLauncher.hidden_operands`: masked."""
        own = super().hidden_operands(chunk, states)
        count = stepwise_noise.masked_products(self.p.cell)
        if count:
            _, first, end = next(own)
            each = (end - first) // count
            masked = self.storage_matrix("masked", self.p.R)
            for number in range(count):
                yield masked.at(number * self.p.chunk_rows), number * each, (number + 1) * each
        yield from own

    def _set_extras(self, weights: Weights) -> None:
        """Writes the constants and the weights per unit of a cell with options after the Call."""
        p = self.p
        if p.cell.normalises:
            stepwise_norm.begin(self, weights)
            return
        if not p.cell.options.changes_formulas:
            return
        numbers = [np.float64(value) for value in p.constants]
        numbers += [np.float64(0)] * (MOST_CONSTANTS - len(numbers))
        count = len(p.cell.unit_weights) * p.H
        given = (self["call"], address(weights.w_unit), count, i32(len(p.constants)))
        self.launch("set_extras", over(max(count, MOST_CONSTANTS)), *given, *numbers)

    def unit_products(self, chunk: Chunk, states: SavedStates) -> Matrix:
        """(N, 3*H): what each row-step of a chunk, whose steps have just run, adds to the peepholes' gradients."""
        p = self.p
        values = self.array(states.values).at(chunk.n0).address
        c_prev = address(states.c_prev) + chunk.n0 * p.H * p.compute_bytes
        given = (self["call"], values, c_prev, self["dgates_x"], self["unit_products"])
        self.launch("unit_products", over(chunk.N * p.H), *given, chunk.N, i32(p.H))
        return self.storage_matrix("unit_products", len(p.cell.unit_weights) * p.H)

    def norm_sums(self, name: str, chunk: Chunk, states: SavedStates, shape: Shape) -> None:
        """As `stepwise_norm.sums`."""
        stepwise_norm.sums(self, name, chunk, states, shape)

    def _replay(self, way: str, span: Span, launch: Callable[[Span, Operands], None]) -> None:
        operands = self._operands
        self.arena.replay(self._key(way, span, operands), lambda: launch(span, operands))

    def _key(self, way: str, span: Span, operands: Operands) -> tuple[Any, ...]:
        """Everything that the launches depend on beside the buffers' addresses. The Call holds the rest."""
        p = self.p
        sizes = (p.dtype.name, p.B, p.H, p.R, p.reverse, p.ragged)
        where = span.first if way == "backward" else 0
        return (way, self.module, *sizes, span.steps, span.rows, where, operands, self.layout)

    def _launch_step(self, name: str, rows: int, units: int, *args: Any) -> None:
        """Launches a kernel over rows and units, or its wide variant; of a cell that normalises a block per row."""
        if self.p.cell.normalises:
            self.launch(name, stepwise_norm.rows_by_blocks(rows, units), self["call"], *args)
            return
        each = WIDE_BYTES // self.p.compute_bytes
        wide = units % each == 0 and rows * units >= WIDE_ELEMENTS
        if wide:
            name += "_wide"
            units //= each
        self.launch(name, rows_by_units(rows, units), self["call"], *args)

    def _forward(self, span: Span, operands: Operands) -> None:
        p = self.p
        side = self.compute_matrix("side", p.GH)
        h = self.storage_matrix("h", p.R)
        m = self.storage_matrix("m", p.H)
        projected = self.storage_matrix("projected", p.R)
        rows = span.rows
        most, H, R = map(i32, (rows, p.H, p.R))
        first = p.first_gates * p.H
        sides = (self["gates"], side.address, self["bias"])
        state_rows = self._state_rows
        for t in _times(span, p.reverse):
            self._products_of_h(h, operands.w_hh, side, rows)
            states = (h.address, self["c"], m.address)
            self._launch_step("forward_step", rows, p.H, *sides, *states, most, H, R, i32(t), *state_rows)
            if operands.second is None:
                continue
            out = projected if p.projected else side.at(0, first)
            self.products.rows_by_weights(m, operands.second, out, rows, operands.units, p.H)
            ends = (h.address, projected.address, most, R, i32(t))
            self._launch_step("forward_output", rows, p.R, *sides, *ends)

    def _backward(self, span: Span, operands: Operands) -> None:
        p = self.p
        rows = span.rows
        most, H, R = map(i32, (rows, p.H, p.R))
        first = p.first_gates * p.H
        dh = self.compute_matrix("dh", p.R)
        dm = self.compute_matrix("dv" if p.cell.normalises else "dm", p.H)
        gates = (self["dgates_x"], self["dgates_h"] or self["dgates_x"], self["dgates_now"])
        state_rows = self._state_rows
        # Rows of the products: at a fixed address in ragged batches, else where the chunk's sums need them.
        now = self.storage_matrix("dgates_now" if p.ragged else "dgates_h" if p.cell.splits_sides else "dgates_x", p.GH)
        outputs = (self["dprojected"], self["dprojected_now"]) if p.projected else (gates[0], gates[2])
        projected = self.storage_matrix("dprojected_now" if p.ragged else "dprojected", p.R)
        through = self.products.rows_by_weights if operands.k_major else self.products.rows_through
        for t in _times(span, not p.reverse):
            n = 0 if p.ragged else span.first + t * rows
            if operands.second is not None:
                self._launch_step("backward_output", rows, p.R, *outputs, dh.address, most, R, i32(t))
                doutput = projected.at(n) if p.projected else now.at(n, first)
                through(doutput, operands.second, dm, rows, p.H, operands.units)
            states = (dh.address, self["dc"], dm.address)
            self._launch_step("backward_step", rows, p.H, *gates, *states, most, H, i32(t), *state_rows)
            self._products_through(now.at(n), operands, dh, rows)

    @property
    def _state_rows(self) -> tuple[Any, ...]:
        """The last argument of the steps of a cell with several states beside h: the rows of each."""
        return (i32(self.p.B),) if self.p.cell.n_cell_states > 1 else ()

    def _products_of_h(self, h: Matrix, w_hh: Matrix, side: Matrix, rows: int) -> None:
        """side (rows, G*H) = h W_hh^T, of the gates of the first product; with masks on h, from "masked"."""
        p = self.p
        # Rows of W_hh in the first product, so columns of `side` that it writes.
        width = p.first_gates * p.H
        count = stepwise_noise.masked_products(p.cell)
        if not count:
            self.products.rows_by_weights(h, w_hh, side, rows, width, p.R)
            return
        masked = self.storage_matrix("masked", p.R)
        each = width // count
        for number in range(count):
            at = number * each
            self.products.rows_by_weights(masked.at(number * p.B), w_hh.at(at), side.at(0, at), rows, each, p.R)

    def _products_through(self, dgates: Matrix, operands: Operands, dh: Matrix, rows: int) -> None:
        """dh (rows, R) from dgates W_hh, of the gates of the first product; with masks on h, "dmasked" instead."""
        p = self.p
        through = self.products.rows_by_weights if operands.k_major else self.products.rows_through
        w_hh = operands.w_hh
        width = p.first_gates * p.H
        count = stepwise_noise.masked_products(p.cell)
        if not count:
            # Where the pointwise part reads h', or with zoneout, dh already holds the part that bypasses the product.
            add = p.cell.reads_h or p.ragged or p.cell.options.zoneout_h
            through(dgates, w_hh, dh, rows, p.R, width, add=add)
            return
        dmasked = self.compute_matrix("dmasked", p.R)
        each = width // count
        for number in range(count):
            at = number * each
            w = w_hh.at(0, at) if operands.k_major else w_hh.at(at)
            through(dgates.at(0, at), w, dmasked.at(number * p.B), rows, p.R, each)


def _times(span: Span, descending: bool) -> Iterator[int]:
    """The steps of a span, from its first one."""
    times = range(span.steps)
    return iter(reversed(times) if descending else times)
