"""16-bit arrays are stored in 16 bits and computed in float32.

For float32 and float64 arrays each function is the plain operation and makes no extra copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnkit.core.devices import array_module
from rnnkit.core.dtypes import DTYPES

Array = Any


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which arrays of `dtype`, a dtype of DTYPES, are computed."""
    return DTYPES[dtype.name].compute


def wide(a: Array) -> Array:
    """`a` in the dtype of the arithmetic; `a` itself if it has that dtype already."""
    return a.astype(compute_dtype(a.dtype), copy=False)


def narrow(a: Array, dtype: np.dtype) -> Array:
    """`a` rounded to its storage dtype; `a` itself if it has that dtype already. An overflow gives infinity."""
    if a.dtype == dtype:
        return a
    with np.errstate(over="ignore"):  # CUDA devices do not warn of an overflow either
        return a.astype(dtype)


def product(a: Array, b: Array) -> Array:
    """a @ b, summed in at least float32.

    The result of 16-bit arrays is float32 on the CPU and 16-bit on a CUDA device: cuBLAS sums 16-bit products in
    float32. NumPy does not, and has no BLAS for them.
    """
    if array_module(a) is np:
        return wide(a) @ wide(b)
    return a @ b
