"""Devices of arrays. CuPy is imported only if a CUDA device is named.

CuPy allocates and launches on the thread's current device, which may differ from the device of its arguments. So code
that computes runs inside `current(device)`, or in a method decorated with `on_own_device`. Streams are the caller's:
CuPy's current stream is used.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from rnnkit.errors import DeviceMemoryError

Method = TypeVar("Method", bound=Callable[..., Any])

_NO_CONTEXT = nullcontext()
_CUDA_MEMORY = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


def array_module(array: Any) -> ModuleType | None:
    """numpy for a NumPy array, cupy for a CuPy array, None for anything else. It does not import CuPy.

    Subclasses of NumPy's array give None, because np.matrix redefines products and masked arrays redefine sums.
    np.memmap redefines nothing and gives numpy.
    """
    kind = type(array)
    if kind is np.ndarray or kind is np.memmap:
        return np
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) else None


def device_of(array: Any) -> str:
    """Device of a NumPy or CuPy array: 'cpu' or 'cuda:<index>'."""
    return "cpu" if array_module(array) in (np, None) else f"cuda:{array.device.id}"


def current(device: str) -> AbstractContextManager[Any]:
    """A context in which `device` is the thread's current CUDA device; for 'cpu' it does nothing.

    Inside, CuPy's out-of-memory error becomes DeviceMemoryError.
    """
    return _NO_CONTEXT if device == "cpu" else _current_cuda(device)


@contextmanager
def _current_cuda(device: str) -> Iterator[None]:
    import cupy

    with cupy.cuda.Device(int(device[5:])):
        try:
            yield
        except cupy.cuda.memory.OutOfMemoryError as problem:
            raise DeviceMemoryError(f"the memory of {device} is full: {problem}") from problem


def on_own_device(method: Method) -> Method:
    """Decorates a method of a Module: it runs with the module's CUDA device as the current one."""

    @functools.wraps(method)
    def inside(module: Any, *args: Any, **kwargs: Any) -> Any:
        if module._device == "cpu":
            return method(module, *args, **kwargs)
        with current(module._device):
            return method(module, *args, **kwargs)

    return inside  # type: ignore[return-value]


def is_foreign_cuda(value: Any) -> bool:
    """Whether `value` is a CUDA array of another library than CuPy, such as torch or Numba."""
    if array_module(value) is not None or isinstance(value, type):
        return False
    if hasattr(value, "__dlpack_device__"):
        return value.__dlpack_device__()[0] in _CUDA_MEMORY
    return hasattr(value, "__cuda_array_interface__")


def adopted(value: Any) -> Any:
    """Returns a CuPy array over the memory of a foreign CUDA array; any other value is returned unchanged.

    The array is ordered with CuPy's current stream. DLPack is preferred, because it supports bfloat16 and orders the
    streams without the host. If `__cuda_array_interface__` names a stream, CuPy synchronises with it. Raises what CuPy
    and the array's library raise: BufferError for a torch tensor that requires a gradient, TypeError for a dtype that
    CuPy lacks, ImportError without CuPy.
    """
    if not is_foreign_cuda(value):
        return value
    import cupy

    if hasattr(value, "__dlpack__"):
        return cupy.from_dlpack(value)
    address = value.__cuda_array_interface__["data"][0]
    if not address:  # an empty array, on no device
        return cupy.asarray(value)
    # If another device were current, asarray would copy the array there.
    with cupy.cuda.Device(cupy.cuda.UnownedMemory(address, 1, value).device_id):
        return cupy.asarray(value)


def cuda_problem() -> str | None:
    """Why CUDA arrays cannot be created in this process, or None if they can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'rnnkit[cuda13]' or 'rnnkit[cuda12]')"
    try:
        import cupy

        available = cupy.cuda.is_available()
    except Exception as problem:  # broken installations raise many types: a missing library, an old NumPy, a driver
        return f"CuPy is installed and cannot be used ({type(problem).__name__}: {problem})"
    return None if available else "CuPy finds no CUDA device"


def resolve_device(device: Any) -> str:
    """'cpu' or 'cuda:<index>', from None, 'cpu', 'cuda' (the current device) or 'cuda:<index>'.

    Raises ValueError for any other value, RuntimeError if a CUDA device is named and cannot be used.
    """
    if device is None or (isinstance(device, str) and device == "cpu"):
        return "cpu"
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:[0-9]+)?", device):
        raise ValueError(f"device must be None, 'cpu', 'cuda' or 'cuda:<index>', got {device!r}")
    problem = cuda_problem()
    if problem:
        raise RuntimeError(f"device {device!r} cannot be used: {problem}")
    import cupy

    index = int(device[5:]) if ":" in device else cupy.cuda.Device().id
    count = cupy.cuda.runtime.getDeviceCount()
    if index >= count:
        raise RuntimeError(f"device {device!r} cannot be used: this machine has {count} CUDA device(s)")
    return f"cuda:{index}"


def to_device(array: Any, device: str) -> Any:
    """A copy of `array` on `device` ('cpu' or 'cuda:<index>'), or the array itself if it is there already."""
    if device_of(array) == device:
        return array
    if device == "cpu":
        return array.get()
    import cupy

    with current(device):
        return cupy.asarray(array) if isinstance(array, np.ndarray) else array.copy()


def to_numpy(array: Any) -> np.ndarray:
    """`array` as a NumPy array: from NumPy, CuPy, torch, Numba's device arrays, or any object with `__array__`.

    A torch tensor in bfloat16 keeps its dtype if ml_dtypes is installed; else it becomes float32, which is exact.
    """
    if hasattr(array, "detach"):  # a torch tensor that requires a gradient refuses __array__
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            if importlib.util.find_spec("ml_dtypes") is None:
                return np.asarray(array.float())
            import ml_dtypes

            return array.contiguous().view(sys.modules["torch"].int16).numpy().view(ml_dtypes.bfloat16)
    array = adopted(array)
    return np.asarray(array) if array_module(array) in (None, np) else array.get()
