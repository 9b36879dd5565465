"""One time step with zoneout and dropout on h, in NumPy: what every backend is held to.

`forward` and `backward` wrap the step of any cell. Dropout on h masks the operand of the hidden product, and nothing
else: the h that a GRU mixes with its candidate, z h', is not masked. In a GRU that resets before, the operand of n is
r (h' m).

Zoneout, Krueger et al., arXiv 1606.01305: h = d h' + (1 - d) h~ and c = d' c' + (1 - d') c~, where d is 1 with
probability z in training, and z in evaluation. h~ = o tanh(c~) as in the paper, or with `zoned_output` o tanh(c).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.core.cells import Array, Kept, State, StepGradients, Weights


class MaskedMatrix:
    """W_hh of one step whose operand is masked: the linear map of h (B, R) to [(h m_g) W_g^T for each gate g].

    w (gates * H, R); masks (1 or gates, B, R). It has the operations that the steps of core/cells.py use: rows
    [first, end) by slicing, `h @ m.T`, and `da @ m`, which is the transpose of the map.
    """

    __array_ufunc__ = None  # so that ndarray @ MaskedMatrix asks MaskedMatrix

    def __init__(self, w: Array, masks: Array, H: int, transposed: bool = False) -> None:
        self.w = w
        self.masks = masks
        self.H = H
        self.transposed = transposed

    @property
    def T(self) -> MaskedMatrix:
        return MaskedMatrix(self.w, self.masks, self.H, not self.transposed)

    def __getitem__(self, rows: slice) -> MaskedMatrix:
        first, end, _ = rows.indices(len(self.w))
        masks = self.masks if len(self.masks) == 1 else self.masks[first // self.H : end // self.H]
        return MaskedMatrix(self.w[first:end], masks, self.H)

    def __rmatmul__(self, a: Array) -> Array:
        parts = np.split(self.w, len(self.masks))
        if self.transposed:
            return np.concatenate([(a * m) @ w.T for m, w in zip(self.masks, parts, strict=True)], axis=1)
        pieces = np.split(a, len(self.masks), axis=1)
        return sum(m * (d @ w) for m, d, w in zip(self.masks, pieces, parts, strict=True))


class StepNoise(NamedTuple):
    """What a step does at random: masks on h (1 or G, B, R), and the shares of h (B, R) and c (B, H) that zoneout
    keeps, None for what it does not; and H."""

    hidden: Array | None
    keep_h: Array | None
    keep_c: Array | None
    zoned_output: bool
    H: int


def forward(step: Any, noise: StepNoise, x_side: Array, state: State, weights: Weights) -> tuple[State, Kept]:
    """As a step's forward."""
    new, kept = step(x_side, state, _masked(weights, noise))
    if noise.keep_c is not None:
        raw = new[1]
        c = _mixed(noise.keep_c, state[1], raw)
        h = new[0]
        if noise.zoned_output:
            m = kept["o"] * np.tanh(c)
            h = m if weights.w_hr is None else m @ weights.w_hr.T
            kept = kept | {"m": m, "zoned_c": c}
        new = (h, c)
    if noise.keep_h is not None:
        new = (_mixed(noise.keep_h, state[0], new[0]), *new[1:])
    return new, kept


def backward(step: Any, noise: StepNoise, kept: Kept, dstate: State, weights: Weights) -> StepGradients:
    """As a step's backward."""
    dh, *dcs = dstate
    direct_h: Any = 0.0
    direct_c: Any = 0.0
    if noise.keep_h is not None:
        direct_h = noise.keep_h * dh
        dh = dh - direct_h
    extra = None
    if noise.keep_c is not None:
        dc = dcs[0]
        if noise.zoned_output:
            dm = dh if weights.w_hr is None else dh @ weights.w_hr
            tanh_c = np.tanh(kept["zoned_c"])
            dc = dc + dm * kept["o"] * (1 - tanh_c * tanh_c)
            extra = dm * tanh_c * kept["o"] * (1 - kept["o"])
        direct_c = noise.keep_c * dc
        dcs = [dc - direct_c]
    inside = np.zeros_like(dh) if extra is not None else dh  # h reads c after its zoneout, and o: both done here
    found = step(kept, (inside, *dcs), _masked(weights, noise))
    if extra is not None:
        found = _with_output_gate(found, extra, dh, _masked(weights, noise))
    dstate0 = [found.dstate[0] + direct_h, *[d + direct_c for d in found.dstate[1:]]]
    return found._replace(dstate=tuple(dstate0))


def _with_output_gate(found: StepGradients, da_o: Array, dh: Array, weights: Weights) -> StepGradients:
    """Adds the gradient of o's pre-activation, of the last H gates, to a step's that was given dh = 0."""
    da = found.dx_side.copy()
    H = da_o.shape[1]
    da[:, -H:] = da_o
    projected = None if weights.w_hr is None else dh
    return StepGradients(da, da, (da @ weights.w_hh, *found.dstate[1:]), projected)


def _masked(weights: Weights, noise: StepNoise) -> Weights:
    if noise.hidden is None:
        return weights
    return weights._replace(w_hh=MaskedMatrix(weights.w_hh, noise.hidden, noise.H))


def _mixed(share: Array, old: Array, new: Array) -> Array:
    """Exactly one of both where the share is 0 or 1."""
    return share * old + (1 - share) * new
