"""The time loops of the CPU path: a whole sequence, for a slice of the batch, in one compiled call.

    forward     per step: u = h' W_hh^T into scratch, then the cell's pointwise pair row by row, 4 to 16 units at a time
    backward    per step, last first: the pointwise pair, then dh' += du W_hh

Arrays are C-contiguous; B rows, of which this call takes [b0, b1). The sequence of states is kept in slots, one
more than there are steps: step t reads slot t and writes slot t + 1, or reads t + 1 and writes t when reversed,
so that the slots a step read are one array over time, the operand of dW_hh. `step` is 1, or 0 when nothing is
kept: every slot is then the first.

    gates_x (T, B, G*H)  x W_ih^T          bias_x, bias_h (G*H)       lengths (B,) steps of each row
    w, w_proj, w_back, w_proj_back         W_hh, W_hr, W_hh^T and W_hr^T packed by kernels/product.py
    h (T+1, B, R), c (T+1, B, H)           the slots; (1, B, ·) when step is 0
    kept (T, B, KEPT*H), m (T, B, H)       what the cell keeps; W_hr's operand; one step of each when step is 0
    y (T, B, R)                            zero where a row has ended, which the caller has seen to
    scratch, scratch_proj                  (B, G*H) and (B, max(R, H)), each row padded to whole vectors
    dh (B, R padded), dc (B, H)            in: gradients of the final states; out: of the initial ones

A row that has ended (t >= lengths[b]) is not touched; the rows between the first and the last live one share the
product.
"""

from __future__ import annotations

from types import SimpleNamespace

from rnnkit.kernels import gru, lstm, rnn
from rnnkit.kernels.activations import activations
from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.product import products
from rnnkit.kernels.vector import vectors

# cell: (module with its constants, its pointwise pair, which h backward reads: "", "prev" or "new"; has c)
_CELLS = {
    "rnn_tanh": (rnn, lambda act: rnn.make(inner, act, "tanh"), "new", False),
    "rnn_relu": (rnn, lambda act: rnn.make(inner, act, "relu"), "new", False),
    "gru": (gru, lambda act: gru.make(inner, act), "prev", False),
    "lstm": (lstm, lambda act: lstm.make(inner, act), "", True),
}


def kept_blocks(cell: str) -> int:
    """How many arrays of H values a step of the cell keeps."""
    return _CELLS[cell][0].KEPT


@inner
def first_live(b0, b1, t, lengths):
    """The first row of [b0, b1) with more than t steps; b1 if none."""
    while b0 < b1 and lengths[b0] <= t:
        b0 += 1
    return b0


@inner
def last_live(b0, b1, t, lengths):
    """One past the last row of [b0, b1) with more than t steps; b0 if none."""
    while b1 > b0 and lengths[b1 - 1] <= t:
        b1 -= 1
    return b1


def make_forward(cell: str, dtype: str):
    """forward(b0, b1, reverse, step, …): see the module's docstring. w_proj has elements under projection."""
    module, make_pair, _, has_c = _CELLS[cell]
    pair, v, product = make_pair(activations(dtype)).forward, vectors(dtype), products(dtype).product
    load, store, load_blocks, store_blocks, zero = v.load, v.store, v.load_blocks, v.store_blocks, v.zero
    size, lanes, G, KEPT = v.itemsize, v.lanes, module.GATES, module.KEPT

    @inner
    def pointwise(x, bias_x, u, bias_h, h_prev, c_prev, kept, out, out_too, c, H, write_kept):
        """One row: H units. All but H and write_kept are addresses; out_too repeats out."""
        for j in range(0, H, lanes):
            n, at, block = H - j, j * size, H * size
            xs = load_blocks(x + at, block, n, G)
            bxs = load_blocks(bias_x + at, block, n, G)
            us = load_blocks(u + at, block, n, G)
            bhs = load_blocks(bias_h + at, block, n, G)
            c_before = load(c_prev + at, n) if has_c else zero()
            h_before = zero() if has_c else load(h_prev + at, n)
            xs, us = add_blocks(xs, bxs), add_blocks(us, bhs)
            values, h_new, c_new = pair(xs, us, h_before, c_before)
            if write_kept:
                store_blocks(values, kept + at, block, n)
            store(h_new, out + at, n)
            store(h_new, out_too + at, n)
            if has_c:
                store(c_new, c + at, n)

    add_blocks = v.add_blocks

    @entry(("forward", cell, dtype))
    def forward(
        b0, b1, reverse, step, gates_x, bias_x, bias_h, w, w_proj, lengths, h, c, kept, m, y, scratch, scratch_proj
    ):
        T, B, GH = gates_x.shape
        H, R = GH // G, y.shape[2]
        projected = w_proj.size > 0
        row_x, row_h, row_c, row_kept = GH * size, R * size, H * size, KEPT * H * size
        row_u, row_p = scratch.shape[1] * size, scratch_proj.shape[1] * size
        bx, bh = bias_x.ctypes.data, bias_h.ctypes.data
        for s in range(T):
            t = T - 1 - s if reverse else s
            lo = first_live(b0, b1, t, lengths)
            hi = last_live(lo, b1, t, lengths)
            before, after = (t + 1, t) if reverse else (t, t + 1)
            h_before = h.ctypes.data + before * step * B * row_h
            h_after = h.ctypes.data + after * step * B * row_h
            c_before = c.ctypes.data + before * step * B * row_c
            c_after = c.ctypes.data + after * step * B * row_c
            m_now = m.ctypes.data + t * step * B * row_c
            x_now = gates_x.ctypes.data + t * B * row_x
            kept_now = kept.ctypes.data + t * step * B * row_kept
            y_now = y.ctypes.data + t * B * row_h
            u = scratch.ctypes.data
            product(h_before + lo * row_h, row_h, w.ctypes.data, R, u + lo * row_u, row_u, GH, hi - lo, 0)
            for r in range(lo, hi):
                if t < lengths[r]:
                    out = m_now + r * row_c if projected else h_after + r * row_h
                    out_too = out if projected else y_now + r * row_h
                    pointwise(
                        x_now + r * row_x,
                        bx,
                        u + r * row_u,
                        bh,
                        h_before + r * row_h,
                        c_before + r * row_c,
                        kept_now + r * row_kept,
                        out,
                        out_too,
                        c_after + r * row_c,
                        H,
                        step,
                    )
            if projected:
                p = scratch_proj.ctypes.data
                product(m_now + lo * row_c, row_c, w_proj.ctypes.data, H, p + lo * row_p, row_p, R, hi - lo, 0)
                for r in range(lo, hi):
                    if t < lengths[r]:
                        for j in range(0, R, lanes):
                            value = load(p + r * row_p + j * size, R - j)
                            store(value, h_after + r * row_h + j * size, R - j)
                            store(value, y_now + r * row_h + j * size, R - j)

    return forward


def make_backward(cell: str, dtype: str):
    """backward(b0, b1, reverse, …): see the module's docstring. dy has no elements where it is zero."""
    module, make_pair, reads, has_c = _CELLS[cell]
    pair, v, product = make_pair(activations(dtype)).backward, vectors(dtype), products(dtype).product
    load, store, load_blocks, store_blocks, zero = v.load, v.store, v.load_blocks, v.store_blocks, v.zero
    size, lanes, KEPT, SPLIT, G = v.itemsize, v.lanes, module.KEPT, module.SPLIT, module.GATES
    reads_prev, reads_new = reads == "prev", reads == "new"

    @inner
    def pointwise(kept, h_prev, c_prev, h, c, dy, has_dy, dm, dh, dc, dx, du, H):
        """One row: H units. All but has_dy and H are addresses; dm is dh's source, dh where its direct part goes."""
        for j in range(0, H, lanes):
            n, at, block = H - j, j * size, H * size
            values = load_blocks(kept + at, block, n, KEPT)
            d_h = load(dm + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            dxs, dus, dh_direct, dc_prev = pair(
                values,
                load(h_prev + at, n) if reads_prev else zero(),
                load(c_prev + at, n) if has_c else zero(),
                load(h + at, n) if reads_new else zero(),
                load(c + at, n) if has_c else zero(),
                d_h,
                load(dc + at, n) if has_c else zero(),
            )
            store_blocks(dxs, dx + at, block, n)
            if SPLIT:
                store_blocks(dus, du + at, block, n)
            store(dh_direct, dh + at, n)
            if has_c:
                store(dc_prev, dc + at, n)

    @inner
    def fill_zero(address, count):
        for j in range(0, count, lanes):
            store(0.0, address + j * size, count - j)

    @entry(("backward", cell, dtype))
    def backward(
        b0,
        b1,
        reverse,
        dy,
        w_back,
        w_proj_back,
        lengths,
        h,
        c,
        kept,
        dgates_x,
        dgates_h,
        dprojected,
        dh,
        dc,
        scratch_proj,
    ):
        T, B, GH = dgates_x.shape
        H, R = GH // G, h.shape[2]
        projected, has_dy = w_proj_back.size > 0, dy.size > 0
        row_x, row_h, row_c, row_kept = GH * size, R * size, H * size, KEPT * H * size
        row_dh, row_p = dh.shape[1] * size, scratch_proj.shape[1] * size
        dh_all, dc_all, p = dh.ctypes.data, dc.ctypes.data, scratch_proj.ctypes.data
        for s in range(T):
            t = s if reverse else T - 1 - s
            lo = first_live(b0, b1, t, lengths)
            hi = last_live(lo, b1, t, lengths)
            before, after = (t + 1, t) if reverse else (t, t + 1)
            h_before, h_after = h.ctypes.data + before * B * row_h, h.ctypes.data + after * B * row_h
            c_before, c_after = c.ctypes.data + before * B * row_c, c.ctypes.data + after * B * row_c
            kept_now = kept.ctypes.data + t * B * row_kept
            dx_now, du_now = dgates_x.ctypes.data + t * B * row_x, dgates_h.ctypes.data + t * B * row_x
            dy_now = dy.ctypes.data + t * B * row_h
            if projected:
                dp_now = dprojected.ctypes.data + t * B * row_h
                for r in range(lo, hi):
                    live = t < lengths[r]
                    for j in range(0, R, lanes):
                        value = load(dh_all + r * row_dh + j * size, R - j) if live else zero()
                        if live and has_dy:
                            value = value + load(dy_now + r * row_h + j * size, R - j)
                        store(value, dp_now + r * row_h + j * size, R - j)
                product(dp_now + lo * row_h, row_h, w_proj_back.ctypes.data, R, p + lo * row_p, row_p, H, hi - lo, 0)
            for r in range(lo, hi):
                if t < lengths[r]:
                    pointwise(
                        kept_now + r * row_kept,
                        h_before + r * row_h,
                        c_before + r * row_c,
                        h_after + r * row_h,
                        c_after + r * row_c,
                        dy_now + r * row_h,
                        has_dy and not projected,
                        p + r * row_p if projected else dh_all + r * row_dh,
                        p + r * row_p if projected else dh_all + r * row_dh,
                        dc_all + r * row_c,
                        dx_now + r * row_x,
                        du_now + r * row_x,
                        H,
                    )
                    if projected:
                        fill_zero(dh_all + r * row_dh, R)
                else:
                    fill_zero(du_now + r * row_x, GH)
            product(du_now + lo * row_x, row_x, w_back.ctypes.data, GH, dh_all + lo * row_dh, row_dh, R, hi - lo, 1)

    return backward


def make(cell: str, dtype: str) -> SimpleNamespace:
    """The compiled pair of a cell and dtype."""
    return SimpleNamespace(forward=make_forward(cell, dtype), backward=make_backward(cell, dtype))
