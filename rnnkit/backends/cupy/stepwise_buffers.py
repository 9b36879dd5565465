"""The workspace of one call of schedule D, in bytes by buffer."""

from __future__ import annotations

from rnnkit.backends.cupy import stepwise_noise, stepwise_norm
from rnnkit.backends.cupy.backward_launcher import backward_buffers
from rnnkit.backends.cupy.passes import forward_buffers
from rnnkit.backends.cupy.problem import Problem
from rnnkit.backends.cupy.recompute_buffers import call_bytes

# The least steps for which the weights are transposed once, see `k_major`.
K_MAJOR_STEPS = 8


def k_major(p: Problem) -> bool:
    """Whether the products through the weights, of backward, read a transposed copy.

    The tensor cores of compute capability 9.0 multiply TF32 operands only from K-major memory: cuBLAS would have to
    transpose the weights in each of its products, or avoid those units.
    """
    return p.dtype.name == "tf32" and p.T >= K_MAJOR_STEPS


def workspace_sizes(p: Problem, backward: bool) -> dict[str, int]:
    """Bytes of each buffer of the workspace."""
    return {"call": call_bytes(p)} | (_backward_sizes(p) if backward else _forward_sizes(p))


def _forward_sizes(p: Problem) -> dict[str, int]:
    sizes = forward_buffers(p) | stepwise_noise.forward_sizes(p) | {"side": p.B * p.GH * p.compute_bytes}
    if p.has_second_product:
        sizes["m"] = p.B * p.H * p.storage_bytes
    if p.projected:
        sizes["projected"] = p.B * p.R * p.storage_bytes
    return sizes


def _backward_sizes(p: Problem) -> dict[str, int]:
    s = p.storage_bytes
    sizes = backward_buffers(p) | stepwise_noise.backward_sizes(p)
    if p.has_second_product:
        sizes["dm"] = p.B * p.H * p.compute_bytes
    if p.ragged:
        sizes["dgates_now"] = p.B * p.GH * s
    if p.ragged and p.projected:
        sizes["dprojected_now"] = p.B * p.R * s
    if p.cell.normalises:
        sizes |= stepwise_norm.backward_sizes(p)
    elif p.cell.unit_weights:
        sizes["unit_products"] = p.chunk_rows * len(p.cell.unit_weights) * p.H * s
    if k_major(p):
        sizes |= {"w_hh": p.GH * p.R * s} | ({"w_hr": p.R * p.H * s} if p.projected else {})
    return sizes
