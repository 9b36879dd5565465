"""The modules that replace cupy, its submodules and cupy_backends in `sys.modules`."""

from __future__ import annotations

import importlib.machinery
import types
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.tools.fakecupy import (
    _blas,
    _counts,
    _device,
    _errors,
    _functions,
    _interop,
    _kernels,
    _launch,
    _memory,
    _pointers,
    _reductions,
    _runtime,
    _state,
    _stream_api,
    _ufuncs,
)
from tests.tools.fakecupy._array import ndarray

VERSION = "14.2.0"
NVRTC_VERSION = (13, 0)
NUMPY_NAMES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool_",
    "complex64",
    "complex128",
    "intp",
    "generic",
    "number",
    "integer",
    "floating",
    "dtype",
    "finfo",
    "iinfo",
    "pi",
    "inf",
    "nan",
    "e",
    "newaxis",
    "promote_types",
    "isscalar",
    "broadcast_shapes",
]


def _result_type(*arrays_and_dtypes: Any) -> np.dtype:
    return np.result_type(*(a.dtype if isinstance(a, ndarray) else a for a in arrays_and_dtypes))


def _can_cast(from_: Any, to: Any, casting: str = "safe") -> bool:
    return np.can_cast(from_.dtype if isinstance(from_, ndarray) else from_, to, casting)  # type: ignore[arg-type]


class PinnedMemoryPool:
    """`cupy.get_default_pinned_memory_pool()`: always empty."""

    def free_all_blocks(self) -> None:
        """Does nothing."""

    def n_free_blocks(self) -> int:
        return 0


class Fake:
    """`cp.fake`: queries and settings of the simulation, for tests. CuPy has no such name.

    counts, counting()  see Counts. launches: the kernels launched, with sizes and arguments. launch_options: arguments
    for the emulator at each launch, for example order="descending" or seed=3. libcublas: the C library.
    """

    def __init__(self, machine: _state.Machine) -> None:
        self.machine = machine
        self.libcublas = _blas.Library()

    @property
    def counts(self) -> _counts.Counts:
        return self.machine.tallies.whole

    def counting(self) -> Any:
        return self.machine.tallies.counting()

    @property
    def launches(self) -> list[_kernels.Launch]:
        return list(self.machine.launches)

    @property
    def launch_options(self) -> dict[str, Any]:
        return self.machine.launch_options

    def limit_memory(self, size: int | None, device: int | None = None) -> None:
        """Limits a device's memory to this many bytes beyond the current use; None for no limit."""
        memory = self.machine.memories[self.machine.device() if device is None else device]
        memory.limit = None if size is None else memory.used + size

    def live_blocks(self, device: int | None = None) -> int:
        """The number of live allocations on a device."""
        return self.machine.memories[self.machine.device() if device is None else device].live()

    def handles(self) -> list[_blas.Handle]:
        """The cuBLAS handles, each with the threads that have used it."""
        return _blas.handles_of(self.machine)

    def peek(self, array: ndarray) -> np.ndarray:
        """A copy of an array's current bytes, without a synchronisation, a counted copy or any execution."""
        return array._host.copy()


def _module(name: str, contents: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(contents)
    return module


def build(machine: _state.Machine) -> dict[str, types.ModuleType]:
    """name -> module, for sys.modules."""
    runtime_names, driver_names = _runtime.names()
    nothing = lambda *args: None  # noqa: E731
    found = {
        "cupy.cuda.runtime": _module("cupy.cuda.runtime", runtime_names),
        "cupy.cuda.driver": _module("cupy.cuda.driver", driver_names),
        "cupy.cuda.cublas": _module("cupy.cuda.cublas", {**_blas.CONSTANTS, **_blas.FUNCTIONS}),
        "cupy.cuda.stream": _module(
            "cupy.cuda.stream",
            {n: getattr(_stream_api, n) for n in ("Event", "ExternalStream", "Stream")}
            | {n: getattr(_stream_api, n) for n in ("get_current_stream", "get_elapsed_time")},
        ),
        "cupy.cuda.graph": _module("cupy.cuda.graph", {"Graph": _stream_api.Graph}),
        "cupy.cuda.device": _module("cupy.cuda.device", {n: getattr(_device, n) for n in DEVICE_NAMES}),
        "cupy.cuda.function": _module("cupy.cuda.function", {"Function": _kernels.Function}),
        "cupy.cuda.memory": _module(
            "cupy.cuda.memory",
            {n: getattr(_memory, n) for n in ("BaseMemory", "Memory", "PooledMemory", "UnownedMemory")}
            | {n: getattr(_pointers, n) for n in ("MemoryPointer", "MemoryPool", "PythonFunctionAllocator", "alloc")}
            | {"OutOfMemoryError": _errors.OutOfMemoryError},
        ),
        "cupy.cuda.compiler": _module("cupy.cuda.compiler", {"CompileException": _errors.CompileException}),
        "cupy.cuda.nvrtc": _module("cupy.cuda.nvrtc", {"getVersion": lambda: NVRTC_VERSION}),
        "cupy.cuda.profiler": _module("cupy.cuda.profiler", {"start": nothing, "stop": nothing}),
        "cupy.cuda.nvtx": _module(
            "cupy.cuda.nvtx",
            dict.fromkeys(("Mark", "MarkC", "RangePush", "RangePushC", "RangePop", "RangeStart", "RangeEnd"), nothing)
            | {"available": True},
        ),
    }
    found["cupy.cuda"] = _module("cupy.cuda", _cuda_names(found))
    found["cupy"] = _module("cupy", _cupy_names(machine, found["cupy.cuda"]))
    aliases = {"api.runtime": "runtime", "api.driver": "driver", "libs.cublas": "cublas"}
    aliases |= {"libs.nvrtc": "nvrtc", "libs.nvtx": "nvtx"}
    for package in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.api", "cupy_backends.cuda.libs"):
        found[package] = _module(package, {})
    for alias, name in aliases.items():
        found[f"cupy_backends.cuda.{alias}"] = found[f"cupy.cuda.{name}"]
    for name, module in list(found.items()):
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(found[parent], child, module)
    for name in ("cupy.cuda.cublas", "cupy.cuda.driver"):  # attributes of cupy.cuda, not submodules
        del found[name]
    return found


DEVICE_NAMES = ("Device", "from_pointer", "get_compute_capability", "get_cublas_handle", "get_device_id")


def _cuda_names(found: dict[str, types.ModuleType]) -> dict[str, Any]:
    return {
        "is_available": lambda: True,
        "get_local_runtime_version": _runtime.runtimeGetVersion,
        **{n: getattr(found["cupy.cuda.device"], n) for n in ("Device", "get_cublas_handle", "get_device_id")},
        **{n: getattr(found["cupy.cuda.stream"], n) for n in ("Event", "ExternalStream", "Stream")},
        "get_current_stream": _stream_api.get_current_stream,
        "get_elapsed_time": _stream_api.get_elapsed_time,
        "Graph": _stream_api.Graph,
        "Function": _kernels.Function,
        **{n: getattr(found["cupy.cuda.memory"], n) for n in ("BaseMemory", "Memory", "MemoryPointer", "alloc")},
        **{n: getattr(_pointers, n) for n in ("MemoryPool", "PythonFunctionAllocator", "using_allocator")},
        "UnownedMemory": _memory.UnownedMemory,
        "profile": _no_profile,
    }


@contextmanager
def _no_profile() -> Any:
    yield


def _cupy_names(machine: _state.Machine, cuda: types.ModuleType) -> dict[str, Any]:
    pool, pinned = _pointers.MemoryPool(), PinnedMemoryPool()
    return {
        "__version__": VERSION,
        "cuda": cuda,
        "ndarray": ndarray,
        "ufunc": _ufuncs.ufunc,
        "RawModule": _kernels.RawModule,
        "RawKernel": _kernels.RawKernel,
        **{name: getattr(np, name) for name in NUMPY_NAMES},
        **_ufuncs.UFUNCS,
        **_functions.PUBLIC,
        **{name: _functions.PUBLIC[of] for name, of in (("amax", "max"), ("amin", "min"), ("concat", "concatenate"))},
        "from_dlpack": _interop.from_dlpack,
        "result_type": _result_type,
        "can_cast": _can_cast,
        "get_default_memory_pool": lambda: pool,
        "get_default_pinned_memory_pool": lambda: pinned,
        "fake": Fake(machine),
    }


__all__ = ["VERSION", "Fake", "_launch", "_reductions", "build"]
