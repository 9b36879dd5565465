"""From Python into native code: an argument block is filled from arrays, and the thread pool runs a job on it.

One entry per pass serves every cell and shape of call: what differs is in the job, a compiled function given by its
address. `state` is the thread pool's (kernels/cpu/threads.py).

    words      a `Shape`, then the bounds of the groups' rows (groups + 1,)
    table      the offset of each step (T + 1,), the live rows at each (T,), and the order of the rows (B,)
    w_hr       any array unless `projected`
    extras     the address of an `Extras`, or 0 for a plain cell

workspace, digest and noise are addresses. h_prev, c_prev and operand are byte offsets relative to `values`, and may
point outside it. Only the first element of y and dy is passed: y_row is the stride of their rows in bytes.
"""

from __future__ import annotations

from rnnkit.kernels.cpu.arguments import (
    Backward,
    Forward,
    Rows,
    SavedAddresses,
    Shape,
    WeightAddresses,
    read_shape,
    words_of,
    write,
)
from rnnkit.kernels.cpu.array_address import ArrayAddress, address_of
from rnnkit.kernels.cpu.jit import INTEGER, inner, native
from rnnkit.kernels.cpu.memory import stack_bytes, store_word
from rnnkit.kernels.cpu.threads import LINE, run_job

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


@inner
def weights_at(w_ih, w_hh, w_hr, b_ih, b_hh, projected):
    hr = address_of(w_hr) if projected else 0
    return WeightAddresses(address_of(w_ih), address_of(w_hh), hr, address_of(b_ih), address_of(b_hh))


@native(("launch_forward",), (*2 * [INTEGER], *7 * [ArrayAddress], *9 * [INTEGER], *8 * [ArrayAddress]))
def launch_forward(
    state, job, words, table, w_ih, w_hh, w_hr, b_ih, b_hh, projected, extras, workspace, digest, noise, h_prev, c_prev,
    operand, y_row, x, x_packed, h0, c0, y, h_n, c_n, values,
):  # fmt: skip
    """See `Forward`.

    Packed weights follow the cache line of their digest, or else the workspace. Where `workspace` is 0 the stack has
    room for it: a few lines, for a single step.
    """
    shape = address_of(words)
    s = read_shape(shape)
    threads = s.groups * s.members
    size = s.own + threads * s.own_size
    block = stack_bytes(LINE * (_FORWARD_LINES + s.groups + 1) + (0 if workspace else size))
    barriers = block + LINE * _FORWARD_LINES
    clear_lines(barriers, s.groups + 1)
    own_workspace = barriers + LINE * (s.groups + 1)
    packed = digest + LINE if digest else workspace + size
    if not workspace:
        workspace = own_workspace
    arguments = Forward(
        shape=shape,
        x=address_of(x),
        x_packed=address_of(x_packed),
        rows=rows_of(shape, address_of(table), s.T),
        weights=weights_at(w_ih, w_hh, w_hr, b_ih, b_hh, projected),
        h0=address_of(h0),
        c0=address_of(c0),
        y=address_of(y),
        y_row=y_row,
        h_n=address_of(h_n),
        c_n=address_of(c_n),
        saved=saved_at(address_of(values), h_prev, c_prev, operand),
        packed=packed,
        digest=digest,
        workspace=workspace,
        barriers=barriers,
        extras=extras,
        noise=noise,
    )
    write(block, arguments)
    run_job(state, threads, job, block)


@native(("launch_backward",), (*2 * [INTEGER], *7 * [ArrayAddress], *13 * [INTEGER], *17 * [ArrayAddress]))
def launch_backward(
    state, job, words, table, w_ih, w_hh, w_hr, b_ih, b_hh, projected, extras, workspace, noise, h_prev, c_prev,
    operand, y_row, has_dy, biased, adds, wants_dx, wants_dweights, x_packed, values, dy, dh_n, dc_n, dh0, dc0,
    dgates_x, dgates_h, dprojected, dx_packed, dx, dw_ih, dw_hh, dw_hr, db_ih, db_hh,
):  # fmt: skip
    """See `Backward`. dy, the biases' gradients, dx and the weights' gradients are used where `has_dy`, `biased`,
    `wants_dx` and `wants_dweights`; adds: True or False."""
    shape = address_of(words)
    s = read_shape(shape)
    block = stack_bytes(LINE * (_BACKWARD_LINES + s.groups + 1))
    barriers = block + LINE * _BACKWARD_LINES
    clear_lines(barriers, s.groups + 1)
    db_ih_at = address_of(db_ih) if biased else 0
    db_hh_at = address_of(db_hh) if biased else 0
    dy_at = address_of(dy) if has_dy else 0
    dx_at = address_of(dx) if wants_dx else 0
    dw_ih_at = address_of(dw_ih) if wants_dweights else 0
    dweights = WeightAddresses(
        w_ih=dw_ih_at,
        w_hh=address_of(dw_hh),
        w_hr=address_of(dw_hr),
        b_ih=db_ih_at,
        b_hh=db_hh_at,
    )
    arguments = Backward(
        shape=shape,
        x_packed=address_of(x_packed),
        rows=rows_of(shape, address_of(table), s.T),
        weights=weights_at(w_ih, w_hh, w_hr, b_ih, b_hh, projected),
        saved=saved_at(address_of(values), h_prev, c_prev, operand),
        dy=dy_at,
        y_row=y_row,
        dh_n=address_of(dh_n),
        dc_n=address_of(dc_n),
        dh0=address_of(dh0),
        dc0=address_of(dc0),
        dgates_x=address_of(dgates_x),
        dgates_h=address_of(dgates_h),
        dprojected=address_of(dprojected),
        dx_packed=address_of(dx_packed),
        dx=dx_at,
        dweights=dweights,
        adds=adds,
        workspace=workspace,
        barriers=barriers,
        extras=extras,
        noise=noise,
    )
    write(block, arguments)
    run_job(state, s.groups * s.members, job, block)
