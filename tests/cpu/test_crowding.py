"""Preempted threads get no part of a job: the results of ready checks, and the division of later calls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

import rnnkit
from rnnkit.backends.numba import layer as backend
from rnnkit.core import thread_pool
from rnnkit.kernels.cpu import threads as kernels
from rnnkit.kernels.cpu.arguments import Shape
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.memory import store_word
from rnnkit.kernels.cpu.system import clock_ns, current_core
from tests.helpers import share_everything

WORD, SHAPE = 8, Shape._fields


@entry(("test", "ends"))
def ends(own, took, lost, members):
    """The end of a job of `took` ns in which its thread was off-CPU for `lost` ns."""
    now, worked = clock_ns(False), clock_ns(True)
    kernels.note_preemption(own, now - took, worked - (took - lost), members)


@entry(("test", "meets"))
def meets(state):
    """This thread's core, and its core after it has found that the caller is recorded on the same core."""
    before = current_core()
    store_word(state + kernels.ASLEEP + kernels.CORE, before + 1)
    kernels.note_own_core(state, 1)
    return before, current_core()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[thread_pool.ThreadPool]:
    """A pool of three threads for this test, with long timeouts of ready checks."""
    share_everything(monkeypatch, 3)
    pool = thread_pool.ThreadPool()
    monkeypatch.setattr(thread_pool, "_pool", pool)
    yield pool
    pool.shutdown()


def mark_preempted(pool: thread_pool.ThreadPool, *threads: int) -> None:
    """Records a preemption of these threads, as they do after a job."""
    for k in threads:
        pool._state[(kernels.ASLEEP + kernels.LINE * k + kernels.PREEMPTED) // WORD] = 1


def release(pool: thread_pool.ThreadPool) -> None:
    """Releases the threads, as `run_on_pool` does after a job."""
    pool.reserved[0] = 0
    pool.released_at = time.monotonic()


def reserved_threads(pool: thread_pool.ThreadPool, threads: int = 3) -> int:
    found = pool.reserve("call", threads, 1e4)
    if found > 1:
        release(pool)
    pool.claims.clear()
    return found


def unanswered(members: int) -> tuple[int, np.ndarray]:
    """The address and memory of a pool state whose workers are awake and never answer."""
    state = np.zeros(kernels.state_bytes(members) // WORD + kernels.LINE // WORD, np.int64)
    return int(-(-state.ctypes.data // kernels.LINE) * kernels.LINE), state


def test_workers_that_do_not_answer_are_not_reserved():
    address, _room = unanswered(4)
    assert kernels.reserve(address, 4, 5000) == 1
    assert kernels.reserve(address, 4, 0) == 1


def test_answers_to_an_earlier_ready_check_do_not_count():
    address, room = unanswered(4)
    words = room[(address - room.ctypes.data) // WORD :]
    line = [(kernels.ASLEEP + kernels.LINE * k) // WORD for k in range(4)]
    heard, place = kernels.ANSWERED // WORD, kernels.RANK // WORD
    following = ((int(words[0]) >> kernels.COUNT_BITS) + 1) << kernels.COUNT_BITS | kernels.READY_CHECK | 4
    words[line[1] + heard] = words[line[3] + heard] = following
    assert kernels.reserve(address, 4, 1000) == 3
    places = [int(words[k + place]) - following for k in line]
    assert (places[1], places[3]) == (1, 2)  # numbered without the missing worker
    assert places[2] < 0
    assert kernels.reserve(address, 4, 1000) == 1  # its answer was to the earlier ready check


def test_all_workers_are_reserved_and_some_are_woken(pool):
    for pause in (0.0, 0.0, 0.3):  # the last time from sleep
        time.sleep(pause)
        assert reserved_threads(pool) == 3


def test_a_preempted_thread_is_omitted_during_the_backoff(pool, monkeypatch):
    monkeypatch.setattr(thread_pool, "BACKOFF_S", (50.0, 150.0))
    assert reserved_threads(pool) == 3
    mark_preempted(pool, 2)
    assert reserved_threads(pool) == 2
    assert (reserved_threads(pool), pool._backoff) == (2, 50)
    mark_preempted(pool, 1)
    assert (reserved_threads(pool), pool._backoff) == (1, 100)
    assert reserved_threads(pool, 2) == 1
    mark_preempted(pool, 1, 2)
    assert reserved_threads(pool) == 1  # works alone, without a ready check
    pool._backoff_until = 0.0
    assert (reserved_threads(pool), pool._backoff) == (
        1,
        150,
    )  # a ready check of all; two were preempted
    pool._backoff_until = 0.0
    assert (reserved_threads(pool), pool._backoff) == (3, 75)  # all are ready
    assert (reserved_threads(pool), pool._backoff) == (3, 37.5)
    assert (reserved_threads(pool), pool._backoff) == (3, 0)


@pytest.mark.slow
def test_results_are_the_same_on_oversubscribed_cores(pool, monkeypatch):
    monkeypatch.setattr(thread_pool, "BACKOFF_S", (0.01, 0.02))
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.random.default_rng(0).standard_normal((20, 3, 16)).astype(np.float32)
    want, want_dx = layer(x)[0], layer.backward(np.ones((20, 3, 64), np.float32))[0]
    for preempted in ((1,), (), (2,), (1, 2), (), ()):
        mark_preempted(pool, *preempted)
        np.testing.assert_array_equal(layer(x)[0], want)
        np.testing.assert_array_equal(layer.backward(np.ones((20, 3, 64), np.float32))[0], want_dx)


def test_the_lost_time_determines_the_backoff(pool, monkeypatch):
    monkeypatch.setattr(thread_pool, "BACKOFF_S", (0.5, 100.0))
    assert reserved_threads(pool) == 3
    mark_preempted(pool, 0)  # the caller itself
    assert (reserved_threads(pool), pool._backoff) == (2, 0.5)
    pool._state[(kernels.ASLEEP + kernels.LINE + kernels.PREEMPTED) // WORD] = 2_000_000_000
    assert (reserved_threads(pool), pool._backoff) == (1, 4.0)


def test_time_lost_long_ago_does_not_start_a_backoff(pool, monkeypatch):
    monkeypatch.setattr(thread_pool, "BACKOFF_S", (0.05, 100.0))
    assert reserved_threads(pool) == 3
    mark_preempted(pool, 2)
    time.sleep(0.1)
    assert (reserved_threads(pool), pool._backoff) == (
        3,
        0.05,
    )  # the core counts as free until the next preemption
    mark_preempted(pool, 2)
    assert (reserved_threads(pool), pool._backoff) == (2, 0.1)


def test_small_calls_do_not_end_a_backoff(pool, monkeypatch):
    monkeypatch.setattr(thread_pool, "BACKOFF_S", (50.0, 150.0))
    assert reserved_threads(pool) == 3
    mark_preempted(pool, 2)
    for asked in (3, 2, 2, 2):
        assert (reserved_threads(pool, asked), pool._backoff) == (2, 50)


def test_an_unresponsive_worker_is_omitted_and_the_others_work(pool, monkeypatch):
    """A worker no longer responds. The workers after it move up."""
    assert reserved_threads(pool) == 3
    layer = rnnkit.LSTM(16, 64, backend="numba", rng=0)
    x = np.random.default_rng(0).standard_normal((20, 6, 16)).astype(np.float32)
    want = layer(x)[0]
    until = time.monotonic() + 60
    while not all(pool._state[(kernels.ASLEEP + kernels.LINE * k) // WORD] for k in (1, 2)):
        assert time.monotonic() < until, "the workers do not sleep"
        time.sleep(0.01)
    pool._take_losses()  # drops losses to other programs, which this test is not about
    pool._backoff = 0.0
    signal = pool._signal_wakeup
    monkeypatch.setattr(pool, "_signal_wakeup", lambda k: None if k == 1 else signal(k))
    for name in ("READY_WAIT_US", "WOKEN_WAIT_US"):
        monkeypatch.setattr(thread_pool, name, 2e5)
    monkeypatch.setattr(thread_pool, "BACKOFF_S", (50.0, 150.0))
    present = []
    launch = backend.launch_forward

    def counted(state, job, words, *rest):
        present.append(int(words[SHAPE.index("groups")] * words[SHAPE.index("members")]))
        return launch(state, job, words, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(backend, "launch_forward", counted)
        np.testing.assert_array_equal(layer(x)[0], want)
    monkeypatch.undo()
    pool._signal_wakeup(1)
    assert present == [2]
    assert pool._reduced == 2


@pytest.mark.parametrize(
    ("took_ms", "lost_ms", "members", "noted"),
    [(900, 600, 2, True), (900, 300, 2, False), (900, 300, 4, True), (900, 150, 4, False)],
)
def test_a_preemption_is_recorded_if_one_thread_fewer_would_be_as_fast(took_ms, lost_ms, members, noted):
    address, room = unanswered(1)
    ends(address, int(1e6 * took_ms), int(1e6 * lost_ms), members)
    recorded = int(room[(address - room.ctypes.data + kernels.PREEMPTED) // WORD])
    assert (recorded > 0) == noted
    assert not noted or recorded == pytest.approx(1e6 * lost_ms, rel=0.5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs threads bound to a core")
def test_a_thread_detects_its_preemption(pool):
    """All threads on one core: each is preempted for a part of a long job, which the workers record."""
    layer = rnnkit.LSTM(64, 256, backend="numba", rng=0)
    x = np.ones((200, 30, 64), np.float32)
    want = layer(x)[0]
    cores = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    try:
        for task in tasks:
            os.sched_setaffinity(task, {min(cores)})
        np.testing.assert_array_equal(layer(x)[0], want)
        preempted = [pool._state[(kernels.ASLEEP + kernels.LINE * k + kernels.PREEMPTED) // WORD] for k in (0, 1, 2)]
    finally:
        for task in tasks:
            os.sched_setaffinity(task, cores)
    assert max(preempted) > kernels.PREEMPTED_NS


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs the numbers of cores")
def test_a_thread_moves_from_a_core_that_another_member_uses():
    address, room = unanswered(2)
    noted = (address - room.ctypes.data + kernels.ASLEEP + kernels.LINE + kernels.CORE) // WORD
    usable = os.sched_getaffinity(0)
    parted = 0
    for _ in range(20):
        before, after = meets(address)
        assert room[noted] > 0
        parted += before != after
    assert os.sched_getaffinity(0) == usable  # the affinity is unchanged, so it may return
    assert parted > 15 or len(usable) == 1
    os.sched_setaffinity(0, {min(usable)})
    try:
        assert meets(address) == (min(usable), min(usable))
        assert os.sched_getaffinity(0) == {min(usable)}
        assert room[noted] == min(usable) + 1
    finally:
        os.sched_setaffinity(0, usable)
