"""16-bit arrays are stored in 16 bits and not computed in them: arithmetic between load and store is in float32.

For float32 and float64 arrays, which compute in themselves, each of these is the plain operation and copies nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkit.core.devices import array_module
from rnnkit.core.dtypes import DTYPES

Array = Any


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype arithmetic on arrays of a DTYPES dtype runs in."""
    return DTYPES[dtype.name].compute


def wide(a: Array) -> Array:
    """`a` in the dtype to compute in; `a` itself where it is in that already."""
    return a.astype(compute_dtype(a.dtype), copy=False)


def narrow(a: Array, dtype: np.dtype) -> Array:
    """`a` rounded to the dtype it is stored in; `a` itself where it is in that already. Beyond float16's 65504: inf."""
    if a.dtype == dtype:
        return a
    with np.errstate(over="ignore"):  # on a CUDA device nothing warns either
        return a.astype(dtype)


def product(a: Array, b: Array) -> Array:
    """a @ b, summed in at least float32; for 16-bit arrays the result is float32 on the CPU, 16-bit on a CUDA device.

    cuBLAS sums 16-bit products in float32 by itself. NumPy does not, and has no BLAS for them.
    """
    if array_module(a) is np:
        a, b = wide(a), wide(b)
    return a @ b
