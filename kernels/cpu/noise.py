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

from typing import Any, NamedTuple

from rnnkit.kernels.cpu.arguments import read_noise
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.jit import inner
from rnnkit.kernels.cpu.noise_rows import load_double, row_passes
from rnnkit.kernels.cpu.rows import caller_row, caller_step, row_functions


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
