"""Numba CUDA: the scans of cells with layer normalisation. The equations are those of rnnkit/core/norm_steps.py.

As in scan.py one launch runs a whole sequence, a block per ROWS rows, and thread i of a block has the units i,
i + threads, … of every gate. The block takes the step of one row after the other. A mean over a row is a sum over the
threads, added in shared memory in an order that depends on their number alone. All else that a thread reads it wrote
itself, but for h (through y) and the gradients of the gates (through dgates_h), each with a barrier between.

Arguments are named and typed as in scan.py, and these are added:

    gates_x                             is overwritten
    side (B, G*H) C                     room for h' W_hh^T of a step
    stats (T, B, n_statistics) C        1 / sqrt(var + norm_eps) of x, h, then c; with `keep`
    dv (T, B, n_norm_gradients*H) C     out: the gradients of what is normalised, scaled and shifted
    extras (1 + K*H) C                  norm_eps, then the weights per unit
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from rnnkit.core.cells import Cell
from rnnkit.kernels.numba_cuda.rows import argument_types
from rnnkit.kernels.numba_cuda.scan_norm_backward import make_backward
from rnnkit.kernels.numba_cuda.scan_norm_forward import make_forward


@cache
def kernels(cell: Cell, dtype: str) -> SimpleNamespace:
    """forward and backward of a cell and dtype. Numba compiles each at its first launch."""
    return SimpleNamespace(forward=make_forward(cell, dtype), backward=make_backward(cell, dtype))


def signatures(dtype: str) -> dict[str, tuple[Any, ...]]:
    """The Numba types of each kernel's arguments, the same for every cell."""
    a = argument_types(dtype)
    saved = (a.S3, a.C3, a.S3, a.C3)
    return {
        "forward": (a.C3, a.lengths, a.flag, a.flag, a.S1, a.S1, a.S2, a.S2, a.C2, a.S3, *saved, a.C2, a.C1),
        "backward": (
            *(a.S3, a.flag, a.lengths, a.flag, a.S2, *saved),
            *(a.S3, a.S3, a.C2, a.C2, a.C3, a.S1, a.S1, a.C1),
        ),
    }
