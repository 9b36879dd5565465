"""After the backward loop: dx, dW and the biases' gradients, each one large product over all row-steps.

The threads of the call share dx by row-steps and the rest by the rows of the weights, so that no sum is split. All
threads have synchronised once before; they synchronise once more here, when all have written their units of the gates'
gradients.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rnnkit.kernels.cpu.jit import outer
from rnnkit.kernels.cpu.matmul import tile_shape
from rnnkit.kernels.cpu.matmul_large import large_products
from rnnkit.kernels.cpu.pack import packer
from rnnkit.kernels.cpu.partition import sync_all
from rnnkit.kernels.cpu.rows import row_functions
from rnnkit.kernels.cpu.simd import vectors


@cache
def make_gradients(dtype: str) -> Any:
    """gradients(a, s, p, index, G, last): a a `Backward`, s its `Shape`, p the thread's `Part`.

    last: 0, or (N, H): what the recurrent weights of the last gate multiplied instead of h_prev. The column sums of
    dgates_h are db_hh where the two sides differ; else db_hh equals db_ih, which the caller copies.
    """
    v = vectors(dtype)
    pack = packer(dtype)
    lib = large_products(dtype)
    rows = row_functions(dtype)
    clear = rows.clear
    unpack_dx = rows.unpack_dx
    size = v.itemsize
    width = tile_shape()[1] * v.lanes
    rows_by_weights = lib.rows_by_weights
    over_time = lib.over_time

    @outer
    def share_over_time(d, d_row, x, N, width_x, out, sums, M, index, threads, room, adds):
        """This thread's rows of out (M, width_x) = d^T x over N row-steps, or += where `adds`, and of sums (M,)."""
        m0 = M * index // threads
        m1 = M * (index + 1) // threads
        if N == 0:
            if not adds:
                clear(out + m0 * width_x * size, (m1 - m0) * width_x)
            if sums:
                clear(sums + m0 * size, m1 - m0)
        elif m0 < m1:
            over_time(d, d_row, x, N, width_x, out, sums, m0, m1, room, adds)

    @outer
    def gradients(a, s, p, index, G, last):
        N, I, threads, d = s.N, s.I, p.threads, a.dweights
        GH = G * s.H
        room = a.workspace + s.own + index * s.own_size
        row = GH * size
        w_x = a.workspace + s.w_x
        panels = (I + width - 1) // width
        panel0 = panels * index // threads
        panel1 = panels * (index + 1) // threads
        pack(a.weights.w_ih, I * size, GH, True, 0, I, I, I, panel0, panel1, w_x)
        sync_all(p, 2)
        n0 = N * index // threads
        n1 = N * (index + 1) // threads
        rows_by_weights(a.dgates_x, row, w_x, GH, a.dx_packed, I * size, I, n0, n1)
        if N < s.T * s.B:
            unpack_dx(a, s, p, index)
        share_over_time(a.dgates_x, row, a.x_packed, N, I, d.w_ih, d.b_ih, GH, index, threads, room, a.adds)
        h_prev = a.saved.h_prev
        sums = d.b_hh if a.dgates_h != a.dgates_x else 0
        first = GH - s.H if last else GH
        share_over_time(a.dgates_h, row, h_prev, N, s.R, d.w_hh, sums, first, index, threads, room, a.adds)
        if last:
            out = d.w_hh + first * s.R * size
            share_over_time(a.dgates_h + first * size, row, last, N, s.R, out, 0, s.H, index, threads, room, a.adds)
        if a.weights.w_hr:
            m = a.saved.operand
            share_over_time(a.dprojected, s.R * size, m, N, s.H, d.w_hr, 0, s.R, index, threads, room, a.adds)

    return gradients
