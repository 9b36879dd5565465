"""`cupy.cuda.Device`, its attributes, and the cuBLAS handle of a thread on a device."""

from __future__ import annotations

from typing import Any

from tests.tools.fakecupy import _state
from tests.tools.fakecupy._errors import CUDARuntimeError
from tests.tools.fakecupy._memory import device_of_pointer

# TotalMemory is not an attribute of CUDA, and CuPy does not list ClusterLaunch.
UNLISTED = ("TotalMemory", "ClusterLaunch")

# Of an H100 SXM. `installed(attributes=...)` overrides them.
ATTRIBUTES = {
    "MultiProcessorCount": 132,
    "MaxThreadsPerBlock": 1024,
    "MaxBlockDimX": 1024,
    "MaxBlockDimY": 1024,
    "MaxBlockDimZ": 64,
    "MaxGridDimX": 2**31 - 1,
    "MaxGridDimY": 65535,
    "MaxGridDimZ": 65535,
    "WarpSize": 32,
    "MaxThreadsPerMultiProcessor": 2048,
    "MaxBlocksPerMultiprocessor": 32,
    "MaxRegistersPerBlock": 65536,
    "MaxRegistersPerMultiprocessor": 65536,
    "MaxSharedMemoryPerBlock": 49152,
    "MaxSharedMemoryPerBlockOptin": 232448,
    "MaxSharedMemoryPerMultiprocessor": 233472,
    "ReservedSharedMemoryPerBlock": 1024,
    "TotalConstantMemory": 65536,
    "L2CacheSize": 50 * 2**20,
    "ClockRate": 1980000,
    "MemoryClockRate": 2619000,
    "GlobalMemoryBusWidth": 5120,
    "CooperativeLaunch": 1,
    "ClusterLaunch": 1,
    "ConcurrentKernels": 1,
    "MemoryPoolsSupported": 1,
    "UnifiedAddressing": 1,
    "Integrated": 0,
    "TotalMemory": 80 * 2**30,
}


class Device:
    """`cupy.cuda.Device`: a context manager that sets the thread's current device."""

    def __init__(self, device: Any = None) -> None:
        self.id = _state.machine().device() if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None  # type: ignore[assignment]

    def __enter__(self) -> Device:
        machine = _state.machine()
        machine.thread_dict("device stack").setdefault("all", []).append(machine.device())
        machine.set_device(self.id)
        return self

    def __exit__(self, *_: Any) -> None:
        machine = _state.machine()
        machine.set_device(machine.thread_dict("device stack")["all"].pop())

    def use(self) -> Device:
        _state.machine().set_device(self.id)
        return self

    def synchronize(self) -> None:
        self._check()
        _state.machine().streams.synchronise_device(self.id)

    def _check(self) -> None:
        if not 0 <= self.id < len(_state.machine().memories):
            raise CUDARuntimeError(101)

    @property
    def compute_capability(self) -> str:
        self._check()
        return _state.machine().arch

    @property
    def attributes(self) -> dict[str, int]:
        self._check()
        machine = _state.machine()
        return {name: value for name, value in machine.attributes.items() if name not in UNLISTED}

    @property
    def mem_info(self) -> tuple[int, int]:
        """(free, total) in bytes."""
        self._check()
        memory = _state.machine().memories[self.id]
        total = _state.machine().attributes["TotalMemory"] if memory.limit is None else memory.limit
        return total - memory.used - memory.pooled(), total

    @property
    def cublas_handle(self) -> int:
        """The calling thread's handle of this device, made at the first call."""
        self._check()
        handles = _state.machine().thread_dict("cublas handles")
        if self.id not in handles:
            from tests.tools.fakecupy import _blas

            handles[self.id] = _blas.create(self.id)
        return handles[self.id]

    @property
    def pci_bus_id(self) -> str:
        self._check()
        return f"0000:{self.id + 1:02X}:00.0"


def get_cublas_handle() -> int:
    return Device().cublas_handle


def get_device_id() -> int:
    return _state.machine().device()


def get_compute_capability() -> str:
    return Device().compute_capability


def from_pointer(ptr: int) -> Device:
    return Device(device_of_pointer(ptr))
