"""A simulated CuPy for machines without a GPU. The library's launch code runs on it unchanged.

    with fakecupy.installed(devices=2, mode="check") as cp:
        layer = rnnkit.LSTM(8, 16, device="cuda")
        with cp.fake.counting() as counts:
            y, _ = layer(cp.asarray(x))
        assert not counts.synchronisations

Arrays are in host memory that acts as device memory and is registered with the emulator, which runs the kernels.
cuBLAS is NumPy over raw addresses. Streams, captures, graphs, devices, allocations and synchronisations are modelled
and counted. Operations that CuPy 14 rejects raise its errors: mixing in NumPy arrays, a transfer in a capture, an array
of another device. Where a real GPU would silently give wrong results, the simulation is stricter: memory is filled
with NaN bytes when it is allocated and freed, and an access to freed memory or to another device's raises FakeError,
as does a copy from the host in a capture. It does not model speed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.tools.fakecupy import _blas, _cuda_libraries, _device, _modules, _state
from tests.tools.fakecupy._counts import Counts
from tests.tools.fakecupy._errors import FakeError

__all__ = ["Counts", "FakeError", "installed"]

REPLACED = ("cupy", "cupyx", "cupy_backends")
HOLDERS = ("rnnkit.backends.cupy", "rnnkit.backends.numba_cuda")


def _inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _reset_backends() -> None:
    """Makes rnnkit select its backends again, and reload the modules that refer to CuPy's objects."""
    for name in [name for name in sys.modules if _inside(name, HOLDERS)]:
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        if parent in sys.modules and hasattr(sys.modules[parent], child):
            delattr(sys.modules[parent], child)
    backends = sys.modules.get("rnnkit.backends")
    if backends is not None:
        backends.select.cache_clear()


@contextmanager
def installed(
    devices: int = 1,
    mode: str = "fast",
    *,
    arch: str = "90",
    lazy_streams: bool | str | int = False,
    attributes: dict[str, int] | None = None,
    name: str = "fake GPU (no device: emulated on the CPU)",
) -> Iterator[Any]:
    """Replaces `cupy` in sys.modules for the `with` block. Yields the module.

    devices: their number. mode: the emulator's, "fast" or "check". arch: compute capability, such as "75".
    lazy_streams: the work of a stream runs only when something waits for it, which exposes missing synchronisation.
    True or "late": that of other streams as late as its events allow; "early": as early; a number: by chance.
    attributes: device attributes that replace or extend those of an H100. name: of the devices. `tests.tools.cards` has
    the arguments for real cards.
    Raises FakeError at the end if a write went past the end of an allocation.
    """
    replaced = {name: module for name, module in sys.modules.items() if _inside(name, REPLACED)}
    machine = _state.Machine(devices, arch, mode, lazy_streams, {**_device.ATTRIBUTES, **(attributes or {})}, name)
    before = _state.set_machine(machine)
    for name in replaced:
        del sys.modules[name]
    modules = _modules.build(machine)
    sys.modules.update(modules)
    sys.modules["cupyx"] = None  # type: ignore[assignment]  # importing the real one would import the real CuPy
    importlib.invalidate_caches()
    _reset_backends()
    try:
        with _cuda_libraries.found(modules["cupy"].fake.libcublas):
            yield modules["cupy"]
        overrun = machine.problems + [text for memory in machine.memories for text in memory.check_guards()]
        if overrun:
            raise FakeError("; ".join(overrun))
    finally:
        for name in [name for name in sys.modules if _inside(name, REPLACED)]:
            del sys.modules[name]
        sys.modules.update(replaced)
        _state.set_machine(before)
        _blas.release_handles(machine)
        _reset_backends()
