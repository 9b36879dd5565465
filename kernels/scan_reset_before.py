"""The time loops of the GRU that resets before the product: two products and two pointwise stages a step, each way.

Arrays, packing and shares are those of kernels/scan.py. Its own are the weights, w_rz and w_n (rows [0, 2H) and
[2H, 3H) of W_hh, or back their transposes), kept (N, 3H) holding r,z,n, and rh (N, H), the operand of dW_hn; without
`keep` these two hold one step, (B, ·).
"""

from __future__ import annotations

from types import SimpleNamespace

from rnnkit.kernels import gru
from rnnkit.kernels.activations import activations
from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.product import products
from rnnkit.kernels.scan import make_input_product
from rnnkit.kernels.vector import vectors


def make_forward(dtype: str):
    """forward(b0, b1, reverse, keep, …)."""
    stages, v, product = gru.make_reset_before(inner, activations(dtype)), vectors(dtype), products(dtype).product
    size, lanes = v.itemsize, v.lanes
    gates_of, output_of, input_product = stages.gates, stages.output, make_input_product(dtype)

    def units(memory):
        """Both stages on one vector of units, the j-th and on, of one row."""
        load, store = memory.load, memory.store

        @inner
        def with_biases(g, bias_x, bias_h, n):
            return load(g, n) + (load(bias_x, n) + load(bias_h, n))

        @inner
        def gates_step(j, n, g, bx, bh, h, h_prev, kept, rh, H, keep):
            r_at, z_at = j * size, (H + j) * size
            h_before = load(h + r_at, n)
            a_r = with_biases(g + r_at, bx + r_at, bh + r_at, n)
            a_z = with_biases(g + z_at, bx + z_at, bh + z_at, n)
            r, z, rh_new = gates_of(a_r, a_z, h_before)
            store(r, kept + r_at, n)
            store(z, kept + z_at, n)
            store(rh_new, rh + r_at, n)
            if keep:
                store(h_before, h_prev + r_at, n)

        @inner
        def output_step(j, n, g, bx, bh, h, kept, y, H):
            at, n_at = j * size, (2 * H + j) * size
            a_n = with_biases(g + n_at, bx + n_at, bh + n_at, n)
            value, h_new = output_of(a_n, load(kept + (H + j) * size, n), load(h + at, n))
            store(value, kept + n_at, n)
            store(h_new, h + at, n)
            store(h_new, y + at, n)

        return gates_step, output_step

    (gates_whole, output_whole), (gates_ending, output_ending) = units(v.whole), units(v.first)

    @inner
    def gates_row(g, bx, bh, h, h_prev, kept, rh, H, keep):
        last = H // lanes * lanes
        for j in range(0, last, lanes):
            gates_whole(j, lanes, g, bx, bh, h, h_prev, kept, rh, H, keep)
        if last < H:
            gates_ending(last, H - last, g, bx, bh, h, h_prev, kept, rh, H, keep)

    @inner
    def output_row(g, bx, bh, h, kept, y, H):
        last = H // lanes * lanes
        for j in range(0, last, lanes):
            output_whole(j, lanes, g, bx, bh, h, kept, y, H)
        if last < H:
            output_ending(last, H - last, g, bx, bh, h, kept, y, H)

    @entry(("forward", "gru_reset_before", dtype))
    def forward(
        b0, b1, reverse, keep, x, offsets, counts, w_x, bias_x, bias_h, w_rz, w_n, h, y, kept, h_prev, rh, gates
    ):
        chunk, _, GH = gates.shape
        T, H = counts.shape[0], GH // 3
        row_g, row = GH * size, H * size
        bx, bh = bias_x.ctypes.data, bias_h.ctypes.data
        for s0 in range(0, T, chunk):
            steps = min(chunk, T - s0)
            low = T - s0 - steps if reverse else s0
            stride = input_product(b0, b1, low, steps, x, w_x, offsets, counts, gates)
            for s in range(steps):
                t = low + steps - 1 - s if reverse else low + s
                end, at = min(b1, counts[t]), offsets[t]
                if end <= b0:
                    continue
                rows, kept_at = end - b0, at if keep else 0
                g = gates.ctypes.data + ((t - low) * stride if stride else at - offsets[low]) * row_g
                h_rows, rh_rows = h.ctypes.data + b0 * row, rh.ctypes.data + (kept_at + b0) * row
                product(h_rows, row, w_rz.ctypes.data, H, g + b0 * row_g, row_g, 2 * H, rows, 1)
                for r in range(b0, end):
                    gates_row(
                        g + r * row_g, bx, bh, h.ctypes.data + r * row, h_prev.ctypes.data + (at + r) * row,
                        kept.ctypes.data + (kept_at + r) * row_g, rh.ctypes.data + (kept_at + r) * row, H, keep,
                    )  # fmt: skip
                product(rh_rows, row, w_n.ctypes.data, H, g + b0 * row_g + 2 * row, row_g, H, rows, 1)
                for r in range(b0, end):
                    output_row(
                        g + r * row_g, bx, bh, h.ctypes.data + r * row, kept.ctypes.data + (kept_at + r) * row_g,
                        y.ctypes.data + (at + r) * row, H,
                    )  # fmt: skip

    return forward


def make_backward(dtype: str):
    """backward(b0, b1, reverse, …). drh (B, H) is scratch."""
    stages, v, product = gru.make_reset_before(inner, activations(dtype)), vectors(dtype), products(dtype).product
    size, lanes = v.itemsize, v.lanes
    output_backward, gates_backward = stages.output_backward, stages.gates_backward

    def units(memory):
        """Both stages back on one vector of units, the j-th and on, of one row."""
        load, store = memory.load, memory.store

        @inner
        def output_step(j, n, kept, h_prev, dy, has_dy, dh, dg, H):
            at = j * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            z, value = load(kept + (H + j) * size, n), load(kept + (2 * H + j) * size, n)
            da_z, da_n = output_backward(z, value, load(h_prev + at, n), d_h)
            store(da_z, dg + (H + j) * size, n)
            store(da_n, dg + (2 * H + j) * size, n)
            store(d_h, dh + at, n)

        @inner
        def gates_step(j, n, kept, h_prev, drh, dh, dg, H):
            at = j * size
            r, z = load(kept + at, n), load(kept + (H + j) * size, n)
            da_r, dh_prev = gates_backward(r, z, load(h_prev + at, n), load(dh + at, n), load(drh + at, n))
            store(da_r, dg + at, n)
            store(dh_prev, dh + at, n)

        return output_step, gates_step

    (output_whole, gates_whole), (output_ending, gates_ending) = units(v.whole), units(v.first)

    @inner
    def output_row(kept, h_prev, dy, has_dy, dh, dg, H):
        """da_z and da_n into dg; dh + dy into dh."""
        last = H // lanes * lanes
        for j in range(0, last, lanes):
            output_whole(j, lanes, kept, h_prev, dy, has_dy, dh, dg, H)
        if last < H:
            output_ending(last, H - last, kept, h_prev, dy, has_dy, dh, dg, H)

    @inner
    def gates_row(kept, h_prev, drh, dh, dg, H):
        """da_r into dg; what reaches h' past the r and z products into dh."""
        last = H // lanes * lanes
        for j in range(0, last, lanes):
            gates_whole(j, lanes, kept, h_prev, drh, dh, dg, H)
        if last < H:
            gates_ending(last, H - last, kept, h_prev, drh, dh, dg, H)

    @entry(("backward", "gru_reset_before", dtype))
    def backward(b0, b1, reverse, dy, offsets, counts, w_rz, w_n, kept, h_prev, dgates, dh, drh):
        T, GH = counts.shape[0], dgates.shape[1]
        H = GH // 3
        row_g, row = GH * size, H * size
        has_dy = dy.size > 0
        for s in range(T):
            t = s if reverse else T - 1 - s
            end, at = min(b1, counts[t]), offsets[t]
            if end <= b0:
                continue
            rows, dg, dh_rows = end - b0, dgates.ctypes.data + at * row_g, dh.ctypes.data + b0 * row
            for r in range(b0, end):
                output_row(
                    kept.ctypes.data + (at + r) * row_g, h_prev.ctypes.data + (at + r) * row,
                    dy.ctypes.data + (at + r) * row, has_dy, dh.ctypes.data + r * row, dg + r * row_g, H,
                )  # fmt: skip
            da_n = dg + b0 * row_g + 2 * row
            product(da_n, row_g, w_n.ctypes.data, H, drh.ctypes.data + b0 * row, row, H, rows, 0)
            for r in range(b0, end):
                gates_row(
                    kept.ctypes.data + (at + r) * row_g, h_prev.ctypes.data + (at + r) * row,
                    drh.ctypes.data + r * row, dh.ctypes.data + r * row, dg + r * row_g, H,
                )  # fmt: skip
            product(dg + b0 * row_g, row_g, w_rz.ctypes.data, 2 * H, dh_rows, row, H, rows, 1)

    return backward


def make(dtype: str) -> SimpleNamespace:
    """The compiled pair of a dtype."""
    return SimpleNamespace(forward=make_forward(dtype), backward=make_backward(dtype))
