"""The cuDNN algorithm that PyTorch uses for a call, and the flags that decide its arithmetic.

PyTorch does not report the algorithm. `path` follows `get_algo` of its aten/src/ATen/native/cudnn/RNN.cpp, for compute
capability 8.0 and later.
"""

from __future__ import annotations

from typing import Any

from bench.grid import Point

STANDARD = "standard"
SMALL_H = "small-H"
PERSISTENT = "persistent"
NATIVE = "no cuDNN"

# Before this version PyTorch runs bfloat16 through its own kernels instead of cuDNN.
BFLOAT16_VERSION = 91300

PERSISTENT_MULTIPROCESSORS = 98


def path(point: Point, backward: bool, multiprocessors: int, arch: int, version: int) -> str:
    """The algorithm of the forward or of the backward of a point."""
    if point.dtype == "bfloat16" and version < BFLOAT16_VERSION:
        return NATIVE
    if point.P or point.ragged:
        return STANDARD
    rnn = point.cell.startswith("rnn")
    if point.dtype != "float64":
        widest = (256 if rnn else 128) if backward else (384 if rnn else 192)
        if widest >= point.H:
            return SMALL_H
    if point.dtype == "float16" and _persistent(point, multiprocessors, arch):
        return PERSISTENT
    return STANDARD


def _persistent(point: Point, multiprocessors: int, arch: int) -> bool:
    shape = point.layers == 1 and not point.bidirectional and point.H <= 1024
    if not shape or point.H % 128 or point.I % 128 or point.B % 8 or point.B > 128:
        return False
    if arch < 80 or arch % 10 == 6 or multiprocessors < PERSISTENT_MULTIPROCESSORS or point.cell == "gru":
        return False
    return point.cell == "lstm" or point.B < 96 or point.H < 896


def set_arithmetic(torch: Any, dtype: str) -> None:
    """Products of float32 in full for "float32", rounded to TF32 for "tf32"."""
    allowed = dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def torch_dtype(torch: Any, dtype: str) -> Any:
    return getattr(torch, "float32" if dtype == "tf32" else dtype)
