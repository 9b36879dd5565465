"""DTYPES: one row a dtype. What is stored, what the arithmetic runs in, and how close a result must be.

Every tolerance of the project is here and nowhere else. They compare with a float64 oracle that starts from the same
numbers, element by element: ``|got - want| <= rtol * |want| + atol * max(1, max|want|)``, see
`rnnkit.testing.assert_close`. They hold for these sizes:

Row-steps    any number N of (t, b) pairs that a weight's or bias's gradient, or a loss, is summed over. Where the
             terms have one sign and about one size, a float32 sum is within relative 1e-5 up to N = 2e7.
Features     I up to `reach` * sqrt(H), for inputs of variance 1 and weights of variance 1/H, which tests draw. What
             counts is the reach of a pre-activation, sqrt(I * sum of (x_k w_k)^2) over its I products: rounding
             moves the sum by about 2^-24 of that, wherever the sum itself lies. Beyond, the tolerances grow in
             proportion: `DType.growth`.
Steps        any number, for layers in which the rounding error of a step fades over the next ones. It does not where a
             recurrent matrix has a gain near 1 or above and no gate or saturation takes it back: of random plain RNNs
             of spectral radius 1, over 35 steps at the largest reach, one in thirty is outside by up to a fifth.

A row is asked for by its name, or by the NumPy dtype of the same name. "tf32" has no NumPy dtype of its own: its arrays
are float32, and matrix products may round their operands to the 10 bits of NVIDIA's TF32, so it has to be named.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """Bounds of one comparison; `atol` is scaled by the largest magnitude of the wanted array (at least 1)."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class DType:
    """One row: what arrays hold (`stored`), what the arithmetic between products runs in (`computed`), tolerances.

    reach: the largest reach of a pre-activation, see the module, at which the tolerances hold as they are.
    Sums of products, the cell state within a call and everything else between load and store are in `computed`.
    """

    name: str
    stored: str
    computed: str
    forward: Tolerance
    backward: Tolerance
    reach: float

    def growth(self, reach: float) -> float:
        """The factor of both tolerances for pre-activations of this reach: 1 up to the row's own."""
        return max(1.0, reach / self.reach)

    @cached_property
    def storage(self) -> np.dtype:
        """dtype of parameters, inputs and results. Raises ImportError for bfloat16 without the package ml_dtypes."""
        if self.stored == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.stored)

    @cached_property
    def compute(self) -> np.dtype:
        """dtype of the arithmetic, and of the cell state within a call."""
        return np.dtype(self.computed)


# The 16-bit rows: results and states are rounded to 11 and 8 bits at every step, and an error of one step is carried
# through the next ones; so a few units in the last place, more after as many sums as backward has. tf32's operands are
# cut to 11 bits, which some cards do by rounding and others by dropping the rest: twice the error of float16.
DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        DType("float64", "float64", "float64", Tolerance(1e-10, 1e-12), Tolerance(1e-9, 1e-11), 1e4),
        DType("float32", "float32", "float32", Tolerance(1e-5, 2e-6), Tolerance(5e-5, 4e-6), 20),
        DType("tf32", "float32", "float32", Tolerance(4e-3, 4e-3), Tolerance(8e-3, 8e-3), 20),
        DType("float16", "float16", "float32", Tolerance(2e-3, 2e-3), Tolerance(4e-3, 4e-3), 1e4),
        DType("bfloat16", "bfloat16", "float32", Tolerance(1.6e-2, 1.6e-2), Tolerance(3.2e-2, 3.2e-2), 1e4),
    )
}


def resolve_dtype(dtype: Any) -> DType:
    """The DTYPES row of a name, NumPy dtype or scalar type. Raises ValueError naming the ones that exist."""
    if isinstance(dtype, DType):
        return dtype
    error = ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype is None:  # which NumPy reads as float64
        raise error
    if isinstance(dtype, str) and dtype in DTYPES:  # two of the names NumPy does not know
        row = DTYPES[dtype]
    else:
        try:
            wanted = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):  # the last two from strings such as ","
            raise error from None
        if wanted.name not in DTYPES or not wanted.isnative:
            raise error
        row = DTYPES[wanted.name]
    if row.stored == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        raise ValueError("dtype bfloat16 needs the package ml_dtypes (pip install ml_dtypes)")
    return row


def resolve_precision(precision: Any, dtype: np.dtype) -> DType:
    """The row for arrays of `dtype`: their own (precision None), or a named one that stores that dtype.

    Raises TypeError for a dtype of no row, ValueError for a precision of another dtype.
    """
    names = tuple(DTYPES)
    if dtype.name not in DTYPES or not dtype.isnative:
        raise TypeError(
            f"x must have dtype {' or '.join(r.name for r in DTYPES.values() if r.stored == r.name)}, got {dtype}"
        )
    if precision is None:
        return DTYPES[dtype.name]
    fitting = tuple(name for name in names if DTYPES[name].stored == dtype.name)
    if not isinstance(precision, str) or precision not in fitting:
        raise ValueError(
            f"precision must be None or one of {', '.join(map(repr, fitting))} for {dtype} arrays, got {precision!r}"
        )
    return DTYPES[precision]
