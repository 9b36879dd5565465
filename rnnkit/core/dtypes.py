"""DTYPES: one row per dtype, with the storage dtype, the dtype of the arithmetic, and the tolerances of results.

All tolerances of the project are here. They compare with a float64 oracle that starts from the same numbers, element by
element: ``|got - want| <= rtol * |want| + atol * max(1, max|want|)``, see `rnnkit.testing.assert_close`. They hold for
these sizes:

Row-steps    any number N of (t, b) pairs that the gradient of a weight or bias, or a loss, is summed over. If the terms
             have one sign and similar magnitudes, a float32 sum has a relative error below 1e-5 up to N = 2e7.
Features     I up to `reach` * sqrt(H), for inputs of variance 1 and weights of variance 1/H, which tests draw. The
             reach of a pre-activation is sqrt(I * sum of (x_k w_k)^2) over its I products: rounding changes the sum by
             about 2^-24 of the reach, whatever the sum is. For a larger reach the tolerances grow in proportion:
             `DType.growth`.
Steps        any number, for layers in which a rounding error decays over the following steps. It does not decay if a
             recurrent matrix has a gain near 1 or above and neither gates nor saturation reduce it: of random plain
             RNNs of spectral radius 1, over 35 steps at the largest reach, one in thirty exceeds the bound, by up to a
             fifth.

A row is selected by its name, or by the NumPy dtype of the same name. "tf32" has no NumPy dtype: its arrays are
float32, and matrix products may round their operands to the 10 bits of NVIDIA's TF32, so it is selected by name only.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """Bounds of a comparison. `atol` is multiplied by the largest magnitude of the oracle's array, but at least by
    1."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class DType:
    """One row: the dtype of stored arrays, the dtype of the arithmetic, and the tolerances.

    Sums of products and the cell state within a call have the dtype `computed`. h, what is saved for backward and the
    gradients of the gates may be rounded to the dtype `stored` at each step.

    Attributes:
        name: name of the row.
        stored: name of the dtype of arrays.
        computed: name of the dtype of the arithmetic.
        forward: tolerance of outputs.
        backward: tolerance of gradients.
        reach: the largest reach of a pre-activation (see the module) for which the tolerances hold without a factor.
        weights: name of the dtype that weight matrices are compressed to, "" if they have the dtype `stored`.
    """

    name: str
    stored: str
    computed: str
    forward: Tolerance
    backward: Tolerance
    reach: float
    weights: str = ""

    def growth(self, reach: float) -> float:
        """The factor of both tolerances for pre-activations of this reach: 1 up to the row's reach."""
        return max(1.0, reach / self.reach)

    @cached_property
    def storage(self) -> np.dtype:
        """dtype of parameters, inputs and results. Raises ImportError for bfloat16 if ml_dtypes is not installed."""
        if self.stored == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.stored)

    @property
    def format(self) -> str:
        """The dtype of arrays, and that of compressed weights: for the compiled CPU kernels."""
        return f"{self.stored}_{self.weights}" if self.weights else self.stored

    @cached_property
    def compute(self) -> np.dtype:
        """dtype of the arithmetic, and of the cell state within a call."""
        return np.dtype(self.computed)


# The 16-bit rows: results and states are rounded to 11 or 8 bits at every step, and errors propagate through the
# following steps. So forward has a few units in the last place, and backward, with more sums, has more. The operands of
# tf32 are reduced to 11 bits, by rounding on some GPUs and by truncation on others: twice the error of float16.
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

# The rows of modules with compressed weights (rnnkit/core/compression.py), by the weights' dtype. No array and no
# constructor argument names them. The oracle has the weights that the compressed ones stand for.
COMPRESSED: dict[str, DType] = {
    weights: replace(DTYPES["float32"], name=f"float32_{weights}", weights=weights) for weights in ("bfloat16", "int8")
}


def row_of(name: str) -> DType:
    """The row of DTYPES or of COMPRESSED with that name."""
    return DTYPES.get(name) or next(row for row in COMPRESSED.values() if row.name == name)


def resolve_dtype(dtype: Any) -> DType:
    """The DTYPES row of a name, NumPy dtype or scalar type. Raises ValueError that lists the names of the rows."""
    if isinstance(dtype, DType):
        return dtype
    error = ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype is None:  # np.dtype(None) is float64
        raise error
    if isinstance(dtype, str) and dtype in DTYPES:  # NumPy does not know all of the names
        row = DTYPES[dtype]
    else:
        try:
            numpy_dtype = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):  # strings such as "," raise the last two
            raise error from None
        if numpy_dtype.name not in DTYPES or not numpy_dtype.isnative:
            raise error
        row = DTYPES[numpy_dtype.name]
    if row.stored == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        raise ValueError("dtype bfloat16 needs the package ml_dtypes (pip install ml_dtypes)")
    return row


def resolve_precision(precision: Any, dtype: np.dtype) -> DType:
    """The row for arrays of `dtype`: their own row if precision is None, or the named row, which must store that dtype.

    Raises TypeError for a dtype without a row, ValueError for a precision that stores another dtype.
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
