"""Compressed weight matrices, for inference: what `rnnkit.compress` stores, and the weights that it stands for.

    bfloat16    w = q, the bfloat16 nearest to the weight, to even in a tie
    int8        w = scale * q, with one float32 scale per row, that is per gate and unit (per output of a projection):
                scale = max|row| / 127, q = weight / scale rounded to a whole number, to even in a tie

A row of zeros has the scale 1. A scale is at least 2^-126, the smallest number that kernels do not take for zero.
Activations, biases and sums are float32. The symmetric scale per row is that of Wu et al., "Integer quantization for
deep learning inference" (2020), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnkit.core.dtypes import DTYPES
from rnnkit.core.read_only import constant, is_constant

MOST = 127  # the largest |q|; -128 is not used, so that the range is symmetric
SCALE_BYTES = 4
_LEAST_SCALE = np.finfo(np.float32).tiny


@dataclass(frozen=True, eq=False)
class CompressedMatrix:
    """A weight matrix (N, K). Nothing can write to its arrays.

    Attributes:
        weights: "bfloat16" or "int8".
        rows: the memory that kernels read: bfloat16 (N, K), or for int8 bytes (N, K + 4), each row with the bytes of
            its scale behind it, so that any block of rows has its scales.
        values: q (N, K), in the memory of `rows`.
        scales: (N,) float32, in the memory of `rows`; None for bfloat16.
    """

    weights: str
    rows: np.ndarray
    values: np.ndarray
    scales: np.ndarray | None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        N, K = self.values.shape
        return N, K

    def astype(self, dtype: Any, copy: bool = False) -> np.ndarray:
        """The weights that the matrix stands for, as a new array of a dtype."""
        values = self.values.astype(dtype)
        if self.scales is not None:
            values *= self.scales.astype(dtype)[:, None]
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        return matrix_of, (np.array(self.values), None if self.scales is None else np.array(self.scales))


def matrix_of(values: np.ndarray, scales: np.ndarray | None) -> CompressedMatrix:
    """The matrix with copies of these values (N, K), and for int8 of these scales (N,)."""
    if scales is None:
        rows = constant(values)
        return CompressedMatrix("bfloat16", rows, rows, None)
    N, K = values.shape
    joined = np.empty((N, K + SCALE_BYTES), np.uint8)
    joined[:, :K] = values.view(np.uint8)
    joined[:, K:] = np.ascontiguousarray(scales, np.float32).view(np.uint8).reshape(N, SCALE_BYTES)
    rows = constant(joined)
    stride = K + SCALE_BYTES
    of_values = np.ndarray((N, K), np.int8, rows.base, 0, (stride, 1))
    of_scales = np.ndarray((N,), np.float32, rows.base, K, (stride,))
    assert is_constant(of_values)
    return CompressedMatrix("int8", rows, of_values, of_scales)


def compressed(w: np.ndarray, weights: str) -> CompressedMatrix:
    """A float32 matrix (N, K), compressed. Its numbers must pass `problem`."""
    if weights == "bfloat16":
        return matrix_of(w.astype(DTYPES["bfloat16"].storage), None)
    largest = np.abs(w).max(axis=1, initial=0)
    scales = np.where(largest > 0, np.maximum(largest / np.float32(MOST), _LEAST_SCALE), np.float32(1))
    values = np.clip(np.rint(w / scales[:, None]), -MOST, MOST).astype(np.int8)
    return matrix_of(values, scales)


def problem(w: np.ndarray, weights: str) -> str | None:
    """Why a float32 matrix has no compressed form, as the end of "<its name> must ...", or None."""
    if not np.isfinite(w).all():
        return f"hold finite numbers, got {w[~np.isfinite(w)][0]}"
    if weights == "bfloat16":
        with np.errstate(over="ignore"):
            overflowed = np.isinf(w.astype(DTYPES["bfloat16"].storage).astype(np.float32))
        if overflowed.any():
            return f"fit bfloat16, got {w[overflowed][0]}"
    return None
