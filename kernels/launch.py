"""From Python into native code: an argument block is filled from arrays, and a team runs the job on it.

One entry each way for every cell and shape of call: what differs is in the job, a compiled function given by its
address. `state` and `members` are the team's (kernels/team.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.frame import Backward, Forward
from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.team import LINE, run
from rnnkit.kernels.vector import INT64

number = types.intp  # an address is unsigned to Numba, and with a signed number it would make a float
_FORWARD, _BACKWARD = len(Forward._fields), len(Backward._fields)


@intrinsic
def _write(typing, address, values):
    """A tuple of words, from `address` on."""

    def emit(context, builder, sig, args):
        words = builder.inttoptr(args[0], INT64.as_pointer())
        for k, kind in enumerate(sig.args[1]):
            value = context.cast(builder, builder.extract_value(args[1], k), kind, types.int64)
            builder.store(value, builder.gep(words, [ir.Constant(INT64, k)]))
        return context.get_dummy_value()

    return types.void(types.intp, values), emit


write: Any = _write  # typed by Numba, not by its Python signature


@inner
def room_for(words, groups):
    """An argument block of so many words with, behind it, a line for all threads to meet at and one for each group."""
    return np.zeros(words + (groups + 2) * LINE // 8, np.int64)


@inner
def meeting_of(block, words):
    return (number(block.ctypes.data) + 8 * words + LINE - 1) // LINE * LINE


@entry(("launch_forward",))
def launch_forward(
    state, members, job, groups, shape, offsets, counts, rows, scratch, packed, kept_packed, projected,
    x, w_ih, w_hh, w_hr, b_ih, b_hh, h0, c0, y, h_n, c_n, kept, h_prev, c_prev, extra,
):  # fmt: skip
    """See `Forward`; w_hr counts where `projected`. kept_packed: `packed` begins with a line for the digest."""
    block = room_for(_FORWARD, groups)
    write(
        block.ctypes.data,
        (
            shape.ctypes.data, x.ctypes.data, offsets.ctypes.data, counts.ctypes.data, rows.ctypes.data,
            w_ih.ctypes.data, w_hh.ctypes.data, w_hr.ctypes.data if projected else 0, b_ih.ctypes.data,
            b_hh.ctypes.data, h0.ctypes.data, c0.ctypes.data, y.ctypes.data, h_n.ctypes.data, c_n.ctypes.data,
            kept.ctypes.data, h_prev.ctypes.data, c_prev.ctypes.data, extra.ctypes.data,
            number(packed.ctypes.data) + (LINE if kept_packed else 0), number(packed.ctypes.data) if kept_packed else 0,
            scratch.ctypes.data, meeting_of(block, _FORWARD),
        ),
    )  # fmt: skip
    run(state, members, job, block.ctypes.data)
    return block[0]  # read after the job: the block must outlive it


@entry(("launch_backward",))
def launch_backward(
    state, members, job, groups, shape, offsets, counts, rows, scratch, projected, has_dy, biased,
    x, w_ih, w_hh, w_hr, kept, h_prev, c_prev, extra, dy, dh, dc, dgates_x, dgates_h, dprojected,
    dx, dw_ih, dw_hh, dw_hr, db_ih, db_hh,
):  # fmt: skip
    """See `Backward`; w_hr, dy and the biases' gradients count where `projected`, `has_dy` and `biased`."""
    block = room_for(_BACKWARD, groups)
    write(
        block.ctypes.data,
        (
            shape.ctypes.data, x.ctypes.data, offsets.ctypes.data, counts.ctypes.data, rows.ctypes.data,
            w_ih.ctypes.data, w_hh.ctypes.data, w_hr.ctypes.data if projected else 0, kept.ctypes.data,
            h_prev.ctypes.data, c_prev.ctypes.data, extra.ctypes.data, dy.ctypes.data if has_dy else 0,
            dh.ctypes.data, dc.ctypes.data, dgates_x.ctypes.data, dgates_h.ctypes.data, dprojected.ctypes.data,
            dx.ctypes.data, dw_ih.ctypes.data, dw_hh.ctypes.data, dw_hr.ctypes.data,
            db_ih.ctypes.data if biased else 0, db_hh.ctypes.data if biased else 0, scratch.ctypes.data,
            meeting_of(block, _BACKWARD),
        ),
    )  # fmt: skip
    run(state, members, job, block.ctypes.data)
    return block[0]  # read after the job: the block must outlive it
