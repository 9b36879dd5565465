"""DTYPES: one row a dtype. What is stored, what the arithmetic runs in, and how close a result must be.

Every tolerance of the project is here and nowhere else. They compare with a float64 oracle, element by
element: ``|got - want| <= rtol * |want| + atol * max(1, max|want|)``, see `rnnkit.testing.assert_close`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """Bounds of one comparison; `atol` is scaled by the largest magnitude of the wanted array (at least 1)."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class DType:
    """One dtype: `storage` of parameters and activations, `compute` of the arithmetic in between, and tolerances."""

    name: str
    storage: np.dtype
    compute: np.dtype
    forward: Tolerance
    backward: Tolerance


def _row(name: str, compute: str, forward: Tolerance, backward: Tolerance) -> DType:
    return DType(name, np.dtype(name), np.dtype(compute), forward, backward)


DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        _row("float64", "float64", Tolerance(1e-10, 1e-12), Tolerance(1e-9, 1e-11)),
        _row("float32", "float32", Tolerance(1e-5, 2e-6), Tolerance(5e-5, 4e-6)),
    )
}


def resolve_dtype(dtype: Any) -> DType:
    """The DTYPES row of a name, NumPy dtype or scalar type. Raises ValueError naming the ones that exist."""
    error = ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if dtype is None:  # which NumPy reads as float64
        raise error
    try:
        wanted = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # the last two from strings such as ","
        raise error from None
    if wanted.name not in DTYPES or not wanted.isnative:
        raise error
    return DTYPES[wanted.name]
