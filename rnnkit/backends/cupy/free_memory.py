"""How much memory a device has left, for the choice between saving the gates and computing them again."""

from __future__ import annotations

from functools import cache

# A call that saves at most this part of a device's memory is not worth asking the driver, which takes longer than the
# launches of a short call.
SHARE = 1 / 16


@cache
def total_bytes(device: int) -> int:
    """The memory of a device."""
    import cupy

    with cupy.cuda.Device(device):
        return int(cupy.cuda.runtime.memGetInfo()[1])


def free_bytes(device: int | None, most: int) -> int | None:
    """Bytes that CuPy can still allocate on a device: what the driver has and what CuPy's pool holds unused, within the
    pool's limit. None for up to SHARE of the device's memory: then nothing is asked.

    device: its number, or None for the current one.
    """
    import cupy

    number = cupy.cuda.runtime.getDevice() if device is None else device
    if most <= SHARE * total_bytes(number):
        return None
    with cupy.cuda.Device(number):
        pool = cupy.get_default_memory_pool()
        free = int(cupy.cuda.runtime.memGetInfo()[0]) + pool.free_bytes()
        limit = pool.get_limit()
        return min(free, limit - pool.used_bytes()) if limit else free
