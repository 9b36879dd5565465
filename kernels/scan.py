"""The time loops of the CPU path: a whole sequence, for a share of the batch, in one compiled call.

    forward     a chunk of steps at a time x W_ih^T; then per step += h W_hh^T, and the cell, 4 to 16 units at a time
    backward    per step, last first: the cell, then dh += du W_hh

Rows are sorted by length, longest first, and stored packed: the steps of all rows one after the other in time order,
step t holding rows 0 to counts[t] - 1, from offsets[t] on. N steps in all; without lengths that is plain (T, B, ·). So
no work is done on padding, and what a step reads and writes is contiguous.

Rows [b0, b1) and units [u0, u1) are this call's; no other is touched. Threads that share rows have rows of their own
and all units. Threads that share units (`threads` > 1; all rows, no lengths, no projection) have weights packed for
their own units, and meet once a step, at `meeting`, the address of a counter (kernels/barrier.py).

All arrays are C-contiguous.

    x (N, I)                            w_x, w, w_proj: W_ih, W_hh, W_hr as product.py packs them; w_proj may be empty
    bias_x, bias_h (G*H)                h (B, R), c (B, H): in the initial, out the final states
    y (N, R)                            kept (N, KEPT*H), h_prev (N, R), c_prev (N, H): as `keep`, else empty
    m (N or B, H)                       what the projection multiplies, of every step with `keep`, else of one
    gates (chunk, B, G*H), u (B, G*H)   scratch; u only where the cell takes its two sides apart
    dy (N, R) or empty                  dgates_x, dgates_h (N, G*H): out, one array where the sides are not apart
    dh (B, R), dc (B, H)                in the gradients of the final states, out those of the initial ones
    dm (B, H), dprojected (N, R)        scratch and out, under projection
"""

from __future__ import annotations

from types import SimpleNamespace

from rnnkit.kernels import gru, lstm, rnn
from rnnkit.kernels.activations import activations
from rnnkit.kernels.barrier import wait
from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.product import products
from rnnkit.kernels.vector import vectors

# cell: (the module with its constants, its pointwise pair, whether the pair reads h', whether it has c)
_CELLS = {
    "rnn_tanh": (rnn, lambda act: rnn.make(inner, act, "tanh"), False, False),
    "rnn_relu": (rnn, lambda act: rnn.make(inner, act, "relu"), False, False),
    "gru": (gru, lambda act: gru.make(inner, act), True, False),
    "lstm": (lstm, lambda act: lstm.make(inner, act), False, True),
}


def kept_blocks(cell: str) -> int:
    """How many arrays of H values a step of the cell keeps, its states aside."""
    return _CELLS[cell][0].KEPT


def is_split(cell: str) -> bool:
    """Whether the cell takes the input's and the hidden side's pre-activations apart."""
    return _CELLS[cell][0].SPLIT


def make_input_product(dtype: str):
    """input_product(b0, b1, low, steps, x, w_x, offsets, counts, gates): gates = x W_ih^T, steps [low, low + steps).

    Gives the rows from one step to the next in `gates`: B, or 0 for packed as x is, where the share is the whole batch.
    """
    product, product_steps, size = products(dtype).product, products(dtype).product_steps, vectors(dtype).itemsize

    @inner
    def input_product(b0, b1, low, steps, x, w_x, offsets, counts, gates):
        _, B, GH = gates.shape
        I = x.shape[1]
        row, row_g, w, x_all, out = I * size, GH * size, w_x.ctypes.data, x.ctypes.data, gates.ctypes.data
        x_low = x_all + offsets[low] * row
        if b0 == 0 and b1 == B:
            rows = offsets[low + steps] - offsets[low]
            product(x_low, row, w, I, out, row_g, GH, rows, 0)
            return 0
        if counts[low + steps - 1] == B:
            out += b0 * row_g
            product_steps(
                x_low + b0 * row, B * row, row, size, w, I, out, B * row_g, row_g, GH, steps, b1 - b0, 0
            )  # fmt: skip
            return B
        for t in range(low, low + steps):
            rows = min(b1, counts[t]) - b0
            at = out + ((t - low) * B + b0) * row_g
            product(x_all + (offsets[t] + b0) * row, row, w, I, at, row_g, GH, max(rows, 0), 0)
        return B

    return input_product


def make_copy(dtype: str):
    """copy(source, target, count): addresses, and how many values."""
    v = vectors(dtype)
    load, store, load_first, store_first = v.whole.load, v.whole.store, v.first.load, v.first.store
    size, lanes = v.itemsize, v.lanes

    @inner
    def copy(source, target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(load(source + j * size, lanes), target + j * size, lanes)
        if last < count:
            n = count - last
            store_first(load_first(source + last * size, n), target + last * size, n)

    return copy


def make_add_to(dtype: str):
    """add_to(source, target, count): target += source."""
    v = vectors(dtype)
    load, store, load_first, store_first = v.whole.load, v.whole.store, v.first.load, v.first.store
    size, lanes = v.itemsize, v.lanes

    @inner
    def add_to(source, target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(load(source + j * size, lanes) + load(target + j * size, lanes), target + j * size, lanes)
        if last < count:
            n, at = count - last, last * size
            store_first(load_first(source + at, n) + load_first(target + at, n), target + at, n)

    return add_to


def make_clear(dtype: str):
    """clear(target, count): target = 0."""
    v = vectors(dtype)
    store, store_first, size, lanes = v.whole.store, v.first.store, v.itemsize, v.lanes

    @inner
    def clear(target, count):
        last = count // lanes * lanes
        for j in range(0, last, lanes):
            store(0.0, target + j * size, lanes)
        if last < count:
            store_first(0.0, target + last * size, count - last)

    return clear


def make_forward(cell: str, dtype: str):
    """forward(b0, b1, reverse, keep, …): see the module's docstring."""
    module, make_pair, reads_h, has_c = _CELLS[cell]
    pair, v, product = make_pair(activations(dtype)).forward, vectors(dtype), products(dtype).product
    zero, add_blocks, copy, input_product = v.zero, v.add_blocks, make_copy(dtype), make_input_product(dtype)
    size, lanes, G, KEPT, SPLIT = v.itemsize, v.lanes, module.GATES, module.KEPT, module.SPLIT

    def units(memory):
        """The cell on one vector of units, the j-th and on, of one row."""
        load, store, load_blocks, store_blocks = memory.load, memory.store, memory.load_blocks, memory.store_blocks

        @inner
        def step(j, n, g, u, bias_x, bias_h, h, c, out, y, kept, c_prev, share, H, keep, write_y):
            at, block, own = j * size, H * size, share * size
            xs = add_blocks(load_blocks(g + at, own, n, G), load_blocks(bias_x + at, block, n, G))
            us = load_blocks(bias_h + at, block, n, G)
            if SPLIT:
                us = add_blocks(us, load_blocks(u + at, own, n, G))
            c_before = load(c + at, n) if has_c else zero()
            values, h_new, c_new = pair(xs, us, load(h + at, n) if reads_h else zero(), c_before)
            if keep:
                store_blocks(values, kept + at, block, n)
                if has_c:
                    store(c_before, c_prev + at, n)
            store(h_new, out + at, n)
            if write_y:
                store(h_new, y + at, n)
            if has_c:
                store(c_new, c + at, n)

        return step

    whole, ending = units(v.whole), units(v.first)

    @inner
    def pointwise(g, u, bias_x, bias_h, h, c, out, y, kept, c_prev, share, H, keep, write_y):
        """One row: `share` units of H. The rest are addresses, and flags; h goes to `out` and, with write_y, to y."""
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(j, lanes, g, u, bias_x, bias_h, h, c, out, y, kept, c_prev, share, H, keep, write_y)
        if last < share:
            ending(last, share - last, g, u, bias_x, bias_h, h, c, out, y, kept, c_prev, share, H, keep, write_y)

    @entry(("forward", cell, dtype))
    def forward(
        b0, b1, u0, u1, threads, meeting, reverse, keep, x, offsets, counts, w_x, bias_x, bias_h, w, w_proj,
        h, c, y, kept, h_prev, c_prev, m, gates, u,
    ):  # fmt: skip
        chunk = gates.shape[0]
        T, H, R, share = counts.shape[0], bias_x.shape[0] // G, y.shape[1], u1 - u0
        projected, shared = w_proj.size > 0, threads > 1
        row_g, row_h, row_c, row_kept = G * share * size, R * size, H * size, KEPT * H * size
        first = u0 * size
        h_rows = h.ctypes.data + b0 * row_h
        for s0 in range(0, T, chunk):
            steps = min(chunk, T - s0)
            low = T - s0 - steps if reverse else s0
            stride = input_product(b0, b1, low, steps, x, w_x, offsets, counts, gates)
            for s in range(steps):
                t = low + steps - 1 - s if reverse else low + s
                end, at = min(b1, counts[t]), offsets[t]
                if end <= b0:
                    continue
                g = gates.ctypes.data + ((t - low) * stride if stride else at - offsets[low]) * row_g
                into, add = (u.ctypes.data, 0) if SPLIT else (g, 1)
                rows = end - b0
                if keep:
                    own = R if projected else share
                    for r in range(rows):
                        copy(h_rows + r * row_h + first, h_prev.ctypes.data + (at + b0 + r) * row_h + first, own)
                product(h_rows, row_h, w.ctypes.data, R, into + b0 * row_g, row_g, G * share, rows, add)
                for r in range(b0, end):
                    y_row = y.ctypes.data + (at + r) * row_h + first
                    h_row = h_rows + (r - b0) * row_h + first
                    m_row = m.ctypes.data + (at + r if keep else r) * row_c
                    pointwise(
                        g + r * row_g, u.ctypes.data + r * row_g, bias_x.ctypes.data + first,
                        bias_h.ctypes.data + first, h_row, c.ctypes.data + r * row_c + first,
                        m_row if projected else (y_row if shared else h_row), y_row,
                        kept.ctypes.data + (at + r) * row_kept + first, c_prev.ctypes.data + (at + r) * row_c + first,
                        share, H, keep, not projected and not shared,
                    )  # fmt: skip
                if projected:
                    m_rows = m.ctypes.data + (at + b0 if keep else b0) * row_c
                    product(m_rows, row_c, w_proj.ctypes.data, H, h_rows, row_h, R, rows, 0)
                    copy(h_rows, y.ctypes.data + (at + b0) * row_h, rows * R)
                if shared:
                    # The others read these units at the next step, from y: h itself keeps the initial state.
                    wait(meeting, threads * (s0 + s + 1))
                    h_rows = y.ctypes.data + at * row_h
        if shared and T > 0:
            for r in range(b0, b1):
                copy(h_rows + r * row_h + first, h.ctypes.data + r * row_h + first, share)

    return forward


def make_backward(cell: str, dtype: str):
    """backward(b0, b1, reverse, …): see the module's docstring."""
    module, make_pair, reads_h, has_c = _CELLS[cell]
    pair, v, product = make_pair(activations(dtype)).backward, vectors(dtype), products(dtype).product
    zero, copy, add_to, clear = v.zero, make_copy(dtype), make_add_to(dtype), make_clear(dtype)
    size, lanes, G, KEPT, SPLIT = v.itemsize, v.lanes, module.GATES, module.KEPT, module.SPLIT

    def units(memory):
        """The cell's backward on one vector of units, the j-th and on, of one row."""
        load, store, load_blocks, store_blocks = memory.load, memory.store, memory.load_blocks, memory.store_blocks

        @inner
        def step(j, n, kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H):
            at, block = j * size, H * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            dxs, dus, dh_direct, dc_prev = pair(
                load_blocks(kept + at, block, n, KEPT),
                load(h_prev + at, n) if reads_h else zero(),
                load(c_prev + at, n) if has_c else zero(),
                d_h,
                load(dc + at, n) if has_c else zero(),
            )
            store_blocks(dxs, dx + at, block, n)
            if SPLIT:
                store_blocks(dus, du + at, block, n)
            store(dh_direct, dh + at, n)
            if has_c:
                store(dc_prev, dc + at, n)

        return step

    whole, ending = units(v.whole), units(v.first)

    @inner
    def pointwise(kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, share, H):
        """One row: `share` units of H. The rest are addresses, and a flag; dh becomes what goes to h' by no product."""
        last = share // lanes * lanes
        for j in range(0, last, lanes):
            whole(j, lanes, kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H)
        if last < share:
            ending(last, share - last, kept, h_prev, c_prev, dy, has_dy, dh, dc, dx, du, H)

    @entry(("backward", cell, dtype))
    def backward(
        b0, b1, u0, u1, threads, meeting, reverse, dy, offsets, counts, w, w_proj, kept, h_prev, c_prev,
        dgates_x, dgates_h, dh, dc, dm, dprojected,
    ):  # fmt: skip
        T, GH, R = counts.shape[0], dgates_x.shape[1], dh.shape[1]
        H, share, first = GH // G, u1 - u0, u0 * size
        projected, has_dy = w_proj.size > 0, dy.size > 0
        row_g, row_h, row_c, row_kept = GH * size, R * size, H * size, KEPT * H * size
        for s in range(T):
            t = s if reverse else T - 1 - s
            end, at = min(b1, counts[t]), offsets[t]
            if end <= b0:
                continue
            rows, dh_rows = end - b0, dh.ctypes.data + b0 * row_h
            if projected:
                dp = dprojected.ctypes.data + (at + b0) * row_h
                copy(dh_rows, dp, rows * R)
                if has_dy:
                    add_to(dy.ctypes.data + (at + b0) * row_h, dp, rows * R)
                clear(dh_rows, rows * R)
                product(dp, row_h, w_proj.ctypes.data, R, dm.ctypes.data + b0 * row_c, row_c, H, rows, 0)
            for r in range(b0, end):
                pointwise(
                    kept.ctypes.data + (at + r) * row_kept + first, h_prev.ctypes.data + (at + r) * row_h + first,
                    c_prev.ctypes.data + (at + r) * row_c + first, dy.ctypes.data + (at + r) * row_h + first,
                    has_dy and not projected,
                    dm.ctypes.data + r * row_c if projected else dh.ctypes.data + r * row_h + first,
                    dc.ctypes.data + r * row_c + first,
                    dgates_x.ctypes.data + (at + r) * row_g + first, dgates_h.ctypes.data + (at + r) * row_g + first,
                    share, H,
                )  # fmt: skip
            if threads > 1:  # the product takes the gates of every unit
                wait(meeting, threads * (s + 1))
            du, columns = dgates_h.ctypes.data + (at + b0) * row_g, R if projected else share
            product(du, row_g, w.ctypes.data, GH, dh_rows + first, row_h, columns, rows, 1)

    return backward


def make(cell: str, dtype: str) -> SimpleNamespace:
    """The compiled pair of a cell and dtype."""
    return SimpleNamespace(forward=make_forward(cell, dtype), backward=make_backward(cell, dtype))
