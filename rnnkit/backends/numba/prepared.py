"""What the shapes of a call decide: its job, threads, plans and buffers. Cached, as it takes longer than a small call.

For full batches it is cached by shape. For ragged ones it is cached with the packing of their rows, and so by lengths.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from rnnkit.backends.numba.operands import ready_array
from rnnkit.backends.numba.plan import Plan, Work, call_us, plan_for, single, threads_of
from rnnkit.backends.ragged import Packing, clear_packing_cache, packing
from rnnkit.core.cells import Array, Cell, Weights
from rnnkit.core.compression import CompressedMatrix
from rnnkit.core.dtypes import COMPRESSED, DTYPES
from rnnkit.core.read_only import is_constant
from rnnkit.kernels.cpu import scan, step
from rnnkit.kernels.cpu.arguments import Extras
from rnnkit.kernels.cpu.formats import format_of, formats

DTYPE_NAMES = {"f": "float32", "d": "float64", "e": "float16", "E": "bfloat16"}  # by numpy's dtype.char
LINE = 64  # bytes of a cache line

# Up to this many bytes, what a forward saves is one array. glibc returns larger blocks to the system when they are
# freed, so allocating them again costs page faults, and more of them the larger the block.
ONE_ARRAY_BYTES = 2 << 20

Offsets = tuple[int, int, int]


# What a forward saves, in bytes: see `SavedAddresses` of kernels/cpu/arguments.py. (values, offsets, others): values
# (bytes,) uint8; offsets of h_prev, c_prev and operand from `values` on: in the same array, or in `others`. Not a named
# tuple, because making one takes 4% of a Cell's call.
SavedArrays = tuple[Array, Offsets, tuple[Array, ...]]


class Prepared(NamedTuple):
    """What the shapes of a call decide, for its forward and its backward.

    reverse, keep   as in the LayerCall
    job             the address of the forward's job
    microseconds    the estimated time of the forward on one thread
    shares          how many threads are used, by how many there are, added as they are needed
    plans           of the forward, by number of threads, added as they are needed
    backward_plans  the same of the backward
    y, h, c         shapes of the results (T, B, R), (B, R), and (B, ·) with the states beside h side by side
    nothing         stands for an array that the cell has not
    operand         dtype of operands (kernels/cpu/formats.py)
    converts_x      whether x is converted into operands
    nothing_saved   what a forward saves that saves nothing
    parts           bytes of each part of what is saved
    size, offsets   of one array for all of it, and of its parts in that array, in bytes
    """

    work: Work
    reverse: bool
    keep: bool
    job: int
    microseconds: float
    shares: dict[int, int]
    plans: dict[int, Plan]
    backward_plans: dict[int, Plan]
    y: tuple[int, int, int]
    h: tuple[int, int]
    c: tuple[int, int]
    nothing: Array
    operand: np.dtype
    converts_x: bool
    nothing_saved: SavedArrays
    parts: tuple[int, ...]
    size: int
    offsets: Offsets

    def arrays_to_save(self, reserve: Array | None) -> SavedArrays:
        """Arrays for what the forward saves: new ones, or `reserve` (bytes,) uint8."""
        if reserve is not None:
            return reserve, self.offsets, ()
        if self.size <= ONE_ARRAY_BYTES:
            return np.empty(self.size, np.uint8), self.offsets, ()
        values, *others = [np.empty(size, np.uint8) for size in self.parts]
        h_prev, c_prev, operand = (a.ctypes.data - values.ctypes.data for a in others)
        return values, (h_prev, c_prev, operand), tuple(others)

    def threads_of(self, threads: int) -> int:
        """How many of `threads` threads are used."""
        used = self.shares.get(threads)
        if used is None:
            used = threads_of(self.work, threads)
            self.shares[threads] = used
        return used

    def new_plan(self, p: Packing, threads: int, backward: bool) -> Plan:
        """Adds the plan for `threads` threads."""
        keep = self.keep and not backward
        plan = plan_for(self.work, p, threads, backward, self.reverse, keep)
        (self.backward_plans if backward else self.plans)[threads] = plan
        return plan


class ReadyWeights(NamedTuple):
    """A layer's weights as the kernels take them.

    arguments: w_ih, w_hh, w_hr, b_ih, b_hh, whether there is a w_hr, and the address of `extras` or 0, for the launches
    of kernels/cpu/launch.py. extras: an `Extras` of kernels/cpu/arguments.py and the arrays that it refers to, or ().
    constant: the matrices, where nothing can write to any of them. kind: their part of a `Key`.
    """

    arguments: tuple[Any, ...]
    constant: tuple[Array, ...]
    kind: tuple[str, tuple[int, ...], bool]
    extras: tuple[Array, ...] = ()


@cache
def job(cell: Cell, dtype: str, backward: bool, one_step: bool) -> Any:
    """The compiled loop of a cell and dtype, or its single step."""
    if one_step:
        return step.make_step(cell, dtype)
    return scan.make_backward(cell, dtype) if backward else scan.make_forward(cell, dtype)


def saved_parts(cell: Cell, dtype: str, H: int, R: int, N: int, projected: bool) -> tuple[int, int, int, int]:
    """Bytes of what a forward saves: of the cell, h_prev, c_prev, operand. N may be a symbol."""
    form = formats(format_of(cell, dtype))
    second = N * H * form.operand.itemsize if projected or cell.resets_before else 0
    return (
        whole_lines(N * len(cell.saved) * H * form.stored.itemsize),
        whole_lines(N * R * form.operand.itemsize),
        whole_lines(N * H * cell.n_cell_states * form.computed.itemsize),
        whole_lines(second + N * cell.n_statistics * form.computed.itemsize),
    )


def whole_lines(size: int) -> int:
    """Bytes, in whole cache lines."""
    return (size + LINE - 1) // LINE * LINE


def operand_dtype(cell: Cell, dtype: str) -> np.dtype:
    """The NumPy dtype of operands."""
    return DTYPES[formats(format_of(cell, dtype)).operand.dtype].storage


def _prepare(work: Work, reverse: bool, keep: bool) -> Prepared:
    dtype = formats(work.dtype).stored.dtype
    parts = saved_parts(work.cell, dtype, work.H, work.R, work.N, work.projected)
    operands = operand_dtype(work.cell, dtype)
    h_prev, c_prev, operand, size = accumulate(parts)
    return Prepared(
        work=work,
        reverse=reverse,
        keep=keep,
        job=job(work.cell, work.dtype, False, single(work)).address,
        microseconds=call_us(work),
        shares={},
        plans={},
        backward_plans={},
        y=(work.T, work.B, work.R),
        h=(work.B, work.R),
        c=(work.B, work.H * work.cell.n_cell_states),
        nothing=np.empty((0, 0), DTYPES[dtype].storage),
        operand=operands,
        converts_x=operands.name != dtype,
        nothing_saved=(np.empty(0, np.uint8), (0, 0, 0), ()),
        parts=parts,
        size=size,
        offsets=(h_prev, c_prev, operand),
    )


# The cell; of the weights the dtype's format, weight_hh's shape (G*H, R) and whether there is a projection; x's shape
# (T, B, I), reverse and keep.
Key = tuple[Cell, tuple[str, tuple[int, ...], bool], tuple[int, ...], bool, bool]


def _of_packing(p: Packing, key: Key) -> Prepared:
    cell, (dtype, (GH, R), projected), (_, _, I), reverse, keep = key
    work = Work(cell, format_of(cell, dtype), p.T, p.B, I, GH // cell.n_gates, R, p.steps, projected)
    return _prepare(work, reverse, keep)


@lru_cache(512)
def prepared(key: Key) -> tuple[Packing, Prepared]:
    """For batches without lengths."""
    T, B, _ = key[2]
    p = packing(T, B, None)
    return p, _of_packing(p, key)


def prepared_ragged(key: Key, lengths: Array) -> tuple[Packing, Prepared]:
    """For batches with lengths. Calls with the same lengths share a packing while it is cached."""
    T, B, _ = key[2]
    p = packing(T, B, lengths)
    ready = p.prepared.get(key)
    if ready is None:
        ready = _of_packing(p, key)
        p.prepared[key] = ready
    return p, ready


def forget() -> None:
    """Clears the caches, for tests that change how work is divided."""
    prepared.cache_clear()
    clear_packing_cache()


def make_extras(weights: Weights, constants: tuple[float, ...], dw_unit: Array | None = None) -> tuple[Array, ...]:
    """An `Extras`, whose address the launches take, and the arrays that it refers to."""
    w_unit = ready_array(weights.w_hh[:0] if weights.w_unit is None else weights.w_unit)
    compute = DTYPES[DTYPE_NAMES[w_unit.dtype.char]].compute
    numbers = np.array(constants, compute)
    written = w_unit if dw_unit is None else dw_unit
    words = Extras(w_unit.ctypes.data, numbers.ctypes.data, written.ctypes.data)
    return np.array(words, np.int64), w_unit, numbers, written


def ready_weights(weights: Weights, cell: Cell, constants: tuple[float, ...]) -> ReadyWeights:
    """The weights' arrays, or copies of those that the kernels cannot read in place."""
    shape = weights.w_hh.shape
    if isinstance(weights.w_hh, CompressedMatrix):
        row = COMPRESSED[weights.w_hh.weights]
        weights = Weights(*(w.rows if isinstance(w, CompressedMatrix) else w for w in weights))
        name, biases = row.format, row.storage
    else:
        name, biases = DTYPE_NAMES[weights.w_hh.dtype.char], weights.w_hh.dtype
    w_hh = ready_array(weights.w_hh)
    no_bias = np.zeros(shape[0], biases)
    projected = weights.w_hr is not None
    extras = make_extras(weights, constants) if cell.options.changes_formulas else ()
    arguments = (
        ready_array(weights.w_ih),
        w_hh,
        ready_array(weights.w_hr) if projected else w_hh,
        *(no_bias if b is None else ready_array(b) for b in (weights.b_ih, weights.b_hh)),
        projected,
        extras[0].ctypes.data if extras else 0,
    )
    matrices = tuple(w for w in (weights.w_ih, weights.w_hh, weights.w_hr) if w is not None)
    constant = matrices if all(map(is_constant, matrices)) else ()
    return ReadyWeights(arguments, constant, (name, shape, projected), extras)
