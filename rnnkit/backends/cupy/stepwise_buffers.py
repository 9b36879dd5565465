"""The memory of one call of schedule D: what its steps save for backward, and its workspace in bytes by buffer."""

from __future__ import annotations

from typing import NamedTuple

from rnnkit.backends.cupy.modules import MOST_PARTS
from rnnkit.backends.cupy.problem import Problem
from rnnkit.core.cells import Array

# A Call of kernels/cuda/stepwise.cuh, with room to spare.
CALL_BYTES = 256


class SavedStates(NamedTuple):
    """What the steps save for backward, rows ordered as `packing` says; all None in a forward that saves nothing."""

    values: Array = None  # (N, n_saved*H) the values named by the row's `saved`
    h_prev: Array = None  # (N, R) the state before each step
    c_prev: Array = None  # (N, H) in the compute dtype, where the cell has c
    operand: Array = None  # (N, H) operand of the second product: m under projection, r h' for a GRU that resets before

    @classmethod
    def empty(cls, p: Problem) -> SavedStates:
        """Uninitialised arrays for the row-steps of one call."""
        import cupy

        storage = p.dtype.storage
        values = cupy.empty((p.N, p.cell.n_saved * p.H), storage)
        h_prev = cupy.empty((p.N, p.R), storage)
        c_prev = cupy.empty((p.N, p.H), p.dtype.compute) if p.cell.has_c else None
        operand = cupy.empty((p.N, p.H), storage) if p.has_second_product else None
        return cls(values, h_prev, c_prev, operand)


def saved_bytes(p: Problem, N: int) -> int:
    """Bytes of `SavedStates.empty` for N row-steps."""
    in_storage = p.cell.n_saved * p.H + p.R + (p.H if p.has_second_product else 0)
    in_compute = p.H if p.cell.has_c else 0
    return N * (in_storage * p.storage_bytes + in_compute * p.compute_bytes)


def workspace_sizes(p: Problem, backward: bool) -> dict[str, int]:
    """Bytes of each buffer of the workspace."""
    return {"call": CALL_BYTES} | (_backward_sizes(p) if backward else _forward_sizes(p))


def _forward_sizes(p: Problem) -> dict[str, int]:
    s = p.storage_bytes
    c = p.compute_bytes
    sizes = {"gates": p.chunk_rows * p.GH * c, "side": p.B * p.GH * c, "bias": 2 * p.GH * c, "h": p.B * p.R * s}
    if p.cell.has_c:
        sizes["c"] = p.B * p.H * c
    if p.has_second_product:
        sizes["m"] = p.B * p.H * s
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
