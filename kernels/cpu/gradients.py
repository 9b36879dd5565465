"""After the backward loop: dx, dW and the biases' gradients, each one large product over all row-steps.

The threads of the call share dx by row-steps and the rest by the rows of the weights, so that no sum is split. All
threads have synchronised once before; they synchronise once more here, when all have written their units of the gates'
gradients.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import tile_shape
from rnnkit.kernels.cpu.matmul_large import LINE, ROW_BLOCK, large_products, scratch_elements
from rnnkit.kernels.cpu.memory import minimum
from rnnkit.kernels.cpu.pack import packer
from rnnkit.kernels.cpu.partition import sync_all
from rnnkit.kernels.cpu.rows import clearer, copier, row_functions


def gradient_room(K: int, M: int, widths: tuple[int, ...], dtype: str) -> int:
    """How many computed numbers of memory a thread needs here. K: row-steps; M: the most rows of a weight that it has;
    widths: I, R and H."""
    widest = max(widths)
    over_time = scratch_elements(K, M, widest, dtype)
    if not formats(dtype).mixed:
        return over_time
    return max(over_time + M * (widest + 1) + 2 * LINE // formats(dtype).computed.itemsize, ROW_BLOCK * widths[0])


@inner
def whole_lines(size):
    return (size + LINE - 1) // LINE * LINE


def _make_round(dtype: str) -> Any:
    """round_rows(source, target, count, adds): stored numbers = computed ones, or += where `adds`."""
    form = formats(dtype)
    stored = form.stored
    computed = form.computed
    load = computed.first.load
    load_before = stored.first.load
    store = stored.first.store
    COMPUTED = computed.itemsize
    STORED = stored.itemsize
    lanes = computed.lanes

    @inner
    def round_rows(source, target, count, adds):
        for j in range(0, count, lanes):
            n = count - j
            value = load(source + j * COMPUTED, n)
            if adds:
                value = value + load_before(target + j * STORED, n)
            store(value, target + j * STORED, n)

    return round_rows


@cache
def make_gradients(dtype: str, masks: int = 1) -> Any:
    """gradients(a, s, p, index, G, h_prev, last): a a `Backward`, s its `Shape`, p the thread's `Part`.

    h_prev: (masks, N, R) what W_hh multiplied: for all gates, or for each gate if there are several masks.

    Where `Backward.dx` is 0 there is no dx, and where dweights.w_ih is 0 nothing but dx.

    last: 0, or (N, H): what the recurrent weights of the last gate multiplied instead of h_prev. The column sums of
    dgates_h are db_hh where the two sides differ; else db_hh equals db_ih, which the caller copies.
    """
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    computed = form.computed
    MIXED = form.mixed
    pack = packer(dtype)
    lib = large_products(dtype)
    clear = clearer(stored.dtype)
    unpack_dx = row_functions(dtype).unpack_dx
    copy_dx = copier(computed.dtype, stored.dtype)
    round_rows = _make_round(dtype)
    STORED = stored.itemsize
    OPERAND = operand.itemsize
    COMPUTED = computed.itemsize
    MASKS = masks
    width = tile_shape()[1] * computed.lanes
    rows_by_weights = lib.rows_by_weights
    over_time = lib.over_time

    @outer
    def share_over_time(d, d_row, x, N, width_x, out, sums, M, index, threads, room, adds):
        """This thread's rows of out (M, width_x) = d^T x over N row-steps, or += where `adds`, and of sums (M,)."""
        m0 = M * index // threads
        m1 = M * (index + 1) // threads
        if N == 0:
            if not adds:
                clear(out + m0 * width_x * STORED, (m1 - m0) * width_x)
            if sums:
                clear(sums + m0 * STORED, m1 - m0)
        elif m0 < m1 and MIXED:
            # The sums are computed numbers, and rounded once.
            count = (m1 - m0) * width_x
            total = room + whole_lines((m1 - m0) * COMPUTED)
            scratch = total + whole_lines(count * COMPUTED)
            first = room - m0 * COMPUTED if sums else 0
            over_time(d, d_row, x, N, width_x, total - m0 * width_x * COMPUTED, first, m0, m1, scratch, False)
            round_rows(total, out + m0 * width_x * STORED, count, adds)
            if sums:
                round_rows(room, sums + m0 * STORED, m1 - m0, False)
        elif m0 < m1:
            over_time(d, d_row, x, N, width_x, out, sums, m0, m1, room, adds)

    @outer
    def share_of_dx(a, s, w_x, GH, n0, n1, room):
        """Rows [n0, n1) of dx_packed."""
        row_d = GH * OPERAND
        row = s.I * STORED
        if not MIXED:
            rows_by_weights(a.dgates_x, row_d, w_x, GH, a.dx_packed, row, s.I, n0, n1)
            return
        for n in range(n0, n1, ROW_BLOCK):
            end = minimum(n + ROW_BLOCK, n1)
            rows_by_weights(a.dgates_x + n * row_d, row_d, w_x, GH, room, s.I * COMPUTED, s.I, 0, end - n)
            copy_dx(room, a.dx_packed + n * row, (end - n) * s.I)

    @outer
    def gradients(a, s, p, index, G, h_prev, last):
        N, I, threads, d = s.N, s.I, p.threads, a.dweights
        GH = G * s.H
        room = a.workspace + s.own + index * s.own_size
        row = GH * OPERAND
        w_x = a.workspace + s.w_x
        if a.dx:
            panels = (I + width - 1) // width
            panel0 = panels * index // threads
            panel1 = panels * (index + 1) // threads
            pack(a.weights.w_ih, I * STORED, GH, True, 0, I, I, I, panel0, panel1, w_x)
        sync_all(p, 2)
        if a.dx:
            n0 = N * index // threads
            n1 = N * (index + 1) // threads
            share_of_dx(a, s, w_x, GH, n0, n1, room)
            if N < s.T * s.B:
                unpack_dx(a, s, p, index)
        if not d.w_ih:
            return
        share_over_time(a.dgates_x, row, a.x_packed, N, I, d.w_ih, d.b_ih, GH, index, threads, room, a.adds)
        sums = d.b_hh if a.dgates_h != a.dgates_x else 0
        first = GH - s.H if last else GH
        M = first if MASKS == 1 else s.H
        for k in range(first // M):
            at = k * M
            share_over_time(
                a.dgates_h + at * OPERAND, row, h_prev + k * N * s.R * OPERAND, N, s.R, d.w_hh + at * s.R * STORED,
                sums + at * STORED if sums else 0, M, index, threads, room, a.adds,
            )  # fmt: skip
        if last:
            out = d.w_hh + first * s.R * STORED
            share_over_time(a.dgates_h + first * OPERAND, row, last, N, s.R, out, 0, s.H, index, threads, room, a.adds)
        if a.weights.w_hr:
            m = a.saved.operand
            share_over_time(a.dprojected, s.R * OPERAND, m, N, s.H, d.w_hr, 0, s.R, index, threads, room, a.adds)

    return gradients
