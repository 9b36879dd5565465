"""Zoneout and dropout on h inside the time loops: passes over the rows of a step, before and after its stages.

A cell's options say which passes are compiled; without any nothing is. Masks are drawn before the job, and are in the
caller's order of rows. Each pass is over the outputs [output0, output0 + outputs) of a member, which it has just
written or is about to read, so they are in its first-level cache.

    forward    hd = h m, the operand of the hidden product, in buffers that alternate as those of h do
               after the stages: h = z h' + (1 - z) h, and y; then hd of the next step
    backward   before the stages: direct = z (dh + dy), and dh = (1 - z) (dh + dy)
               the product goes into a buffer of its own; after it: dh += m product, dh += direct
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.arguments import read_noise
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.rows import caller_row, caller_step, row_functions
from rnnkit.kernels.cpu.simd import pointer, vectors


class Flags(NamedTuple):
    """What a cell's options compile. masks: the number of masks on h."""

    drops: bool
    zones_h: bool
    zones_c: bool
    zoned_output: bool
    masks: int

    @property
    def any(self) -> bool:
        return self.drops or self.zones_h or self.zones_c


def flags_of(cell: Any) -> Flags:
    """Of a row of CELLS, with its options."""
    o = cell.options
    return Flags(o.recurrent_dropout, o.zoneout_h, o.zoneout_c, o.zoned_output, cell.n_gates if o.mask_per_gate else 1)


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


@inner
def zone_at(block, t, row):
    """Address of the bytes of zoneout of c at a step of a caller's row. block: the address of a `NoiseAddresses`."""
    noise = read_noise(block)
    return noise.zone_c + t * noise.zone_c_t + row * noise.zone_c_b


@inner
def _nothing(a, s, p, share):
    pass


@inner
def _nothing_of_step(a, s, p, share, step):
    pass


@inner
def _state(a, s, odd, h):
    return h


class ForwardPasses(NamedTuple):
    """start(a, s, p, share): the first step's operands; end(a, s, p, share, step): zoneout of h, the next operands;
    operand(a, s, odd, h): where row 0 of a step's operands is, of the first mask."""

    start: Any
    end: Any
    operand: Any


def forward_passes(cell: Any, dtype: str) -> ForwardPasses:
    """The passes of a forward job."""
    flags = flags_of(cell)
    if not (flags.drops or flags.zones_h):
        return ForwardPasses(_nothing, _nothing_of_step, _state)
    form = formats(dtype)
    rows = row_passes(dtype)
    zone = rows.zone
    mask = rows.mask
    STORED = form.stored.itemsize
    OPERAND = form.operand.itemsize
    COMPUTED = form.computed.itemsize
    DROPS = flags.drops
    ZONES = flags.zones_h
    MASKS = flags.masks

    @inner
    def mask_rows(a, s, p, share, source, odd, end):
        """The operands of this member's outputs for rows [b0, end), from h (B, R) at `source`."""
        noise = read_noise(a.noise)
        for r in range(p.b0, end):
            at = r * s.R + share.output0
            row = caller_row(a.rows, r)
            for gate in range(MASKS):
                out = noise.operands + ((odd * MASKS + gate) * s.B * s.R + at) * OPERAND
                m = noise.hidden + ((gate * s.B + row) * s.R + share.output0) * COMPUTED
                mask(source + at * OPERAND, m, out, share.outputs)

    @inner
    def start(a, s, p, share):
        if DROPS:
            h = a.workspace + s.states
            mask_rows(a, s, p, share, h, 0, p.b1)
            mask_rows(a, s, p, share, h, 1, p.b1)

    @inner
    def end(a, s, p, share, step):
        if ZONES:
            noise = read_noise(a.noise)
            kept = load_double(noise.shares)
            for r in range(p.b0, step.end):
                at = (r * s.R + share.output0) * OPERAND
                y = a.y + caller_step(a.rows, s, step.t, r) * a.y_row + share.output0 * STORED
                row = caller_row(a.rows, r)
                z = noise.zone_h + step.t * noise.zone_h_t + row * noise.zone_h_b + share.output0
                zone(step.h + at, step.h_new + at, y, z, kept, share.outputs)
        if DROPS:
            mask_rows(a, s, p, share, step.h_new, 1 - step.odd, step.end)

    @inner
    def operand(a, s, odd, h):
        return read_noise(a.noise).operands + odd * MASKS * s.B * s.R * OPERAND if DROPS else h

    return ForwardPasses(start, end, operand)


class BackwardPasses(NamedTuple):
    """Each (a, s, p, share, step). before: zoneout of h. between: the gradient of the operand r h', after its product.
    after: what zoneout passes by, and the masked h' for the sums over row-steps.

    operands(a): (masks, N, R) what W_hh was multiplied by
    """

    before: Any
    between: Any
    after: Any
    operands: Any


@inner
def _saved_h(a):
    return a.saved.h_prev


def backward_passes(cell: Any, dtype: str) -> BackwardPasses:
    """The passes of a backward job. With dropout on h, the stages add the product themselves: `masked_adder`."""
    flags = flags_of(cell)
    if not (flags.drops or flags.zones_h):
        return BackwardPasses(_nothing_of_step, _nothing_of_step, _nothing_of_step, _saved_h)
    form = formats(dtype)
    rows = row_passes(dtype)
    split = rows.split
    mask = rows.mask
    scale = rows.scale
    add = row_functions(dtype).add_to
    STORED = form.stored.itemsize
    OPERAND = form.operand.itemsize
    COMPUTED = form.computed.itemsize
    DROPS = flags.drops
    ZONES = flags.zones_h
    MASKS = flags.masks
    RESETS = cell.resets_before
    LAST = MASKS - 1

    @inner
    def before(a, s, p, share, step):
        if ZONES:
            noise = read_noise(a.noise)
            kept = load_double(noise.shares)
            for r in range(p.b0, step.end):
                at = (r * s.R + share.output0) * COMPUTED
                row = caller_row(a.rows, r)
                dy = a.dy + caller_step(a.rows, s, step.t, r) * a.y_row + share.output0 * STORED if a.dy else 0
                z = noise.zone_h + step.t * noise.zone_h_t + row * noise.zone_h_b + share.output0
                split(a.workspace + s.states + at, noise.direct + at, dy, z, kept, share.outputs)

    @inner
    def between(a, s, p, share, step):
        if DROPS and RESETS:
            noise = read_noise(a.noise)
            for r in range(p.b0, step.end):
                drh = a.workspace + s.exchanged + (r * s.H + share.unit0) * COMPUTED
                m = noise.hidden + ((LAST * s.B + caller_row(a.rows, r)) * s.R + share.unit0) * COMPUTED
                scale(drh, m, share.units)

    @inner
    def after(a, s, p, share, step):
        noise = read_noise(a.noise)
        for r in range(p.b0, step.end):
            if ZONES:
                at = (r * s.R + share.output0) * COMPUTED
                add(noise.direct + at, a.workspace + s.states + at, share.outputs)
            if DROPS:
                at = (step.at + r) * s.R + share.output0
                row = caller_row(a.rows, r)
                for gate in range(MASKS):
                    m = noise.hidden + ((gate * s.B + row) * s.R + share.output0) * COMPUTED
                    out = noise.masked_h + (gate * s.N * s.R + at) * OPERAND
                    mask(a.saved.h_prev + at * OPERAND, m, out, share.outputs)

    @inner
    def operands(a):
        return read_noise(a.noise).masked_h if DROPS else a.saved.h_prev

    return BackwardPasses(before, between, after, operands)


def masked_adder(cell: Any, dtype: str) -> Any:
    """add(a, s, p, share, step, gate): dh += m product, of the mask of a gate, for this member's outputs."""
    COMPUTED = formats(dtype).computed.itemsize
    add_masked = row_passes(dtype).add_masked
    MASKS = flags_of(cell).masks

    @inner
    def add(a, s, p, share, step, gate):
        noise = read_noise(a.noise)
        for r in range(p.b0, step.end):
            at = (r * s.R + share.output0) * COMPUTED
            own = gate * s.B if MASKS > 1 else 0
            m = noise.hidden + ((own + caller_row(a.rows, r)) * s.R + share.output0) * COMPUTED
            add_masked(noise.product + at, m, a.workspace + s.states + at, share.outputs)

    return add
