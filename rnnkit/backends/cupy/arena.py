"""The arena: what stays between calls of one thread on one stream. Workspace, a cuBLAS handle, graphs, and counters.

There is one arena per (device, stream, thread), so nothing in it is shared and it needs no lock: the stream orders two
calls that use the same buffers. The workspace only grows. A graph contains addresses of the workspace, so the graphs
are dropped when the workspace moves.

A call that somebody else captures into a CUDA graph, such as torch.cuda.graph, has an arena of its own, which ends with
the call: its memory must stay with that graph (rnnkit/core/graph_memory.py), and its launches are captured one by one.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rnnkit.backends.cupy.cublas import Handle, quiet, workspace_bytes
from rnnkit.core.graph_memory import knows_captures
from rnnkit.errors import DeviceError

MOST_ARENAS = 16
MOST_GRAPHS = 512
MOST_SEEN = 4096
ALIGNED = 256

# The workspace starts at this size, enough for small problems, and grows by at least a quarter, so it moves seldom.
LEAST_BYTES = 4 << 20

_local = threading.local()


@dataclass
class Counts:
    """What an arena has launched since it was created. Benchmarks and tests take differences.

    launches  kernels and products launched one by one
    replays   CUDA graphs launched
    nodes     kernels and products inside those graphs
    captures  graphs captured
    refused   captures that failed, so that their steps were launched one by one
    """

    launches: int = 0
    replays: int = 0
    nodes: int = 0
    captures: int = 0
    refused: int = 0


class Captured(NamedTuple):
    """A graph, and the number of kernels and products in it."""

    graph: Any
    nodes: int


# Epochs that fit a tag of 31 bits, so that a tag may be a signed integer.
MOST_EPOCHS = 2**31 - 1


class Counters:
    """Memory that stays between calls and was zero at first: counters and tagged data of kernels that wait for others.

    A kernel tags what it writes with epochs that no earlier launch used, so the memory need not be cleared between
    calls. After an interrupted or failed call it still holds only tags of epochs that are used.
    """

    def __init__(self, size: int) -> None:
        import cupy

        self._memory = cupy.zeros(size, dtype="uint8")
        self._used = 0

    @property
    def address(self) -> int:
        return int(self._memory.data.ptr)

    @property
    def size(self) -> int:
        return int(self._memory.nbytes)

    def epochs(self, count: int) -> int:
        """The first of `count` consecutive epochs, from 1 on, that differ from all tags in the memory."""
        if self._used + count > MOST_EPOCHS:
            self._memory.fill(0)
            self._used = 0
        first = self._used + 1
        self._used += count
        return first


# Lower numbers are higher priorities. CUDA raises one below the device's range to the highest there is.
HIGHEST_PRIORITY = -5


class Lane:
    """A stream for the steps of a layer, beside the products on the arena's stream, and the events between the two.

    The blocks of a launch on it start before those of a product that still wait. The events, of the even chunks and of
    the odd ones: ready, when the products have ended; done, when the steps have; given, when the layer below may read
    dx.
    """

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True, priority=HIGHEST_PRIORITY)
        self.ready = (cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True))
        self.done = (cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True))
        self.given = (cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True))


class Arena:
    """Workspace, handle, graphs, counters and counts of one thread on one stream of one device."""

    def __init__(self, stream: Any, handle: Handle | None = None) -> None:
        import cupy

        self.stream = stream
        self.counts = Counts()
        self.handle = handle or Handle(self.counts)
        self._cublas_workspace = cupy.empty(workspace_bytes(cupy.cuda.runtime.getDevice()), dtype="uint8")
        self._capturing: Any = None  # a stream to capture on; None during a capture, and after an interrupted one
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._beside: Any = None
        self._begin()

    def _begin(self) -> None:
        """Sets what each of several layers at once has of its own."""
        import cupy

        self._workspace: Any = cupy.empty(0, dtype="uint8")
        self._counters: dict[str, Counters] = {}
        self._lane: Lane | None = None
        self._parts: list[Part] = []

    @property
    def lane(self) -> Lane:
        """For the steps of a layer, beside its products."""
        if self._lane is None:
            self._lane = Lane()
        return self._lane

    def parts(self, count: int) -> list[Arena]:
        """Arenas for `count` layers at once: this one, and others that share all but workspace, counters and lane."""
        while len(self._parts) < count - 1:
            self._parts.append(Part(self))
        return [self, *self._parts[: count - 1]]

    def beside(self) -> Any:
        """A second stream, for work that runs beside this arena's. It has an arena of its own."""
        import cupy

        if self._beside is None:
            self._beside = cupy.cuda.Stream(non_blocking=True)
        return self._beside

    def counters(self, name: str, size: int) -> Counters:
        """The counters of this name, of at least `size` bytes. Larger ones replace smaller ones, and are zero."""
        found = self._counters.get(name)
        if found is None or found.size < size:
            found = Counters(size)
            self._counters[name] = found
        return found

    def reserve(self, sizes: dict[str, int]) -> dict[str, int]:
        """Addresses of uninitialised buffers of these numbers of bytes, by name. They are valid until the next call."""
        import cupy

        total = sum(_padded(size) for size in sizes.values())
        if self._workspace.nbytes < total:
            self._graphs.clear()
            larger = max(total, self._workspace.nbytes * 5 // 4, LEAST_BYTES)
            self._workspace = cupy.empty(0, dtype="uint8")  # frees the old one first, to make room
            try:
                self._workspace = cupy.empty(larger, dtype="uint8")
            except cupy.cuda.memory.OutOfMemoryError:
                self._workspace = cupy.empty(total, dtype="uint8")
        addresses = {}
        address = int(self._workspace.data.ptr)
        for name, size in sizes.items():
            addresses[name] = address
            address += _padded(size)
        return addresses

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array in a buffer of `reserve`, valid as long as the buffer."""
        import cupy

        start = self._workspace.data
        return cupy.ndarray(shape, dtype, memptr=start + (address - int(start.ptr)))

    def begin(self) -> None:
        """Later products run on this arena's stream."""
        self._use(self.stream)

    def _use(self, stream: Any) -> None:
        self.handle.use(stream.ptr, self._cublas_workspace.data.ptr, self._cublas_workspace.nbytes)

    def replay(self, key: Hashable, launch: Callable[[], None]) -> None:
        """Runs `launch`, which only launches: directly the first time, and as a CUDA graph from the second time on.

        key: everything that the launches depend on, except addresses of the workspace.
        """
        captured = self._graphs.get(key)
        if captured is None:
            if key not in self._seen:
                # The direct run also loads lazily loaded code, which must not happen during a capture.
                _remember(self._seen, key, None, MOST_SEEN)
                launch()
                return
            captured = self._capture(launch)
            if captured is None:
                launch()
                return
            dropped = _remember(self._graphs, key, captured, MOST_GRAPHS)
            self._seen.pop(dropped, None)  # so that its next call does not capture: with too many graphs that is no use
        self._graphs.move_to_end(key)
        captured.graph.launch(self.stream)
        self.counts.replays += 1
        self.counts.nodes += captured.nodes

    def _capture(self, launch: Callable[[], None]) -> Captured | None:
        """The launches as a graph. If the capture fails, as when another thread synchronises, None and a warning.

        Nothing has run then, and the caller launches directly. An error of `launch` itself is raised by that launch.
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
            # Captured launches have not run.
            nodes = self.counts.launches - before
            self.counts.launches = before
            self._use(self.stream)
        self.counts.captures += 1
        return Captured(graph, nodes)


class Part(Arena):
    """What the second of several layers at once, or a later one, has of its own, and the arena's handle and counts.

    For launches that are not captured: the arena's graphs are of its own workspace.
    """

    def __init__(self, arena: Arena) -> None:
        self.stream = arena.stream
        self.counts = arena.counts
        self.handle = arena.handle
        self._cublas_workspace = arena._cublas_workspace
        self._graphs = OrderedDict()
        self._begin()


class CapturedArena(Arena):
    """The arena of one call inside a capture that is not rnnkit's. handle: of another arena of the thread."""

    def replay(self, key: Hashable, launch: Callable[[], None]) -> None:
        """Runs `launch`, which the capture records."""
        launch()


def capturing(stream: Any) -> bool:
    """Whether the stream is being captured."""
    try:
        return bool(stream.is_capturing())
    except RuntimeError:  # the capture has failed but not ended
        return True


def refuse_capture(stream: Any, why: str = "rnnkit captures graphs of its own") -> None:
    """Raises DeviceError while the stream is being captured."""
    if capturing(stream):
        raise DeviceError(f"the current stream is being captured into a CUDA graph: {why}")


def current() -> Arena:
    """The arena of this thread for the current device and stream, or inside a capture a new one.

    Raises DeviceError inside a capture whose memory does not stay with the graph, or if this thread has made no call on
    the device before: a capture cannot create a cuBLAS handle.
    """
    import cupy

    arenas: OrderedDict[tuple[int, int], Arena] = _local.__dict__.setdefault("arenas", OrderedDict())
    stream = cupy.cuda.get_current_stream()
    device = cupy.cuda.runtime.getDevice()
    if capturing(stream):
        if not knows_captures():
            refuse_capture(stream, "memory of CuPy's pool does not stay with it, and rnnkit captures graphs of its own")
        lender = next((arena for (index, _), arena in reversed(arenas.items()) if index == device), None)
        if lender is None:
            refuse_capture(stream, "make the same call before, which creates what a capture cannot")
        return CapturedArena(stream, lender.handle)  # type: ignore[union-attr]
    key = (device, stream.ptr)
    if key not in arenas:
        _remember(arenas, key, Arena(stream), MOST_ARENAS)
    arenas.move_to_end(key)
    return arenas[key]


def counts() -> Counts:
    """The counts so far of this thread's arena for the current device and stream, as a copy."""
    return replace(current().counts)


def bytes_of(work: int, device: int) -> int:
    """The least bytes of an arena whose largest call needs `work` bytes."""
    return max(work, LEAST_BYTES) + workspace_bytes(device)


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _remember(entries: OrderedDict, key: Hashable, value: Any, most: int) -> Hashable:
    """Adds an entry. If there are then more than `most`, drops the oldest one and returns its key, else None."""
    entries[key] = value
    return entries.popitem(last=False)[0] if len(entries) > most else None
