"""Zoneout and masks on one row, vector by vector: what the passes of kernels/cpu/noise.py call."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.simd import vectors
from rnnkit.kernels.cpu.vector_memory import pointer


@cache
def shares(dtype: str) -> Any:
    """load(address, share): a Vec of the shares that zoneout keeps, the bytes there times the share.

    Bytes past the end of a row are read: arrays of them are padded.
    """
    vec = vectors(dtype).type
    kind = ir.VectorType(ir.IntType(8), vec.lanes)

    @intrinsic
    def load_bytes(typing, address):
        def emit(context, builder, sig, args):
            value = builder.load(pointer(builder, args[0], kind))
            value.align = 1
            return builder.uitofp(value, vec.llvm)

        return vec(types.intp), emit

    as_numbers: Any = load_bytes  # typed by Numba, not by its Python signature

    @inner
    def load(address, share):
        return as_numbers(address) * share

    return load


@intrinsic
def _load_double(typing, address):
    """The float64 at an address."""

    def emit(context, builder, sig, args):
        return builder.load(builder.inttoptr(args[0], ir.DoubleType().as_pointer()))

    return types.float64(types.intp), emit


load_double: Any = _load_double


@cache
def row_passes(dtype: str) -> SimpleNamespace:
    """Passes over `count` numbers of a row; all but `share` are addresses, zone of bytes, mask of computed numbers.

    zone(old, new, y, zone, share, count)       new = z old + (1 - z) new, as operands; y likewise
    split(dh, direct, dy, zone, share, count)   direct = z (dh + dy); dh = (1 - z) (dh + dy); dy may be 0
    mask(source, mask, out, count)              out = source * mask, operands
    scale(values, mask, count)                  values *= mask, computed numbers
    add_masked(product, mask, dh, count)        dh += product * mask, computed numbers
    """
    form = formats(dtype)
    stored = form.stored
    operand = form.operand
    v = form.computed
    lanes = v.lanes
    size = v.itemsize
    operand_size = operand.itemsize
    stored_size = stored.itemsize
    load_shares = shares(v.dtype)

    def of(part: Any) -> Any:
        load = getattr(v, part).load
        store = getattr(v, part).store
        load_operand = getattr(operand, part).load
        store_operand = getattr(operand, part).store
        load_stored = getattr(stored, part).load
        store_stored = getattr(stored, part).store

        @inner
        def zone_at(j, n, old, new, y, zone, share):
            z = load_shares(zone + j, share)
            at = j * operand_size
            value = z * load_operand(old + at, n) + (1.0 - z) * load_operand(new + at, n)
            store_operand(value, new + at, n)
            store_stored(value, y + j * stored_size, n)

        @inner
        def split_at(j, n, dh, direct, dy, zone, share):
            z = load_shares(zone + j, share)
            at = j * size
            d = load(dh + at, n)
            if dy:
                d = d + load_stored(dy + j * stored_size, n)
            store(z * d, direct + at, n)
            store((1.0 - z) * d, dh + at, n)

        @inner
        def mask_at(j, n, source, mask, out):
            at = j * operand_size
            store_operand(load_operand(source + at, n) * load(mask + j * size, n), out + at, n)

        @inner
        def scale_at(j, n, values, mask):
            at = j * size
            store(load(values + at, n) * load(mask + at, n), values + at, n)

        @inner
        def add_masked_at(j, n, product, mask, dh):
            at = j * size
            store(load(dh + at, n) + load(product + at, n) * load(mask + at, n), dh + at, n)

        return zone_at, split_at, mask_at, scale_at, add_masked_at

    zone_whole, split_whole, mask_whole, scale_whole, add_whole = of("whole")
    zone_first, split_first, mask_first, scale_first, add_first = of("first")

    @inner
    def zone(old, new, y, zone, share, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            zone_whole(j, lanes, old, new, y, zone, share)
        if last < count:
            zone_first(last, count - last, old, new, y, zone, share)

    @inner
    def split(dh, direct, dy, zone, share, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            split_whole(j, lanes, dh, direct, dy, zone, share)
        if last < count:
            split_first(last, count - last, dh, direct, dy, zone, share)

    @inner
    def mask(source, mask, out, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            mask_whole(j, lanes, source, mask, out)
        if last < count:
            mask_first(last, count - last, source, mask, out)

    @inner
    def scale(values, mask, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            scale_whole(j, lanes, values, mask)
        if last < count:
            scale_first(last, count - last, values, mask)

    @inner
    def add_masked(product, mask, dh, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            add_whole(j, lanes, product, mask, dh)
        if last < count:
            add_first(last, count - last, product, mask, dh)

    return SimpleNamespace(zone=zone, split=split, mask=mask, scale=scale, add_masked=add_masked)
