"""The time loops of the GRU that resets before the product: two products and two pointwise stages a step, each way.

Arrays, slots and slices are those of kernels/scan.py. Its own are the packed weights, w_rz and w_n forward,
w_rz_back and w_n_back back (rows [0, 2H) and [2H, 3H) of W_hh, and their transposes), kept (T, B, 3H) holding
r,z,n, and rh (T, B, H), the operand of dW_hn. Scratch rows hold 2H and H values, padded to whole vectors.
"""

from __future__ import annotations

from types import SimpleNamespace

from rnnkit.kernels import gru
from rnnkit.kernels.activations import activations
from rnnkit.kernels.jit import entry, inner
from rnnkit.kernels.product import products
from rnnkit.kernels.scan import first_live, last_live
from rnnkit.kernels.vector import vectors


def make_forward(dtype: str):
    """forward(b0, b1, reverse, step, …)."""
    stages, v, product = gru.make_reset_before(inner, activations(dtype)), vectors(dtype), products(dtype).product
    load, store, size, lanes = v.load, v.store, v.itemsize, v.lanes
    gates, output = stages.gates, stages.output

    @inner
    def summed(x, bias_x, u, bias_h, n):
        return (load(x, n) + load(bias_x, n)) + (load(u, n) + load(bias_h, n))

    @inner
    def gates_row(x, bx, u, bh, h_prev, kept, rh, H):
        for j in range(0, H, lanes):
            n, r_at, z_at = H - j, j * size, (H + j) * size
            a_r = summed(x + r_at, bx + r_at, u + r_at, bh + r_at, n)
            a_z = summed(x + z_at, bx + z_at, u + z_at, bh + z_at, n)
            r, z, rh_new = gates(a_r, a_z, load(h_prev + r_at, n))
            store(r, kept + r_at, n)
            store(z, kept + z_at, n)
            store(rh_new, rh + r_at, n)

    @inner
    def output_row(x, bx, u, bh, h_prev, kept, h, y, H):
        for j in range(0, H, lanes):
            n, at, n_at = H - j, j * size, (2 * H + j) * size
            a_n = summed(x + n_at, bx + n_at, u + at, bh + n_at, n)
            value, h_new = output(a_n, load(kept + (H + j) * size, n), load(h_prev + at, n))
            store(value, kept + n_at, n)
            store(h_new, h + at, n)
            store(h_new, y + at, n)

    @entry(("forward", "gru_reset_before", dtype))
    def forward(b0, b1, reverse, step, gates_x, bias_x, bias_h, w_rz, w_n, lengths, h, kept, rh, y, scratch, scratch_n):
        T, B, GH = gates_x.shape
        H = GH // 3
        row_x, row, row_u, row_n = GH * size, H * size, scratch.shape[1] * size, scratch_n.shape[1] * size
        bx, bh, u, u_n = bias_x.ctypes.data, bias_h.ctypes.data, scratch.ctypes.data, scratch_n.ctypes.data
        for s in range(T):
            t = T - 1 - s if reverse else s
            lo = first_live(b0, b1, t, lengths)
            hi = last_live(lo, b1, t, lengths)
            before, after = (t + 1, t) if reverse else (t, t + 1)
            h_before, h_after = h.ctypes.data + before * step * B * row, h.ctypes.data + after * step * B * row
            x_now, y_now = gates_x.ctypes.data + t * B * row_x, y.ctypes.data + t * B * row
            kept_now, rh_now = kept.ctypes.data + t * step * B * row_x, rh.ctypes.data + t * step * B * row
            product(h_before + lo * row, row, w_rz.ctypes.data, H, u + lo * row_u, row_u, 2 * H, hi - lo, 0)
            for r in range(lo, hi):
                if t < lengths[r]:
                    gates_row(
                        x_now + r * row_x, bx, u + r * row_u, bh, h_before + r * row, kept_now + r * row_x,
                        rh_now + r * row, H,
                    )  # fmt: skip
            product(rh_now + lo * row, row, w_n.ctypes.data, H, u_n + lo * row_n, row_n, H, hi - lo, 0)
            for r in range(lo, hi):
                if t < lengths[r]:
                    output_row(
                        x_now + r * row_x, bx, u_n + r * row_n, bh, h_before + r * row, kept_now + r * row_x,
                        h_after + r * row, y_now + r * row, H,
                    )  # fmt: skip

    return forward


def make_backward(dtype: str):
    """backward(b0, b1, reverse, …). dy has no elements where it is zero."""
    stages, v, product = gru.make_reset_before(inner, activations(dtype)), vectors(dtype), products(dtype).product
    load, store, size, lanes = v.load, v.store, v.itemsize, v.lanes
    output_backward, gates_backward = stages.output_backward, stages.gates_backward

    @inner
    def output_row(kept, h_prev, dy, has_dy, dh, dg, H):
        """da_z and da_n into dg; dh + dy into dh."""
        for j in range(0, H, lanes):
            n, at = H - j, j * size
            d_h = load(dh + at, n)
            if has_dy:
                d_h = d_h + load(dy + at, n)
            z, value = load(kept + (H + j) * size, n), load(kept + (2 * H + j) * size, n)
            da_z, da_n = output_backward(z, value, load(h_prev + at, n), d_h)
            store(da_z, dg + (H + j) * size, n)
            store(da_n, dg + (2 * H + j) * size, n)
            store(d_h, dh + at, n)

    @inner
    def gates_row(kept, h_prev, drh, dh, dg, H):
        """da_r into dg; what reaches h' past the r and z products into dh."""
        for j in range(0, H, lanes):
            n, at = H - j, j * size
            r, z = load(kept + at, n), load(kept + (H + j) * size, n)
            da_r, dh_prev = gates_backward(r, z, load(h_prev + at, n), load(dh + at, n), load(drh + at, n))
            store(da_r, dg + at, n)
            store(dh_prev, dh + at, n)

    @entry(("backward", "gru_reset_before", dtype))
    def backward(b0, b1, reverse, dy, w_rz_back, w_n_back, lengths, h, kept, dgates, dh, scratch_n):
        T, B, GH = dgates.shape
        H = GH // 3
        row_x, row, row_dh, row_n = GH * size, H * size, dh.shape[1] * size, scratch_n.shape[1] * size
        has_dy, dh_all, drh = dy.size > 0, dh.ctypes.data, scratch_n.ctypes.data
        for s in range(T):
            t = s if reverse else T - 1 - s
            lo = first_live(b0, b1, t, lengths)
            hi = last_live(lo, b1, t, lengths)
            h_before = h.ctypes.data + (t + 1 if reverse else t) * B * row
            kept_now, dg = kept.ctypes.data + t * B * row_x, dgates.ctypes.data + t * B * row_x
            dy_now = dy.ctypes.data + t * B * row
            for r in range(lo, hi):
                if t < lengths[r]:
                    output_row(
                        kept_now + r * row_x, h_before + r * row, dy_now + r * row, has_dy, dh_all + r * row_dh,
                        dg + r * row_x, H,
                    )  # fmt: skip
                else:
                    for j in range(0, GH, lanes):
                        store(0.0, dg + r * row_x + j * size, GH - j)
            da_n = dg + lo * row_x + 2 * H * size
            product(da_n, row_x, w_n_back.ctypes.data, H, drh + lo * row_n, row_n, H, hi - lo, 0)
            for r in range(lo, hi):
                if t < lengths[r]:
                    gates_row(
                        kept_now + r * row_x, h_before + r * row, drh + r * row_n, dh_all + r * row_dh,
                        dg + r * row_x, H,
                    )  # fmt: skip
            product(dg + lo * row_x, row_x, w_rz_back.ctypes.data, 2 * H, dh_all + lo * row_dh, row_dh, H, hi - lo, 1)

    return backward


def make(dtype: str) -> SimpleNamespace:
    """The compiled pair of a dtype."""
    return SimpleNamespace(forward=make_forward(dtype), backward=make_backward(dtype))
