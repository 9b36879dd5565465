"""Every step's states and gates, from what a forward saved for backward, for `rnnkit.trajectory`."""

from __future__ import annotations

from collections.abc import Iterable
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

    def apart(packed: Array, names: Iterable[str]) -> dict[str, Array]:
        return {name: packed[:, number * p.H : (number + 1) * p.H] for number, name in enumerate(names)}

    before = {} if states.c_prev is None else apart(states.c_prev, (f"{state}_prev" for state in cell.states[1:]))
    found = cell.gates_of(apart(states.values, cell.saved) | before) | before | {"h_prev": states.h_prev}
    return {name: padded_out(steps) for name, steps in found.items()}
