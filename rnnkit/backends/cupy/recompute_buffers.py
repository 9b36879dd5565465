"""The workspace of `recompute`, in bytes by buffer, and which cells it serves."""

from __future__ import annotations

from rnnkit.backends.cupy import stepwise_norm
from rnnkit.backends.cupy.problem import CHUNK_BYTES, Problem
from rnnkit.backends.cupy.saved import chunk_buffers
from rnnkit.backends.cupy.sources import CALL_BYTES
from rnnkit.core.cells import Cell

# Before the names of the buffers that `recompute.Recomputation` alone uses.
PREFIX = "again_"


def recompute_problem(cell: Cell) -> str | None:
    """Why the gates of a cell cannot be computed again, or None."""
    if cell.options.has_noise:
        return f"cell {cell.key}: zoneout and dropout on h draw masks in every step"
    return None


def call_bytes(p: Problem) -> int:
    """Bytes of a Call of kernels/cuda/call.cuh with what a cell with options has after it."""
    cell = p.cell
    plain = len(cell.constants) + len(cell.unit_weights) * p.H
    extras = stepwise_norm.extras(cell, p.H) if cell.normalises else plain
    return CALL_BYTES + extras * p.compute_bytes


def rows_at_once(p: Problem) -> int:
    """The row-steps whose pre-activations exist at once: those of both sides stay in the L2 cache of large cards, and
    still fill them with work.
    """
    return max(1, min(p.chunk_rows, CHUNK_BYTES // (2 * p.GH * p.compute_bytes)))


def recompute_buffers(p: Problem) -> dict[str, int]:
    """Bytes of the buffers of a backward that computes the gates again; none for another one."""
    if not p.recomputes:
        return {}
    rows = rows_at_once(p)
    gates = rows * p.GH * p.compute_bytes
    sizes = {
        "call": call_bytes(p),
        "gates": gates,
        "side": gates,
        "bias": 2 * p.GH * p.compute_bytes,
        "h": rows * max(p.H, p.R) * p.storage_bytes,
    }
    if p.cell.n_cell_states:
        sizes["c"] = rows * p.cell.n_cell_states * p.H * p.compute_bytes
    chunk = chunk_buffers(p)
    if p.ahead_steps is not None:
        chunk |= {f"{name}_next": size for name, size in chunk.items()}
    return chunk | {PREFIX + name: size for name, size in sizes.items()}
