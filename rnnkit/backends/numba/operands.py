"""Arrays as the compiled kernels take them, by their addresses: copied only where they cannot be as they are."""

from __future__ import annotations

import ctypes

import numpy as np

from rnnkit.core.cells import Array


def as_writable(a: Array) -> Array:
    """a itself, or for a read-only array a writable one over its memory, which no kernel writes to.

    Numba takes read-only arrays for another type, and would compile every kernel again for each mix of the two.
    """
    if a.flags.writeable:
        return a
    memory = (ctypes.c_char * a.nbytes).from_address(a.ctypes.data)
    alias = np.ndarray(a.shape, a.dtype, memory)
    memory.owner = a  # kept alive as long as its alias
    return alias


def ready_array(a: Array) -> Array:
    """a as the kernels take it: C-contiguous, aligned and writable."""
    return a if a.flags.carray else as_writable(np.require(a, None, ("C", "A")))


def even_rows(a: Array) -> tuple[Array, int]:
    """a (T, B, K), its first value at least, and bytes from row to row: a copy, unless rows stand evenly apart."""
    T, B, K = a.shape
    step, row, item = a.strides
    if B == 1:
        row = step  # a dimension of 1 may have any stride
    if a.flags.aligned and item == a.itemsize and row >= K * item and (T == 1 or step == B * row):
        return as_writable(a[:1, :1, :1]), row
    return ready_array(a), K * a.itemsize
