"""Numba CUDA: what cells with options add to a step: constants, weights per unit, zoneout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rnnkit.core.cells import Cell
from rnnkit.kernels.numba_cuda.numbers import COMPUTE, activations, computed_tuples, constant, device


def extras_loaders(cell: Cell, dtype: str):
    """load_constants(extras), and load_units(extras, j, H), the weights of unit j: tuples, or 0 if there are none."""
    zero = constant(dtype, 0)
    N = len(cell.constants)
    K = len(cell.unit_weights)
    if N:
        load_numbers = computed_tuples(dtype, N).load

        @device
        def load_constants(extras):
            return load_numbers(extras, 0, 1)

    else:

        @device
        def load_constants(extras):
            return zero

    if K:
        load_all = computed_tuples(dtype, K).load

        @device
        def load_units(extras, j, H):
            return load_all(extras, N + j, H)

    else:

        @device
        def load_units(extras, j, H):
            return zero

    return load_constants, load_units


def zoneout(dtype: str) -> SimpleNamespace:
    """share_of(zone, t, b, j, share), the share of an old value that is kept; mixed(z, old, new)."""
    compute = COMPUTE[dtype]
    one = constant(dtype, 1)

    @device
    def share_of(zone, t, b, j, share):
        at = t if zone.shape[0] > 1 else 0
        row = b if zone.shape[1] > 1 else 0
        return compute(zone[at, row, j]) * share

    @device
    def mixed(z, old, new):
        return z * old + (one - z) * new

    return SimpleNamespace(share_of=share_of, mixed=mixed)


def zoned_backward(cell: Cell, pair: Any, dtype: str):
    """zoned(values, c', dh, dc, z, w, k): the gates' gradients and that of c', of an LSTM with zoneout of c."""
    zero = constant(dtype, 0)
    one = constant(dtype, 1)
    tanh = activations(dtype).tanh

    @device
    def raw(values, c_before, d_h, d_c, z, w, k):
        dxs, _, _, dc_prev = pair(values, zero, c_before, d_h, (one - z) * d_c, w, k)
        return dxs, dc_prev + z * d_c

    @device
    def from_zoned(values, c_before, d_h, d_c, z, w, k):
        i, f, g, o = values
        t = tanh(z * c_before + (one - z) * (f * c_before + i * g))
        d_c = d_c + d_h * o * (one - t * t)
        dxs, _, _, dc_prev = pair(values, zero, c_before, zero, (one - z) * d_c, w, k)
        return (dxs[0], dxs[1], dxs[2], d_h * t * o * (one - o)), dc_prev + z * d_c

    return from_zoned if cell.options.zoned_output else raw
