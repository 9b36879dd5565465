"""The arena: what a thread keeps on a stream between calls. Work space, a cuBLAS handle, and captured graphs.

One an own (device, stream, thread), so nothing in it is ever shared and no lock is needed: two calls that use the same
buffers are ordered by their stream. Work space only grows; a graph has addresses of it built in, so when it moves the
graphs are dropped.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rnnkit.backends.cupy.cublas import Handle, quiet, workspace_bytes
from rnnkit.errors import DeviceError

MOST_ARENAS, MOST_GRAPHS, MOST_SEEN = 8, 512, 4096
ALIGNED = 256

# Work space begins with room for small problems, and grows by a quarter at least, so that it seldom moves.
LEAST_BYTES = 4 << 20

_local = threading.local()


@dataclass
class Counts:
    """What an arena has handed to the driver since it was made: benchmarks and tests take differences.

    launches  kernels and products that were launched one by one
    replays   CUDA graphs that were launched
    nodes     kernels and products inside those graphs
    captures  graphs that were made
    refused   captures that failed, whose steps were launched one by one instead
    """

    launches: int = 0
    replays: int = 0
    nodes: int = 0
    captures: int = 0
    refused: int = 0


class Captured(NamedTuple):
    """A graph, and how many kernels and products are in it."""

    graph: Any
    nodes: int


class Arena:
    """Work space, handle, graphs and counts of one thread on one stream of one device."""

    def __init__(self, stream: Any) -> None:
        import cupy

        self.stream = stream
        self.counts = Counts()
        self.handle = Handle(self.counts)
        self._scratch = cupy.empty(workspace_bytes(cupy.cuda.runtime.getDevice()), dtype="uint8")
        self._space: Any = cupy.empty(0, dtype="uint8")
        self._capturing: Any = None  # a stream to capture on; None while one is under way, or after one was cut off
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def reserve(self, sizes: dict[str, int]) -> dict[str, int]:
        """Addresses of buffers of so many bytes each, which hold until the next `reserve`. Their contents are not."""
        import cupy

        total = sum(_padded(size) for size in sizes.values())
        if self._space.nbytes < total:
            self._graphs.clear()
            larger = max(total, self._space.nbytes * 5 // 4, LEAST_BYTES)
            self._space = cupy.empty(0, dtype="uint8")  # what there was may make room for it
            try:
                self._space = cupy.empty(larger, dtype="uint8")
            except cupy.cuda.memory.OutOfMemoryError:
                self._space = cupy.empty(total, dtype="uint8")
        places, address = {}, int(self._space.data.ptr)
        for name, size in sizes.items():
            places[name] = address
            address += _padded(size)
        return places

    def begin(self) -> None:
        """Products go to this arena's stream."""
        self._use(self.stream)

    def _use(self, stream: Any) -> None:
        self.handle.use(stream.ptr, self._scratch.data.ptr, self._scratch.nbytes)

    def replay(self, key: Hashable, launch: Callable[[], None]) -> None:
        """Runs `launch`, which does nothing but launches: as it stands the first time, from then on as a CUDA graph.

        key: everything that the launches depend on, addresses of work space aside.
        """
        captured = self._graphs.get(key)
        if captured is None:
            if key not in self._seen:
                # Also what makes lazily loaded code ready, which a capture should not have to.
                _remember(self._seen, key, None, MOST_SEEN)
                launch()
                return
            captured = self._capture(launch)
            if captured is None:
                launch()
                return
            dropped = _remember(self._graphs, key, captured, MOST_GRAPHS)
            self._seen.pop(dropped, None)  # or its next call would capture it again, to no use while there are too many
        self._graphs.move_to_end(key)
        captured.graph.launch(self.stream)
        self.counts.replays += 1
        self.counts.nodes += captured.nodes

    def _capture(self, launch: Callable[[], None]) -> Captured | None:
        """The launches as a graph; None where the capture was spoilt, as a wait for the device elsewhere spoils it.

        Nothing has run then, a warning says so, and the caller launches. What `launch` itself raises it will raise
        again.
        """
        import cupy

        before = self.counts.launches
        stream = self._capturing or cupy.cuda.Stream(non_blocking=True)
        self._capturing = None
        self._use(stream)
        try:
            with quiet, stream:
                stream.begin_capture()
                try:
                    launch()
                finally:
                    graph = stream.end_capture()
            self._capturing = stream
        except (cupy.cuda.runtime.CUDARuntimeError, DeviceError) as problem:
            self.counts.refused += 1
            warnings.warn(
                f"a CUDA graph could not be captured, its steps are launched one by one: {problem}",
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        finally:
            # What was captured has not run.
            nodes = self.counts.launches - before
            self.counts.launches = before
            self._use(self.stream)
        self.counts.captures += 1
        return Captured(graph, nodes)


def refuse_capture(stream: Any) -> None:
    """Raises DeviceError while the stream is being captured.

    rnnkit captures graphs of its own, and the work space of a call inside another capture would belong to both.
    """
    try:
        capturing = stream.is_capturing()
    except RuntimeError:  # a capture that has failed and not ended
        capturing = True
    if capturing:
        raise DeviceError("the current stream is being captured, and rnnkit captures graphs of its own")


def current() -> Arena:
    """The arena of this thread for the current device and stream. Raises as `refuse_capture`."""
    import cupy

    arenas: OrderedDict[tuple[int, int], Arena] = _local.__dict__.setdefault("arenas", OrderedDict())
    stream = cupy.cuda.get_current_stream()
    refuse_capture(stream)
    key = (cupy.cuda.runtime.getDevice(), stream.ptr)
    if key not in arenas:
        _remember(arenas, key, Arena(stream), MOST_ARENAS)
    arenas.move_to_end(key)
    return arenas[key]


def counts() -> Counts:
    """The counts so far of this thread's arena for the current device and stream, as a copy."""
    return replace(current().counts)


def bytes_of(work: int, device: int) -> int:
    """What an arena holds at least, whose largest call needs `work` bytes."""
    return max(work, LEAST_BYTES) + workspace_bytes(device)


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _remember(entries: OrderedDict, key: Hashable, value: Any, most: int) -> Hashable:
    """Adds an entry; gives the key of the oldest one, dropped where there are more than `most`, else None."""
    entries[key] = value
    return entries.popitem(last=False)[0] if len(entries) > most else None
