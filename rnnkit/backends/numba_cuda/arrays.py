"""The arrays that every scan of the Numba CUDA backend takes and gives, and what is saved between its two passes."""

from __future__ import annotations

from typing import NamedTuple

import cupy
import numpy as np

from rnnkit.backends.interface import BackwardCall, LayerCall
from rnnkit.core.cells import Array, State
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
    """The states of a pass, or their gradients, which a kernel updates in place. c is None where the cell has none."""

    h: Array
    c: Array | None

    def as_state(self, storage: np.dtype) -> State:
        """As a caller has them, in the storage dtype."""
        return tuple(s.astype(storage, copy=False) for s in self if s is not None)


def initial_states(call: LayerCall) -> States:
    """Copies of the initial states: h in the storage dtype, c in the compute dtype."""
    h = _copy(call.state0[0], call.dtype.storage)
    return States(h, _copy(call.state0[1], call.dtype.compute) if call.cell.has_c else None)


def final_gradients(call: BackwardCall) -> States:
    """Copies of the gradients of the final states, in the compute dtype."""
    compute = call.dtype.compute
    dh, *rest = (_copy(d, compute) for d in call.dstate_n)
    return States(dh, rest[0] if rest else None)


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
