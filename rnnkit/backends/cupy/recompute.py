"""The gates of a chunk of steps, computed again in backward from the states that forward saved.

The pre-activations of all row-steps are two products, of x and of the saved h, because no row-step waits for another
one. Then the pointwise kernels of schedule D run once, with every row-step of the chunk as a row of one step. They
write what forward would have saved, in the layout that all schedules read. They read h and c as the steps had them, h
rounded to the storage dtype and c in the compute dtype, so the gates differ from those of forward only where a product
adds in another order, and in TF32 where cuBLAS rounds its operands otherwise than the resident kernels do (to nearest).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rnnkit.backends.cupy import modules
from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import Launcher, address, i32
from rnnkit.backends.cupy.problem import Chunk
from rnnkit.backends.cupy.recompute_buffers import PREFIX, rows_at_once
from rnnkit.backends.cupy.saved import Saved, SavedStates, of_chunk
from rnnkit.backends.cupy.stepwise_launch import StepLauncher, build
from rnnkit.core.cells import Array, Weights


class Rows(NamedTuple):
    """Where the values and the operands of some row-steps begin; 0 for no operands."""

    values: int
    operand: int


class Recomputation(StepLauncher):
    """The recomputation of a backward pass, on the buffers and the stream of its launcher.

    Where the steps of a chunk run beside that of the next one, values and operands have two buffers, which alternate.
    """

    def __init__(self, launcher: Launcher, weights: Weights) -> None:
        p = launcher.p
        self.p = p
        self.arena = launcher.arena
        self.rows = launcher.rows
        self.products = launcher.products
        self.module = modules.module(build(p.cell.key, p.dtype.stored))
        self.order = self.offsets = 0  # the rows of a chunk follow each other
        self._addresses = launcher.part(PREFIX)
        for name in ("values", "operand"):
            self._addresses |= {name + rest: at for rest, at in launcher.part(name).items()}
        self.weights = weights
        self._operands = self.operands(weights)
        self._set_extras(weights)
        biases = (address(weights.b_ih), address(weights.b_hh))
        no_rows = (0, p.R, p.H, p.GH)
        self.launch_rows(
            "forward_begin", modules.over(2 * p.GH), 0, 0, *biases, 0, self["h"], 0, self["bias"], *no_rows
        )

    def run(self, chunk: Chunk, saved: Saved) -> SavedStates:
        """The saved states with the values and operands of a chunk."""
        found = of_chunk(self.p, saved.states, self, chunk.n0)
        each = rows_at_once(self.p)
        end = chunk.n0 + chunk.N
        for first in range(chunk.n0, end, each):
            self._run_rows(first, min(each, end - first), saved.x, found)
        for name in ("values", "operand"):
            if f"{name}_next" in self:
                self.swap(name, f"{name}_next")
        return found

    def _run_rows(self, first: int, rows: int, x: Array, states: SavedStates) -> None:
        """Writes the values and operands of the row-steps [first, first + rows)."""
        p = self.p
        h_prev = self.array(states.h_prev).at(first)
        side = self.compute_matrix("side", p.GH)
        gates = self.compute_matrix("gates", p.GH)
        w_ih = self.array(self.weights.w_ih)
        self.products.rows_by_weights(self.array(x).at(first), w_ih, gates, rows, p.GH, p.I)
        self.products.rows_by_weights(h_prev, self._operands.w_hh, side, rows, p.first_gates * p.H, p.R)
        self._take_cell_states(first, rows, states.c_prev)
        placed = Rows(states.values.row(first), 0 if states.operand is None else states.operand.row(first))
        if p.cell.resets_before:
            self._resets_before(rows, h_prev, side, placed)
        elif p.cell.normalises or p.cell.n_cell_states > 1:
            self._in_place(first, rows, states, placed)
        else:
            self._plain(rows, h_prev, placed)

    def _plain(self, rows: int, h_prev: Matrix, placed: Rows) -> None:
        """The kernels of a projection write the new h to m, so they only read h. Without a projection m is unused."""
        p = self.p
        m = placed.operand if p.projected else self["h"]
        self._set_rows(placed, 0, 0)
        self._launch_step("forward_step", rows, p.H, *self._sides, h_prev.address, self["c"], m, *self._sizes(rows))

    def _in_place(self, first: int, rows: int, states: SavedStates, placed: Rows) -> None:
        """The kernels save the states before the step, which then are as they were: h where they keep it, c in place.

        The values do not depend on h but by its product, so what "h" holds is of no account.
        """
        p = self.p
        self._set_rows(placed, self["h"], 0 if states.c_prev is None else states.c_prev[first:].data.ptr)
        more = (i32(rows),) if p.cell.n_cell_states > 1 else ()
        given = (*self._sides, self["h"], self["c"], 0, *self._sizes(rows))
        self._launch_step("forward_step", rows, p.H, *given, *more)

    def _resets_before(self, rows: int, h_prev: Matrix, side: Matrix, placed: Rows) -> None:
        """The first kernel saves h to "h", which the second one replaces."""
        p = self.p
        operands = self._operands
        assert operands.second is not None
        rh = Matrix(placed.operand, p.H, p.dtype.stored)
        self._set_rows(placed, self["h"], 0)
        self._launch_step("forward_step", rows, p.H, *self._sides, h_prev.address, 0, rh.address, *self._sizes(rows))
        out = side.at(0, p.first_gates * p.H)
        self.products.rows_by_weights(rh, operands.second, out, rows, operands.units, p.H)
        self._launch_step("forward_output", rows, p.H, *self._sides, self["h"], 0, i32(rows), i32(p.H), i32(0))

    @property
    def _sides(self) -> tuple[int, int, int]:
        """The first arguments of the steps."""
        return self["gates"], self["side"], self["bias"]

    def _sizes(self, rows: int) -> tuple[Any, ...]:
        """The last arguments of "forward_step": the rows, H, R and the time step."""
        return i32(rows), i32(self.p.H), i32(self.p.R), i32(0)

    def _set_rows(self, placed: Rows, h_prev: int, c_prev: int) -> None:
        """Writes the Call of one step whose rows are row-steps. y goes where the kernels keep h."""
        outputs = (self["h"], placed.values, h_prev, c_prev, placed.operand)
        no_table = (0, 0, 0)
        strides = (0, self.p.R, 0, 0)
        self.launch_rows("set_call", ((1,), (1,)), self["call"], *outputs, *no_table, *strides, 0, 0)

    def _take_cell_states(self, first: int, rows: int, c_prev: Array | None) -> None:
        """Copies the states beside h of row-steps, (N, n_cell_states, H), to "c" (n_cell_states, rows, H)."""
        p = self.p
        S = p.cell.n_cell_states
        if c_prev is None:
            return
        given = c_prev[first : first + rows]
        c = self.arena.array(self["c"], (S * rows, p.H), p.dtype.compute)
        for number in range(S):
            c[number * rows : (number + 1) * rows] = given[:, number * p.H : (number + 1) * p.H]
