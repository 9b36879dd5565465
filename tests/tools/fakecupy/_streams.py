"""Streams as queues of work. A capture records work, and `lazy_streams` delays it; otherwise work runs at once.

All work of a device goes through `Streams.submit`. Normally it runs at once. On a capturing stream it is recorded. With
lazy streams it remains in its stream's queue until something waits for that stream. So work of two unsynchronised
streams runs in an order that is likely to expose the error: "late", the work of other streams runs when an event waits
for it and not before; "early", it runs as far as its own events allow before each operation of the stream that is
waited for; with a number, one or the other by chance. A missing event shows under "late" where the waiting stream is
the one that is synchronised, and under "early" where it is the other one.

Clocks of the streams tell which cooperative launches are ordered: `gang`.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


Key = tuple[int, int]  # of a stream: its device and handle


@dataclass(eq=False)
class Queue:
    """One stream of one device. Its work is numbered, and work up to number `done` has run."""

    ptr: int
    device: int
    non_blocking: bool
    capture: Capture | None = None
    waiting: deque[tuple[int, Callable[[], None], Wait | None]] = field(default_factory=deque)
    issued: int = 0
    done: int = 0
    before: Callable[[Queue], None] | None = None
    clock: dict[Key, int] = field(default_factory=dict)
    running: bool = False  # whether an operation of it is running

    @property
    def key(self) -> Key:
        return self.device, self.ptr

    def push(self, work: Callable[[], None], wait: Wait | None = None) -> None:
        """wait: what the work waits for, where waiting is all that it does."""
        self.issued += 1
        self.waiting.append((self.issued, work, wait))

    def run_until(self, number: int) -> None:
        while self.waiting and self.waiting[0][0] <= number:
            if self.before is not None:
                self.before(self)
            if self.waiting and self.waiting[0][0] <= number:
                self.run_next()

    def run_next(self) -> None:
        number, work, _ = self.waiting.popleft()
        outer = self.running
        self.running = True
        try:
            work()
        finally:
            self.running = outer
            self.done = number

    def run_freely(self) -> None:
        """Runs all work up to the first that waits for work of another stream that has not run."""
        while self.waiting and not self.running:
            wait = self.waiting[0][2]
            if wait is not None and wait.queue.done < wait.number:
                return
            self.run_next()

    def tick(self) -> None:
        """Counts an operation in the queue's clock."""
        self.clock[self.key] = self.clock.get(self.key, 0) + 1

    def follow(self, clock: dict[Key, int]) -> None:
        """Orders later operations after those of another clock."""
        for key, time in clock.items():
            self.clock[key] = max(time, self.clock.get(key, 0))


class Wait(NamedTuple):
    """Work of a queue up to a number."""

    queue: Queue
    number: int


@dataclass
class EventState:
    """Where an event was last recorded: a queue, a number of its work, and the capture it belongs to, or None."""

    queue: Queue | None = None
    number: int = 0
    capture: Capture | None = None
    clock: dict[Key, int] = field(default_factory=dict)


class Gang(NamedTuple):
    """A launch whose blocks must all run at once: its stream, when it was launched there, its blocks and its thread."""

    queue: Queue
    time: int
    blocks: int
    thread: Any

    def before(self, clock: dict[Key, int]) -> bool:
        """Whether what has this clock is ordered after the launch."""
        return self.time <= clock.get(self.queue.key, 0)


# Launches of which it is known whether later ones may run beside them.
MOST_GANGS = 256


class Streams:
    """All queues of all devices. order: of lazy streams, "late", "early" or the seed of a random one."""

    def __init__(self, machine: Any, order: str | int = "late") -> None:
        self.machine = machine
        self.order = order
        self.random = random.Random(order if isinstance(order, int) else 0)
        self.gangs: deque[Gang] = deque(maxlen=MOST_GANGS)
        self._pointers = itertools.count(0x5000, 16)
        self._by_ptr: dict[int, Queue] = {}
        self._null: dict[int, Queue] = {}
        self.events: dict[int, EventState] = {}

    # Which stream

    def create(self, non_blocking: bool) -> int:
        ptr = next(self._pointers)
        self._by_ptr[ptr] = Queue(ptr, self.machine.device(), non_blocking, before=self._before)
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
                self._null[index] = Queue(0, index, False, before=self._before)
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

    def _before(self, running: Queue) -> None:
        """Runs other streams ahead of the next operation of `running`, as the order says."""
        if self.order == "late":
            return
        for other in [*self._null.values(), *self._by_ptr.values()]:
            chosen = other is not running and other.device == running.device
            if chosen and (self.order == "early" or self.random.random() < 0.5):
                other.run_freely()

    # Work

    def gang(self, ptr: int, blocks: int) -> None:
        """Notes a launch whose blocks wait for each other.

        Raises FakeError if others of the same thread may run beside it and the card does not hold all their blocks, one
        per multiprocessor: each launch could hold multiprocessors that another one waits for.
        """
        queue = self.queue(ptr)
        thread = self.machine.thread_dict("identity")
        beside: dict[Key, int] = {}
        for other in self.gangs:
            key = other.queue.key
            near = other.thread is thread and other.queue.device == queue.device
            if near and key != queue.key and not other.before(queue.clock):
                beside[key] = max(other.blocks, beside.get(key, 0))
        held = self.machine.attributes["MultiProcessorCount"]
        if beside and sum(beside.values()) + blocks > held:
            at_once = " + ".join(map(str, [*beside.values(), blocks]))
            raise FakeError(f"cooperative launches of {at_once} blocks may run at once, and the card holds {held}")
        queue.tick()
        self.gangs.append(Gang(queue, queue.clock[queue.key], blocks, thread))

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
            queue.follow(other.clock)
            if other.done < other.issued:
                wait = Wait(other, other.issued)
                queue.push(lambda wait=wait: wait.queue.run_until(wait.number), wait)  # type: ignore[misc]

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
            self._passed(queue.clock)

    def synchronise_device(self, device: int, kind: str = "device") -> None:
        with self.machine.lock:
            self.machine.tallies.add("synchronisations", kind)
            queues = [q for q in [*self._null.values(), *self._by_ptr.values()] if q.device == device]
            for queue in queues:
                if queue.capture is not None:
                    raise queue.capture.invalidate(900, "a device synchronisation")
            for queue in queues:
                queue.run_until(queue.issued)
                self._passed(queue.clock)

    def _passed(self, clock: dict[Key, int]) -> None:
        """Forgets the launches that the host has waited for."""
        self.gangs = deque((gang for gang in self.gangs if not gang.before(clock)), MOST_GANGS)

    def record_event(self, event: int, ptr: int) -> None:
        queue = self.queue(ptr)
        self.events[event] = EventState(queue, queue.issued, queue.capture, dict(queue.clock))
        if queue.capture is not None and not queue.capture.valid:
            raise CUDARuntimeError(901)

    def wait_event(self, ptr: int, event: int) -> None:
        """Makes later work on the stream wait for the event. An event of a capture makes the stream join it."""
        with self.machine.lock:
            queue, state = self.queue(ptr), self.events[event]
            queue.follow(state.clock)
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
                wait = Wait(state.queue, state.number)
                queue.push(lambda: wait.queue.run_until(wait.number), wait)

    def synchronise_event(self, event: int) -> None:
        state = self.events[event]
        self.machine.tallies.add("synchronisations", "event")
        if state.capture is not None:
            raise state.capture.invalidate(907, "a wait for the event")
        if state.queue is not None:
            with self.machine.lock:
                state.queue.run_until(state.number)
                self._passed(state.clock)

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
