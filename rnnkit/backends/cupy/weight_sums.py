"""The gradients of the weights, as all schedules sum them over the row-steps of a backward pass."""

from __future__ import annotations

from typing import Any

from rnnkit.backends.cupy.cublas import Matrix
from rnnkit.backends.cupy.launcher import address, i32
from rnnkit.backends.cupy.modules import MOST_PARTS, over, sums_down
from rnnkit.backends.cupy.problem import Chunk, Problem
from rnnkit.backends.cupy.saved import Saved, SavedStates
from rnnkit.core.cells import Weights


def weight_sum_buffers(p: Problem) -> dict[str, int]:
    """Bytes of the buffers that `WeightSums` uses beside the gradients of the steps."""
    c = p.compute_bytes
    # A LongSum of kernels/cuda/rows.cu per bias element.
    widest = max(p.GH, len(p.cell.unit_weights) * p.H)
    sizes = {"partials": MOST_PARTS * widest * c, "db_ih": 2 * p.GH * c, "db_hh": 2 * p.GH * c}
    if p.cell.unit_weights:
        sizes["dw_unit"] = 2 * len(p.cell.unit_weights) * p.H * c
    return sizes if p.sums_in_place else sizes | _slice_sizes(p)


def _slice_sizes(p: Problem) -> dict[str, int]:
    """Bytes of the slices of the weights' gradients, and of their running sums where several batches of slices add."""
    elements = {"dw_ih": p.GH * p.I, "dw_hh": p.GH * p.R} | ({"dw_hr": p.R * p.H} if p.projected else {})
    slices = -(-p.chunk_rows // p.slice_rows)
    at_once = {name: p.slices_at_once(n) for name, n in elements.items()}
    sizes = {"slices": max(n * min(slices, at_once[name]) for name, n in elements.items()) * p.compute_bytes}
    if p.chunk_steps < p.T or slices > min(at_once.values()):
        sizes |= {name: 2 * n * p.compute_bytes for name, n in elements.items()}
    return sizes


class WeightSums:
    """The weights' gradients, summed chunk by chunk. A long sum is computed in slices, which are added without loss.

    The steps of a chunk leave their gradients in the buffers "dgates_x", "dgates_h" and "dprojected".
    into: the arrays that the gradients are added to, or None for new ones.
    """

    def __init__(self, launcher: Any, weights: Weights, into: Weights | None) -> None:
        import cupy

        self.launcher = launcher
        self.done = 0  # row-steps summed
        # If both biases have the same gradient, it is summed once.
        splits = launcher.p.cell.splits_sides
        self.shares_bias = not splits and weights.b_ih is not None and weights.b_hh is not None
        self.adds = into is not None
        self.results = into or Weights(*(None if w is None else cupy.empty_like(w) for w in weights))

    def add(self, chunk: Chunk, saved: Saved) -> None:
        """Adds the gradients of the chunk whose steps have just run."""
        launcher = self.launcher
        p = launcher.p
        states = saved.states
        N = chunk.N
        n0 = chunk.n0
        dgates_x = launcher.storage_matrix("dgates_x", p.GH)
        dgates_h = launcher.storage_matrix("dgates_h", p.GH) if p.cell.splits_sides else dgates_x
        self._add_product("w_ih", 0, dgates_x, launcher.array(saved.x).at(n0), p.GH, N)
        for a, first, end in launcher.hidden_operands(chunk, states):
            d = dgates_h.at(0, first * p.H)
            self._add_product("w_hh", first * p.H, d, a, (end - first) * p.H, N)
        if p.projected:
            dprojected = launcher.storage_matrix("dprojected", p.R)
            self._add_product("w_hr", 0, dprojected, launcher.array(states.operand).at(n0), p.R, N)
        biases = [(name, d) for name, d in (("b_ih", dgates_x), ("b_hh", dgates_h)) if self._sums_bias(name)]
        if p.cell.normalises:
            for name in ("w_unit", *(name for name, _ in biases)):
                self._add_norms(name, chunk, states)
            self.done += N
            return
        for name, d in biases:
            self._add_columns(name, d, N)
        if self.results.w_unit is not None:
            self._add_columns("w_unit", launcher.unit_products(chunk, states), N)
        self.done += N

    def _sums_bias(self, name: str) -> bool:
        return getattr(self.results, name) is not None and not (self.shares_bias and name == "b_hh")

    def _add_product(self, name: str, row: int, d: Matrix, a: Matrix, M: int, N: int) -> None:
        """Adds d^T a over N row-steps to M rows of a weight's gradient, from `row` on."""
        launcher = self.launcher
        p = launcher.p
        result = getattr(self.results, name)
        K = result.shape[1]
        out = launcher.array(result).at(row)
        if p.sums_in_place:
            launcher.products.over_steps(d, a, out, M, K, N, add=self.adds or self.done > 0)
            return
        if not K:
            return
        total = launcher[f"d{name}"] + 2 * p.compute_bytes * row * K
        slices = launcher.compute_matrix("slices", K)
        at_once = p.slices_at_once(result.size) * p.slice_rows
        for n in range(0, N, at_once):
            steps = min(at_once, N - n)
            parts = launcher.products.over_slices(d.at(n), a.at(n), slices, M, K, steps, p.slice_rows)
            first = self.done + n == 0
            last = self.done + n + steps == p.N
            ends = (out.address if last else 0, 0, 0 if first and last else total)
            sizes = (i32(parts), M * K, i32(first), i32(self.adds))
            launcher.launch_rows("add_parts", over(M * K), *ends, slices.address, *sizes)

    def _add_columns(self, name: str, d: Matrix, N: int) -> None:
        """Adds the sums down the columns of d, (N, G*H) or (N, K*H), to a bias's gradient or that of w_unit."""
        width = self._width(name)
        shape, parts = sums_down(N, width)
        self.launcher.launch_rows("column_sums", shape, self.launcher["partials"], d.address, N, width)
        self._add_partials(name, parts, N)

    def _add_norms(self, name: str, chunk: Chunk, states: SavedStates) -> None:
        """Adds the sums of what the row-steps of a chunk add to a bias's gradient or that of w_unit."""
        shape, parts = sums_down(chunk.N, self._width(name))
        self.launcher.norm_sums(name, chunk, states, shape)
        self._add_partials(name, parts, chunk.N)

    def _width(self, name: str) -> int:
        p = self.launcher.p
        return len(p.cell.unit_weights) * p.H if name == "w_unit" else p.GH

    def _add_partials(self, name: str, parts: int, N: int) -> None:
        """Adds the parts of the sums over N row-steps, in "partials", to a bias's gradient or that of w_unit."""
        launcher = self.launcher
        p = launcher.p
        width = self._width(name)
        partials = launcher["partials"]
        last = self.done + N == p.N
        result = address(getattr(self.results, name)) if last else 0
        also = address(self.results.b_hh) if last and self.shares_bias and name != "w_unit" else 0
        sums = (partials, i32(parts), width, i32(self.done == 0), i32(self.adds))
        launcher.launch_rows("add_parts", over(width), result, also, launcher[f"d{name}"], *sums)

    def finished(self) -> Weights:
        """The gradients, in the storage dtype; None for those that were added."""
        return Weights(*(None,) * len(self.results)) if self.adds else self.results
