"""Random masks of a call, drawn on its device when needed. rnnkit/core/regularisation.py says what they are made of."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends import needs
from rnnkit.backends.interface import Gradients, LayerCache, Sizes
from rnnkit.core import philox
from rnnkit.core.cells import Array
from rnnkit.core.devices import array_module
from rnnkit.core.mixed_precision import compute_dtype, narrow, wide
from rnnkit.core.regularisation import HIDDEN, INPUT, WEIGHT, ZONEOUT_C, ZONEOUT_H, Noise


class Draw(NamedTuple):
    """A mask (T, B, units) with one row per row of the batch, or per row of the weights. See `philox.hits`."""

    seed: int
    stream: int
    p: float
    T: int
    rows: np.ndarray
    times: np.ndarray
    units: int


def draw(mask: Draw, like: Array) -> Array:
    """(T, B, units) uint8 on the device of `like`: 1 with probability p."""
    if array_module(like) is not np:
        from rnnkit.backends.cupy.random_hits import drawn

        return drawn(*mask)
    if needs.numba_problem() is not None:
        return philox.hits(*mask)
    from rnnkit.kernels.cpu.random_hits import draw_hits

    out = _padded_bytes((mask.T, len(mask.rows), mask.units))
    draw_hits(out, mask.rows, mask.times, *philox.keys_of(mask.seed), mask.stream, philox.threshold(mask.p))
    return out


def _padded_bytes(shape: tuple[int, ...]) -> Array:
    """Uninitialised uint8, followed by a cache line: the CPU kernels read whole vectors."""
    size = math.prod(shape)
    return np.empty(size + 64, np.uint8)[:size].reshape(shape)


def _scaled(hits: Array, p: float, dtype: Any) -> Array:
    """0 for a hit, else 1 / (1 - p), in the dtype that arrays of `dtype` are computed in."""
    computed = compute_dtype(dtype)
    return (hits == 0) * computed.type(1 / (1 - p) if p < 1 else 0)


def fixed_mask(noise: Noise, kind: int, p: float, rows: np.ndarray, units: int, like: Array, gate: int = 0) -> Array:
    """(B, units) an inverted dropout mask for all steps, in the dtype that `like` is computed in."""
    assert noise.seed is not None
    mask = Draw(noise.seed, noise.stream(kind, gate), p, 1, rows, np.zeros(len(rows), np.int64), units)
    return _scaled(draw(mask, like)[0], p, like.dtype)


def input_mask(noise: Noise | None, x: Array) -> Array | None:
    """(B, I) the mask on x (T, B, I), or None."""
    if noise is None or noise.seed is None or not noise.rates.input_dropout:
        return None
    _, B, I = x.shape
    return fixed_mask(noise, INPUT, noise.rates.input_dropout, noise.row_numbers(B), I, x)


def weight_mask(noise: Noise | None, w_hh: Array) -> Array | None:
    """(G*H, R) the mask on W_hh, or None."""
    if noise is None or noise.seed is None or not noise.rates.weight_dropout:
        return None
    rows, units = w_hh.shape
    return fixed_mask(noise, WEIGHT, noise.rates.weight_dropout, np.arange(rows), units, w_hh)


def masked(a: Array, mask: Array | None) -> Array:
    """`a` times the mask in a's dtype; `a` itself without a mask."""
    return a if mask is None else narrow(wide(a) * mask, a.dtype)


def masked_weights(noise: Noise | None, cache: LayerCache) -> LayerCache:
    """A layer's weights with W_hh masked, for one call; the layer's own without a mask.

    Nothing that a backend derives from the addresses of masked weights outlives the call. Gradients are returned, not
    added, so that `unmasked` can mask them.
    """
    mask = weight_mask(noise, cache.weights.w_hh)
    if mask is None:
        return cache
    return LayerCache(cache.weights._replace(w_hh=masked(cache.weights.w_hh, mask)), None)


def unmasked(noise: Noise | None, gradients: Gradients) -> Gradients:
    """The gradients of x and of the weights before they were masked, from those after. None for those not wanted."""
    dx, dstate0, dweights = gradients
    if noise is None or noise.seed is None:
        return Gradients(dx, dstate0, dweights)
    if dx is not None:
        dx = masked(dx, input_mask(noise, dx))
    if noise.rates.weight_dropout and dweights.w_hh is not None:
        dweights = dweights._replace(w_hh=masked(dweights.w_hh, weight_mask(noise, dweights.w_hh)))
    return Gradients(dx, dstate0, dweights)


class StepMasks(NamedTuple):
    """What the steps of a layer and direction do at random, None for what they do not. Rows are in the caller's order.

    hidden          (1 or G, B, R), in the dtype that is computed in: the masks on the operand of h W_hh^T, one for all
                    gates or one per gate
    zone_h, zone_c  (T, B, R) and (T, B, H) uint8: 1 where zoneout keeps old values; in evaluation (1, 1, ·) ones
    share_h, share_c
                    the share of the old value that is kept there: 1, or in evaluation the rate
    """

    hidden: Array = None
    zone_h: Array = None
    zone_c: Array = None
    share_h: float = 1.0
    share_c: float = 1.0


def step_masks(noise: Noise | None, sizes: Sizes, gates: int, like: Array) -> StepMasks:
    """The masks of the steps of a call, drawn. like: an array of the call's dtype on its device."""
    if noise is None:
        return StepMasks()
    rates = noise.rates
    hidden = None
    if rates.recurrent_dropout and noise.seed is not None:
        xp: Any = array_module(like)
        p, rows = rates.recurrent_dropout, noise.row_numbers(sizes.B)
        each = range(gates if rates.mask_per_gate else 1)
        hidden = xp.stack([fixed_mask(noise, HIDDEN, p, rows, sizes.R, like, gate) for gate in each])
    zone_h = _zone(noise, ZONEOUT_H, rates.zoneout_h, sizes, sizes.R, like)
    zone_c = _zone(noise, ZONEOUT_C, rates.zoneout_c, sizes, sizes.H, like)
    if noise.seed is None:
        return StepMasks(hidden, zone_h, zone_c, rates.zoneout_h, rates.zoneout_c)
    return StepMasks(hidden, zone_h, zone_c)


def _zone(noise: Noise, kind: int, p: float, sizes: Sizes, width: int, like: Array) -> Array | None:
    if not p:
        return None
    if noise.seed is None:
        xp: Any = array_module(like)
        if xp is not np:
            return xp.ones((1, 1, width), np.uint8)
        ones = _padded_bytes((1, 1, width))
        ones[...] = 1
        return ones
    rows, times = noise.row_numbers(sizes.B), noise.first_times(sizes.B)
    return draw(Draw(noise.seed, noise.stream(kind), p, sizes.T, rows, times, width), like)
