"""The argument blocks of native jobs: one struct per block, one named field a line, one 64-bit word per field.

A job receives the address of a `Forward` or a `Backward`. Its first word is the address of a `Shape`, which depends on
the shapes alone and is reused from call to call. Structs may be nested; their words follow each other in the order of
the fields. `write` and the readers below are the only code that knows the offsets.

All arrays are C-contiguous. A field that a cell or a call has no use for holds any address, or 0 where the text says
so.

Rows are sorted by length, longest first, and packed: the live rows of step 0, then those of step 1, and so on. Step t
holds rows 0 to counts[t] - 1, from row offsets[t] of the packed array on; N is the number of row-steps. Where no row is
shorter than T, the packed array is the plain (T, B, ·). Packed row r is row order[r] of the caller's arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.vec_type import INT64


class Shape(NamedTuple):
    """Sizes of a call, and byte offsets into its workspace. R is P under projection, else H.

    chunk        steps whose input products are computed at once
    w_x, w_h, w_p
                 offsets of the packed weights in their own memory (forward) or in the workspace (backward): of the
                 input side, of the hidden side, and of the second product inside a step (projection, or n of a GRU that
                 resets before)
    states       offset in the workspace of two states h (B, R) that are written in turn, or of dh (B, R)
    cells        offset of the cell states c (B, H) or their gradients, where those have no place in the results
    exchanged    offset of the operands (B, H) of a second product, which the threads of a group exchange
    own, own_size
                 offset of the threads' private memory, and its size per thread
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
    cells: int
    exchanged: int
    own: int
    own_size: int


class Rows(NamedTuple):
    """Addresses of the tables of a ragged batch; bounds (groups + 1,): the first row of each group of threads."""

    offsets: int
    counts: int
    order: int
    bounds: int


class WeightAddresses(NamedTuple):
    """Parameters of one layer-direction in PyTorch's layout, or their gradients; w_hr 0 without projection."""

    w_ih: int
    w_hh: int
    w_hr: int
    b_ih: int
    b_hh: int


class SavedAddresses(NamedTuple):
    """What forward saves for backward, per row-step.

    values (N, n_saved * H), h_prev (N, R), c_prev (N, H), operand (N, H): the operand of a second product inside the
    step, m under projection or r h' of a GRU that resets before. Of a cell that normalises it is (N, n_statistics)
    computed numbers.
    """

    values: int
    h_prev: int
    c_prev: int
    operand: int


class Extras(NamedTuple):
    """What cells with options take beside their weights. Plain cells have none, and never read it.

    w_unit (K, H) the weights per unit; constants: the numbers that `Cell.constants` names, computed ones; dw_unit
    (n_unit_sums, H), written by a backward.
    """

    w_unit: int
    constants: int
    dw_unit: int


class NoiseAddresses(NamedTuple):
    """What zoneout and dropout on h read and write. Rows are in the caller's order, but for those of the last four.

    hidden      (masks, B, R) computed numbers, the masks on h: one for all gates, or one per gate
    zone_h, zone_h_t, zone_h_b
                bytes (T, B, R), 1 where zoneout keeps h; bytes from step to step and from row to row
    zone_c, zone_c_t, zone_c_b
                the same of c, (T, B, H)
    shares      two float64, the share of h and of c that is kept there
    operands    (2, masks, B, R) the masked h, in two buffers that are written in turn. Forward only
    direct      (B, R) computed numbers: the gradient of h that bypasses a step. Backward only, as are those below
    product     (B, R) computed numbers: a product with W_hh before its mask
    masked_h    (masks, N, R) the masked h_prev, operands
    """

    hidden: int
    zone_h: int
    zone_h_t: int
    zone_h_b: int
    zone_c: int
    zone_c_t: int
    zone_c_b: int
    shares: int
    operands: int
    direct: int
    product: int
    masked_h: int


class Forward(NamedTuple):
    """A forward call.

    x (T, B, I), and x_packed (N, I) to pack it into, or x again where N is T*B; h0 (B, R), c0 (B, H). Out: y (T, B, R),
    whose rows are y_row bytes apart, h_n, c_n; saved where Shape.keep is not 0. packed: the packed weights. digest: 0,
    or the address of three words: the digest of the weights that are packed there, 1 where some are packed, 1 where
    they need no check (kernels/cpu/digest.py). barriers: a cache line per barrier: of all threads, then of each group.
    extras: the address of an `Extras`, or 0.
    noise: the address of a `NoiseAddresses`, for cells with such options.
    """

    shape: int
    x: int
    x_packed: int
    rows: Rows
    weights: WeightAddresses
    h0: int
    c0: int
    y: int
    y_row: int
    h_n: int
    c_n: int
    saved: SavedAddresses
    packed: int
    digest: int
    workspace: int
    barriers: int
    extras: int
    noise: int


class Backward(NamedTuple):
    """A backward call.

    dy (T, B, R), whose rows are y_row bytes apart, or 0 for zeros; dh_n (B, R), dc_n (B, H). Out: dh0, dc0; dgates_x
    and dgates_h (N, G*H), one array unless the sides differ; dprojected (N, R), or of a cell that normalises (N,
    n_norm_gradients * H) computed numbers; dx (T, B, I), by way of dx_packed (N, I), which is dx where N is T*B, or 0
    where it is not wanted; dweights, whose matrices are added to where `adds` is not 0, and whose biases are 0 where
    they are not wanted, as w_ih is where none of them is. extras: the address of an `Extras`, or 0. noise: as in
    `Forward`.
    """

    shape: int
    x_packed: int
    rows: Rows
    weights: WeightAddresses
    saved: SavedAddresses
    dy: int
    y_row: int
    dh_n: int
    dc_n: int
    dh0: int
    dc0: int
    dgates_x: int
    dgates_h: int
    dprojected: int
    dx_packed: int
    dx: int
    dweights: WeightAddresses
    adds: int
    workspace: int
    barriers: int
    extras: int
    noise: int


def _struct(kind: type) -> Any:
    """The Numba type of a struct, nested ones included."""
    hints = get_type_hints(kind)
    fields = [types.intp if hint is int else _struct(hint) for hint in hints.values()]
    if all(field is types.intp for field in fields):
        return types.NamedUniTuple(types.intp, len(fields), kind)
    return types.NamedTuple(fields, kind)


def words_of(kind: type) -> int:
    """How many words a struct takes."""
    return sum(1 if hint is int else words_of(hint) for hint in get_type_hints(kind).values())


def _reader(kind: type) -> Any:
    """read(address): the struct there."""
    struct = _struct(kind)

    def load(context, builder, words, kind, first):
        """The value of a struct whose first word is number `first`, and the number after its last one."""
        values = []
        for field in kind:
            if field is types.intp:
                values.append(builder.load(builder.gep(words, [ir.Constant(INT64, first)])))
                first += 1
            else:
                value, first = load(context, builder, words, field, first)
                values.append(value)
        return context.make_tuple(builder, kind, values), first

    @intrinsic
    def read(typing, address):
        def emit(context, builder, sig, args):
            words = builder.inttoptr(args[0], INT64.as_pointer())
            return load(context, builder, words, struct, 0)[0]

        return struct(types.intp), emit

    return read


@intrinsic
def _write(typing, address, value):
    """Stores a struct, field by field, from `address` on."""

    def store(context, builder, words, kind, value, first):
        for k, field in enumerate(kind):
            part = builder.extract_value(value, k)
            if isinstance(field, types.BaseTuple):
                first = store(context, builder, words, field, part, first)
            else:
                word = context.cast(builder, part, field, types.int64)
                builder.store(word, builder.gep(words, [ir.Constant(INT64, first)]))
                first += 1
        return first

    def emit(context, builder, sig, args):
        words = builder.inttoptr(args[0], INT64.as_pointer())
        store(context, builder, words, sig.args[1], args[1], 0)
        return context.get_dummy_value()

    return types.void(types.intp, value), emit


read_shape: Any = _reader(Shape)  # typed by Numba, not by their Python signatures
read_forward: Any = _reader(Forward)
read_backward: Any = _reader(Backward)
read_extras: Any = _reader(Extras)
read_noise: Any = _reader(NoiseAddresses)
write: Any = _write
