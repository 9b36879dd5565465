"""What a forward call needs that its shapes decide: made once per set of shapes, as streaming calls a step at a
time."""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.numba.operands import ready_array
from rnnkit.backends.numba.plan import Plan, Work, call_us, single
from rnnkit.backends.ragged import Packing, packing
from rnnkit.core.cells import Array, Cell, Weights
from rnnkit.core.read_only import is_constant
from rnnkit.kernels.cpu import scan, step

DTYPE_NAMES = {"f": "float32", "d": "float64"}  # by numpy's dtype.char
# Stands for an array that a cell has not.
NOTHING = {dtype: np.empty((0, 0), dtype) for dtype in DTYPE_NAMES.values()}

# Up to this many bytes, what a forward saves is one array. glibc returns larger blocks to the system when they are
# freed, so allocating them again costs page faults, and more of them the larger the block.
ONE_ARRAY_BYTES = 2 << 20

Offsets = tuple[int, int, int]


class SavedArrays(NamedTuple):
    """What a forward saves, flat: see `SavedAddresses` of kernels/cpu/arguments.py.

    values: (N * n_saved * H,) or longer. offsets: of h_prev, c_prev and operand from `values` on, in bytes: in the same
    array, or in `others`.
    """

    values: Array
    offsets: Offsets
    others: tuple[Array, ...]


class Prepared(NamedTuple):
    """The job of a forward by its address, its work, and its plans by number of threads, added as they are needed.

    widths: values per row-step of what is saved; one_array: size of the one array for it and the offsets there, or
    None.
    """

    work: Work
    packing: Packing
    job: int
    microseconds: float
    plans: dict[int, Plan]
    nothing: Array
    nothing_saved: SavedArrays
    widths: tuple[int, ...]
    one_array: tuple[int, Offsets] | None

    def arrays_to_save(self) -> SavedArrays:
        """New arrays for what the forward saves."""
        dtype = self.nothing.dtype
        if self.one_array is not None:
            size, offsets = self.one_array
            return SavedArrays(np.empty(size, dtype), offsets, ())
        values, *others = [np.empty(self.work.N * width, dtype) for width in self.widths]
        h_prev, c_prev, operand = (a.ctypes.data - values.ctypes.data for a in others)
        return SavedArrays(values, (h_prev, c_prev, operand), tuple(others))


class ReadyWeights(NamedTuple):
    """A layer's weights as the kernels take them.

    arguments: w_ih, w_hh, w_hr, b_ih, b_hh and whether there is a w_hr, for the launches of kernels/cpu/launch.py.
    constant: the matrices, where nothing can write to any of them.
    """

    arguments: tuple[Any, ...]
    constant: tuple[Array, ...]


@cache
def job(cell: Cell, dtype: str, backward: bool, one_step: bool) -> Any:
    """The compiled loop of a cell and dtype, or its single step."""
    if one_step:
        return step.make_step(cell, dtype)
    return scan.make_backward(cell, dtype) if backward else scan.make_forward(cell, dtype)


def saved_widths(work: Work) -> tuple[int, int, int, int]:
    """Values per row-step of what a forward saves: of the cell, h_prev, c_prev, operand."""
    cell, H = work.cell, work.H
    return cell.n_saved * H, work.R, H if cell.has_c else 0, H if work.second_product else 0


def prepare(work: Work, p: Packing) -> Prepared:
    """Without the cache: for ragged batches, whose lengths seldom repeat."""
    dtype, item = work.dtype, work.itemsize
    widths = saved_widths(work)
    h_prev, c_prev, operand, whole = (work.N * width for width in accumulate(widths))
    one_array = (whole, (item * h_prev, item * c_prev, item * operand)) if whole * item <= ONE_ARRAY_BYTES else None
    nothing_saved = SavedArrays(np.empty(0, dtype), (0, 0, 0), ())
    compiled = job(work.cell, dtype, False, single(work))
    nothing = NOTHING[dtype]
    return Prepared(work, p, compiled.address, call_us(work), {}, nothing, nothing_saved, widths, one_array)


def work_of(cell: Cell, char: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], projected: bool, N: int) -> Work:
    """Shapes of x (T, B, I) and weight_hh (G*H, R) as a `Work`; char: numpy's letter for the dtype."""
    T, B, I = x_shape
    GH, R = w_shape
    return Work(cell, DTYPE_NAMES[char], T, B, I, GH // cell.n_gates, R, N, projected)


@lru_cache(512)
def prepared(
    cell: Cell,
    char: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    projected: bool,
    reverse: bool,
    keep: bool,
) -> Prepared:
    """For batches without lengths. reverse and keep are part of the key, as plans depend on them."""
    T, B, _ = x_shape
    return prepare(work_of(cell, char, x_shape, w_shape, projected, T * B), packing(T, B, None))


@cache
def _zeros(size: int, dtype: str) -> Array:
    """Biases for a layer that has none. Never written to."""
    return np.zeros(size, dtype)


def ready_weights(weights: Weights) -> ReadyWeights:
    """The weights' arrays, or copies of those that the kernels cannot read in place."""
    w_hh = ready_array(weights.w_hh)
    no_bias = _zeros(w_hh.shape[0], DTYPE_NAMES[w_hh.dtype.char])
    projected = weights.w_hr is not None
    arguments = (
        ready_array(weights.w_ih),
        w_hh,
        ready_array(weights.w_hr) if projected else w_hh,
        *(no_bias if b is None else ready_array(b) for b in (weights.b_ih, weights.b_hh)),
        projected,
    )
    matrices = tuple(w for w in (weights.w_ih, weights.w_hh, weights.w_hr) if w is not None)
    return ReadyWeights(arguments, matrices if all(map(is_constant, matrices)) else ())
