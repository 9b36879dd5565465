"""The Numba CUDA backend: the scans of kernels/numba_cuda/scan.py, one launch per sequence, on CuPy arrays.

The readable counterpart of the `cupy` backend: the pointwise pairs are those of the CPU path, the loops are plain
Python, and CuPy computes the products outside time (`by_scan`). Launches go to the current device, which
`rnnkit.functional` sets to that of the arrays, on CuPy's current stream. Nothing synchronises. Temporaries come from
CuPy's memory pool, so the steady state allocates no device memory.

Numba compiles a kernel at its first launch in a process, in about a second. It raises its own errors by name if it
cannot compile, or if the driver refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import cupy

from rnnkit.backends import by_scan
from rnnkit.backends.cupy.arena import refuse_capture
from rnnkit.backends.interface import BackwardCall, Description, Forward, Gradients, LayerCall, Sizes
from rnnkit.backends.numba_cuda import normalised, plain
from rnnkit.backends.numba_cuda.arrays import Saved
from rnnkit.core.cells import Array, Cell
from rnnkit.core.dtypes import DType
from rnnkit.kernels.numba_cuda.launch_shape import ROWS, launch_shape


def forward(call: LayerCall) -> Forward:
    """See `rnnkit.backends.Backend.forward`. Raises DeviceError while the current stream is being captured."""
    refuse_capture(cupy.cuda.get_current_stream())
    return by_scan.forward(_scans_of(call.cell).forward, call, compute=call.dtype.compute)


def backward(call: BackwardCall) -> Gradients:
    """See `rnnkit.backends.Backend.backward`. Raises like `forward`."""
    refuse_capture(cupy.cuda.get_current_stream())
    return by_scan.backward(_scans_of(call.cell).backward, call)


def _scans_of(cell: Cell) -> ModuleType:
    """The module whose `forward` and `backward` scan this cell, as `rnnkit.backends.by_scan` takes them."""
    return normalised if cell.normalises else plain


def saved_steps(cell: Cell, dtype: DType, saved: by_scan.Saved) -> dict[str, Array]:
    """See `rnnkit.backends.Backend`."""
    scan: Saved = saved.scan
    T, _, width = scan.values.shape
    H = width // cell.n_saved
    live = (cupy.arange(T)[:, None] < scan.lengths)[:, :, None]

    def cleared(steps: Array) -> Array:
        """Past a row's end nothing was saved."""
        return cupy.where(live, steps, steps.dtype.type(0)).astype(dtype.storage, copy=False)

    def apart(steps: Array, names: Iterable[str]) -> dict[str, Array]:
        return {name: steps[:, :, number * H : (number + 1) * H] for number, name in enumerate(names)}

    before = {} if scan.c_prev is None else apart(scan.c_prev, (f"{state}_prev" for state in cell.states[1:]))
    found = cell.gates_of(apart(scan.values, cell.saved) | before) | before | {"h_prev": scan.h_prev}
    return {name: cleared(steps) for name, steps in found.items()}


def describe(cell: Cell, dtype: DType, sizes: Sizes, keep: bool) -> Description:
    """See `rnnkit.backends.Backend.describe`."""
    T, B, I, H, R, N = sizes
    S = dtype.storage.itemsize
    C = dtype.compute.itemsize
    GH = cell.n_gates * H
    projected = R != H
    width = (cell.n_saved + projected + cell.resets_before) * H * S
    cells = cell.n_cell_states * H * C
    kept = T * B * (width + R * S + cells + cell.n_statistics * C) + 8 * B if keep else 0
    gathered = 0 if N == T * B else 8 * N + N * I * S + N * GH * C
    widened = 0 if S == C else (N * I + GH * I) * C
    # The states beside h, unless they are one array that is the result.
    widened += B * cells if S != C or cell.n_cell_states > 1 else 0
    # Transposed weights, and zeros for missing biases.
    weights = (GH * R + projected * R * H + 2 * GH) * S
    second = (projected + cell.resets_before * (1 + cell.n_saved)) * B * H * S
    step = 0 if keep else 8 * B + second
    step += B * GH * C if cell.normalises else 0
    _, threads = launch_shape(B, H)
    words = f"{cell.name} in Numba CUDA, one launch per sequence, one block of {threads} threads per {ROWS} rows"
    kept += 8 * N if keep and N != T * B else 0
    return Description(words, T * B * GH * C + gathered + widened + weights + step, kept)
