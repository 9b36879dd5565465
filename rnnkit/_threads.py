"""One pool of threads for the compiled CPU kernels, which run without the GIL.

A pool of our own, not Numba's parallel loops: its default layer aborts the process when two Python threads enter it at
once, and a layer may be called from any thread. The calling thread takes the first share itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from queue import SimpleQueue

from rnnkit._checks import positive_int

_threads = 0
_lock = threading.Lock()
_meetings = threading.Lock()
_jobs: SimpleQueue[_Job] = SimpleQueue()
_workers = 0

# Handing a share to another thread costs about 50 us, the time of some 5 MFLOP a core:
# below twice that it does not pay.
SHARED_FROM = 1e7


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def get_num_threads() -> int:
    """How many threads the CPU kernels use: as many as cores this process may use, unless set otherwise."""
    return _threads or _usable_cores()


def set_num_threads(threads: int) -> None:
    """Sets how many threads the CPU kernels use, for the whole process. It does not change a bit of the results."""
    global _threads
    _threads = positive_int("threads", threads)


def shares_of(work: float, most: int) -> int:
    """Among how many threads to share `work` (FLOP) that splits into at most `most` parts."""
    return max(1, min(get_num_threads(), most)) if work >= SHARED_FROM else 1


class _Job:
    """One share on its way to a worker. It holds all it needs, so it may outlive the call that an interrupt ended."""

    def __init__(self, function: Callable[[int, int], None], low: int, high: int) -> None:
        self.function, self.low, self.high = function, low, high
        self.error: BaseException | None = None
        self.running = threading.Lock()
        self.running.acquire()

    def run(self) -> None:
        try:
            self.function(self.low, self.high)
        except BaseException as error:
            self.error = error
        finally:
            self.running.release()


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        jobs.get().run()


def _start_workers() -> int:
    """How many workers there are: one a core, started at the first need and when the process is given more cores.

    Daemons on a plain queue, not a ThreadPoolExecutor: that refuses work once the main thread has ended, and an
    interrupt inside its `submit` can leave it locked.
    """
    global _workers
    with _lock:
        while _workers < _usable_cores():
            worker = threading.Thread(target=_work, args=(_jobs,), name=f"rnnkit-{_workers}", daemon=True)
            try:
                worker.start()
            except RuntimeError:  # none can be started any more: the interpreter is shutting down
                break
            _workers += 1
        return _workers


def _start_anew() -> None:
    """In a forked child: its parent's threads do not exist there, and its locks may be held by them."""
    global _jobs, _workers, _lock, _meetings
    _jobs, _workers, _lock, _meetings = SimpleQueue(), 0, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def run_shares(
    function: Callable[[int, int], None], bounds: list[int], abandon: Callable[[], None] | None = None
) -> None:
    """function(low, high) for each two neighbours in `bounds`, at the same time; returns when all are done.

    abandon is called when this thread's share fails or is interrupted, so that others which wait for it need not.
    """
    if len(bounds) == 2 or not _start_workers():
        for low, high in pairwise(bounds):
            function(low, high)
        return
    jobs = [_Job(function, low, high) for low, high in pairwise(bounds[1:])]
    sent = 0
    try:
        for job in jobs:
            _jobs.put(job)
            sent += 1
        function(bounds[0], bounds[1])
    except BaseException:
        if abandon is not None:
            abandon()
        raise
    finally:
        for job in jobs[:sent]:
            job.running.acquire()
    for job in jobs:
        if job.error is not None:
            raise job.error


@contextmanager
def meeting(threads: int) -> Iterator[bool]:
    """Whether so many shares may run that wait for each other: True for one caller at a time.

    Shares that meet at a barrier must all be running. With two such calls at once each could hold the worker that the
    other waits for, so a second caller is told no, and shares out its work some other way.
    """
    granted = 1 < threads <= _start_workers() and _meetings.acquire(blocking=False)
    try:
        yield granted
    finally:
        if granted:
            _meetings.release()
