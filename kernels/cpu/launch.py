"""From Python into native code: an argument block is filled from arrays, and a team runs the job on it.

One entry each way for every cell and shape of call: what differs is in the job, a compiled function given by its
address. `state` is the team's (kernels/cpu/threads.py). Each array that Python hands over takes some 50 ns, so that
what is the same from call to call comes in few:

    words    a `Shape`, then the bounds of the groups' rows (groups + 1,)
    table    where each step begins (T + 1,), the rows that are live at each (T,), and the rows' order (B,)
    weights  the addresses of w_ih, w_hh, w_hr, b_ih, b_hh, as `addresses` puts them there

scratch and digest are addresses; h_prev, c_prev and extra are told from `kept` on, in bytes: they stand in it,
or in memory of their own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnnkit.kernels.cpu.frame import Backward, Forward, Shape
from rnnkit.kernels.cpu.jit import entry, inner
from rnnkit.kernels.cpu.memory import stack_bytes, store_word
from rnnkit.kernels.cpu.simd import INT64
from rnnkit.kernels.cpu.threads import LINE, run_job

number = types.intp  # an address is unsigned to Numba, and with a signed number it would make a float
_FORWARD, _BACKWARD, _SHAPE = len(Forward._fields), len(Backward._fields), len(Shape._fields)
_T, _GROUPS, _MEMBERS, _OWN, _OWN_SIZE = map(Shape._fields.index, ("T", "groups", "members", "own", "own_size"))


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


# On the stack: an argument block, a line for all threads to meet at and one per group, and scratch memory.
_FORWARD_LINES = (8 * _FORWARD + LINE - 1) // LINE
_BACKWARD_LINES = (8 * _BACKWARD + LINE - 1) // LINE


@inner
def clear_lines(first, lines):
    for at in range(first, first + LINE * lines, 8):
        store_word(at, 0)


@entry(("addresses",))
def addresses(found, w_ih, w_hh, w_hr, b_ih, b_hh, projected):
    """Puts the weights' addresses into found (5,); for w_hr 0 where not `projected`."""
    write(
        found.ctypes.data,
        (
            w_ih.ctypes.data, w_hh.ctypes.data, w_hr.ctypes.data if projected else 0, b_ih.ctypes.data,
            b_hh.ctypes.data,
        ),
    )  # fmt: skip


@entry(("launch_forward",))
def launch_forward(
    state, job, words, table, weights, scratch, digest, h_prev, c_prev, extra, y_row,
    x, x_rows, h0, c0, y, h_n, c_n, kept,
):  # fmt: skip
    """See `Forward`. Of y the first value will do: y_row tells where the others are.

    Packed weights are behind the line of their digest, or else behind the scratch memory.
    Where `scratch` is 0 the block has room for it: a few lines, for a single step.
    """
    groups, threads = words[_GROUPS], words[_GROUPS] * words[_MEMBERS]
    size = words[_OWN] + threads * words[_OWN_SIZE]
    block = stack_bytes(LINE * (_FORWARD_LINES + groups + 1) + (0 if scratch else size))
    meeting = block + LINE * _FORWARD_LINES
    clear_lines(meeting, groups + 1)
    shape, steps, keep = number(words.ctypes.data), number(table.ctypes.data), number(kept.ctypes.data)
    counts = steps + 8 * (words[_T] + 1)
    write(
        block,
        (
            shape, x.ctypes.data, x_rows.ctypes.data, steps, counts, counts + 8 * words[_T], shape + 8 * _SHAPE,
            weights[0], weights[1], weights[2], weights[3], weights[4], h0.ctypes.data, c0.ctypes.data, y.ctypes.data,
            y_row, h_n.ctypes.data, c_n.ctypes.data, keep, keep + h_prev, keep + c_prev, keep + extra,
            digest + LINE if digest else scratch + size, digest,
            scratch if scratch else meeting + LINE * (groups + 1), meeting,
        ),
    )  # fmt: skip
    run_job(state, threads, job, block)


@entry(("launch_backward",))
def launch_backward(
    state, job, words, table, weights, scratch, h_prev, c_prev, extra, y_row, has_dy, biased, adds,
    x_rows, kept, dy, dh_n, dc_n, dh0, dc0, dgates_x, dgates_h, dprojected, dx_rows, dx, dw_ih, dw_hh, dw_hr, db_ih,
    db_hh,
):  # fmt: skip
    """See `Backward`. Of dy, too, the first value will do; it and the biases' gradients count where `has_dy` and
    `biased`; adds: True or False."""
    groups = words[_GROUPS]
    block = stack_bytes(LINE * (_BACKWARD_LINES + groups + 1))
    meeting = block + LINE * _BACKWARD_LINES
    clear_lines(meeting, groups + 1)
    shape, steps, keep = number(words.ctypes.data), number(table.ctypes.data), number(kept.ctypes.data)
    counts = steps + 8 * (words[_T] + 1)
    given = (
        shape, x_rows.ctypes.data, steps, counts, counts + 8 * words[_T], shape + 8 * _SHAPE, weights[0], weights[1],
        weights[2], keep, keep + h_prev, keep + c_prev, keep + extra, dy.ctypes.data if has_dy else 0, y_row,
        dh_n.ctypes.data, dc_n.ctypes.data,
    )  # fmt: skip
    found = (  # apart: of 31 values and more Python makes a list first, which Numba does not know
        dh0.ctypes.data, dc0.ctypes.data, dgates_x.ctypes.data, dgates_h.ctypes.data, dprojected.ctypes.data,
        dx_rows.ctypes.data, dx.ctypes.data, dw_ih.ctypes.data, dw_hh.ctypes.data, dw_hr.ctypes.data,
        db_ih.ctypes.data if biased else 0, db_hh.ctypes.data if biased else 0, number(adds), scratch,
        meeting,
    )  # fmt: skip
    write(block, given)
    write(block + 8 * len(given), found)
    run_job(state, groups * words[_MEMBERS], job, block)
