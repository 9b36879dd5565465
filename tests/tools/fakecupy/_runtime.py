"""`cupy.cuda.runtime` and `cupy.cuda.driver`: the functions, and CUDA's constants."""

from __future__ import annotations

import types
from typing import Any

from tests.tools.fakecupy import _kernels, _state
from tests.tools.fakecupy._errors import CUDADriverError, CUDARuntimeError
from tests.tools.fakecupy._pointers import memcpy_async, memset_async

CONSTANTS = {
    "CUDA_R_32F": 0,
    "CUDA_R_64F": 1,
    "CUDA_R_16F": 2,
    "CUDA_R_8I": 3,
    "CUDA_R_8U": 8,
    "CUDA_R_16BF": 14,
    "memcpyHostToHost": 0,
    "memcpyHostToDevice": 1,
    "memcpyDeviceToHost": 2,
    "memcpyDeviceToDevice": 3,
    "memcpyDefault": 4,
    "streamDefault": 0,
    "streamNonBlocking": 1,
    "streamLegacy": 1,
    "streamPerThread": 2,
    "streamCaptureModeGlobal": 0,
    "streamCaptureModeThreadLocal": 1,
    "streamCaptureModeRelaxed": 2,
    "streamCaptureStatusNone": 0,
    "streamCaptureStatusActive": 1,
    "streamCaptureStatusInvalidated": 2,
    "eventDefault": 0,
    "eventBlockingSync": 1,
    "eventDisableTiming": 2,
    "eventInterprocess": 4,
    "cudaDevAttrClockRate": 13,
    "cudaDevAttrMultiProcessorCount": 16,
    "cudaDevAttrMemoryClockRate": 36,
    "cudaDevAttrGlobalMemoryBusWidth": 37,
    "cudaDevAttrL2CacheSize": 38,
    "cudaDevAttrMaxRegistersPerMultiprocessor": 82,
    "cudaDevAttrMaxSharedMemoryPerBlockOptin": 97,
    "cudaDevAttrMaxSharedMemoryPerMultiprocessor": 81,
    "cudaDevAttrCooperativeLaunch": 95,
    "cudaDevAttrMaxThreadsPerMultiProcessor": 39,
    "is_hip": False,
}

DRIVER_CONSTANTS = {
    "CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK": 0,
    "CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES": 1,
    "CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES": 2,
    "CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES": 3,
    "CU_FUNC_ATTRIBUTE_NUM_REGS": 4,
    "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES": 8,
}


def _streams() -> Any:
    return _state.machine().streams


def getDeviceCount() -> int:
    return len(_state.machine().memories)


def getDevice() -> int:
    return _state.machine().device()


def setDevice(device: int) -> None:
    _state.machine().set_device(device)


def deviceSynchronize() -> None:
    _streams().synchronise_device(getDevice())


def deviceCanAccessPeer(device: int, peerDevice: int) -> int:
    return 0


def deviceEnablePeerAccess(peerDevice: int) -> None:
    raise CUDARuntimeError(217)


# Attributes that CuPy has no name for.
UNNAMED = {"ClusterLaunch": 120}


def deviceGetAttribute(attrib: int, device: int) -> int:
    for name, number in UNNAMED.items():
        if number == attrib:
            return _state.machine().attributes[name]
    for name, number in CONSTANTS.items():
        if name.startswith("cudaDevAttr") and number == attrib:
            return _state.machine().attributes[name.removeprefix("cudaDevAttr")]
    raise CUDARuntimeError(1, f"attribute {attrib} is not modelled")


def getDeviceProperties(device: int) -> dict[str, Any]:
    """Some fields of cudaDeviceProp, under CuPy's names. As in CuPy, the name is bytes."""
    machine = _state.machine()
    attributes = machine.attributes
    return {
        "name": machine.name.encode(),
        "totalGlobalMem": attributes["TotalMemory"],
        "sharedMemPerBlock": attributes["MaxSharedMemoryPerBlock"],
        "sharedMemPerBlockOptin": attributes["MaxSharedMemoryPerBlockOptin"],
        "sharedMemPerMultiprocessor": attributes["MaxSharedMemoryPerMultiprocessor"],
        "regsPerBlock": attributes["MaxRegistersPerBlock"],
        "regsPerMultiprocessor": attributes["MaxRegistersPerMultiprocessor"],
        "warpSize": attributes["WarpSize"],
        "maxThreadsPerBlock": attributes["MaxThreadsPerBlock"],
        "maxThreadsPerMultiProcessor": attributes["MaxThreadsPerMultiProcessor"],
        "multiProcessorCount": attributes["MultiProcessorCount"],
        "l2CacheSize": attributes["L2CacheSize"],
        "cooperativeLaunch": attributes["CooperativeLaunch"],
        "memoryBusWidth": attributes["GlobalMemoryBusWidth"],
        "major": int(machine.arch[:-1]),
        "minor": int(machine.arch[-1]),
    }


def driverGetVersion() -> int:
    return 13010


def runtimeGetVersion() -> int:
    return 13010


def memGetInfo() -> tuple[int, int]:
    from tests.tools.fakecupy._device import Device

    return Device().mem_info


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    memcpy_async(dst, src, size, kind, stream)


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    memset_async(ptr, value, size, stream)


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    memcpy_async(dst, src, size, kind, 0)
    _streams().synchronise(0, "memcpy")


def memset(ptr: int, value: int, size: int) -> None:
    memset_async(ptr, value, size, 0)


def streamSynchronize(stream: int) -> None:
    _streams().synchronise(stream, "stream")


def streamIsCapturing(stream: int) -> bool:
    return _streams().is_capturing(stream)


def streamQuery(stream: int) -> int:
    queue = _streams().queue(stream)
    return 0 if queue.done == queue.issued else 600


def streamWaitEvent(stream: int, event: int, flags: int = 0) -> None:
    _streams().wait_event(stream, event)


def eventRecord(event: int, stream: int) -> None:
    _streams().record_event(event, stream)


def eventSynchronize(event: int) -> None:
    _streams().synchronise_event(event)


def occupancyMaxActiveBlocksPerMultiprocessor(func: int, blockSize: int, dynamicSMemSize: int) -> int:
    """Resident blocks per multiprocessor by threads and shared memory. The registers of a kernel are not known."""
    attributes = _state.machine().attributes
    shared = _kernels.by_pointer(func).shared_size_bytes + dynamicSMemSize + attributes["ReservedSharedMemoryPerBlock"]
    by_threads = attributes["MaxThreadsPerMultiProcessor"] // max(1, -(-blockSize // 32) * 32)
    by_shared = attributes["MaxSharedMemoryPerMultiprocessor"] // max(1, shared)
    return min(by_threads, by_shared, attributes["MaxBlocksPerMultiprocessor"])


def funcGetAttribute(attribute: int, f: int) -> int:
    names = {0: "max_threads_per_block", 1: "shared_size_bytes", 8: "max_dynamic_shared_size_bytes"}
    return getattr(_kernels.by_pointer(f), names[attribute]) if attribute in names else 0


def funcSetAttribute(f: int, attribute: int, value: int) -> None:
    if attribute == 14:  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        _kernels.by_pointer(f).large_clusters = bool(value)
        return
    if attribute != 8:
        raise CUDADriverError(1, f"attribute {attribute} is not modelled")
    _kernels.by_pointer(f).allow_shared(value)


DRIVER_NAMES = ("occupancyMaxActiveBlocksPerMultiprocessor", "funcGetAttribute", "funcSetAttribute")


def names() -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of `cupy.cuda.runtime` and of `cupy.cuda.driver`."""
    own = {
        name: value
        for name, value in globals().items()
        if isinstance(value, types.FunctionType) and value.__module__ == __name__ and not name.startswith("_")
    }
    own.pop("names")
    driver = {name: own.pop(name) for name in DRIVER_NAMES}
    return (
        {**CONSTANTS, **own, "CUDARuntimeError": CUDARuntimeError},
        {**DRIVER_CONSTANTS, **driver, "CUDADriverError": CUDADriverError},
    )
