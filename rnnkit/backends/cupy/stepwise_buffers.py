"""The workspace of one call of schedule D, in bytes by buffer."""

from __future__ import annotations

from rnnkit.backends.cupy.modules import MOST_PARTS
from rnnkit.backends.cupy.passes import forward_buffers
from rnnkit.backends.cupy.problem import Problem

# A Call of kernels/cuda/call.cuh, with room to spare.
CALL_BYTES = 256


def workspace_sizes(p: Problem, backward: bool) -> dict[str, int]:
    """Bytes of each buffer of the workspace."""
    return {"call": CALL_BYTES} | (_backward_sizes(p) if backward else _forward_sizes(p))


def _forward_sizes(p: Problem) -> dict[str, int]:
    sizes = forward_buffers(p) | {"side": p.B * p.GH * p.compute_bytes}
    if p.has_second_product:
        sizes["m"] = p.B * p.H * p.storage_bytes
    return sizes


def _backward_sizes(p: Problem) -> dict[str, int]:
    s = p.storage_bytes
    c = p.compute_bytes
    sizes = {"dgates_x": p.chunk_rows * p.GH * s, "dh": p.B * p.R * c, "partials": MOST_PARTS * p.GH * c}
    if p.cell.splits_sides:
        sizes["dgates_h"] = p.chunk_rows * p.GH * s
    if p.cell.has_c:
        sizes["dc"] = p.B * p.H * c
    if p.has_second_product:
        sizes["dm"] = p.B * p.H * c
    if p.projected:
        sizes["dprojected"] = p.chunk_rows * p.R * s
    # A LongSum of kernels/cuda/rows.cuh per bias element.
    sizes |= {"db_ih": 2 * p.GH * c, "db_hh": 2 * p.GH * c}
    if not p.sums_in_place:
        sizes |= _slice_sizes(p)
    return sizes


def _slice_sizes(p: Problem) -> dict[str, int]:
    """Bytes of the slices of the weights' gradients, and of their running sums where several batches of slices add."""
    elements = {"dw_ih": p.GH * p.I, "dw_hh": p.GH * p.R} | ({"dw_hr": p.R * p.H} if p.projected else {})
    slices = -(-p.chunk_rows // p.slice_rows)
    at_once = {name: p.slices_at_once(n) for name, n in elements.items()}
    sizes = {"slices": max(n * min(slices, at_once[name]) for name, n in elements.items()) * p.compute_bytes}
    if p.chunk_steps < p.T or slices > min(at_once.values()):
        sizes |= {name: 2 * n * p.compute_bytes for name, n in elements.items()}
    return sizes
