"""The thread pool of the compiled CPU kernels: starts, wakes and stops its workers. Their loop is native code, in
kernels/cpu/threads.py.

A process has one pool, and one call at a time reserves it. A second, concurrent call runs on its own thread alone: the
kernels give the same bits on any number of threads. Numba's parallel loops do not serve here: Numba's default threading
layer aborts the process when two Python threads enter it at once, and handing over work takes it tens of microseconds.

A signal handler may raise between any two calls. So the owner of the pool is an entry of a dict. `setdefault` claims
the entry inside a `try`, and the `finally` deletes it by subscripts alone, which CPython does not interrupt. A lock
would stay locked for ever where the handler raises between `acquire` and the `try`, or inside the call of `release`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any

import numpy as np

from rnnkit.core.checks import positive_int
from rnnkit.core.cpu_limits import default_threads

_threads = 0

OWNER = "owner"  # the key of a claim

# Work is divided from these estimates of its time on one thread, in microseconds: with workers that are awake, and with
# workers that must be woken.
PARALLEL_FROM_US = 15.0
WAKE_FROM_US = 200.0
# How long a call waits for a worker that does not answer a ready check because another thread has its core: so many
# microseconds, or this fraction of the work. A worker that is awake answers within 1 us, and an interrupt delays it by
# about 10 us. A worker that was woken or started answers within 90 to 190 us on a virtual machine.
READY_WAIT_US = 100.0
WOKEN_WAIT_US = 300.0
READY_WAIT_FRACTION = 1 / 16
# After a worker was preempted or did not answer, jobs use fewer threads for a while, the backoff. BACKOFF_S: its least
# and greatest length in seconds. BACKOFF_PER_LOSS: its least length as a multiple of the time lost; where the cores are
# free again at once, a backoff of twice the loss costs as much as the loss did, since half of the threads still work.
# The backoff doubles if the loss repeats, and halves if all threads answer again.
BACKOFF_S = (4e-3, 0.1)
BACKOFF_PER_LOSS = 2


def get_num_threads() -> int:
    """The largest number of threads of the CPU kernels: the cores that the process may use, unless set otherwise.

    A short call uses fewer, and so do calls for a while after workers were preempted. See docs/install.md.

    Returns:
        The number of threads, at least 1.

    Raises:
        ValueError: the environment variable RNNKIT_NUM_THREADS is not a positive whole number.

    Examples:
        >>> import rnnkit
        >>> rnnkit.get_num_threads() >= 1
        True
    """
    return _threads or default_threads().number


def set_num_threads(threads: int | None) -> None:
    """Sets the largest number of threads of the CPU kernels, for the whole process. Results keep the same bits.

    Args:
        threads: at least 1; None for the default, which is then determined again, for example after a change of the
            affinity mask.

    Raises:
        TypeError: `threads` is not an integer.
        ValueError: `threads` is less than 1.

    Examples:
        >>> import rnnkit
        >>> rnnkit.set_num_threads(1)
        >>> rnnkit.get_num_threads()
        1
        >>> rnnkit.set_num_threads(None)
    """
    global _threads
    if threads is None:
        default_threads.cache_clear()
        _threads = 0
    else:
        _threads = positive_int("threads", threads)


def thread_count_reason() -> str:
    """Where the value of `get_num_threads` comes from, in a few words."""
    return "set_num_threads" if _threads else default_threads().why


def threads_for(microseconds: float) -> int:
    """The number of threads for work that takes one thread this long."""
    return get_num_threads() if microseconds >= PARALLEL_FROM_US else 1


class ThreadPool:
    """Workers 1, 2, … beside the calling thread, 0. A worker is in `serve` or sleeps on its own lock."""

    MAX_THREADS = 256

    def __init__(self) -> None:
        from rnnkit.kernels.cpu import threads as kernels

        self._kernels = kernels
        memory = np.zeros(kernels.state_bytes(self.MAX_THREADS) // 8 + 8, np.int64)
        start = -memory.ctypes.data % kernels.LINE // 8
        self._state = memory[start:]
        self.address = int(self._state.ctypes.data)
        self.claims: dict[str, object] = {}  # OWNER -> the call that has reserved the pool; empty if none has
        self.reserved = self._state[kernels.RESERVED // 8 :]  # [0]: how many threads must stay awake
        # One lock per worker. The worker sleeps in `acquire`, and `_signal_wakeup` releases the lock. Index 0 is not
        # used. Semaphores do not serve: they are written in Python, and an interrupted one may stay locked for ever.
        self._wakeups: list[Any] = [threading.Lock()]
        self._workers: list[threading.Thread] = []
        self._shut_down = False
        self.broken = False
        self._backoff = 0.0  # seconds
        self._backoff_until = 0.0  # a time of time.monotonic(), as the two below
        self.released_at = 0.0
        self._woken_at = -1.0
        self._reduced = 1  # threads per job during the backoff
        # Compiled here, not by a worker, so that the caller gets the exception if compiling fails.
        kernels.serve.compile()
        kernels.reserve.compile()

    def reserve(self, call: object, threads: int, microseconds: float) -> int:
        """Reserves the pool for `call`. Returns how many threads will run its job, the caller's included.

        1 if another call owns the pool, or if no worker can be started. Also 1 if workers sleep and the work is too
        short to wait for them; they are woken all the same, for the next call. During the backoff that follows a
        preemption (kernels/cpu/threads.py), fewer than `threads`.
        """
        threads = min(threads, self.MAX_THREADS)
        if threads < 2 or self._shut_down or self.claims.setdefault(OWNER, call) is not call:
            return 1
        return self._ready_threads(threads, microseconds)

    def _ready_threads(self, threads: int, microseconds: float) -> int:
        """How many threads of the reserved pool are ready to work."""
        asked = threads
        if self._backoff and time.monotonic() < self._backoff_until:
            threads = min(threads, self._reduced)
        before = len(self._workers)
        threads = self._start_workers(threads)
        if threads < 2:
            return 1
        share = microseconds * READY_WAIT_FRACTION
        limit = WOKEN_WAIT_US if len(self._workers) > before else READY_WAIT_US
        found = self._kernels.reserve(self.address, threads, int(1e3 * max(limit, share)))
        while found == self._kernels.SOME_ASLEEP:  # a second time where a worker was just falling asleep
            self._wake_workers(threads)
            if microseconds < WAKE_FROM_US:
                return 1
            found = self._kernels.reserve(self.address, threads, int(1e3 * max(WOKEN_WAIT_US, share)))
        if found == threads:
            if self._backoff and threads == asked and threads > self._reduced:
                self._backoff = self._backoff / 2 if self._backoff > BACKOFF_S[0] else 0.0
            return threads
        preempted, ready = divmod(found, self._kernels.ONE_PREEMPTED)
        if not preempted and time.monotonic() < self._woken_at + 1e-6 * WOKEN_WAIT_US:
            return ready  # the other workers are still waking up
        return self._back_off(threads, ready, preempted)

    def _back_off(self, threads: int, ready: int, preempted: int) -> int:
        """Uses fewer threads from here on for a while. Returns how many threads run this job."""
        self._reduced = max(1, min(ready, threads - preempted))
        repeated = 2 * self._backoff if preempted else self._backoff
        lost = 1e-9 * self._take_losses()
        self._backoff = min(max(repeated, BACKOFF_S[0], BACKOFF_PER_LOSS * lost), BACKOFF_S[1])
        # A preemption happened before the end of its job, perhaps long ago. A worker that does not answer has no core
        # now.
        now = time.monotonic()
        self._backoff_until = (self.released_at if ready == threads else now) + self._backoff
        return self._reduced if now < self._backoff_until else ready

    def _take_losses(self) -> int:
        """The longest time, in nanoseconds, that a thread spent off its core in earlier jobs. Resets the record."""
        first = (self._kernels.ASLEEP + self._kernels.PREEMPTED) // 8
        line = self._kernels.LINE // 8
        losses = self._state[first : first + line * (len(self._workers) + 1) : line]
        most = int(losses.max())
        losses[...] = 0
        return most

    def _wake_workers(self, threads: int) -> None:
        for k in range(1, threads):
            flag = (self._kernels.ASLEEP + self._kernels.LINE * k) // 8 + 1
            if self._state[flag]:
                self._signal_wakeup(k)  # repeated if interrupted here, which is harmless: the worker finds no job
                self._state[flag] = 0
        self._woken_at = time.monotonic()

    def _signal_wakeup(self, k: int) -> None:
        if self._wakeups[k].locked():  # only the worker locks it, and only this method releases it
            self._wakeups[k].release()

    def _start_workers(self, threads: int) -> int:
        """Starts the missing workers. Returns how many threads there are: fewer if the system refuses one."""
        while len(self._workers) < threads - 1:
            k = len(self._workers) + 1
            self._wakeups.append(threading.Lock())
            self._wakeups[k].acquire(blocking=False)
            worker = threading.Thread(target=self._worker_loop, args=(k,), name=f"rnnkit-{k}", daemon=True)
            try:
                worker.start()
            except RuntimeError as problem:
                if "start new thread" not in str(problem):  # raised by a signal handler
                    self.broken = True
                    raise
                self._wakeups.pop()  # no thread can be started any more: the interpreter is shutting down
                return k
            except BaseException:  # the worker may run all the same, and there must be no second one with its number
                self.broken = True
                raise
            self._workers.append(worker)
        return threads

    def _worker_loop(self, k: int) -> None:
        seen = 0
        while not self._shut_down:
            seen = self._kernels.serve(self.address, k, seen)
            self._wakeups[k].acquire()

    def shutdown(self) -> None:
        """Ends all workers before the interpreter ends: a worker in native code could not be stopped then."""
        self._shut_down = True
        for k in range(len(self._wakeups)):
            self._signal_wakeup(k)
        until = time.monotonic() + 1.0
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))


_pool: ThreadPool | None = None
_pool_lock = threading.Lock()


def shared_pool() -> ThreadPool:
    """The process's pool, made at its first use."""
    global _pool
    pool = _pool
    if pool is None or pool.broken:
        with _pool_lock:
            if _pool is None or _pool.broken:
                _pool = ThreadPool()
            pool = _pool
    return pool


def run_on_pool(threads: int, microseconds: float, launch: Any) -> None:
    """launch(address of the pool's state, threads), on as many threads as `ThreadPool.reserve` gives."""
    if threads < 2:
        launch(0, 1)
        return
    pool = shared_pool()
    claims = pool.claims
    reserved = 0
    try:
        reserved = pool.reserve(launch, threads, microseconds)
        if reserved > 1:
            launch(pool.address, reserved)
    finally:
        # No call before the pool is free again: see the module's docstring. The workers may sleep from here on.
        if OWNER in claims and claims[OWNER] is launch:
            pool.reserved[0] = 0
            del claims[OWNER]
    if reserved > 1:
        pool.released_at = time.monotonic()
    else:
        launch(0, 1)


def _reset_after_fork() -> None:
    """In a forked child: the parent's workers do not exist there, and the parent's locks may be locked."""
    global _pool, _pool_lock
    _pool = None
    _pool_lock = threading.Lock()


def _shutdown_at_exit() -> None:
    if _pool is not None and not sys.is_finalizing():
        _pool.shutdown()


atexit.register(_shutdown_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
