"""The team of threads behind the compiled CPU kernels: started, woken and put to bed here; at work in
kernels/cpu/threads.py.

One team a process, and one call at a time has it: a second caller works alone, as its kernels give the same bits on
any number of threads. A team of our own, not Numba's parallel loops: its default layer aborts the process when two
Python threads enter it at once, and hands work over in tens of microseconds.

A signal handler may raise between any two calls, so who has the team is an entry of a dict: `setdefault` claims it
inside a `try` whose `finally` gives it back by subscripts alone, which CPython does not interrupt. A lock would be lost
where the handler raises after `acquire` and before the `try`, or in the call of `release`.
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

# Guessed microseconds of one thread's work from which it is shared: with threads that are awake, and with threads that
# must be woken.
SHARED_FROM, WOKEN_FROM = 15.0, 200.0
# How long a thread is waited for that does not answer, since something else has its core: so many microseconds, or so
# large a part of the work. The first is for one that is awake: it answers within one, an interrupt takes some ten, and
# what is waited in vain is little beside a spell. The second is for one that was woken or started: on a virtual machine
# that takes 90 us, and 160 to 190 after 10 ms of rest.
AWAITED, AWAITED_WOKEN, AWAITED_PART = 100.0, 300.0, 1 / 16
# Seconds, at least and at most, that jobs have fewer threads after one did not answer, or had no core in a job, and
# then how many times what was lost: doubled if that happens again, halved if not when more are tried. Where the cores
# are free again at once, twice the loss is as much again lost to having half of them.
SPELLS, SPELL_LOSSES = (4e-3, 0.1), 2


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


def why_so_many() -> str:
    """What `get_num_threads` follows from, in a few words."""
    return "set_num_threads" if _threads else default_threads().why


def threads_for(microseconds: float) -> int:
    """Among how many threads to share work that one would do in so long."""
    return get_num_threads() if microseconds >= SHARED_FROM else 1


class Team:
    """Threads 1, 2, … beside whoever calls, each in `serve` or asleep at its own semaphore."""

    MOST = 256

    def __init__(self) -> None:
        from rnnkit.kernels.cpu import threads as team

        self._kernels = team
        room = np.zeros(team.state_bytes(self.MOST) // 8 + 8, np.int64)
        start = -room.ctypes.data % team.LINE // 8
        self._state = room[start:]
        self.address = int(self._state.ctypes.data)
        self.claims: dict[str, object] = {}  # OWNER -> the call that has the team; empty where none has
        self.booked = self._state[team.BOOKED // 8 :]  # the word: how many threads are to stay awake
        # A taken lock for each thread, which the thread waits for to be released. The first is not used. No semaphore:
        # those are written in Python, and one that is interrupted may never be released again.
        self._beds: list[Any] = [threading.Lock()]
        self._workers: list[threading.Thread] = []
        self._ended = self.broken = False
        self._spell = self._spell_ends = self.dismissed = 0.0  # seconds, and times of time.monotonic()
        self._fewer = 1  # threads for that long
        self._woken = -1.0  # a time, too
        # Compiled here, not by the threads: what goes wrong is then told to the caller.
        team.serve.compile("(int64, int64, int64)")
        team.book.compile("(int64, int64, int64)")

    def gather(self, call: object, threads: int, microseconds: float) -> int:
        """How many threads, the caller's among them, will run a job of `call`, which has the team from here on.

        One where the team has another owner, or cannot be started; where it is asleep and the work not worth the wait:
        it is then woken all the same, for the call after this one. Fewer than asked for, for a while, after some had no
        core because another library's threads are on it (kernels/cpu/threads.py).
        """
        threads = min(threads, self.MOST)
        if threads < 2 or self._ended or self.claims.setdefault(OWNER, call) is not call:
            return 1
        return self._ready(threads, microseconds)

    def _ready(self, threads: int, microseconds: float) -> int:
        """How many threads are there to work, of a team that is taken."""
        asked = threads
        if self._spell and time.monotonic() < self._spell_ends:
            threads = min(threads, self._fewer)
        before = len(self._workers)
        threads = self._started(threads)
        if threads < 2:
            return 1
        patience, new = microseconds * AWAITED_PART, len(self._workers) > before
        found = self._kernels.book(self.address, threads, int(1e3 * max(AWAITED_WOKEN if new else AWAITED, patience)))
        while found == self._kernels.SOME_ASLEEP:  # twice where one was falling asleep
            self._wake(threads)
            if microseconds < WOKEN_FROM:
                return 1
            found = self._kernels.book(self.address, threads, int(1e3 * max(AWAITED_WOKEN, patience)))
        if found == threads:
            if self._spell and threads == asked and threads > self._fewer:
                self._spell = self._spell / 2 if self._spell > SPELLS[0] else 0.0
            return threads
        robbed, present = divmod(found, self._kernels.CROWDED)
        if not robbed and time.monotonic() < self._woken + 1e-6 * AWAITED_WOKEN:
            return present  # the others are on their way
        self._fewer = max(1, min(present, threads - robbed))
        again = 2 * self._spell if robbed else self._spell
        self._spell = min(max(again, SPELLS[0], SPELL_LOSSES * 1e-9 * self._losses()), SPELLS[1])
        # What was lost in a job, was by its end: it may be long ago. Who does not answer has no core now.
        now = time.monotonic()
        self._spell_ends = (self.dismissed if present == threads else now) + self._spell
        return self._fewer if now < self._spell_ends else present

    def _losses(self) -> int:
        """For how many nanoseconds a thread had no core in earlier jobs, at most. They are dealt with by this."""
        first, line = (self._kernels.ASLEEP + self._kernels.ROBBED) // 8, self._kernels.LINE // 8
        losses = self._state[first : first + line * (len(self._workers) + 1) : line]
        most = int(losses.max())
        losses[...] = 0
        return most

    def _wake(self, threads: int) -> None:
        for k in range(1, threads):
            flag = (self._kernels.ASLEEP + self._kernels.LINE * k) // 8 + 1
            if self._state[flag]:
                self._rouse(k)  # once too often, if interrupted here: the thread looks for a job in vain
                self._state[flag] = 0
        self._woken = time.monotonic()

    def _rouse(self, k: int) -> None:
        if self._beds[k].locked():  # what locks it is the thread alone, and what releases it this
            self._beds[k].release()

    def _started(self, threads: int) -> int:
        """Starts those that are missing. How many there are: fewer where the system gives no more."""
        while len(self._workers) < threads - 1:
            k = len(self._workers) + 1
            self._beds.append(threading.Lock())
            self._beds[k].acquire(blocking=False)
            worker = threading.Thread(target=self._work, args=(k,), name=f"rnnkit-{k}", daemon=True)
            try:
                worker.start()
            except RuntimeError as problem:
                if "start new thread" not in str(problem):  # of a signal handler
                    self.broken = True
                    raise
                self._beds.pop()  # none can be started any more: the interpreter is shutting down
                return k
            except BaseException:  # it may run all the same, and a second of its number must not
                self.broken = True
                raise
            self._workers.append(worker)
        return threads

    def _work(self, k: int) -> None:
        seen = 0
        while not self._ended:
            seen = self._kernels.serve(self.address, k, seen)
            self._beds[k].acquire()

    def end(self) -> None:
        """Before the interpreter ends: none is left in native code, where it could not be stopped."""
        self._ended = True
        for k in range(len(self._beds)):
            self._rouse(k)
        until = time.monotonic() + 1.0
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))


_team: Team | None = None
_starting = threading.Lock()


def the_team() -> Team:
    """The process's team, made at the first need."""
    global _team
    team = _team
    if team is None or team.broken:
        with _starting:
            if _team is None or _team.broken:
                _team = Team()
            team = _team
    return team


def run(threads: int, microseconds: float, launch: Any) -> None:
    """launch(team's address, members), with as many threads as can be had; see `Team.gather`."""
    if threads < 2:
        launch(0, 1)
        return
    team = the_team()
    claims = team.claims
    members = 0
    try:
        members = team.gather(launch, threads, microseconds)
        if members > 1:
            launch(team.address, members)
    finally:
        # Nothing is called before the team is free again: see the module's docstring. The threads may sleep then.
        if OWNER in claims and claims[OWNER] is launch:
            team.booked[0] = 0
            del claims[OWNER]
    if members > 1:
        team.dismissed = time.monotonic()
    else:
        launch(0, 1)


def _start_anew() -> None:
    """In a forked child: its parent's threads do not exist there, and its locks may be held by them."""
    global _team, _starting
    _team, _starting = None, threading.Lock()


def _end() -> None:
    if _team is not None and not sys.is_finalizing():
        _team.end()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
