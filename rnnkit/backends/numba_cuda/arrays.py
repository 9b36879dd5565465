"""The arrays that every scan of the Numba CUDA backend takes and gives, and what is saved between its two passes."""

from __future__ import annotations

from typing import NamedTuple

import cupy
import numpy as np

from rnnkit.backends.interface import BackwardCall, LayerCall
from rnnkit.core.cells import Array, Cell, State
from rnnkit.core.regularisation import Noise


class Saved(NamedTuple):
    """What the backward scan reads: arrays of every step, named as in kernels/numba_cuda/scan.py, and the direction.

    m is the operand of the second product, which the products after the scan also need: o tanh(c), or r h'. c_n (B, H)
    is the final c, if the cell has peepholes. stats: of a cell that normalises.
    """

    values: Array
    h_prev: Array
    c_prev: Array | None
    m: Array | None
    lengths: Array
    reverse: bool
    c_n: Array | None = None
    noise: Noise | None = None
    stats: Array | None = None


class States(NamedTuple):
    """The states of a pass, or their gradients, which a kernel updates in place.

    c  (B, K*H), the K states beside h; None if there are none
    """

    h: Array
    c: Array | None

    def as_state(self, cell: Cell, storage: np.dtype) -> State:
        """As a caller has them, in the storage dtype."""
        h = self.h.astype(storage, copy=False)
        if self.c is None:
            return (h,)
        if cell.n_cell_states == 1:
            return h, self.c.astype(storage, copy=False)
        return h, *(_copy(c, storage) for c in cupy.split(self.c, cell.n_cell_states, axis=1))


def initial_states(call: LayerCall) -> States:
    """Copies of the initial states: h in the storage dtype, the others in the compute dtype."""
    return States(_copy(call.state0[0], call.dtype.storage), _side_by_side(call.state0[1:], call.dtype.compute))


def final_gradients(call: BackwardCall) -> States:
    """Copies of the gradients of the final states, in the compute dtype."""
    compute = call.dtype.compute
    return States(_copy(call.dstate_n[0], compute), _side_by_side(call.dstate_n[1:], compute))


def _side_by_side(states: State, dtype: np.dtype) -> Array | None:
    """A copy of states (B, H) as one array (B, K*H), or None of none."""
    if len(states) < 2:
        return _copy(states[0], dtype) if states else None
    B, H = states[0].shape
    whole = cupy.empty((B, len(states) * H), dtype)
    for number, state in enumerate(states):
        whole[:, number * H : (number + 1) * H] = state
    return whole


def _copy(array: Array, dtype: np.dtype) -> Array:
    """A C-contiguous copy."""
    return cupy.array(array, dtype, copy=True, order="C")


def all_lengths(lengths: Array | None, T: int, B: int) -> Array:
    """The steps of each row (B,) int64: T of all where `lengths` is None."""
    return cupy.full(B, T, np.int64) if lengths is None else lengths


def biases(call: LayerCall | BackwardCall) -> tuple[Array, Array]:
    """b_ih and b_hh, zeros for None."""
    weights = call.weights
    GH = weights.w_hh.shape[0]
    b_ih, b_hh = (cupy.zeros(GH, call.dtype.storage) if b is None else b for b in (weights.b_ih, weights.b_hh))
    return b_ih, b_hh


def extras(call: LayerCall | BackwardCall) -> Array | None:
    """The constants of a cell with options, then its weights per unit, in the compute dtype; None for a plain cell."""
    if not call.cell.options:
        return None
    dtype = call.dtype.compute
    numbers = cupy.asarray(np.array(call.constants, dtype))
    units = call.weights.w_unit
    found = numbers if units is None else cupy.concatenate([numbers, units.astype(dtype).ravel()])
    return found if found.size else None
