"""Launches of the Numba CUDA kernels: arrays of CuPy as Numba's, CuPy's current stream."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import cupy
from numba import cuda

from rnnkit.backends.interface import BackwardCall, LayerCall
from rnnkit.kernels.numba_cuda.launch_shape import launch_shape


def launch(
    scans: ModuleType,
    name: str,
    call: LayerCall | BackwardCall,
    arguments: tuple[Any, ...],
    sizes: tuple[int, int, int],
) -> None:
    """Launches the kernel of this name of a module with `kernels` and `signatures`, on CuPy's current stream.

    sizes: T, B and H. Without rows or steps there is nothing to do.
    """
    T, B, H = sizes
    if T == 0 or B == 0:
        return
    stream = cuda.external_stream(cupy.cuda.get_current_stream().ptr)
    kinds = scans.signatures(call.dtype.name)[name]
    given = [_argument(a, kind) for a, kind in zip(arguments, kinds, strict=True)]
    kernel = getattr(scans.kernels(call.cell, call.dtype.name), name)
    kernel[(*launch_shape(B, H), stream)](*given)


def _argument(value: Any, kind: Any) -> Any:
    """What Numba is given: a flag unchanged, an array C-contiguous, and a one-element array for None.

    sync=False: these arrays belong to this stream, and Numba would otherwise synchronise with it once per array.
    """
    if isinstance(value, bool):
        return value
    array = cupy.empty((1,) * kind.ndim, str(kind.dtype)) if value is None else cupy.ascontiguousarray(value)
    return cuda.as_cuda_array(array, sync=False)
