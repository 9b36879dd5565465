"""The workspace of one call of schedule D, in bytes by buffer."""

from __future__ import annotations

from rnnkit.backends.cupy.backward_pass import backward_buffers
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
    sizes = backward_buffers(p)
    if p.has_second_product:
        sizes["dm"] = p.B * p.H * p.compute_bytes
    if p.projected:
        sizes["dprojected"] = p.chunk_rows * p.R * p.storage_bytes
    return sizes
