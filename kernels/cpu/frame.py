"""What the time loops share: their arguments, how threads divide a call, and the work before the first step.

A call's threads form `groups` groups of `members`. A group has rows [b0, b1) of the batch, from a table, and walks the
sequence without looking at the others; inside a group each member has units [u0, u1) of every row, and they meet once
a step or twice. Bits do not depend on either number.

Rows are sorted by length, longest first, and stored packed: the steps of all rows one after the other in time order,
step t holding rows 0 to counts[t] - 1, from offsets[t] on. N steps in all; where no row is shorter than T that is plain
(T, B, ·). So no work is done on padding, and what a product reads is contiguous. What is copied to be so, x and dx,
the job's threads copy; everything else that the caller has in its own order, where row r of ours is row order[r], is
read and written where it is.

A job gets the address of a block of words: those of `Forward` or `Backward`, the first of which is the address of a
`Shape`, which does not change from call to call. All arrays are C-contiguous; what a cell does not have is any array.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.digest import digest
from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.matmul import products, tile_shape
from rnnkit.kernels.cpu.memory import atomic_add, load_word, maximum, minimum, store_word
from rnnkit.kernels.cpu.pack import packer
from rnnkit.kernels.cpu.simd import INT64, vectors
from rnnkit.kernels.cpu.threads import LINE, barrier, wait_for_count


class Shape(NamedTuple):
    """Numbers of a call that its arguments' shapes decide. R is P under projection, else H; `chunk` in steps.

    The rest are places in bytes: of the packed weights, w_x, w_h and w_p in their own memory; in the scratch memory of
    two states h (B, R) in turn or of one dh, operands (B, H) that members exchange, and `own_size` for each thread
    from `own` on.
    """

    T: int
    B: int
    I: int
    H: int
    R: int
    N: int
    chunk: int
    groups: int
    members: int
    reverse: int
    keep: int
    w_x: int
    w_h: int
    w_p: int
    states: int
    exchanged: int
    own: int
    own_size: int


class Forward(NamedTuple):
    """Addresses of a forward call.

    x (T, B, I), and x_rows (N, I) to pack it into, or x again where N is T*B; w_ih, w_hh, w_hr, b_ih, b_hh as
    PyTorch's; h0 (B, R), c0 (B, H); out: y (T, B, R), its rows y_row bytes apart, h_n, c_n. As `keep`: kept
    (N, KEPT*H), h_prev (N, R), c_prev (N, H), and extra (N, H): what the projection multiplies, or r h'.
    packed: the packed weights; digest: 0, or of three words the digest of the weights that are there already, 1 where
    some are (kernels/cpu/digest.py), and 1 where they need no look.
    """

    shape: int
    x: int
    x_rows: int
    offsets: int
    counts: int
    order: int
    rows: int
    w_ih: int
    w_hh: int
    w_hr: int
    b_ih: int
    b_hh: int
    h0: int
    c0: int
    y: int
    y_row: int
    h_n: int
    c_n: int
    kept: int
    h_prev: int
    c_prev: int
    extra: int
    packed: int
    digest: int
    scratch: int
    meeting: int


class Backward(NamedTuple):
    """Addresses of a backward call.

    dy (T, B, R), its rows y_row bytes apart, or 0; dh_n (B, R), dc_n (B, H); dgates_x, dgates_h (N, G*H), one array
    where the sides are not apart; dprojected (N, R); x_rows and what forward kept. Out: dh0, dc0; dx (T, B, I), by way
    of dx_rows (N, I), which is dx where N is T*B; dw_ih, dw_hh, dw_hr as the weights, which are added to where `adds`
    is not 0; db_ih, db_hh (G*H,).
    """

    shape: int
    x_rows: int
    offsets: int
    counts: int
    order: int
    rows: int
    w_ih: int
    w_hh: int
    w_hr: int
    kept: int
    h_prev: int
    c_prev: int
    extra: int
    dy: int
    y_row: int
    dh_n: int
    dc_n: int
    dh0: int
    dc0: int
    dgates_x: int
    dgates_h: int
    dprojected: int
    dx_rows: int
    dx: int
    dw_ih: int
    dw_hh: int
    dw_hr: int
    db_ih: int
    db_hh: int
    adds: int
    scratch: int
    meeting: int


def _reader(kind: type) -> Any:
    """read(address): the words there as a `kind`."""
    count = len(kind._fields)  # type: ignore[attr-defined]
    fields = types.NamedUniTuple(types.intp, count, kind)

    @intrinsic
    def read(typing, address):
        def emit(context, builder, sig, args):
            words = builder.inttoptr(args[0], INT64.as_pointer())
            values = [builder.load(builder.gep(words, [ir.Constant(INT64, k)])) for k in range(count)]
            return context.make_tuple(builder, fields, values)

        return fields(types.intp), emit

    return read


read_shape: Any = _reader(Shape)
read_forward: Any = _reader(Forward)
read_backward: Any = _reader(Backward)


class Part(NamedTuple):
    """A thread's part of a call: its group, its place there, its rows, and where its group meets."""

    group: int
    member: int
    b0: int
    b1: int
    threads: int
    everyone: int
    together: int


@inner
def part_of(s, rows, meeting, index):
    group, member = index // s.members, index % s.members
    return Part(
        group,
        member,
        load_word(rows + 8 * group),
        load_word(rows + 8 * group + 8),
        s.groups * s.members,
        meeting,
        meeting + LINE * (1 + group),
    )


@inner
def meet_all(p, times):
    """All threads of the call, for the `times`-th time."""
    if p.threads > 1:
        barrier(p.everyone, p.threads * times)


@inner
def meet(s, p, times):
    """The members of a group, for the `times`-th time."""
    if s.members > 1:
        barrier(p.together, s.members * times)


@inner
def arrive(s, p):
    """The first half of `meet`: what others need is there. Work that needs nothing of theirs may follow."""
    if s.members > 1:
        atomic_add(p.together, 1)


@inner
def await_members(s, p, times):
    """The second half of `meet`."""
    if s.members > 1:
        wait_for_count(p.together, s.members * times)


@cache
def make_frame(dtype: str) -> SimpleNamespace:
    """The functions of a dtype; addresses, and sizes in elements or, where said, in bytes.

    bound(width, members, member)   where a member's share of `width` columns begins: at a whole vector
    copy(source, target, count), add_to(source, target, count), clear(target, count)
    home(a, r), place(a, s, t, r)   which row of the caller's row r is; which of its T*B steps
    take_rows(a, s, p, index), give_rows(a, s, p, index)
        this thread's part of x_rows from x; of dx from dx_rows, zero past the rows' ends
    already_packed(a, s, p, index, gates)
        whether the packed weights are there; all meet once in it where there may be some. Else, after all have packed
        and met, note_packed(a, p, index)
    pack_share(w, K, transposed, width, blocks, s, p, packed)
        packs, with the other groups, the rows of W (blocks * width, K) that this member needs: its share of each block
    input_product(s, p, low, steps, x, w_x, offsets, counts, gates, GH)
        gates = x W_ih^T, steps [low, low + steps) of the thread's own rows; returns the rows from one step to the next
        in `gates`, or 0 for packed as x is, where the share is the whole batch
    """
    v, pack, lib = vectors(dtype), packer(dtype), products(dtype)
    load, store, load_first, store_first = v.whole.load, v.whole.store, v.first.load, v.first.store
    size, lanes, panel_width = v.itemsize, v.lanes, tile_shape()[1] * v.lanes
    product, product_steps = lib.product, lib.product_steps

    @inner
    def bound(width, members, member):
        return width if member == members else width * member // members // lanes * lanes

    @inner
    def copy(source, target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(load(source + j * size, lanes), target + j * size, lanes)
        if last < count:
            n = count - last
            store_first(load_first(source + last * size, n), target + last * size, n)

    @inner
    def add_to(source, target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(load(source + j * size, lanes) + load(target + j * size, lanes), target + j * size, lanes)
        if last < count:
            n, at = count - last, last * size
            store_first(load_first(source + at, n) + load_first(target + at, n), target + at, n)

    @inner
    def clear(target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(0.0, target + j * size, lanes)
        if last < count:
            store_first(0.0, target + last * size, count - last)

    @inner
    def home(a, r):
        return load_word(a.order + 8 * r)

    @inner
    def place(a, s, t, r):
        return t * s.B + home(a, r)

    @inner
    def part_of_rows(a, s, p, index, t):
        """Of step t, the rows [low, high) that are this thread's where all N steps are shared evenly."""
        n0, n1, at = s.N * index // p.threads, s.N * (index + 1) // p.threads, load_word(a.offsets + 8 * t)
        return at, maximum(n0 - at, 0), minimum(n1 - at, load_word(a.counts + 8 * t))

    @outer
    def take_rows(a, s, p, index):
        row = s.I * size
        for t in range(s.T):
            at, low, high = part_of_rows(a, s, p, index, t)
            for r in range(low, high):
                copy(a.x + place(a, s, t, r) * row, a.x_rows + (at + r) * row, s.I)

    @outer
    def give_rows(a, s, p, index):
        row = s.I * size
        for t in range(s.T):
            at, low, high = part_of_rows(a, s, p, index, t)
            for r in range(low, high):
                copy(a.dx_rows + (at + r) * row, a.dx + place(a, s, t, r) * row, s.I)
        for t in range(s.T * index // p.threads, s.T * (index + 1) // p.threads):
            for r in range(load_word(a.counts + 8 * t), s.B):
                clear(a.dx + place(a, s, t, r) * row, s.I)

    @outer
    def already_packed(a, s, p, index, gates):
        if not a.digest:
            return False
        sum_at, some, trusted = p.everyone + 8, load_word(a.digest + 8) == 1, load_word(a.digest + 16) == 1
        if not (some and trusted):
            part = digest(a.w_ih, gates * s.H * s.I * size, 1, index, p.threads)
            part += digest(a.w_hh, gates * s.H * s.R * size, 2, index, p.threads)
            if a.w_hr:
                part += digest(a.w_hr, s.R * s.H * size, 3, index, p.threads)
            atomic_add(sum_at, part)
        meet_all(p, 1)
        return some and (trusted or load_word(a.digest) == load_word(sum_at))

    @outer
    def pack_share(w, K, transposed, width, blocks, s, p, packed):
        first = bound(width, s.members, p.member)
        share = bound(width, s.members, p.member + 1) - first
        N = blocks * share
        panels = (N + panel_width - 1) // panel_width
        begin, end = panels * p.group // s.groups, panels * (p.group + 1) // s.groups
        row = (blocks * width if transposed else K) * size
        pack(w, row, K, transposed, first, share, width, N, begin, end, packed + blocks * first * K * size)

    @inner
    def note_packed(a, p, index):
        """After all have packed."""
        if a.digest and index == 0:
            store_word(a.digest, load_word(p.everyone + 8))
            store_word(a.digest + 8, 1)

    @outer
    def input_product(s, p, low, steps, x, w_x, offsets, counts, gates, GH):
        I, B, row_x, row_g, rows = s.I, s.B, s.I * size, GH * size, p.b1 - p.b0
        first = load_word(offsets + 8 * low)
        if rows == B:
            total = load_word(offsets + 8 * (low + steps)) - first
            product(x + first * row_x, row_x, w_x, I, gates, row_g, GH, total, 0, False)
            return 0
        if load_word(counts + 8 * (low + steps - 1)) == B:
            x_low = x + (first + p.b0) * row_x
            product_steps(
                x_low, B * row_x, row_x, size, w_x, I, gates, rows * row_g, row_g, GH, steps, rows, 0, False
            )  # fmt: skip
            return rows
        for t in range(low, low + steps):
            live, at = minimum(p.b1, load_word(counts + 8 * t)) - p.b0, gates + (t - low) * rows * row_g
            x_step = x + (load_word(offsets + 8 * t) + p.b0) * row_x
            product(x_step, row_x, w_x, I, at, row_g, GH, maximum(live, 0), 0, False)
        return rows

    return SimpleNamespace(
        bound=bound,
        already_packed=already_packed,
        note_packed=note_packed,
        copy=copy,
        add_to=add_to,
        clear=clear,
        home=home,
        place=place,
        take_rows=take_rows,
        give_rows=give_rows,
        pack_share=pack_share,
        input_product=input_product,
    )
