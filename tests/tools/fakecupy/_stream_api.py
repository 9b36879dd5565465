"""`cupy.cuda.stream` and `cupy.cuda.graph`: the classes of streams, events and graphs."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from tests.tools.fakecupy import _state
from tests.tools.fakecupy._errors import CUDARuntimeError
from tests.tools.fakecupy._streams import CAPTURE_RELAXED, LEGACY, PER_THREAD, Node


def get_current_stream(device_id: int = -1) -> Any:
    """The calling thread's current stream of a device, the current one by default."""
    machine = _state.machine()
    device = machine.device() if device_id == -1 else device_id
    return machine.thread_dict("streams").get(device, Stream.null)


class _BaseStream:
    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr, self.device_id = ptr, device_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseStream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ptr} (device {self.device_id})>"

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.ptr)

    def _check_device(self) -> int:
        current = _state.machine().device()
        if self.device_id not in (-1, current):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with the current device "
                f"({current})"
            )
        return current

    def __enter__(self) -> Any:
        device = self._check_device()
        machine = _state.machine()
        streams = machine.thread_dict("streams")
        machine.thread_dict("stream stack").setdefault("all", []).append((device, streams.get(device, Stream.null)))
        streams[device] = self
        return self

    def __exit__(self, *_: Any) -> None:
        machine = _state.machine()
        device, before = machine.thread_dict("stream stack")["all"].pop()
        machine.thread_dict("streams")[device] = before

    def use(self) -> Any:
        _state.machine().thread_dict("streams")[self._check_device()] = self
        return self

    @property
    def done(self) -> bool:
        queue = _state.machine().streams.queue(self.ptr)
        if queue.capture is not None:
            raise queue.capture.invalidate(900, "a query of the capturing stream")
        return queue.done == queue.issued

    def synchronize(self) -> None:
        _state.machine().streams.synchronise(self.ptr, "stream")

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        _state.machine().streams.record_event(event.ptr, self.ptr)
        return event

    def wait_event(self, event: Event) -> None:
        _state.machine().streams.wait_event(self.ptr, event.ptr)

    def begin_capture(self, mode: int | None = None) -> None:
        """Starts recording the work of this stream. Raises RuntimeError on the null stream."""
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        _state.machine().streams.begin_capture(self.ptr, CAPTURE_RELAXED if mode is None else mode)

    def end_capture(self) -> Graph:
        return Graph._of(_state.machine().streams.end_capture(self.ptr))

    def is_capturing(self) -> bool:
        return _state.machine().streams.is_capturing(self.ptr)

    @property
    def is_non_blocking(self) -> bool:
        return _state.machine().streams.queue(self.ptr).non_blocking


class Stream(_BaseStream):
    """`cupy.cuda.Stream`."""

    null: ClassVar[Any] = None
    ptds: ClassVar[Any] = None

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None
    ) -> None:
        if null or ptds:
            super().__init__(0 if null else PER_THREAD, -1)
            return
        self._machine = _state.machine()
        super().__init__(self._machine.streams.create(non_blocking), self._machine.device())

    def __del__(self) -> None:
        if hasattr(self, "_machine"):
            self._machine.streams.destroy(self.ptr)

    @classmethod
    def from_external(cls, obj: Any) -> Any:
        if not hasattr(obj, "__cuda_stream__"):
            raise TypeError(
                f"{type(obj).__name__} does not implement the CUDA stream protocol (__cuda_stream__ method)"
            )
        version, ptr = obj.__cuda_stream__()
        if version != 0:
            raise TypeError(f"__cuda_stream__() returned unsupported version {version}, only version 0 is supported")
        stream = cls.__new__(cls)
        _BaseStream.__init__(stream, ptr, -1)
        return stream


class ExternalStream(_BaseStream):
    """`cupy.cuda.ExternalStream`: a stream handle of another library."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__(ptr, device_id)


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


class Event:
    """`cupy.cuda.Event`. Times are from the host's clock and say nothing about a GPU."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self._machine = _state.machine()
        self.ptr = self._machine.streams.create_event()
        self._timed, self._time = not disable_timing, 0.0

    def __del__(self) -> None:
        if hasattr(self, "ptr"):
            self._machine.streams.events.pop(self.ptr, None)

    @property
    def done(self) -> bool:
        state = self._machine.streams.events[self.ptr]
        if state.capture is not None:
            raise state.capture.invalidate(907, "a query of the event")
        return state.queue is None or state.queue.done >= state.number

    def record(self, stream: _BaseStream | None = None) -> None:
        self._time = time.perf_counter()
        self._machine.streams.record_event(self.ptr, (stream or get_current_stream()).ptr)

    def synchronize(self) -> None:
        self._machine.streams.synchronise_event(self.ptr)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two events by the host's clock."""
    if not (start_event._timed and end_event._timed):
        raise CUDARuntimeError(400, "an event without timing")
    return 1000 * (end_event._time - start_event._time)


class Graph:
    """`cupy.cuda.Graph`: recorded work, with the arguments of the recording."""

    _nodes: list[Node]
    _machine: _state.Machine

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream capture"
        )

    @classmethod
    def _of(cls, nodes: list[Node]) -> Graph:
        graph = cls.__new__(cls)
        graph._nodes, graph._machine = nodes, _state.machine()
        return graph

    def launch(self, stream: _BaseStream | None = None) -> None:
        """Runs the recorded work on a stream of the same device, the current one by default."""
        self._machine.streams.submit(
            Node("graph", ("graph_launches", None), self._replay), None if stream is None else stream.ptr
        )

    def _replay(self) -> None:
        for node in self._nodes:
            self._machine.tallies.add("replayed", node.name)
            node.replay()

    def upload(self, stream: _BaseStream | None = None) -> None:
        """Does nothing."""


__all__ = [
    "LEGACY",
    "Event",
    "ExternalStream",
    "Graph",
    "Stream",
    "get_current_stream",
    "get_elapsed_time",
]
