"""Zoneout and dropout on h in schedule D: macros, buffers, and the masks of a call. See kernels/cuda/step_noise.cuh.

Graphs reach the masks through a Noise in the workspace, beside the Call, so a graph serves the calls of every seed.
"""

from __future__ import annotations

from typing import Any

from rnnkit.backends.cupy import sources
from rnnkit.backends.cupy.arena import refuse_capture
from rnnkit.backends.cupy.launcher import Launcher, address
from rnnkit.backends.cupy.modules import over
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.sources import CALL_BYTES, Defines, Kernel
from rnnkit.backends.interface import Sizes
from rnnkit.backends.random_masks import StepMasks, step_masks
from rnnkit.core.cells import Array, Cell

# Before and after kernels/cuda/stepwise.cu.
HEADER = "cuda/step_noise.cuh"
FILE = "cuda/step_noise.cu"

# Bytes from a Call to the Noise.
NOISE_AT = 128


def masks_of(cell: Cell) -> int:
    """How many masks on h a call has: none, one, or one per gate."""
    options = cell.options
    return (cell.n_gates if options.mask_per_gate else 1) if options.recurrent_dropout else 0


def masked_products(cell: Cell) -> int:
    """How many products of masked h the first product of a step consists of. 0: of h as it is, in one."""
    _, first, end = cell.products[0]
    return end - first if cell.options.mask_per_gate else masks_of(cell)


def defines(cell: Cell) -> Defines:
    """The macros of a cell with zoneout or dropout on h; none for others."""
    options = cell.options
    if not options.has_noise:
        return ()
    values = {
        "RK_NOISE": 1,
        "RK_NOISE_AT": NOISE_AT,
        "RK_NOISE_END": CALL_BYTES,
        "RK_ZONEOUT_H": int(options.zoneout_h),
        "RK_ZONEOUT_C": int(options.zoneout_c),
        "RK_ZONED_OUTPUT": int(options.zoned_output),
        "RK_MASKS": masks_of(cell),
    }
    return tuple((name, str(value)) for name, value in values.items())


def kernels(cell: Cell) -> tuple[Kernel, ...]:
    """What is launched beside the steps."""
    if not cell.options.has_noise:
        return ()
    more = sources.pointwise_kernels("mask_first", "clear_products", "add_last") if masks_of(cell) else ()
    return (Kernel("set_noise", (1, 1, 1)), *more)


def forward_sizes(p: Problem) -> dict[str, int]:
    """Bytes of the buffers of a forward."""
    count = masked_products(p.cell)
    return {"masked": count * p.B * p.R * p.storage_bytes} if count else {}


def backward_sizes(p: Problem) -> dict[str, int]:
    """Bytes of the buffers of a backward."""
    count = masked_products(p.cell)
    if not count:
        return {}
    masked = count * p.chunk_rows * p.R * p.storage_bytes
    return {"masked": masked, "dmasked": count * p.B * p.R * p.compute_bytes}


def begin(launcher: Launcher, like: Array, backward: bool) -> StepMasks:
    """Draws the masks of a pass and prepares its buffers. They must live as long as the pass.

    like: an array of the call's dtype. Raises DeviceError inside a capture of a call in training mode.
    """
    import cupy

    p = launcher.p
    if p.noise is not None and p.noise.seed is not None:
        refuse_capture(cupy.cuda.get_current_stream(), "a replay would have the random masks of this one call")
    masks = step_masks(p.noise, Sizes(p.T, p.B, p.I, p.H, p.R, p.N), p.cell.n_gates, like)
    _set_noise(launcher, masks, p.chunk_rows if backward else p.B)
    count = masked_products(p.cell)
    shape = over(p.B * p.R)
    if count and backward:
        launcher.launch("clear_products", shape, launcher["dmasked"], count * p.B * p.R)
    elif count:
        launcher.launch("mask_first", shape, launcher["call"], launcher.order, launcher["h"], p.B, p.R)
    return masks


def end_backward(launcher: Launcher) -> None:
    """Adds the last step's masked products to "dh"."""
    p = launcher.p
    if masks_of(p.cell):
        launcher.launch("add_last", over(p.B * p.R), launcher["call"], launcher["dh"], p.B, p.R)


def _set_noise(launcher: Launcher, masks: StepMasks, rows: int) -> None:
    """rows: of each mask's part of the buffer "masked"."""
    p = launcher.p
    arrays = (address(masks.hidden), address(masks.zone_h), address(masks.zone_c))
    buffers = (launcher["masked"], launcher["dmasked"])
    strides = (*_strides(masks.zone_h), *_strides(masks.zone_c), rows * p.R, p.B * p.R)
    number = p.dtype.compute.type
    shares = (number(masks.share_h), number(masks.share_c))
    launcher.launch("set_noise", ((1,), (1,)), launcher["call"], *arrays, *buffers, *strides, *shares)


def _strides(zone: Any) -> tuple[int, int]:
    """Along time and rows; zeros where one row of bytes is for all of them, or for None."""
    if zone is None:
        return 0, 0
    T, B, _ = zone.shape
    return (0 if T == 1 else zone.strides[0], 0 if B == 1 else zone.strides[1])
