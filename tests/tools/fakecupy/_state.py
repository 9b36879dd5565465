"""The simulated machine: one at a time, created by `fakecupy.installed`."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from tests.tools.fakecupy._counts import Tallies
from tests.tools.fakecupy._errors import CUDARuntimeError

if TYPE_CHECKING:
    from tests.tools.fakecupy._memory import DeviceMemory
    from tests.tools.fakecupy._streams import Streams


class Machine:
    """Devices with their memories and streams, counts, and each thread's current device and stream.

    devices: their number. arch: compute capability as in CuPy, "90". mode: the emulator's, "fast" or "check".
    """

    def __init__(
        self,
        devices: int,
        arch: str,
        mode: str,
        lazy_streams: bool | str | int,
        attributes: dict[str, int],
        name: str,
    ) -> None:
        from tests.tools.fakecupy._memory import DeviceMemory
        from tests.tools.fakecupy._streams import Streams

        self.arch, self.mode, self.lazy = arch, mode, lazy_streams is not False
        self.attributes = attributes
        self.name = name
        self.tallies = Tallies()
        self.problems: list[str] = []
        self.lock = threading.RLock()
        self.modules: dict[Any, Any] = {}  # compiled, by source, options and device
        self.functions: dict[Any, Any] = {}  # attributes set on kernels, by source, options, name and device
        self.launches: deque[Any] = deque(maxlen=100_000)
        self.launch_options: dict[str, Any] = {}
        self.local = threading.local()
        self.memories: list[DeviceMemory] = [DeviceMemory(self, index) for index in range(devices)]
        self.streams: Streams = Streams(self, "late" if isinstance(lazy_streams, bool) else lazy_streams)

    def device(self) -> int:
        """The calling thread's current device."""
        return getattr(self.local, "device", 0)

    def set_device(self, index: int) -> None:
        if not 0 <= index < len(self.memories):
            raise CUDARuntimeError(101)
        self.local.device = index

    def memory(self) -> DeviceMemory:
        """The current device's memory."""
        return self.memories[self.device()]

    def thread_dict(self, name: str) -> dict[Any, Any]:
        """The calling thread's dict of this name."""
        if not hasattr(self.local, name):
            setattr(self.local, name, {})
        return getattr(self.local, name)


_machine: Machine | None = None


def machine() -> Machine:
    if _machine is None:
        raise RuntimeError("the fake CuPy is not installed: use it inside `with fakecupy.installed() as cp:`")
    return _machine


def set_machine(new: Machine | None) -> Machine | None:
    """Sets the machine, and returns the previous one."""
    global _machine
    old, _machine = _machine, new
    return old
