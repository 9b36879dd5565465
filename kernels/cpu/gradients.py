"""After the backward loop: dx, dW and the biases' gradients, each one large product over all steps.

The threads of the call share dx by steps and the rest by the rows of the weights, so that no sum is split. They have
met once before, and meet once more here: when all have written their units of the gates' gradients.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rnnkit.kernels.cpu.frame import make_frame, meet_all
from rnnkit.kernels.cpu.jit import outer
from rnnkit.kernels.cpu.matmul import tile_shape
from rnnkit.kernels.cpu.matmul_large import large_products
from rnnkit.kernels.cpu.pack import packer
from rnnkit.kernels.cpu.simd import vectors


@cache
def make_gradients(dtype: str) -> Any:
    """gradients(a, s, p, index, G, operand, last): a a `Backward`, s its `Shape`, p the thread's `Part`.

    operand (N, R): what the recurrent weights multiplied, and for the last gate `last` (N, R) instead, unless 0.
    dh_side's sums are db_hh where the two sides are apart; else db_hh is db_ih, which the caller copies.
    """
    v, pack, lib, frame = vectors(dtype), packer(dtype), large_products(dtype), make_frame(dtype)
    clear, give_rows = frame.clear, frame.give_rows
    size, width = v.itemsize, tile_shape()[1] * v.lanes
    rows_by_weights, over_time = lib.rows_by_weights, lib.over_time

    @outer
    def share_over_time(d, d_row, x, N, width_x, out, sums, M, index, threads, room, adds):
        """This thread's rows of out (M, width_x) = d^T x over N steps, or += where `adds`, and of sums (M,)."""
        m0, m1 = M * index // threads, M * (index + 1) // threads
        if N == 0:
            if not adds:
                clear(out + m0 * width_x * size, (m1 - m0) * width_x)
            if sums:
                clear(sums + m0 * size, m1 - m0)
        elif m0 < m1:
            over_time(d, d_row, x, N, width_x, out, sums, m0, m1, room, adds)

    @outer
    def gradients(a, s, p, index, G, operand, last):
        GH, N, I, threads, room = G * s.H, s.N, s.I, p.threads, a.scratch + s.own + index * s.own_size
        row, w_x, panels = GH * size, a.scratch + s.w_x, (I + width - 1) // width
        pack(
            a.w_ih, I * size, GH, True, 0, I, I, I, panels * index // threads, panels * (index + 1) // threads, w_x
        )  # fmt: skip
        meet_all(p, 2)
        n0, n1 = N * index // threads, N * (index + 1) // threads
        rows_by_weights(a.dgates_x, row, w_x, GH, a.dx_rows, I * size, I, n0, n1)
        if N < s.T * s.B:
            give_rows(a, s, p, index)
        share_over_time(a.dgates_x, row, a.x_rows, N, I, a.dw_ih, a.db_ih, GH, index, threads, room, a.adds)
        apart = a.db_hh if a.dgates_h != a.dgates_x else 0
        first = GH - s.H if last else GH
        share_over_time(a.dgates_h, row, operand, N, s.R, a.dw_hh, apart, first, index, threads, room, a.adds)
        if last:
            d, out = a.dgates_h + first * size, a.dw_hh + first * s.R * size
            share_over_time(d, row, last, N, s.R, out, 0, s.H, index, threads, room, a.adds)
        if a.w_hr:
            share_over_time(
                a.dprojected, s.R * size, a.extra, N, s.H, a.dw_hr, 0, s.R, index, threads, room, a.adds
            )  # fmt: skip

    return gradients
