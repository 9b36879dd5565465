"""Rows of a batch: copies of them, and the way between the caller's order and the packed one."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner, outer
from rnnkit.kernels.cpu.memory import load_word, maximum, minimum
from rnnkit.kernels.cpu.simd import vectors


@cache
def copier(source: str, target: str) -> Any:
    """copy(source, target, count): from numbers in the format of one dtype to numbers in that of another."""
    a = vectors(source)
    b = vectors(target)
    load = a.whole.load
    store = b.whole.store
    load_first = a.first.load
    store_first = b.first.store
    from_size = a.itemsize
    to_size = b.itemsize
    lanes = a.lanes

    @inner
    def copy(source, target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(load(source + j * from_size, lanes), target + j * to_size, lanes)
        if last < count:
            n = count - last
            store_first(load_first(source + last * from_size, n), target + last * to_size, n)

    return copy


@cache
def clearer(dtype: str) -> Any:
    """clear(target, count): zeros."""
    v = vectors(dtype)
    store = v.whole.store
    store_first = v.first.store
    size = v.itemsize
    lanes = v.lanes

    @inner
    def clear(target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(0.0, target + j * size, lanes)
        if last < count:
            store_first(0.0, target + last * size, count - last)

    return clear


@inner
def caller_row(rows, r):
    """The caller's row that packed row r is. rows: a `Rows`."""
    return load_word(rows.order + 8 * r)


@inner
def caller_step(rows, s, t, r):
    """The number of the caller's step t of packed row r among the T*B."""
    return t * s.B + caller_row(rows, r)


@cache
def row_functions(dtype: str) -> SimpleNamespace:
    """The functions of a dtype. Sources and targets are addresses, counts are in elements.

    first_unit(width, members, member)
        where a member's share of `width` units begins: at a whole vector
    add_to(source, target, count)
        adds computed numbers
    pack_x(a, s, p, index)
        this thread's part of x_packed (N, I) from x (T, B, I); a: a `Forward`
    unpack_dx(a, s, p, index)
        this thread's part of dx (T, B, I) from dx_packed (N, I), zero past the rows' ends; a: a `Backward`
    """
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    v = form.computed
    load = v.whole.load
    store = v.whole.store
    load_first = v.first.load
    store_first = v.first.store
    size = v.itemsize
    lanes = v.lanes
    stored_size = stored.itemsize
    operand_size = operand.itemsize
    copy_x = copier(stored.dtype, operand.dtype)
    copy_dx = copier(stored.dtype, stored.dtype)
    clear = clearer(stored.dtype)

    @inner
    def first_unit(width, members, member):
        return minimum(width, (width + lanes - 1) // lanes * member // members * lanes)

    @inner
    def add_to(source, target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(load(source + j * size, lanes) + load(target + j * size, lanes), target + j * size, lanes)
        if last < count:
            n = count - last
            at = last * size
            store_first(load_first(source + at, n) + load_first(target + at, n), target + at, n)

    @inner
    def rows_of_thread(rows, s, p, index, t):
        """Step t's offset, and its rows [low, high) that are this thread's: all N row-steps are shared evenly."""
        n0 = s.N * index // p.threads
        n1 = s.N * (index + 1) // p.threads
        at = load_word(rows.offsets + 8 * t)
        return at, maximum(n0 - at, 0), minimum(n1 - at, load_word(rows.counts + 8 * t))

    @outer
    def pack_x(a, s, p, index):
        row = s.I * stored_size
        row_packed = s.I * operand_size
        for t in range(s.T):
            at, low, high = rows_of_thread(a.rows, s, p, index, t)
            for r in range(low, high):
                copy_x(a.x + caller_step(a.rows, s, t, r) * row, a.x_packed + (at + r) * row_packed, s.I)

    @outer
    def unpack_dx(a, s, p, index):
        row = s.I * stored_size
        for t in range(s.T):
            at, low, high = rows_of_thread(a.rows, s, p, index, t)
            for r in range(low, high):
                copy_dx(a.dx_packed + (at + r) * row, a.dx + caller_step(a.rows, s, t, r) * row, s.I)
        for t in range(s.T * index // p.threads, s.T * (index + 1) // p.threads):
            for r in range(load_word(a.rows.counts + 8 * t), s.B):
                clear(a.dx + caller_step(a.rows, s, t, r) * row, s.I)

    return SimpleNamespace(
        first_unit=first_unit,
        add_to=add_to,
        pack_x=pack_x,
        unpack_dx=unpack_dx,
    )
