"""From Python into native code: an argument block is filled from arrays, and the thread pool runs a job on it.

One entry per pass serves every cell and shape of call: what differs is in the job, a compiled function given by its
address. `state` is the thread pool's (kernels/cpu/threads.py). Unboxing an array costs about 50 ns, so what is the same
from call to call is passed in few of them:

    words    a `Shape`, then the bounds of the groups' rows (groups + 1,)
    table    the offset of each step (T + 1,), the live rows at each (T,), and the order of the rows (B,)
    weights  the addresses of a `WeightAddresses`, as `addresses` stores them

workspace and digest are addresses. h_prev, c_prev and operand are byte offsets relative to `values`, and may point
outside it. Only the first element of y and dy is passed: y_row is the stride of their rows in bytes.
"""

from __future__ import annotations

from typing import Any

from numba import types

from rnnkit.kernels.cpu.arguments import (
    Backward,
    Forward,
    Rows,
    SavedAddresses,
    Shape,
    WeightAddresses,
    words_of,
    write,
)
from rnnkit.kernels.cpu.jit import entry, inner
from rnnkit.kernels.cpu.memory import stack_bytes, store_word
from rnnkit.kernels.cpu.threads import LINE, run_job

number: Any = types.intp  # an address is unsigned to Numba, and with a signed number it would make a float
_T, _GROUPS, _MEMBERS, _OWN, _OWN_SIZE = map(Shape._fields.index, ("T", "groups", "members", "own", "own_size"))
_SHAPE = words_of(Shape)

# On the stack: an argument block, a cache line per barrier, of which all threads have one and each group, and
# workspace.
_FORWARD_LINES = (8 * words_of(Forward) + LINE - 1) // LINE
_BACKWARD_LINES = (8 * words_of(Backward) + LINE - 1) // LINE


@inner
def clear_lines(first, lines):
    for at in range(first, first + LINE * lines, 8):
        store_word(at, 0)


@inner
def rows_of(words, table, T):
    """The tables of the batch; words and table are addresses."""
    counts = table + 8 * (T + 1)
    return Rows(offsets=table, counts=counts, order=counts + 8 * T, bounds=words + 8 * _SHAPE)


@inner
def saved_at(values, h_prev, c_prev, operand):
    return SavedAddresses(values=values, h_prev=values + h_prev, c_prev=values + c_prev, operand=values + operand)


@entry(("addresses",))
def addresses(found, w_ih, w_hh, w_hr, b_ih, b_hh, projected):
    """Stores the weights' addresses in found (5,); for w_hr 0 where not `projected`."""
    hr = number(w_hr.ctypes.data) if projected else number(0)
    weights = WeightAddresses(
        w_ih=number(w_ih.ctypes.data),
        w_hh=number(w_hh.ctypes.data),
        w_hr=hr,
        b_ih=number(b_ih.ctypes.data),
        b_hh=number(b_hh.ctypes.data),
    )
    write(number(found.ctypes.data), weights)


@entry(("launch_forward",))
def launch_forward(
    state, job, words, table, weights, workspace, digest, h_prev, c_prev, operand, y_row,
    x, x_packed, h0, c0, y, h_n, c_n, values,
):  # fmt: skip
    """See `Forward`.

    Packed weights follow the cache line of their digest, or else the workspace. Where `workspace` is 0 the stack has
    room for it: a few lines, for a single step.
    """
    groups = words[_GROUPS]
    threads = groups * words[_MEMBERS]
    size = words[_OWN] + threads * words[_OWN_SIZE]
    block = stack_bytes(LINE * (_FORWARD_LINES + groups + 1) + (0 if workspace else size))
    barriers = block + LINE * _FORWARD_LINES
    clear_lines(barriers, groups + 1)
    shape = number(words.ctypes.data)
    own_workspace = barriers + LINE * (groups + 1)
    packed = digest + LINE if digest else workspace + size
    if not workspace:
        workspace = own_workspace
    arguments = Forward(
        shape=shape,
        x=number(x.ctypes.data),
        x_packed=number(x_packed.ctypes.data),
        rows=rows_of(shape, number(table.ctypes.data), words[_T]),
        weights=WeightAddresses(weights[0], weights[1], weights[2], weights[3], weights[4]),
        h0=number(h0.ctypes.data),
        c0=number(c0.ctypes.data),
        y=number(y.ctypes.data),
        y_row=y_row,
        h_n=number(h_n.ctypes.data),
        c_n=number(c_n.ctypes.data),
        saved=saved_at(number(values.ctypes.data), h_prev, c_prev, operand),
        packed=packed,
        digest=digest,
        workspace=workspace,
        barriers=barriers,
    )
    write(block, arguments)
    run_job(state, threads, job, block)


@entry(("launch_backward",))
def launch_backward(
    state, job, words, table, weights, workspace, h_prev, c_prev, operand, y_row, has_dy, biased, adds,
    x_packed, values, dy, dh_n, dc_n, dh0, dc0, dgates_x, dgates_h, dprojected, dx_packed, dx, dw_ih, dw_hh, dw_hr,
    db_ih, db_hh,
):  # fmt: skip
    """See `Backward`. dy and the biases' gradients are used where `has_dy` and `biased`; adds: True or False."""
    groups = words[_GROUPS]
    block = stack_bytes(LINE * (_BACKWARD_LINES + groups + 1))
    barriers = block + LINE * _BACKWARD_LINES
    clear_lines(barriers, groups + 1)
    shape = number(words.ctypes.data)
    b_ih = number(db_ih.ctypes.data) if biased else number(0)
    b_hh = number(db_hh.ctypes.data) if biased else number(0)
    dy_at = number(dy.ctypes.data) if has_dy else number(0)
    dweights = WeightAddresses(
        w_ih=number(dw_ih.ctypes.data),
        w_hh=number(dw_hh.ctypes.data),
        w_hr=number(dw_hr.ctypes.data),
        b_ih=b_ih,
        b_hh=b_hh,
    )
    arguments = Backward(
        shape=shape,
        x_packed=number(x_packed.ctypes.data),
        rows=rows_of(shape, number(table.ctypes.data), words[_T]),
        weights=WeightAddresses(weights[0], weights[1], weights[2], weights[3], weights[4]),
        saved=saved_at(number(values.ctypes.data), h_prev, c_prev, operand),
        dy=dy_at,
        y_row=y_row,
        dh_n=number(dh_n.ctypes.data),
        dc_n=number(dc_n.ctypes.data),
        dh0=number(dh0.ctypes.data),
        dc0=number(dc0.ctypes.data),
        dgates_x=number(dgates_x.ctypes.data),
        dgates_h=number(dgates_h.ctypes.data),
        dprojected=number(dprojected.ctypes.data),
        dx_packed=number(dx_packed.ctypes.data),
        dx=number(dx.ctypes.data),
        dweights=dweights,
        adds=number(adds),
        workspace=workspace,
        barriers=barriers,
    )
    write(block, arguments)
    run_job(state, groups * words[_MEMBERS], job, block)
