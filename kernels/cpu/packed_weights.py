"""Weights packed for one call or, in inference, for later ones too; and the product of the input with them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from rnnkit.kernels.cpu.digest import digest
from rnnkit.kernels.cpu.formats import depths, formats, row_sizes
from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products, tile_shape
from rnnkit.kernels.cpu.memory import atomic_add, load_word, maximum, minimum, store_word
from rnnkit.kernels.cpu.pack import packer
from rnnkit.kernels.cpu.partition import sync_all
from rnnkit.kernels.cpu.rows import row_functions


@cache
def weight_functions(dtype: str) -> SimpleNamespace:
    """The functions of a dtype. w and packed are addresses; a is a `Forward`, s its `Shape`, p the thread's `Part`.

    are_packed(a, s, p, index, gates)
        whether `a.packed` holds these weights already. All threads synchronise once in it where it may.
    record(a, p, index)
        after all threads have packed and synchronised: stores the digest of what is packed now
    pack_share(w, K, transposed, width, blocks, s, p, packed)
        packs, together with the other groups, the rows of W (blocks * width, K) that this member multiplies: its share
        of each block
    input_product(a, s, p, low, steps, w_x, gates, GH)
        gates = x W_ih^T for steps [low, low + steps) of the thread's own rows. Returns the number of rows from one step
        to the next in `gates`, or 0 where they are packed as x is, because the thread's rows are the whole batch
    """
    form = formats(dtype)
    pack = packer(dtype)
    lib = products(form.operand.dtype, form.packed)
    depth = depths(dtype)
    row_bytes = row_sizes(dtype)
    size = form.weights.itemsize
    operand_size = form.operand.itemsize
    step_of_k = operand_size * (2 if form.paired else 1)
    computed_size = form.computed.itemsize
    word = form.word
    panel_width = tile_shape()[1] * form.computed.lanes
    product = lib.product
    product_steps = lib.product_steps
    first_unit = row_functions(dtype).first_unit

    @outer
    def are_packed(a, s, p, index, gates):
        if not a.digest:
            return False
        w = a.weights
        sum_at = p.all_barrier + 8
        some = load_word(a.digest + 8) == 1
        trusted = load_word(a.digest + 16) == 1
        if not (some and trusted):
            part = digest(w.w_ih, gates * s.H * row_bytes(s.I), 1, index, p.threads)
            part += digest(w.w_hh, gates * s.H * row_bytes(s.R), 2, index, p.threads)
            if w.w_hr:
                part += digest(w.w_hr, s.R * row_bytes(s.H), 3, index, p.threads)
            atomic_add(sum_at, part)
        sync_all(p, 1)
        return some and (trusted or load_word(a.digest) == load_word(sum_at))

    @inner
    def record(a, p, index):
        if a.digest and index == 0:
            store_word(a.digest, load_word(p.all_barrier + 8))
            store_word(a.digest + 8, 1)

    @outer
    def pack_share(w, K, transposed, width, blocks, s, p, packed):
        first = first_unit(width, s.members, p.member)
        share = first_unit(width, s.members, p.member + 1) - first
        N = blocks * share
        panels = (N + panel_width - 1) // panel_width
        begin = panels * p.group // s.groups
        end = panels * (p.group + 1) // s.groups
        row = blocks * width * size if transposed else row_bytes(K)
        pack(w, row, K, transposed, first, share, width, N, begin, end, packed + blocks * first * depth(K) * word)

    @outer
    def input_product(a, s, p, low, steps, w_x, gates, GH):
        x, offsets, counts = a.x_packed, a.rows.offsets, a.rows.counts
        I, B, row_x, row_g, rows = s.I, s.B, s.I * operand_size, GH * computed_size, p.b1 - p.b0
        first = load_word(offsets + 8 * low)
        if rows == B:
            total = load_word(offsets + 8 * (low + steps)) - first
            product(x + first * row_x, row_x, w_x, I, gates, row_g, GH, total, 0, False)
            return 0
        if load_word(counts + 8 * (low + steps - 1)) == B:
            x_low = x + (first + p.b0) * row_x
            product_steps(
                x_low, B * row_x, row_x, step_of_k, w_x, I, gates, rows * row_g, row_g, GH, steps, rows, 0, False
            )  # fmt: skip
            return rows
        for t in range(low, low + steps):
            live = minimum(p.b1, load_word(counts + 8 * t)) - p.b0
            at = gates + (t - low) * rows * row_g
            x_step = x + (load_word(offsets + 8 * t) + p.b0) * row_x
            product(x_step, row_x, w_x, I, at, row_g, GH, maximum(live, 0), 0, False)
        return rows

    return SimpleNamespace(are_packed=are_packed, record=record, pack_share=pack_share, input_product=input_product)
