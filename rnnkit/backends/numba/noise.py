"""The random masks of a call and the memory that its passes need, as the kernels take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.interface import LayerCall, Sizes
from rnnkit.backends.numba.plan import Work
from rnnkit.backends.numba.prepared import Prepared
from rnnkit.backends.random_masks import StepMasks, step_masks
from rnnkit.core.cells import Array
from rnnkit.core.regularisation import Noise
from rnnkit.kernels.cpu.arguments import NoiseAddresses
from rnnkit.kernels.cpu.formats import formats
from rnnkit.kernels.cpu.noise import flags_of


class KernelNoise(NamedTuple):
    """The address of a `NoiseAddresses` (kernels/cpu/arguments.py), 0 for none, and what must outlive the job."""

    address: int
    owners: tuple[Any, ...] = ()


NO_NOISE = KernelNoise(0)


def forward_noise(call: LayerCall, ready: Prepared) -> KernelNoise:
    """Of a forward: draws its masks."""
    work = ready.work
    if call.noise is None or not flags_of(work.cell).any:
        return NO_NOISE
    masks, R = _drawn(call.noise, work), work.R
    of_h = 0 if masks.hidden is None else len(masks.hidden)
    operands = np.empty((2, of_h, work.B, R), ready.operand)
    return _words(masks, operands=operands)


def backward_noise(noise: Noise, ready: Prepared) -> KernelNoise:
    """Of a backward: draws the masks of its forward again."""
    work = ready.work
    if not flags_of(work.cell).any:
        return NO_NOISE
    masks, B, R = _drawn(noise, work), work.B, work.R
    computed = _computed(work)
    direct = np.empty((0 if masks.zone_h is None else B, R), computed)
    of_h = 0 if masks.hidden is None else len(masks.hidden)
    product = np.empty((B if of_h else 0, R), computed)
    masked_h = np.empty((of_h, work.N, R), ready.operand)
    return _words(masks, direct=direct, product=product, masked_h=masked_h)


def _computed(work: Work) -> np.dtype:
    return np.dtype(formats(work.dtype).computed.dtype)


def _drawn(noise: Noise, work: Work) -> StepMasks:
    sizes = Sizes(work.T, work.B, work.I, work.H, work.R, work.N)
    return step_masks(noise, sizes, work.cell.n_gates, np.empty(0, _computed(work)))


def _words(masks: StepMasks, **memory: Array) -> KernelNoise:
    shares = np.array([masks.share_h, masks.share_c], np.float64)
    fields: dict[str, int] = dict.fromkeys(NoiseAddresses._fields, 0)
    for name, zone in (("zone_h", masks.zone_h), ("zone_c", masks.zone_c)):
        if zone is not None:
            steps, rows, _ = zone.shape
            fields[name] = zone.ctypes.data
            fields[f"{name}_t"] = zone.strides[0] if steps > 1 else 0
            fields[f"{name}_b"] = zone.strides[1] if rows > 1 else 0
    if masks.hidden is not None:
        fields["hidden"] = masks.hidden.ctypes.data
    fields["shares"] = shares.ctypes.data
    fields |= {name: a.ctypes.data for name, a in memory.items()}
    words = np.array(list(fields.values()), np.int64)
    return KernelNoise(words.ctypes.data, (words, shares, masks, memory))
