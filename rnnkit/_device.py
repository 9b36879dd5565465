"""Where an array lives: the one place that knows NumPy from CuPy. CuPy is imported only when a CUDA device is named."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np


def array_module(array: Any) -> ModuleType | None:
    """numpy for a NumPy array, cupy for a CuPy array, None for anything else (CuPy is not imported to find out).

    A subclass of NumPy's is something else: np.matrix has another product, a masked array another sum. np.memmap has
    not.
    """
    if type(array) in (np.ndarray, np.memmap):
        return np
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else None


def device_of(array: Any) -> str:
    """'cpu' or 'cuda:<index>'."""
    return "cpu" if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


def cuda_problem() -> str | None:
    """Why CUDA arrays cannot be made in this process, or None when they can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'rnnkit[cuda13]' or 'rnnkit[cuda12]')"
    try:
        import cupy

        found = cupy.cuda.is_available()
    except Exception as problem:  # a broken install fails in many ways: a missing library, another NumPy, a driver
        return f"CuPy is installed and cannot be used ({type(problem).__name__}: {problem})"
    return None if found else "CuPy finds no CUDA device"


def resolve_device(device: Any) -> str:
    """'cpu' or 'cuda:<index>' from None, 'cpu', 'cuda' or 'cuda:<index>'.

    Raises ValueError for any other value, RuntimeError when a CUDA device is named and cannot be used.
    """
    if device is None or (isinstance(device, str) and device == "cpu"):
        return "cpu"
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:\d+)?", device):
        raise ValueError(f"device must be None, 'cpu', 'cuda' or 'cuda:<index>', got {device!r}")
    problem = cuda_problem()
    if problem:
        if importlib.util.find_spec("rnnkit.backends.cupy") is None:  # or CuPy would be installed for nothing
            problem = f"this version of rnnkit has no CUDA kernels yet; {problem}"
        raise RuntimeError(f"device {device!r} cannot be used: {problem}")
    import cupy

    index = int(device[5:]) if ":" in device else cupy.cuda.Device().id
    count = cupy.cuda.runtime.getDeviceCount()
    if index >= count:
        raise RuntimeError(f"device {device!r} cannot be used: this machine has {count} CUDA device(s)")
    return f"cuda:{index}"


def to_device(array: Any, device: str) -> Any:
    """A copy of `array` on `device` ('cpu' or 'cuda:<index>'); the array itself when it is there already."""
    if isinstance(array, np.ndarray) and device == "cpu":
        return array
    if device == "cpu":
        return array.get()
    import cupy

    with cupy.cuda.Device(int(device[5:])):
        return cupy.asarray(array)


def to_numpy(array: Any) -> np.ndarray:
    """`array` as NumPy: from NumPy, CuPy, torch, or anything with `__array__`."""
    if hasattr(array, "detach"):  # a torch parameter refuses __array__ while it requires a gradient
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":  # NumPy has no such dtype; float32 holds every value of it exactly
            array = array.float()
    if array_module(array) not in (None, np):
        return array.get()
    return np.asarray(array)
