"""Every step's states and gates, from what a forward saved for backward, for `rnnkit.trajectory`."""

from __future__ import annotations

from typing import Any

from rnnkit.core.cells import Array, Cell
from rnnkit.core.dtypes import DType


def saved_steps(cell: Cell, dtype: DType, saved: Any) -> dict[str, Array]:
    """See `rnnkit.backends.Backend`. saved: of `rnnkit.backends.cupy.layer`."""
    import cupy

    p = saved.problem
    states = saved.own.states
    places = cupy.asarray(p.packing.places()) if p.ragged else None

    def padded_out(packed: Array) -> Array:
        width = packed.shape[1]
        packed = packed.astype(dtype.storage, copy=False)
        if places is None:
            return packed.reshape(p.T, p.B, width)
        whole = cupy.zeros((p.T * p.B, width), dtype.storage)
        whole[places] = packed
        return whole.reshape(p.T, p.B, width)

    columns = {gate: cell.saved.index(gate) * p.H for gate in cell.gates}
    found = {gate: padded_out(states.values[:, first : first + p.H]) for gate, first in columns.items()}
    found["h_prev"] = padded_out(states.h_prev)
    for number, state in enumerate(cell.states[1:]):
        found[f"{state}_prev"] = padded_out(states.c_prev[:, number * p.H : (number + 1) * p.H])
    return found
