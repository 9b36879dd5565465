"""Streams as queues of work. A capture records work, and `lazy_streams` delays it; otherwise work runs at once.

All work of a device goes through `Streams.submit`. Normally it runs at once. On a capturing stream it is recorded. With
lazy streams it remains in its stream's queue until something waits for that stream. So work of two unsynchronised
streams runs in an order that is likely to expose the error.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.tools.fakecupy._errors import CUDARuntimeError, FakeError
from tests.tools.fakecupy._memory import Block

CAPTURE_GLOBAL, CAPTURE_THREAD_LOCAL, CAPTURE_RELAXED = 0, 1, 2
LEGACY, PER_THREAD = 1, 2


@dataclass
class Node:
    """One operation on the device. `run` executes it. `blocks` must be alive then.

    tally: the field of Counts that counts it, and its key there or None.
    """

    name: str
    tally: tuple[str, str | None]
    run: Callable[[], None]
    blocks: tuple[Block, ...] = ()

    def replay(self) -> None:
        dead = [block for block in self.blocks if not block.alive]
        if dead:
            raise FakeError(f"a graph's {self.name} touches freed memory: {dead[0]!r}")
        self.run()


@dataclass
class Capture:
    """The work recorded since begin_capture. unjoined: streams that joined it, whose later work has not been joined."""

    origin: Queue
    mode: int
    thread: Any
    nodes: list[Node] = field(default_factory=list)
    members: list[Queue] = field(default_factory=list)
    unjoined: set[int] = field(default_factory=set)
    valid: bool = True
    ended: bool = False

    def invalidate(self, status: int, why: str) -> CUDARuntimeError:
        self.valid = False
        return CUDARuntimeError(status, why)


@dataclass(eq=False)
class Queue:
    """One stream of one device. Its work is numbered, and work up to number `done` has run."""

    ptr: int
    device: int
    non_blocking: bool
    capture: Capture | None = None
    waiting: deque[tuple[int, Callable[[], None]]] = field(default_factory=deque)
    issued: int = 0
    done: int = 0

    def push(self, work: Callable[[], None]) -> None:
        self.issued += 1
        self.waiting.append((self.issued, work))

    def run_until(self, number: int) -> None:
        while self.waiting and self.waiting[0][0] <= number:
            self.done, work = self.waiting.popleft()
            work()


@dataclass
class EventState:
    """Where an event was last recorded: a queue, a number of its work, and the capture it belongs to, or None."""

    queue: Queue | None = None
    number: int = 0
    capture: Capture | None = None


class Streams:
    """All queues of all devices."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self._pointers = itertools.count(0x5000, 16)
        self._by_ptr: dict[int, Queue] = {}
        self._null: dict[int, Queue] = {}
        self.events: dict[int, EventState] = {}

    # Which stream

    def create(self, non_blocking: bool) -> int:
        ptr = next(self._pointers)
        self._by_ptr[ptr] = Queue(ptr, self.machine.device(), non_blocking)
        return ptr

    def destroy(self, ptr: int) -> None:
        """Destroys the stream after its work, as cudaStreamDestroy does. Never raises, since a destructor calls it."""
        queue = self._by_ptr.pop(ptr, None)
        if queue is not None:
            try:
                queue.run_until(queue.issued)
            except Exception as problem:
                self.machine.problems.append(f"a destroyed stream's work failed: {problem}")

    def create_event(self) -> int:
        ptr = next(self._pointers)
        self.events[ptr] = EventState()
        return ptr

    def queue(self, ptr: int, device: int | None = None) -> Queue:
        """The queue of a stream handle; 0 and 1 are the legacy stream of the device, the current one by default."""
        if ptr in (0, LEGACY, PER_THREAD):
            index = self.machine.device() if device is None else device
            if index not in self._null:
                self._null[index] = Queue(0, index, False)
            return self._null[index]
        if ptr not in self._by_ptr:
            raise CUDARuntimeError(400, f"{ptr:#x} is not a stream")
        return self._by_ptr[ptr]

    def current(self) -> Any:
        """The calling thread's current stream of the current device, as CuPy's object."""
        from tests.tools.fakecupy._stream_api import get_current_stream

        return get_current_stream()

    def deferring(self) -> bool:
        """Whether work on the current stream is delayed."""
        return self.machine.lazy or self.queue(self.current().ptr).capture is not None

    # Work

    def submit(self, node: Node, ptr: int | None = None, owners: tuple[Any, ...] = ()) -> None:
        """Runs, records or queues `node` on a stream, the current one by default. owners: kept alive until it has run.

        Raises CUDARuntimeError if CUDA rejects the stream: of another device, or the legacy stream during a capture.
        """
        with self.machine.lock:
            queue = self.queue(self.current().ptr if ptr is None else ptr)
            if queue.device != self.machine.device():
                raise CUDARuntimeError(
                    400, f"a stream of device {queue.device} while device {self.machine.device()} is current"
                )
            if queue.capture is not None:
                self._record(queue.capture, queue, node)
                return
            self._reject_beside_capture(queue, node.name)
            self.machine.tallies.add(*node.tally)
            if not self.machine.lazy:
                node.run()
                return
            self._order_with_null(queue)
            queue.push(lambda held=owners: node.run())  # type: ignore[misc]

    def _record(self, capture: Capture, queue: Queue, node: Node) -> None:
        if not capture.valid:
            raise CUDARuntimeError(901)
        capture.nodes.append(node)
        if queue is not capture.origin:
            capture.unjoined.add(queue.ptr)
        self.machine.tallies.add("captured", node.name)

    def _reject_beside_capture(self, queue: Queue, name: str) -> None:
        if queue.ptr == 0:
            for other in self._by_ptr.values():
                if other.capture and not other.non_blocking and other.device == queue.device:
                    raise other.capture.invalidate(906, f"{name} on the null stream")

    def _order_with_null(self, queue: Queue) -> None:
        """Orders the legacy stream and every blocking stream of its device with each other."""
        if queue.ptr == 0:
            others = [q for q in self._by_ptr.values() if q.device == queue.device and not q.non_blocking]
        else:
            others = [] if queue.non_blocking else [self.queue(0, queue.device)]
        for other in others:
            if other.done < other.issued:
                queue.push(lambda other=other, number=other.issued: other.run_until(number))  # type: ignore[misc]

    def free_later(self, device: int, ptr: int, free: Callable[[], None]) -> bool:
        """Queues `free` on a stream with pending work and returns True; returns False if there is none."""
        queue = self._by_ptr.get(ptr) if ptr > PER_THREAD else self._null.get(device)
        if queue is None or not queue.waiting:
            return False
        queue.push(free)
        return True

    # Waiting

    def synchronise(self, ptr: int, kind: str, device: int | None = None) -> None:
        """Waits for a stream. If it is capturing, invalidates the capture and raises CUDARuntimeError."""
        with self.machine.lock:
            queue = self.queue(ptr, device)
            self.machine.tallies.add("synchronisations", kind)
            if queue.capture is not None:
                raise queue.capture.invalidate(900, f"{kind} synchronises the capturing stream")
            self._reject_beside_capture(queue, kind)
            self._order_with_null(queue) if queue.ptr == 0 else None
            queue.run_until(queue.issued)

    def synchronise_device(self, device: int, kind: str = "device") -> None:
        with self.machine.lock:
            self.machine.tallies.add("synchronisations", kind)
            queues = [q for q in [*self._null.values(), *self._by_ptr.values()] if q.device == device]
            for queue in queues:
                if queue.capture is not None:
                    raise queue.capture.invalidate(900, "a device synchronisation")
            for queue in queues:
                queue.run_until(queue.issued)

    def record_event(self, event: int, ptr: int) -> None:
        queue = self.queue(ptr)
        self.events[event] = EventState(queue, queue.issued, queue.capture)
        if queue.capture is not None and not queue.capture.valid:
            raise CUDARuntimeError(901)

    def wait_event(self, ptr: int, event: int) -> None:
        """Makes later work on the stream wait for the event. An event of a capture makes the stream join it."""
        with self.machine.lock:
            queue, state = self.queue(ptr), self.events[event]
            if state.capture is not None and state.capture.ended:
                raise CUDARuntimeError(907)
            if state.capture is not None and state.queue is not None:
                if queue.capture is None:
                    queue.capture = state.capture
                    state.capture.members.append(queue)
                elif queue.capture is not state.capture:
                    raise queue.capture.invalidate(902, "an event of another capture")
                if queue is state.capture.origin:
                    state.capture.unjoined.discard(state.queue.ptr)
                return
            if queue.capture is not None:
                raise queue.capture.invalidate(905, "an event recorded outside the capture")
            if state.queue is not None and state.queue is not queue and self.machine.lazy:
                other, number = state.queue, state.number
                queue.push(lambda: other.run_until(number))

    def synchronise_event(self, event: int) -> None:
        state = self.events[event]
        self.machine.tallies.add("synchronisations", "event")
        if state.capture is not None:
            raise state.capture.invalidate(907, "a wait for the event")
        if state.queue is not None:
            with self.machine.lock:
                state.queue.run_until(state.number)

    # Capture

    def begin_capture(self, ptr: int, mode: int) -> None:
        queue = self.queue(ptr)
        if queue.capture is not None:
            raise CUDARuntimeError(1, "the stream is already capturing")
        self.machine.tallies.add("captures")
        queue.capture = Capture(queue, mode, self.machine.thread_dict("identity"))
        queue.capture.members.append(queue)

    def end_capture(self, ptr: int) -> list[Node]:
        """The recorded work. Raises CUDARuntimeError if the capture was invalidated or a stream was not joined."""
        queue = self.queue(ptr)
        capture = queue.capture
        if capture is None or capture.origin is not queue:
            raise CUDARuntimeError(1, "the stream is not capturing")
        capture.ended = True
        for member in capture.members:
            member.capture = None
        if not capture.valid:
            raise CUDARuntimeError(901)
        if capture.unjoined:
            raise CUDARuntimeError(904)
        return capture.nodes

    def is_capturing(self, ptr: int) -> bool:
        queue = self.queue(ptr)
        self._reject_beside_capture(queue, "a query of the capture state")
        if queue.capture is not None and not queue.capture.valid:
            raise CUDARuntimeError(901)
        return queue.capture is not None

    def reject_malloc_in_strict_capture(self) -> None:
        """Raises CUDARuntimeError if the pool needs cudaMalloc during a capture that is not relaxed."""
        mine = self.machine.thread_dict("identity")
        for queue in self._by_ptr.values():
            capture = queue.capture
            strict = capture is not None and (
                capture.mode == CAPTURE_GLOBAL or (capture.mode == CAPTURE_THREAD_LOCAL and capture.thread is mine)
            )
            if capture is not None and strict:
                raise capture.invalidate(900, "cudaMalloc in a capture that is not relaxed")
